"""Augmentation of training crops."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from q2d2cli.errors import UsageError
from q2d2cli.training.augment import SPEEDS, augment, change_speed, coded, length_before, noise, tilt, tones
from q2d2cli.training.config import DataConfig
from q2d2cli.training.rooms import responses

RATE = 24_000


def config(**shares: float) -> DataConfig:
    return DataConfig(train="x", valid=Path("y"), **shares)


@pytest.fixture
def batch() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (8, RATE // 2)).astype(np.float32))


def test_nothing_changes_without_shares(batch: torch.Tensor) -> None:
    assert augment(batch, config(), RATE, np.arange(8)) is batch


def test_a_share_is_a_share(batch: torch.Tensor) -> None:
    many = batch[:1].expand(400, -1)
    changed = (augment(many, config(noise=0.25), RATE, np.arange(400)) != many).any(1).float().mean()
    assert 0.17 < changed < 0.33


def test_each_crop_depends_on_its_seed_alone(batch: torch.Tensor) -> None:
    shares = config(noise=0.5, band=0.5, tones=0.5, tilt=0.5)
    whole = augment(batch, shares, RATE, np.arange(8))
    assert torch.equal(whole[4:], augment(batch[4:], shares, RATE, np.arange(4, 8)))
    assert not torch.equal(whole, augment(batch, shares, RATE, np.arange(8, 16)))


def test_noise_is_at_most_as_loud_as_the_crop(batch: torch.Tensor) -> None:
    added = augment(batch, config(noise=1.0), RATE, np.arange(8)) - batch
    ratio = added.square().mean(1).sqrt() / batch.square().mean(1).sqrt()
    assert (ratio > 10 ** (-31 / 20)).all()
    assert (ratio < 1.01).all()


def test_a_narrower_band_has_nothing_above(batch: torch.Tensor) -> None:
    narrow = augment(batch, config(band=1.0), RATE, np.arange(8))
    power = torch.fft.rfft(narrow).abs().square()
    frequencies = torch.fft.rfftfreq(batch.shape[1], 1 / RATE)
    assert (power[:, frequencies > 8900].sum(1) < 1e-6 * power.sum(1)).all()
    assert (power[:, frequencies < 2900].sum(1) > 0.1 * power.sum(1)).all()


def test_tilts_change_bass_against_treble_either_way_and_keep_the_level(batch: torch.Tensor) -> None:
    tilted = augment(batch, config(tilt=1.0), RATE, np.arange(8))
    assert torch.allclose(tilted.square().mean(1), batch.square().mean(1), rtol=1e-3)
    power = torch.fft.rfft(tilted).abs().square()
    balance = 10 * torch.log10(power[:, 20:200].mean(1) / power[:, 2000:4000].mean(1))
    assert balance.max() > 5
    assert balance.min() < -5


def test_another_speed_moves_pitch_and_leaves_no_edge() -> None:
    length = RATE // 2
    tone = 0.5 * torch.sin(2 * torch.pi * 1000 / RATE * torch.arange(length_before(length)))
    played = change_speed(tone.expand(40, -1), length, 1.0, np.arange(40))
    assert played.shape == (40, length)
    windowed = played * torch.hann_window(length)
    heard = {round(int(peak) * RATE / length) for peak in torch.fft.rfft(windowed).abs().argmax(1)}
    assert heard == {1000 * speed // 20 for speed in SPEEDS}
    for ends in (played[:, :200], played[:, -200:]):
        assert ends.abs().amax(1).allclose(torch.tensor(0.5), atol=0.01)


def test_a_share_of_the_crops_keeps_its_speed(batch: torch.Tensor) -> None:
    length = 8000
    long = batch[:1, : length_before(length)].expand(400, -1)
    played = change_speed(long, length, 0.5, np.arange(400))
    same = (played == long[:, 8 : 8 + length]).all(1).float().mean()
    # A tenth of those that change get a speed of 1.
    assert 0.45 < same < 0.65


def test_a_tilted_silence_is_silence() -> None:
    silence = torch.zeros(4, RATE)
    assert torch.equal(augment(silence, config(tilt=1.0), RATE, np.arange(4)), silence)


@pytest.mark.parametrize("seed", range(20))
def test_tilts_are_smooth_and_bounded(seed: int) -> None:
    decibels = 20 * torch.log10(tilt(RATE, RATE, np.random.default_rng(seed)))
    assert decibels.abs().max() < 40
    assert decibels.diff().abs().max() < 0.5


@pytest.mark.parametrize("seed", range(20))
def test_tones_and_noise_are_sound(seed: int) -> None:
    for make in (tones, noise):
        samples = make(RATE // 2, RATE, np.random.default_rng(seed))
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert samples.any()


def test_newer_augmentations_leave_the_draws_of_the_others_alone(batch: torch.Tensor) -> None:
    shares = {"noise": 0.5, "band": 0.5, "tones": 0.5, "tilt": 0.5}
    before = augment(batch, config(**shares), RATE, np.arange(8))
    after = augment(batch, config(**shares, coded=0.4), RATE, np.arange(8))
    same = (before == after).all(1)
    assert same.any()
    assert not same.all()


def test_rooms_are_the_same_everywhere_and_begin_with_the_direct_sound() -> None:
    rooms = responses(RATE, 40)
    again = responses.__wrapped__(RATE, 40)
    assert all(np.array_equal(a, b) for a, b in zip(rooms, again, strict=True))
    for room in rooms:
        assert room.dtype == np.float32
        assert room[0] == 1
        assert len(room) <= 0.8 * RATE
    # Near and far, dry and live: how much of the energy is in the first 5 ms.
    early = np.array([np.sum(room[:120] ** 2) / np.sum(room**2) for room in rooms])
    assert early.min() < 0.3
    assert early.max() > 0.8


def test_a_room_adds_what_comes_after_and_keeps_time_and_level(batch: torch.Tensor) -> None:
    clicks = torch.zeros(8, RATE // 2)
    clicks[:, 6000] = 0.5
    heard = augment(clicks, config(room=1.0), RATE, np.arange(8))
    assert (heard[:, :5900].square().sum(1) < 1e-6 * heard.square().sum(1)).all(), "no sound comes before"
    assert (heard[:, 6000].abs() > 0.2 * heard.abs().amax(1)).all(), "the direct sound stays where it was"
    assert (heard[:, 6500:].square().sum(1) > 1e-6).any()
    loud = augment(batch, config(room=1.0), RATE, np.arange(8))
    assert torch.allclose(loud.square().mean(1), batch.square().mean(1), rtol=1e-3)
    silence = torch.zeros(2, RATE)
    assert torch.equal(augment(silence, config(room=1.0), RATE, np.arange(2)), silence)


@pytest.mark.parametrize("rate", [16_000, RATE])
@pytest.mark.parametrize("seed", range(6))
def test_coded_speech_is_the_speech_in_time_with_other_details(
    clip: tuple[np.ndarray, int], rate: int, seed: int
) -> None:
    speech = soxr.resample(clip[0], clip[1], rate)[rate : rate + int(0.9 * rate)]
    heard = coded(speech, rate, np.random.default_rng(seed))
    assert heard.dtype == np.float32
    assert heard.shape == speech.shape
    assert np.corrcoef(heard[rate // 10 :], speech[rate // 10 :])[0, 1] > 0.7
    assert np.mean((heard - speech) ** 2) > 1e-4 * np.mean(speech**2)


def test_coding_takes_silence_loud_crops_and_rates_that_no_coder_has() -> None:
    rng = np.random.default_rng
    loud = (3 * np.sin(np.arange(RATE) * 0.1)).astype(np.float32)
    for seed in range(4):
        assert np.abs(coded(np.zeros(RATE, np.float32), RATE, rng(seed))).max() < 1e-3
        assert 2.5 < np.abs(coded(loud, RATE, rng(seed))).max() < 4
        short = np.full(100, 0.1, np.float32)
        assert coded(short, RATE, rng(seed)).shape == short.shape
        assert coded(loud, 37_123, rng(seed)).shape == loud.shape


def test_a_missing_room_simulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    with pytest.raises(UsageError, match="pip install pyroomacoustics"):
        responses.__wrapped__(RATE, 1)
