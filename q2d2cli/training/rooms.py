"""Simulated rooms for the augmentation of training crops."""

from __future__ import annotations

from functools import cache

import numpy as np

from q2d2cli.errors import UsageError

ROOMS = 300
MAX_ORDER = 40
"""Reflections that are followed; more would only lengthen the last of the tail."""
LONGEST = 0.8
"""Seconds of a response that are kept."""


@cache
def responses(sample_rate: int, count: int = ROOMS) -> tuple[np.ndarray, ...]:
    """Impulse responses of `count` rooms: small and large, dry and live, near to the microphone and far from it.

    Made by the image source method (pyroomacoustics), the same ones in every process, and kept.

    Args:
        sample_rate: Hz.
        count: how many.

    Returns:
        `(samples,)` float32 each; the direct sound comes first and has a peak of 1.

    Raises:
        UsageError: if pyroomacoustics is missing.
    """
    try:
        import pyroomacoustics
    except ImportError as error:
        raise UsageError("data.room needs pyroomacoustics: pip install pyroomacoustics") from error
    rng = np.random.default_rng(0)
    found: list[np.ndarray] = []
    while len(found) < count:
        size = rng.uniform([2.2, 2.2, 2.2], [9.0, 7.0, 3.6])
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(0.15, 0.8), size)
        except ValueError:
            continue  # no wall takes up so much sound
        microphone = rng.uniform(0.1, 0.9, 3) * size
        direction = rng.normal(size=3)
        away = direction / np.linalg.norm(direction) * np.exp(rng.uniform(np.log(0.2), np.log(4.0)))
        room = pyroomacoustics.ShoeBox(
            size, fs=sample_rate, materials=pyroomacoustics.Material(absorption), max_order=min(order, MAX_ORDER)
        )
        room.add_microphone(microphone)
        room.add_source(np.clip(microphone + away, 0.3, size - 0.3))
        room.compute_rir()
        response = room.rir[0][0]
        distance = np.linalg.norm(room.sources[0].position - microphone)
        direct = round(distance / pyroomacoustics.constants.get("c") * sample_rate)
        direct += pyroomacoustics.constants.get("frac_delay_length") // 2
        kept = response[direct : direct + int(LONGEST * sample_rate)]
        found.append((kept / kept[0]).astype(np.float32))
    return tuple(found)
