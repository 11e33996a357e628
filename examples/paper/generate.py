"""Write one training configuration for each row of the paper's tables, and README.md with the list of them.

    python examples/paper/generate.py

`base.yaml` holds what all rows share, `rows.yaml` what makes each row.
"""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any

import yaml

from q2d2cli.models.config import ModelConfig

HERE = Path(__file__).resolve().parent
INTRO = """# Configurations of the paper's tables

One training configuration for each row of Tables 2, 3 (the Q2D2 rows), 4, 8, 9, 10, 11 and 12 of the
[Q2D2 paper](https://arxiv.org/abs/2512.01537), written by `generate.py` from `base.yaml` and `rows.yaml`.
Run one on your own corpus:

    q2d2 train --config examples/paper/NAME.yaml --out runs/NAME --set data.train=... --set data.valid=...

The paper trained Table 2 on about 8,000 hours, Table 3 on 150,000 and the others on the 585 hours of LibriTTS,
for 40 epochs of 3-second crops, 16 at a time; the configurations count the steps of LibriTTS. Bit rates are
computed from the grids. Where the paper does not print what a configuration needs, or prints what does not fit,
the last column says what was chosen. UTMOS, PESQ and STOI are the paper's, on the first test set of each table;
nothing in this table was measured here.

| configuration | table | row | kbit/s | paper's kbit/s | tokens/s | UTMOS | PESQ | STOI | chosen |
|---|---|---|---|---|---|---|---|---|---|
"""


def configuration(base: dict[str, Any], row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and content of a row's configuration."""
    name = f"table{row['table']}-{re.sub('[^a-z0-9]+', '-', str(row['row']).lower()).strip('-')}"
    config = copy.deepcopy(base)
    model = config["model"]
    model["name"] = name
    model["hop"] = math.prod(row["strides"])
    model["encoder"]["strides"] = row["strides"]
    model["quantizer"] |= {"kind": row.get("kind", "rhombic"), "levels": row["levels"], **row.get("options", {})}
    return name, {"model": {"name": name, **model}, **{key: value for key, value in config.items() if key != "model"}}


def files() -> dict[str, str]:
    """Every file to write, by name."""
    base = yaml.safe_load((HERE / "base.yaml").read_text())
    written, lines = {}, []
    for row in yaml.safe_load((HERE / "rows.yaml").read_text()):
        name, config = configuration(base, row)
        head = f"# Table {row['table']}, {row['row']}. Written by generate.py: change base.yaml or rows.yaml instead.\n"
        written[f"{name}.yaml"] = head + yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=110)
        model = ModelConfig.model_validate(config["model"])
        cells = [f"[{name}]({name}.yaml)", str(row["table"]), str(row["row"]), f"{model.bit_rate / 1000:.2f}"]
        cells += [str(row.get("kbps", "")), f"{model.frame_rate:.1f}", *map(str, row["paper"]), row.get("note", "")]
        lines.append(f"| {' | '.join(cells)} |\n")
    written["README.md"] = INTRO + "".join(lines)
    return written


def main() -> None:
    for name, text in files().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
