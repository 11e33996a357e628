"""Metrics by published models that no recipe here trains on: naturalness, speaker, ViSQOL."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

SPEECH_RATE = 16_000
"""Of all of them, Hz."""


def distillmos(_: np.ndarray, degraded: np.ndarray) -> float | None:
    """DistillMOS (Stahl and Gamper, 2025) of a `(samples,)` signal at 16 kHz, 1 to 5; None for nothing at all.

    As the package does, signals shorter than 7.7 s are filled with silence.
    """
    import torch

    if not len(degraded):
        return None
    with torch.inference_mode():
        return float(load_distillmos()(torch.from_numpy(degraded).float()[None]))


@lru_cache(maxsize=1)
def load_distillmos() -> Callable[[Any], Any]:
    """The network, once per process."""
    import distillmos as package
    import torch

    # Not by the package itself: it prints where it has them from.
    path = Path(package.__file__).parent / "weights" / "distill_mos_v7.pt"
    model = package.ConvTransformerSQAModel(load_weights=False)
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["model"])
    return model.eval()


def speaker(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Cosine of two `(samples,)` signals' speaker embeddings (GE2E by Resemblyzer) at 16 kHz, 0 to 1.

    None where a signal has no voice in it.
    """
    a, b = (embedding(np.ascontiguousarray(x, np.float32).tobytes()) for x in (reference, degraded))
    return None if a is None or b is None else float(a @ b)


@lru_cache(maxsize=8)
def embedding(samples: bytes) -> np.ndarray | None:
    """The speaker's `(256,)` vector, of length 1; cached, since the reference is the same for every codec."""
    audio = np.frombuffer(samples, np.float32)
    if not audio.any():
        return None
    with warnings.catch_warnings(action="ignore"):  # of packages that Resemblyzer has not kept up with
        encoder, preprocess = load_speaker_encoder()
        voiced = preprocess(audio)  # level raised, long pauses taken out
        return encoder.embed_utterance(voiced) if len(voiced) else None


@lru_cache(maxsize=1)
def load_speaker_encoder() -> tuple[Any, Callable[[np.ndarray], np.ndarray]]:
    """The network and what prepares audio for it, once per process."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    return VoiceEncoder("cpu", verbose=False), preprocess_wav


def visqol(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """ViSQOL (Chinen et al., 2020) of two `(samples,)` signals at 16 kHz in speech mode, 1 to 5.

    By the polynomial scaled to 5 for perfect, as in most papers. None under half a second, and for silence.
    """
    if len(reference) < SPEECH_RATE // 2 or not reference.any():
        return None
    with np.errstate(invalid="ignore"):  # of a silent decoded signal, which has no score
        return float(load_visqol().measure_from_arrays(reference, degraded, SPEECH_RATE).moslqo)


@lru_cache(maxsize=1)
def load_visqol() -> Any:
    """ViSQOL set up for speech, once per process."""
    from visqol import VisqolApi

    api = VisqolApi()
    api.create(mode="speech", use_lattice_model=False)
    return api
