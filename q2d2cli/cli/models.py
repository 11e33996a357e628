"""`q2d2 models`: what is available here, with rates, sizes and measured quality. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from q2d2cli.cli.common import Json

RECORDING_RATE = 48_000
"""Sample rate, Hz, that latencies are given for."""


def models(as_json: Json = False) -> int:
    """List the models that are here."""
    from q2d2cli.checkpoints import DEFAULT_MODEL, available, newest
    from q2d2cli.latency import latency

    chosen = newest(DEFAULT_MODEL)
    rows = []
    for checkpoint in available():
        config = checkpoint.config
        lag = latency(config, RECORDING_RATE)
        rows.append(
            {
                "name": config.name,
                "default": chosen is not None and checkpoint.folder == chosen.folder,
                "kbit_per_second": round(config.bit_rate / 1000, 3),
                "tokens_per_second": round(config.frame_rate, 2),
                "sample_rate": config.sample_rate,
                "grid": config.quantizer.kind,
                "levels": list(config.quantizer.levels),
                "megabytes": round(checkpoint.weights.stat().st_size / 1e6, 1),
                "latency": None if lag is None else {**asdict(lag), "total": lag.total, "sample_rate": RECORDING_RATE},
                "fingerprint": checkpoint.fingerprint().hex(),
                "metrics": checkpoint.metrics,
                "folder": str(checkpoint.folder),
            }
        )
    if as_json:
        print(json.dumps(rows))
    else:
        show(rows)
    return 0


def show(rows: list[dict[str, Any]]) -> None:
    """The models as a table."""
    from rich.console import Console
    from rich.table import Table

    from q2d2cli.latency import LIVE_BLOCK_SECONDS

    console = Console()
    if not rows:
        console.print("No models here. Set Q2D2_MODELS to a folder of models, or give --model a Hugging Face Hub id.")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "kbit/s", "tokens/s", "grid, levels", "size", "live", "PESQ", "STOI"):
        table.add_column(name, justify="left" if name in {"model", "grid, levels"} else "right")
    for row in rows:
        table.add_row(
            row["name"] + (" (default)" if row["default"] else ""),
            f"{row['kbit_per_second']:.2f}",
            f"{row['tokens_per_second']:.1f}",
            f"{row['grid']} {','.join(map(str, row['levels']))}",
            f"{row['megabytes']:.1f} MB",
            f"{1000 * row['latency']['total']:.0f} ms" if row["latency"] else "-",
            *(f"{row['metrics'][key]:.3f}" if key in row["metrics"] else "-" for key in ("pesq", "stoi")),
        )
    console.print(table)
    console.print(
        f"live: the least lag of encode --live and decode, at {RECORDING_RATE} Hz in blocks of {LIVE_BLOCK_SECONDS} s.",
        style="dim",
    )
    console.print(
        "PESQ and STOI: means over speakers never trained on; each model's README.md says which.", style="dim"
    )
