"""Manual pages of all commands, made from what the commands say of themselves.

python -m q2d2cli.cli.manual ~/.local/share/man/man1
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from q2d2cli import __version__
from q2d2cli.cli import app

EXIT_CODES = (("0", "done"), ("1", "the data is bad or the run failed"), ("2", "the request was wrong"))


def pages() -> dict[str, str]:
    """Text of every page by its file name, `q2d2.1` and one for each command."""
    return {f"{name}.1": page(name, command, context) for name, command, context in commands("q2d2", root(), None)}


def root() -> Any:
    """The `q2d2` command itself, as Click sees it."""
    return typer.main.get_command(app)


def commands(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name (`q2d2-encode`), command and context of a command and of those below it."""
    context = command.make_context(name.rsplit("-", 1)[-1], [], parent=parent, resilient_parsing=True)
    yield name, command, context
    for below in getattr(command, "commands", {}).values():
        yield from commands(f"{name}-{below.name}", below, context)


def page(name: str, command: Any, context: Any) -> str:
    """The manual page of one command, in man(7)'s language."""
    paragraphs = [" ".join(text.split()) for text in (command.help or "").replace("\b", "").split("\n\n")]
    what, *more = [text for text in paragraphs if text]
    call = context.command_path
    lines = [
        f'.TH {name.upper()} 1 "" "q2d2 {__version__}"',
        ".SH NAME",
        f"{plain(name)} \\- {plain(what.rstrip('.'))}",
    ]
    lines += [".SH SYNOPSIS", f".B {plain(call)}", plain(" ".join(command.collect_usage_pieces(context)))]
    lines += [".SH DESCRIPTION", plain(what)]
    for text in more:
        lines += [".PP", ".EX", plain(text), ".EE"] if is_example(text) else [".PP", plain(text)]
    records = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    if records:
        lines.append(".SH OPTIONS")
        for option, text in records:
            lines += [".TP", f".B {plain(option)}", plain(text) or "\\&"]
    below = getattr(command, "commands", {})
    if below:
        lines.append(".SH COMMANDS")
        for other in below.values():
            lines += [".TP", f".BR {plain(f'{name}-{other.name}')} (1)", plain(other.get_short_help_str(200))]
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_CODES:
        lines += [".TP", f".B {code}", meaning]
    if name != "q2d2":
        lines += [".SH SEE ALSO", ".BR q2d2 (1)"]
    return "\n".join(lines) + "\n"


def is_example(text: str) -> bool:
    """Whether a paragraph of a command's help is a command itself."""
    return text.startswith("q2d2 ") or "| q2d2 " in text


def plain(text: str) -> str:
    """Text that has no meaning to troff."""
    text = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text


def main() -> None:
    """Write the pages into the folder that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m q2d2cli.cli.manual FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)
    print(f"{len(pages())} pages in {folder}")


if __name__ == "__main__":
    main()
