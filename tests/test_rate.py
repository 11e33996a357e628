"""The rate term: its bits are those of a code, learn along, and are held where they should be."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import CLIP, TINY
from torch import Tensor

from q2d2cli.audio import read_mono
from q2d2cli.models.model import make_quantizer
from q2d2cli.quantizers import Q2D2, QuantizerSpec
from q2d2cli.training.config import TrainConfig
from q2d2cli.training.loop import make_accelerator
from q2d2cli.training.rate import Rate
from q2d2cli.training.trainer import Trainer

SPECS = [
    QuantizerSpec("rhombic", (5, 3, 3, 3)),
    QuantizerSpec("hexagonal", (3, 3, 4, 4)),
    QuantizerSpec("body-centred", (3, 3, 3)),
    QuantizerSpec("fsq", (4, 3, 2)),
]


def random_rate(spec: QuantizerSpec) -> Rate:
    """One whose densities are as good as any."""
    torch.manual_seed(0)
    rate = Rate(spec, 1.0)
    with torch.no_grad():
        for parameter in rate.parameters():
            parameter.normal_(std=0.5)
    return rate


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_probabilities_of_all_that_a_frame_can_be_add_up_to_one(spec: QuantizerSpec) -> None:
    rate = random_rate(spec)
    every = torch.tensor(list(itertools.product(*map(range, spec.sizes))))
    before = torch.stack([torch.randint(size, (2,)) for size in spec.sizes], dim=-1)
    indices = torch.cat([before.expand(len(every), -1, -1), every[:, None]], dim=1)
    bits = rate(torch.randn(len(every), 3, spec.dim), indices)
    assert bits.shape == (len(every), 3)
    assert (2 ** -bits[:, 2]).sum().item() == pytest.approx(1, abs=1e-4)
    # Frames before do not know of it.
    assert torch.allclose(bits[:, :2], bits[:1, :2].expand(len(every), -1))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_bits_are_of_the_points_and_pull_values_to_what_is_expected(spec: QuantizerSpec) -> None:
    torch.manual_seed(1)
    features = torch.randn(2, 20, 16)
    quantizer = make_quantizer(TINY.quantizer.model_copy(update={"kind": spec.kind, "levels": spec.levels}), 16)
    quantized = quantizer(features)
    rate = random_rate(spec)
    values = quantized.values.detach().requires_grad_()
    bits = rate(values, quantized.indices).mean()
    # What lies between the points and what was quantized does not count.
    moved = rate(values.detach() + 0.01, quantized.indices).mean()
    assert bits.item() == pytest.approx(moved.item(), abs=1e-4)
    (gradient,) = torch.autograd.grad(bits, values)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((0, 1)) > 0).all()


def test_what_follows_from_the_last_frame_costs_little() -> None:
    spec = QuantizerSpec("rhombic", (5, 5))
    torch.manual_seed(0)
    rate = Rate(spec, 1.0)
    optimizer = torch.optim.AdamW(rate.parameters(), 1e-2)
    start = torch.randint(5, (16, 1))
    walk = (start + torch.arange(12)) % 5  # along the diagonal of the grid
    indices = (6 * walk)[..., None]
    values = torch.zeros(16, 12, 2)
    before = rate(values, indices)[:, 1:].mean().item()
    for _ in range(150):
        bits = rate(values, indices).mean()
        optimizer.zero_grad()
        bits.backward()
        optimizer.step()
    assert before > 4
    assert rate(values, indices)[:, 1:].mean().item() < 1


def configuration(**loss: float) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "model": TINY.model_dump(),
            "data": {"train": str(CLIP), "valid": str(CLIP)},
            "optim": {"batch_size": 2, "lr": 5e-3, "warmup_steps": 5, "schedule": "constant", "ema_decay": 0.9},
            "discriminator": {"start": 1.0},
            "loss": loss,
            "steps": 1000,
            "bf16": False,
        }
    )


def crops() -> Tensor:
    audio = torch.from_numpy(read_mono(CLIP, 24_000))
    return audio[: 2 * 2400 * 3].view(3, 2, 2400)


def test_weight_follows_until_the_rate_stands_where_it_should() -> None:
    """A quantizer learns to pass on signals that change slowly, never the same twice."""
    spec = QuantizerSpec("rhombic", (5, 5, 3, 3))
    torch.manual_seed(0)
    quantizer, rate = Q2D2(spec, dim=4), Rate(spec, 0.5, 4.0)
    optimizers = [torch.optim.AdamW(quantizer.parameters(), 1e-2), torch.optim.AdamW(rate.parameters(), 5e-3)]
    smoothing = 0.6 * 0.8 ** torch.arange(29.0, -1, -1)
    bits = []
    for _ in range(300):
        signal = (torch.randn(4, 69, 4).unfold(1, 30, 1) * smoothing).sum(-1)
        quantized = quantizer(signal)
        bits.append(rate(quantized.values, quantized.indices).mean())
        loss = 5 * (quantized.features - signal).square().mean() + rate.weight.clone() * bits[-1]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        rate.follow(bits[-1])
    assert bits[0].item() > 8  # nothing known, of 9.06 bits
    assert rate.measured.item() == pytest.approx(4.0, rel=0.12)


def test_weight_stays_within_reach_and_without_a_target_where_it_is() -> None:
    for target, bits, weight in ((4.0, 1.0, 0.005), (4.0, 12.0, 50.0), (None, 12.0, 0.5)):
        rate = Rate(SPECS[0], 0.5, target)
        for _ in range(600):
            rate.follow(torch.tensor(bits))
        assert rate.measured.item() == pytest.approx(bits)
        assert rate.weight.item() == pytest.approx(weight)


def test_a_run_goes_on_with_its_density_and_weight() -> None:
    batches = crops()
    trainer = Trainer(configuration(rate=0.05, rate_bits=4.0), make_accelerator("cpu"))
    logged = [trainer.train_step(batch)[0] for batch in batches]
    assert trainer.rate is not None
    assert trainer.rate.weight.item() > logged[0]["rate_weight"].item() == pytest.approx(0.05)
    result, _ = trainer.validate(batches[0])
    assert 0 < result["valid_rate_bits"] < 20

    other = Trainer(trainer.config, make_accelerator("cpu"))
    other.restore(trainer.state())
    again, same = (each.train_step(batches[0])[0] for each in (trainer, other))
    assert again.keys() == same.keys() >= {"rate_bits", "rate_weight"}
    for name, value in again.items():
        assert value.item() == same[name].item(), name
