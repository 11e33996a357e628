"""Pages of the site that are made when it is built: start, commands, models, and links between all of them.

A hook of mkdocs (mkdocs.yml names it): what other files of the repository say is shown, not said again.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from q2d2cli.cli import manual

ROOT = Path(__file__).parent.parent
START = "index.md"
COPIES = {
    START: "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
    "paper.md": "examples/paper/README.md",
    "autoencoder.md": "examples/autoencoder/README.md",
    "language-model.md": "examples/language-model/README.md",
    "streaming.md": "examples/streaming/README.md",
}
"""Pages that are files elsewhere in the repository; model cards join them."""
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]*)(?P<place>#[^)]*)?\)")


def copies() -> dict[str, str]:
    """Every page that stands elsewhere in the repository, by its name in the site."""
    cards = sorted((ROOT / "checkpoints").glob("*/README.md"))
    return COPIES | {f"models/{card.parent.name}.md": str(card.relative_to(ROOT)) for card in cards}


def on_config(config: Any) -> Any:
    """Put the model cards into the navigation."""
    for section in config.nav:
        if "Models" in section:
            section["Models"] += [page for page in copies() if page.startswith("models/")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for page, source in copies().items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
        for picture in (ROOT / source).parent.glob("*.svg"):
            if page.startswith("models/"):
                name = posixpath.join(posixpath.dirname(page), f"{Path(page).stem}-{picture.name}")
                files.append(File.generated(config, name, content=picture.read_bytes()))
    files.append(File.generated(config, "commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links to files of the repository become links to their pages; what is no page is named."""
    name = page.file.src_uri
    origin = copies().get(name, f"docs/{name}")
    if name == START:
        markdown = re.sub(r"^# .*\n", "# q2d2: a neural speech codec for the command line\n", markdown, count=1)
    return LINK.sub(lambda match: relinked(match, origin, name, files), markdown)


def relinked(match: re.Match[str], origin: str, page: str, files: Files) -> str:
    """One link of the repository's file `origin` as it stands on a page of the site."""
    text, target, place = match["text"], match["target"], match["place"] or ""
    if not target or "://" in target or target.startswith("mailto:"):
        return match[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    here = {source: name for name, source in copies().items()}
    goal = here.get(path) or here.get(f"{path}/README.md")
    if goal is None and path.startswith("docs/"):
        goal = path.removeprefix("docs/")
    if goal is None and path.startswith("checkpoints/"):
        goal = f"models/{path.split('/')[1]}-{path.split('/')[-1]}"
    if goal is None or files.get_file_from_path(goal) is None:
        return f"{text} (`{path}`)" if path not in text else text
    return f"{match['picture']}[{text}]({posixpath.relpath(goal, posixpath.dirname(page) or '.')}{place})"


def commands() -> str:
    """Every command with its arguments and options, from the commands themselves."""
    parts = ["# Commands\n\n`q2d2 COMMAND --help` says the same. Exit codes: 0 done, 1 the data is bad or the run "
             "failed, 2 the request was wrong.\n"]  # fmt: skip
    for name, command, context in manual.commands("q2d2", manual.root(), None):
        call = name.replace("-", " ")
        parts.append(f"\n{'##' if name.count('-') < 2 else '###'} {call}\n")
        parts.append(block([f"{call} {' '.join(command.collect_usage_pieces(context))}"]))
        texts = [" ".join(text.split()) for text in (command.help or "").replace("\b", "").split("\n\n")]
        for example, group in itertools.groupby(filter(None, texts), manual.is_example):
            lines = list(group)
            parts.append(block(lines) if example else "\n\n".join(map(escaped, lines)) + "\n")
        records = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
        if records:
            parts.append("| argument or option | |\n|---|---|")
            # Typer puts the type of what it parses itself behind a name.
            rows = [(re.sub(r" <[^>]*>$", "", option), " ".join(text.split())) for option, text in records]
            parts += [f"| {code(option)} | {escaped(text)} |" for option, text in rows]
            parts.append("")
    return "\n".join(parts)


def block(lines: list[str]) -> str:
    """Lines of the shell."""
    return "\n".join(["```sh", *lines, "```\n"])


def code(text: str) -> str:
    """As code in a cell of a table."""
    return "`" + text.replace("|", "\\|") + "`"


def escaped(text: str) -> str:
    """Text that has no meaning to Markdown."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
