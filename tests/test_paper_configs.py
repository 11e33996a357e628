"""The configurations of the paper's tables: up to date, valid, and of the bit rates the paper prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT

from q2d2cli.models.model import CodecModel
from q2d2cli.training.config import read_config

PAPER = ROOT / "examples" / "paper"
ROWS = yaml.safe_load((PAPER / "rows.yaml").read_text())


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("generate", PAPER / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.files()


def test_files_are_what_the_generator_writes(generated: dict[str, str]) -> None:
    assert len(generated) == len(ROWS) + 1
    on_disk = {path.name for path in PAPER.iterdir() if path.is_file()} - {"base.yaml", "rows.yaml", "generate.py"}
    assert on_disk == set(generated)
    for name, text in generated.items():
        assert (PAPER / name).read_text() == text, name


def paths() -> list[Path]:
    return sorted(PAPER.glob("table*.yaml"))


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_every_row_builds_at_its_bit_rate(path: Path) -> None:
    config = read_config(path)
    with torch.device("meta"):
        model = CodecModel(config.model)
    assert 70e6 < sum(parameter.numel() for parameter in model.parameters()) < 110e6
    row = next(
        r
        for r in ROWS
        if path.stem.startswith(f"table{r['table']}-") and config.model.quantizer.levels == tuple(r["levels"])
    )
    if "kbps" in row and config.model.quantizer.kind == "rhombic":
        assert config.model.bit_rate / 1000 == pytest.approx(row["kbps"], rel=0.06)
