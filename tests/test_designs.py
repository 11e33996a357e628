"""The comparison of designs: every one can be trained, at the bits that it claims, and the page shows the record."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from q2d2cli.errors import UsageError

FOLDER = ROOT / "examples" / "designs"
MOST = {3: (20.0, 3400), 1: (19.23, 1030)}
"""Bits of a frame and bits per second of each rate."""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("compare_designs", FOLDER / "compare.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("report")
    return module


def test_designs_can_be_trained_and_differ_in_their_quantizer_alone(compare: ModuleType) -> None:
    rows = compare.rows()
    designs = {row["name"]: row for row in rows if "name" in row}
    assert len(designs) == len([row for row in rows if "channel" not in row])
    measured: dict[str, Any] = {"designs": {name: {"coded": {"recurrent": 15.0}} for name in designs}}
    shared = {}
    for name, row in designs.items():
        config = compare.checked(compare.settings(row, measured), Path("audio"))
        spec = config.model.quantizer.spec()
        bits, rate = MOST[row["rate"]]
        if config.loss.rate_bits is not None:
            assert config.loss.rate_bits < spec.bits_per_frame
            assert ("coded_like" in row) == (config.loss.rate_bits == 15.0)
        else:
            assert spec.bits_per_frame <= bits
            assert 0.94 * rate < config.model.bit_rate <= rate
        same = (config.optim, config.data, config.steps, config.model.encoder.dim, config.model.decoder.layers)
        assert shared.setdefault(row["rate"], same) == same, name
    for row in rows:
        assert set(row.get("channel", ())) <= designs.keys()


def test_what_is_done_is_not_done_again_and_what_cannot_be_done_yet_waits(compare: ModuleType, tmp_path: Path) -> None:
    row = next(row for row in compare.rows() if row.get("name") == "3k-rhombic-8")
    done: dict[str, Any] = {"designs": {row["name"]: {"digest": compare.digest(compare.settings(row, {}))}}}
    assert not compare.one(row, done, tmp_path, [])
    # With other settings it would be trained, if there were audio.
    with pytest.raises(UsageError, match="audio"):
        compare.one({**row, "config": {"seed": 1}}, done, tmp_path, [])
    waiting = next(row for row in compare.rows() if "coded_like" in row)
    with pytest.raises(KeyError):
        compare.one(waiting, {"designs": {}}, tmp_path, [])


def test_page_and_pictures_show_the_record(compare: ModuleType) -> None:
    """`python examples/designs/report.py` would change nothing."""
    record = json.loads(compare.RESULTS.read_text("utf-8"))
    page = compare.report.PAGE.read_text("utf-8")
    text = "\n".join(compare.report.tables(record))
    assert f"<!-- made by examples/designs/report.py -->\n{text}\n<!-- end -->" in page
    for name in {line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")}:
        assert (compare.report.DOCS / name).exists()
