"""Tags of a .q2d file, comments and pictures, to bytes and back (docs/format.md, "Metadata block"). No torch."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

VENDOR = "q2d2"
"""What wrote the tags, in their own words."""
MAX_TAGS = 2**24
"""Bytes of all tags of a file, pictures included; more is not kept in memory."""
PIECE_BYTES = 16384
"""Payload bytes of a metadata block that is written: windows of parity hold whole blocks."""
NAME = re.compile(r"[\x20-\x3c\x3e-\x7d]+")
"""Names of comments: printable ASCII without = and ~."""
FRONT_COVER = 3
PICTURE_KINDS = (
    "other",
    "file icon",
    "other file icon",
    "front cover",
    "back cover",
    "leaflet page",
    "media",
    "lead artist",
    "artist",
    "conductor",
    "band",
    "composer",
    "lyricist",
    "recording location",
    "during recording",
    "during performance",
    "screen capture",
    "bright coloured fish",
    "illustration",
    "band logo",
    "publisher logo",
)
"""What a picture shows, by its number: ID3's and FLAC's picture types."""


@dataclass(frozen=True)
class Picture:
    """A picture, as FLAC files describe it (RFC 9639, section 8.8).

    Raises:
        ValueError: if a field does not fit the format.
    """

    data: bytes = field(repr=False)
    """The image file as it is."""
    mime: str
    """Media type, `image/jpeg` say; `-->` if `data` is an address."""
    kind: int = FRONT_COVER
    """What it shows: place in `PICTURE_KINDS`."""
    description: str = ""
    width: int = 0
    """Pixels; 0 if not known, as the next three."""
    height: int = 0
    depth: int = 0
    """Bits per pixel."""
    colors: int = 0
    """Of a palette."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\x20-\x7e]*", self.mime):
            raise ValueError(f"media type {self.mime!r} of a picture is not printable ASCII")
        encoded(self.description, "a picture's description")
        for name in ("kind", "width", "height", "depth", "colors"):
            if not 0 <= getattr(self, name) < 2**32:
                raise ValueError(f"{name} {getattr(self, name)} of a picture is out of range")

    @property
    def shows(self) -> str:
        """What it shows, in words."""
        return PICTURE_KINDS[self.kind] if self.kind < len(PICTURE_KINDS) else f"picture of kind {self.kind}"

    def to_bytes(self) -> bytes:
        """The picture as in a FLAC file's picture block: all numbers big-endian."""
        mime, text = self.mime.encode("ascii"), self.description.encode()
        head = struct.pack(">II", self.kind, len(mime)) + mime + struct.pack(">I", len(text)) + text
        numbers = (self.width, self.height, self.depth, self.colors, len(self.data))
        return head + struct.pack(">5I", *numbers) + self.data


@dataclass(frozen=True)
class Tags:
    """What a file says of the recording in it: Vorbis comments and pictures.

    Raises:
        ValueError: if a name or value is none that the format holds, or all together are larger than `MAX_TAGS`.
    """

    comments: tuple[tuple[str, str], ...] = ()
    """Names and values in order; a name may come several times, and its case means nothing."""
    pictures: tuple[Picture, ...] = ()
    vendor: str = VENDOR
    """What wrote them."""

    def __post_init__(self) -> None:
        encoded(self.vendor, "the vendor")
        for name, value in self.comments:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a tag: use printable ASCII without = and ~")
            encoded(value, f"tag {name}")
        size = sum(len(part) for part in self.parts())
        if size > MAX_TAGS:
            raise ValueError(f"tags and pictures have {size} bytes: the format holds {MAX_TAGS}")

    def __bool__(self) -> bool:
        return bool(self.comments or self.pictures)

    def values(self, name: str) -> tuple[str, ...]:
        """All values of the comments with this name, whatever its case."""
        return tuple(value for other, value in self.comments if other.upper() == name.upper())

    def cover(self) -> Picture | None:
        """The front cover, else the first picture; None if there is none."""
        covers = [picture for picture in self.pictures if picture.kind == FRONT_COVER]
        return next(iter([*covers, *self.pictures]), None)

    def parts(self) -> Iterator[bytes]:
        """The Vorbis comment header, and each picture."""
        vendor, *texts = (
            text.encode() for text in (self.vendor, *(f"{name}={value}" for name, value in self.comments))
        )
        head = [struct.pack("<I", len(vendor)), vendor, struct.pack("<I", len(texts))]
        yield b"".join([*head, *(struct.pack("<I", len(text)) + text for text in texts)])
        for picture in self.pictures:
            yield picture.to_bytes()

    def payloads(self) -> list[bytes]:
        """Payloads of the metadata blocks; none if there are no tags. Each picture begins a block."""
        parts = list(self.parts()) if self else []
        return [part[at : at + PIECE_BYTES] for part in parts for at in range(0, len(part), PIECE_BYTES)]


@dataclass(frozen=True)
class TagEdits:
    """What is to become of tags: first some are dropped, then others take the place of those of the same name."""

    keep_comments: bool = True
    keep_pictures: bool = True
    remove: tuple[str, ...] = ()
    """Names of comments to drop, too."""
    comments: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    """These take the place of those of the same kind."""

    def apply(self, tags: Tags) -> Tags:
        """The tags after that.

        Raises:
            ValueError: as `Tags`.
        """
        gone = {name.upper() for name, _ in self.comments} | {name.upper() for name in self.remove}
        kinds = {picture.kind for picture in self.pictures}
        comments = [pair for pair in tags.comments if self.keep_comments and pair[0].upper() not in gone]
        pictures = [picture for picture in tags.pictures if self.keep_pictures and picture.kind not in kinds]
        return replace(tags, comments=(*comments, *self.comments), pictures=(*pictures, *self.pictures))


class TagsReader:
    """Puts the metadata blocks of a file together.

    Attributes:
        problem: what is wrong with them; empty if nothing is.
    """

    def __init__(self) -> None:
        self._data, self._expected, self._open = bytearray(), 0, True
        self.problem = ""

    def add(self, number: int, payload: bytes) -> None:
        """Take a metadata block. Behind one that does not follow the one before, nothing is taken any more."""
        if self._open and number == self._expected and len(self._data) + len(payload) <= MAX_TAGS:
            self._data += payload
            self._expected += 1
            return
        if self._open and number == self._expected:
            self.fail(f"tags of more than {MAX_TAGS} bytes")
        elif self._expected and number == 0:
            self.fail("more than one set of tags: the first counts")
        else:
            self.fail("tags of which a part is missing")

    def fail(self, problem: str) -> None:
        """Take no more blocks, for this reason."""
        self.problem = self.problem or problem
        self._open = False

    def finish(self) -> Tags:
        """The tags, as much as makes sense of them; `problem` says what does not."""
        if not self._expected:
            return Tags()
        tags, problem = parse(bytes(self._data))
        # What is missing explains why the rest makes no sense.
        self.problem = self.problem or problem
        self._data.clear()
        return tags


def parse(data: bytes) -> tuple[Tags, str]:
    """Tags from the payload of all metadata blocks.

    Returns:
        What makes sense of it, and the first thing that does not; empty if all does.
    """
    source, problem = Fields(data), ""
    vendor, comments, pictures = "", list[tuple[str, str]](), list[Picture]()
    try:
        raw = source.piece(source.number("<I"))
        try:
            vendor = raw.decode()
        except UnicodeDecodeError:
            problem = "the tags' vendor is not UTF-8"
        for index in range(source.number("<I")):
            raw = source.piece(source.number("<I"))
            try:
                name, equals, value = raw.decode().partition("=")
            except UnicodeDecodeError:
                problem = problem or f"tag {index + 1} is not UTF-8"
                continue
            if equals and NAME.fullmatch(name):
                comments.append((name, value))
            else:
                problem = problem or f"tag {index + 1} is no NAME=value"
        while source.left:
            try:
                pictures.append(source.picture())
            except ValueError:
                problem = problem or f"picture {len(pictures) + 1} makes no sense"
    except EOFError:
        problem = problem or "tags end too early"
    return Tags(tuple(comments), tuple(pictures), vendor), problem


class Fields:
    """Takes bytes apart from the front; what is not there is an EOFError."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self._data) - self._at

    def piece(self, size: int) -> bytes:
        """So many bytes."""
        if size > self.left:
            raise EOFError
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: str) -> int:
        """One number in `struct`'s form."""
        (value,) = struct.unpack(form, self.piece(struct.calcsize(form)))
        return int(value)

    def picture(self) -> Picture:
        """One picture.

        Raises:
            ValueError: if it is there and its texts are none.
        """
        kind = self.number(">I")
        mime, text = self.piece(self.number(">I")), self.piece(self.number(">I"))
        width, height, depth, colors, size = (self.number(">I") for _ in range(5))
        return Picture(self.piece(size), mime.decode("ascii"), kind, text.decode(), width, height, depth, colors)


def encoded(text: str, what: str) -> bytes:
    """UTF-8 of a text.

    Raises:
        ValueError: if it has none: its bytes were no UTF-8 where it came from.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not UTF-8") from error


def parse_comments(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Comments from `NAME=value` each.

    Raises:
        ValueError: if one is none.
    """
    comments = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise ValueError(f"{text!r} is no tag: write NAME=value, NAME in printable ASCII without ~")
        encoded(value, f"tag {name}")
        comments.append((name, value))
    return tuple(comments)
