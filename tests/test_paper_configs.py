"""The configurations of the paper's tables: up to date, valid, and of the bit rates the paper prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import CLIP, ROOT

from q2d2cli.models.model import CodecModel
from q2d2cli.training.config import read_config
from q2d2cli.training.data import open_corpus
from q2d2cli.training.trainer import Trainer

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


@pytest.mark.slow
def test_full_size_model_trains(tmp_path: Path) -> None:
    """Two real steps of table 2's 1 kbit/s model with all its discriminators, on a short crop."""
    (tmp_path / "clip.wav").write_bytes(CLIP.read_bytes())
    short = [f"data.train={tmp_path}", f"data.valid={tmp_path}", "data.crop_seconds=0.3", "optim.batch_size=1"]
    config = read_config(PAPER / "table2-q2d2-1-kbps.yaml", [*short, "discriminator.crop_seconds=0.15", "bf16=false"])
    trainer = Trainer(config, Accelerator(cpu=True))
    assert set(trainer.discriminator.weights) == {"period", "resolution", "band"}
    assert trainer.model.encoder.lstm is not None
    assert trainer.model.decoder.pos_net is not None
    named = [("model", *item) for item in trainer.model.named_parameters()]
    named += [("discriminator", *item) for item in trainer.discriminator.named_parameters()]
    before = {(part, name): p.detach().clone() for part, name, p in named}
    corpus = open_corpus(config.data, config.model.sample_rate, "cpu")
    audio = corpus.crops(1, int(0.3 * config.model.sample_rate), config.data, trainer.rng)
    for _ in range(2):
        losses, indices = trainer.train_step(audio)
        assert set(losses) == {"mel", "stft", "d", "adv", "fm"}
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert indices.shape == (1, 16, 3)
    assert (trainer.step, trainer.skipped, trainer.adversarial_steps) == (2, 0, 2)
    # Biases aside: a hinge loss that is nowhere satisfied pulls the last ones both ways alike.
    still = [(part, name) for part, name, p in named if p.ndim > 1 and torch.equal(before[part, name], p)]
    assert not still


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
