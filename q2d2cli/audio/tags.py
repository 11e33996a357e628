"""Tags of audio files, read and written with mutagen; pictures from files. Imports no torch."""

from __future__ import annotations

import base64
import binascii
import contextlib
import importlib.util
import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from q2d2cli.container.tags import FRONT_COVER, MAX_TAGS, NAME, Picture, Tags
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import open_binary

if TYPE_CHECKING:
    import soundfile

NEEDS = 'pip install "q2d2[tags]"'
TAGGED_FORMATS = frozenset(("FLAC", "OGG", "OPUS", "MP3", "WAV", "AIFF"))
"""Formats, by libsndfile's names, that tags are written into."""
MAX_RIFF = 2**32 - 2**25
"""Bytes of a WAV or AIFF file up to which tags are added: its size is a number of 32 bits."""
PICTURES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG\r\n\x1a\n": "image/png", b"GIF8": "image/gif"}
"""How image files begin."""

# fmt: off
ID3_TEXTS = {
    "TIT2": "TITLE", "TPE1": "ARTIST", "TALB": "ALBUM", "TDRC": "DATE", "TCON": "GENRE", "TPE2": "ALBUMARTIST",
    "TCOM": "COMPOSER", "TPE3": "CONDUCTOR", "TPE4": "REMIXER", "TEXT": "LYRICIST", "TCOP": "COPYRIGHT",
    "TPUB": "ORGANIZATION", "TSRC": "ISRC", "TIT1": "GROUPING", "TIT3": "SUBTITLE", "TBPM": "BPM", "TLAN": "LANGUAGE",
    "TENC": "ENCODED-BY", "TMED": "MEDIA", "TMOO": "MOOD", "TSOP": "ARTISTSORT", "TSOT": "TITLESORT",
    "TSOA": "ALBUMSORT", "TDOR": "ORIGINALDATE",
}
"""Text frames of ID3, and the Vorbis comments that say the same."""
ID3_COUNTS = {"TRCK": ("TRACKNUMBER", "TRACKTOTAL"), "TPOS": ("DISCNUMBER", "DISCTOTAL")}
"""Frames that hold `3/12`, and the comments for either number."""
MP4_TEXTS = {
    "\xa9nam": "TITLE", "\xa9ART": "ARTIST", "\xa9alb": "ALBUM", "\xa9day": "DATE", "\xa9gen": "GENRE",
    "aART": "ALBUMARTIST", "\xa9wrt": "COMPOSER", "\xa9cmt": "COMMENT", "cprt": "COPYRIGHT", "\xa9lyr": "LYRICS",
    "\xa9grp": "GROUPING", "desc": "DESCRIPTION", "tmpo": "BPM",
}
"""Atoms of MP4, and the same."""
MP4_COUNTS = {"trkn": ID3_COUNTS["TRCK"], "disk": ID3_COUNTS["TPOS"]}
MP4_OTHER = "----:com.apple.iTunes:"
"""How atoms of any other name begin."""
PRIVATE = "iTun"
"""How names begin of what a player keeps for itself."""
# fmt: on

Pairs = list[tuple[str, str]]


class PositionedFile(io.RawIOBase):
    """An open file read from a position of its own, so that whoever else reads the descriptor is not disturbed."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._at = descriptor, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As a file's."""
        data = os.pread(self._descriptor, len(buffer), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As a file's."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, os.fstat(self._descriptor).st_size)
        if start + offset < 0:
            raise OSError("a position before the beginning")
        self._at = start + offset
        return self._at


def read_tags(descriptor: int, sound: soundfile.SoundFile) -> tuple[Tags, str]:
    """Tags of an audio file.

    Args:
        descriptor: of the file, which can be sought in; its position stays.
        sound: the same file, whose own texts (RIFF INFO) are taken where mutagen finds none.

    Returns:
        The tags, and why there are none or fewer than the file has; empty if there are all.
    """
    texts = {name: text for name, text in sound.copy_metadata().items() if text and name != "software"}
    if importlib.util.find_spec("mutagen") is None:
        if sound.format != "WAV":
            return Tags(), f"its tags are left out ({NEEDS} copies them)" if texts else ""
        return clean([(name.upper(), text) for name, text in texts.items()], [])
    import mutagen

    try:
        found = mutagen.File(io.BufferedReader(PositionedFile(descriptor)))
        pairs, pictures = of_mutagen(found)
    except Exception as error:
        # Whatever a parser makes of a damaged file: it is no reason not to have the audio.
        return Tags(), f"its tags are left out, they cannot be read: {error or type(error).__name__}"
    if not pairs and sound.format == "WAV":
        pairs = [(name.upper(), text) for name, text in texts.items()]
    return clean(pairs, pictures)


def of_mutagen(found: Any) -> tuple[Pairs, list[Picture]]:
    """Comments and pictures from what mutagen has read; none if that is nothing it knows."""
    from mutagen.flac import Picture as FlacPicture
    from mutagen.id3 import ID3
    from mutagen.mp4 import MP4Tags

    tags = getattr(found, "tags", None)
    if isinstance(tags, ID3):
        return of_id3(tags)
    if isinstance(tags, MP4Tags):
        return of_mp4(tags)
    pictures = [of_flac(picture) for picture in getattr(found, "pictures", [])]
    pairs = list[tuple[str, str]](tags) if isinstance(tags, list) else []  # of FLAC and Ogg
    for name, value in pairs:
        if name.upper() == "METADATA_BLOCK_PICTURE":
            with contextlib.suppress(binascii.Error, ValueError, struct.error, EOFError):
                pictures.append(of_flac(FlacPicture(base64.b64decode(value))))
    return [pair for pair in pairs if pair[0].upper() not in ("METADATA_BLOCK_PICTURE", "COVERART")], pictures


def of_flac(picture: Any) -> Picture:
    """mutagen's picture as ours."""
    size = (picture.width, picture.height, picture.depth, picture.colors)
    return Picture(picture.data, picture.mime, int(picture.type), picture.desc, *size)


def of_id3(tags: Any) -> tuple[Pairs, list[Picture]]:
    """Comments and pictures from ID3."""
    pairs, pictures = list[tuple[str, str]](), list[Picture]()
    for frame in tags.values():
        kind = frame.FrameID
        if kind in ID3_COUNTS:
            number, _, total = str(frame.text[0]).partition("/") if frame.text else ("", "", "")
            pairs += [pair for pair in zip(ID3_COUNTS[kind], (number, total), strict=True) if pair[1]]
        elif kind in ID3_TEXTS:
            texts = frame.genres if kind == "TCON" else frame.text
            pairs += [(ID3_TEXTS[kind], str(text)) for text in texts]
        elif kind == "COMM" and not frame.desc.startswith(PRIVATE):
            pairs += [("COMMENT", text) for text in frame.text]
        elif kind == "USLT":
            pairs.append(("LYRICS", frame.text))
        elif kind == "TXXX" and not frame.desc.startswith(PRIVATE):
            pairs += [(frame.desc.upper(), text) for text in frame.text]
        elif kind == "APIC":
            mime = frame.mime if "/" in frame.mime or frame.mime == "-->" else f"image/{frame.mime.lower()}"
            pictures.append(sized(Picture(frame.data, mime, int(frame.type), frame.desc)))
    return pairs, pictures


def of_mp4(tags: Any) -> tuple[Pairs, list[Picture]]:
    """Comments and pictures from MP4."""
    pairs, pictures = list[tuple[str, str]](), list[Picture]()
    for name, values in tags.items():
        if name in MP4_COUNTS:
            pairs += [(key, str(n)) for pair in values for key, n in zip(MP4_COUNTS[name], pair, strict=False) if n]
        elif name in MP4_TEXTS:
            pairs += [(MP4_TEXTS[name], str(value)) for value in values]
        elif name.startswith(MP4_OTHER) and not (key := name.removeprefix(MP4_OTHER)).startswith(PRIVATE):
            pairs += [(key.upper(), bytes(value).decode(errors="replace")) for value in values]
        elif name == "covr":
            pictures += [sized(Picture(bytes(value), media_type(bytes(value)) or "image/jpeg")) for value in values]
    return pairs, pictures


def clean(pairs: Pairs, pictures: list[Picture]) -> tuple[Tags, str]:
    """What of these the format holds, and what it does not."""
    kept = tuple((name, value) for name, value in pairs if NAME.fullmatch(name) and is_text(value))
    left_out = len(pairs) - len(kept)
    problem = f"{left_out} of its tags are left out: their names or texts are none" if left_out else ""
    left = sorted(pictures, key=lambda picture: len(picture.data))
    while True:
        try:
            return Tags(kept, tuple(picture for picture in pictures if picture in left)), problem
        except ValueError as error:
            if not left:
                return Tags(), f"its tags are left out: {error}"
            size = len(left.pop().data)
            problem = f"a picture of {size} bytes is left out: the format holds {MAX_TAGS} bytes of tags"


def is_text(value: str) -> bool:
    """Whether a text has a UTF-8 form."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def media_type(data: bytes) -> str | None:
    """Media type of an image file, None if it is none of those that are known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((mime for start, mime in PICTURES.items() if data.startswith(start)), None)


def sized(picture: Picture) -> Picture:
    """The picture with its width and height, if that can be known."""
    try:
        import imagesize

        width, height = imagesize.get(io.BytesIO(picture.data))
    except (ImportError, ValueError, struct.error):
        return picture
    return replace(picture, width=width, height=height) if width > 0 and height > 0 else picture


def read_picture(path: Path, kind: int = FRONT_COVER) -> Picture:
    """A picture from an image file.

    Raises:
        UsageError: if there is no such file, it is no JPEG, PNG, GIF or WebP image, or packages are missing.
    """
    if importlib.util.find_spec("imagesize") is None:
        raise UsageError(f"pictures need more packages: {NEEDS}")
    with open_binary(path) as file:
        data = file.read(MAX_TAGS + 1)
    mime = media_type(data)
    picture = sized(Picture(data, mime or "", kind))
    if mime is None or not picture.width:
        raise UsageError(f"{path} is no picture: give a JPEG, PNG, GIF or WebP file")
    return picture


@contextlib.contextmanager
def tagged_at_end(file: BinaryIO, form: str, tags: Callable[[], Tags], warnings: list[str]) -> Iterator[None]:
    """Write tags into a finished audio file when this ends well.

    Args:
        file: open for reading and writing.
        form: its format, libsndfile's name.
        tags: gives the tags when they are known.
        warnings: gets why there are none in it, if so.

    Raises:
        Q2D2Error: if they cannot be written.
    """
    yield
    found = tags()
    if not found or form not in TAGGED_FORMATS:
        return
    if importlib.util.find_spec("mutagen") is None:
        warnings.append(f"its tags are left out ({NEEDS} writes them)")
    elif form in ("WAV", "AIFF") and file.seek(0, os.SEEK_END) > MAX_RIFF:
        warnings.append("its tags are left out: the file is too large for more")
    else:
        write_tags(file, form, found)


def write_tags(file: BinaryIO, form: str, tags: Tags) -> None:
    """Put tags into an audio file of a format that has them, in place of its own.

    Raises:
        Q2D2Error: if mutagen cannot do that.
    """
    import mutagen
    from mutagen.aiff import AIFF
    from mutagen.flac import FLAC
    from mutagen.mp3 import MP3
    from mutagen.oggopus import OggOpus
    from mutagen.oggvorbis import OggVorbis
    from mutagen.wave import WAVE

    kinds: dict[str, Any] = {"FLAC": FLAC, "OGG": OggVorbis, "OPUS": OggOpus, "MP3": MP3, "WAV": WAVE, "AIFF": AIFF}
    try:
        file.seek(0)
        audio = kinds[form](file)
        if audio.tags is None:
            audio.add_tags()
        audio.tags.clear()
        if form in ("MP3", "WAV", "AIFF"):
            for frame in id3_frames(tags):
                audio.tags.add(frame)
        else:
            if form == "FLAC":
                audio.clear_pictures()
            audio.tags.extend(tags.comments)
            for picture in map(flac_picture, tags.pictures):
                if form == "FLAC":
                    audio.add_picture(picture)
                else:
                    audio.tags.append(("METADATA_BLOCK_PICTURE", base64.b64encode(picture.write()).decode()))
        file.seek(0)
        audio.save(file)
    except mutagen.MutagenError as error:
        raise Q2D2Error(f"the tags cannot be written: {error}; q2d2 tag --clear removes them") from error


def flac_picture(picture: Picture) -> Any:
    """Our picture as mutagen's."""
    from mutagen.flac import Picture as FlacPicture

    return FlacPicture(picture.to_bytes())


def id3_frames(tags: Tags) -> Iterator[Any]:
    """Tags as ID3 frames: what has no frame of its own becomes one of the user's texts."""
    from mutagen import id3

    values: dict[str, list[str]] = {}
    for name, value in tags.comments:
        values.setdefault(name.upper(), []).append(value)
    for kind, names in ID3_COUNTS.items():
        number, total = (values.pop(name, [""])[0] for name in names)
        if number or total:
            yield getattr(id3, kind)(encoding=3, text=f"{number}/{total}" if total else number)
    frames = {name: kind for kind, name in ID3_TEXTS.items()}
    for name, texts in values.items():
        if name in frames:
            yield getattr(id3, frames[name])(encoding=3, text=texts)
        elif name == "COMMENT":
            yield id3.COMM(encoding=3, lang="XXX", desc="", text=texts)
        elif name == "LYRICS":
            yield id3.USLT(encoding=3, lang="XXX", desc="", text="\n\n".join(texts))
        else:
            yield id3.TXXX(encoding=3, desc=name, text=texts)
    descriptions = set[str]()
    for picture in tags.pictures:
        text = picture.description
        while text in descriptions:  # which must not be the same twice
            text += " "
        descriptions.add(text)
        yield id3.APIC(encoding=3, mime=picture.mime, type=min(picture.kind, 20), desc=text, data=picture.data)
