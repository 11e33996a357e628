"""`q2d2 tag`: shows and changes the tags of .q2d files without encoding again. Needs no model and imports no torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q2d2cli.cli.common import Force, named
from q2d2cli.errors import Q2D2Error, UsageError, report, say
from q2d2cli.files import PIPE, atomic_output, check_output, descriptor, open_binary

if TYPE_CHECKING:
    from q2d2cli.container.tags import Picture, TagEdits, Tags

PANEL = "Tags"
Texts = list[str] | None
Title = Annotated[Texts, typer.Option("--title", help="Title.", show_default=False, rich_help_panel=PANEL)]
Artist = Annotated[Texts, typer.Option("--artist", help="Artist.", show_default=False, rich_help_panel=PANEL)]
Album = Annotated[Texts, typer.Option("--album", help="Album.", show_default=False, rich_help_panel=PANEL)]
Date = Annotated[Texts, typer.Option("--date", help="Date, 2026-11-28 say.", show_default=False, rich_help_panel=PANEL)]
Genre = Annotated[Texts, typer.Option("--genre", help="Genre.", show_default=False, rich_help_panel=PANEL)]
Track = Annotated[
    Texts, typer.Option("--tracknumber", help="Number on the album.", show_default=False, rich_help_panel=PANEL)
]
Comment = Annotated[
    Texts,
    typer.Option(
        "--comment",
        metavar="NAME=VALUE",
        help="Any other tag. All these options may be repeated, and take the place of what there is of the name.",
        show_default=False,
        rich_help_panel=PANEL,
    ),
]
Pictures = Annotated[
    list[Path] | None,
    typer.Option(
        "--picture",
        help="Front cover: a JPEG, PNG, GIF or WebP file.",
        show_default=False,
        rich_help_panel=PANEL,
        parser=named,
        metavar="FILE",
    ),
]


def tag(
    paths: Annotated[list[Path], typer.Argument(help="One or more .q2d files.", show_default=False, parser=named)],
    title: Title = None,
    artist: Artist = None,
    album: Album = None,
    date: Date = None,
    genre: Genre = None,
    tracknumber: Track = None,
    comment: Comment = None,
    picture: Pictures = None,
    remove: Annotated[
        Texts, typer.Option("--remove", metavar="NAME", help="Remove the tags of a name.", show_default=False)
    ] = None,
    remove_pictures: Annotated[bool, typer.Option("--remove-pictures", help="Remove all pictures.")] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all tags and pictures before others are set.")] = False,
    export_picture: Annotated[
        Path | None,
        typer.Option(
            "--export-picture",
            metavar="FILE",
            help="Write the cover that is there to a file; - is standard output.",
            show_default=False,
            parser=named,
        ),
    ] = None,
    force: Force = False,
) -> int:
    """Show the tags of .q2d files, or change them: the audio stays as it is, byte for byte.

    q2d2 tag talk.q2d

    q2d2 tag --title "A talk" --comment COMMENT="Second take" --picture cover.jpg talk.q2d

    q2d2 tag --export-picture cover.jpg talk.q2d
    """
    texts = named_texts(title, artist, album, date, genre, tracknumber)
    edits = edits_of(texts, comment, picture, not clear, not (clear or remove_pictures), remove)
    if export_picture is not None:
        if len(paths) > 1:
            raise UsageError("--export-picture writes one file: name one .q2d file")
        check_output(export_picture, force, paths[0])
    code = 0
    for path in paths:
        try:
            if edits is None and export_picture is None:
                code = max(code, show(path, f"{path}: " if len(paths) > 1 else ""))
            if export_picture is not None:
                export(path, export_picture)
            if edits is not None:
                change(path, edits)
        except Q2D2Error as error:
            if len(paths) == 1:
                raise
            report(error)
            code = max(code, error.exit_code)
    return code


def named_texts(title: Texts, artist: Texts, album: Texts, date: Texts, genre: Texts, track: Texts) -> Sequence[str]:
    """`NAME=value` of the options with names of their own."""
    given = {"TITLE": title, "ARTIST": artist, "ALBUM": album, "DATE": date, "GENRE": genre, "TRACKNUMBER": track}
    return [f"{name}={text}" for name, texts in given.items() for text in texts or ()]


def edits_of(
    texts: Sequence[str],
    comment: Texts,
    picture: list[Path] | None,
    keep_comments: bool = True,
    keep_pictures: bool = True,
    remove: Texts = None,
) -> TagEdits | None:
    """What the options ask for; None if for nothing.

    Raises:
        UsageError: if a text or picture is none.
    """
    from q2d2cli.audio.tags import read_picture
    from q2d2cli.container.tags import TagEdits, parse_comments

    try:
        comments = parse_comments([*texts, *(comment or ())])
    except ValueError as error:
        raise UsageError(str(error)) from error
    pictures = tuple(map(read_picture, picture or ()))
    edits = TagEdits(keep_comments, keep_pictures, tuple(remove or ()), comments, pictures)
    return None if edits == TagEdits() else edits


def read(path: Path) -> bytes:
    """All of a .q2d file, mended if it has parity."""
    from q2d2cli.container.mending import Mended

    with Mended(open_binary(path)) as file:
        return file.read()


def show(path: Path, prefix: str) -> int:
    """Print a file's comments, and what pictures there are on standard error; returns the exit code."""
    tags, problems = tags_of(path)
    for name, value in tags.comments:
        print(f"{prefix}{name}={printable(value)}")
    for picture in tags.pictures:
        say(f"{prefix}{picture_line(picture)}")
    if not tags and not problems:
        say(f"{prefix}no tags")
    for problem in problems:
        report(f"{path} is damaged: {problem}")
    return Q2D2Error.exit_code if problems else 0


def tags_of(path: Path) -> tuple[Tags, list[str]]:
    """Tags of a file, damaged or not, and what is wrong with them.

    Raises:
        Q2D2Error: if it is no .q2d file.
    """
    import io

    from q2d2cli.container.header import FormatError
    from q2d2cli.container.stream import Reader

    try:
        reader = Reader(io.BytesIO(read(path)), conceal=True)
        for _ in reader.blocks():
            pass
    except FormatError as error:
        raise FormatError(f"{'standard input' if path == PIPE else path} {error}") from error
    return reader.tags, [str(fault) for fault in reader.faults if fault.kind == "tags"]


def export(path: Path, target: Path) -> None:
    """Write a file's cover.

    Raises:
        Q2D2Error: if it has none.
    """
    picture = tags_of(path)[0].cover()
    if picture is None:
        raise Q2D2Error(f"{path} has no picture")
    with atomic_output(target) as file:
        file.write(picture.data)


def change(path: Path, edits: TagEdits) -> None:
    """Change a file's tags in its place.

    Raises:
        UsageError: if it cannot be written, or the tags are too large.
        Q2D2Error: if it is damaged in anything but its tags.
    """
    from q2d2cli.container.header import FormatError
    from q2d2cli.container.tagging import read_tags, with_tags

    if descriptor(path, 0) is not None:
        raise UsageError("tag changes a file in its place: name one")
    data = read(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) or not mode & 0o222 or not os.access(path, os.W_OK):
        raise UsageError(f"{path} cannot be changed: it is read-only")
    try:
        reader = read_tags(data)
        new = with_tags(data, edits.apply(reader.tags))
    except FormatError as error:
        raise FormatError(f"{path} {error}") from error
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    with atomic_output(path) as file:
        file.write(new)
    for fault in reader.faults:
        report(f"{path} was damaged, {fault}; what could be read of its tags was kept")


def picture_line(picture: Picture) -> str:
    """What a picture is, in one line."""
    size = f", {picture.width} x {picture.height}" if picture.width else ""
    text = f", {printable(picture.description)!r}" if picture.description else ""
    return f"{picture.shows}: {picture.mime}{size}, {len(picture.data)} bytes{text}"


def printable(text: str) -> str:
    """A text in one line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
