"""The documentation: promises name tests that exist, and what it shows is run."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
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
    soundfile.write(tmp_path / "talk.wav", clip[0][:48_000], clip[1])
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
