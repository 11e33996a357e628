"""The example autoencoder, tiny: every quantizer trains on the digits and gives images back."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import ROOT


def test_every_quantizer_learns_the_digits() -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "autoencoder" / "train.py", "--steps", "25"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["rhombic", "hexagonal", "d4", "fsq", "vq"]
    for kind, _, bits, quality, used in rows:
        assert 38 < float(bits) < 44, kind
        # Black images have 6.2 dB.
        assert float(quality) > 6.5, kind
        assert int(used.split(" of ")[0]) > 1, kind
