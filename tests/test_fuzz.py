"""Hostile .q2d files: a few of the mutations that benchmarks/fuzz.py tries, and every file of the fuzzers' corpus."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from fuzz_target import decode_target, target

CORPUS = sorted((ROOT / "tests" / "fuzz").iterdir())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_corpus(path: Path) -> None:
    target(path.read_bytes())
    if path.name.startswith("tiny"):
        decode_target(path.read_bytes())


@pytest.mark.parametrize("coverage", [[], ["--coverage"]], ids=["random", "coverage"])
def test_mutations_end_in_one_clear_error_or_none(coverage: list[str]) -> None:
    if coverage:
        pytest.importorskip("atheris")
    command = [sys.executable, ROOT / "benchmarks" / "fuzz.py", "--mutations", "300", "--decode", "0.1", *coverage]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
