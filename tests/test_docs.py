"""The documentation: promises name tests that exist, what it shows is run, and the site is built strictly."""

from __future__ import annotations

import ast
import contextlib
import doctest
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import ROOT, Run

DOCS = ROOT / "docs"
NAMED = re.compile(r"`(tests/\w+\.py)::(\w+)`")


def test_every_promise_names_tests_that_exist() -> None:
    text = (DOCS / "promises.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "held by" not in line]
    assert len(rows) > 30
    for row in rows:
        assert NAMED.search(row), f"a promise without a test: {row}"
    functions = {}
    for path, name in NAMED.findall(text):
        if path not in functions:
            tree = ast.parse((ROOT / path).read_text("utf-8"))
            functions[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions[path], f"{path} has no {name}"
    assert text.count("`tests/") == len(NAMED.findall(text))


def test_answers_are_what_happens(call: Run, clip: tuple[np.ndarray, int], tmp_path: Path) -> None:
    """The blocks of docs/questions.md, one after the other in one folder."""
    soundfile.write(tmp_path / "talk.wav", clip[0][:32_000], clip[1])
    text = (DOCS / "questions.md").read_text("utf-8")
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 8
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        for kind, code in blocks:
            if kind == "python":
                exec(compile(code, f"<{code}>", "exec"), names)
                continue
            for line in code.splitlines():
                result = call(*shlex.split(line)[1:])
                assert result.returncode == 0, (line, result.stderr)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", (DOCS / page).read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (DOCS / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize(
    "module", ["", ".codec", ".waveforms", ".quantizers", ".quantizers.q2d2", ".quantizers.base", ".quantizers.spec"]
)
def test_examples_in_docstrings(module: str, tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        result = doctest.testmod(importlib.import_module(f"q2d2cli{module}"))
    assert result.failed == 0
    assert result.attempted > 1


def test_examples_on_pages(tmp_path: Path) -> None:
    assert doctest.testfile(str(DOCS / "method.md"), module_relative=False).failed == 0
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    with contextlib.chdir(tmp_path):
        exec(compile(code, f"<{code}>", "exec"), {})
    assert (tmp_path / "speech.q2d").is_file()


def test_pictures_are_those_of_their_script() -> None:
    spec = importlib.util.spec_from_file_location("grids", DOCS / "grids.py")
    assert spec is not None
    assert spec.loader is not None
    grids = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grids)
    number = re.compile(r"-?\d+\.\d+")
    for name, draw in grids.PICTURES.items():
        there, made = (DOCS / name).read_text("utf-8"), draw()
        assert number.sub("", there) == number.sub("", made), f"run docs/grids.py: {name} has changed"
        assert np.allclose([*map(float, number.findall(there))], [*map(float, number.findall(made))], atol=0.11)


def test_the_site_is_built_strictly_and_asks_no_other_host(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert built.returncode == 0, built.stderr
    commands = (tmp_path / "commands.html").read_text("utf-8")
    for word in ("q2d2 encode", "q2d2 models pull", "q2d2 demo", "--effort", "--conceal", "--packet-loss"):
        assert word in commands
    reference = (tmp_path / "reference.html").read_text("utf-8")
    for word in ("from_pretrained", "encode_batch", "stream_encoder", "indices_to_tokens", "UsageError"):
        assert word in reference
    cards = {path.parent.name for path in (ROOT / "checkpoints").glob("*/README.md")}
    assert {path.stem for path in (tmp_path / "models").glob("*.html")} == cards
    for page in tmp_path.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.search(r"<(?:script|img|iframe)[^>]*src=.?https?:", text), page
        assert not re.search(r"<link[^>]*rel=.?(?:stylesheet|preconnect)[^>]*href=.?https?:", text), page
