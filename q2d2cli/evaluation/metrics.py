"""Metrics of a pair of signals, each by its standard implementation at its standard rate: by name, side by side."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from q2d2cli.audio import Resampler
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.judges import SPEECH_RATE, distillmos, speaker, visqol
from q2d2cli.evaluation.recognizer import (
    BEAM,
    RECOGNIZER_VARIABLE,
    WEIGHTS_NAME,
    load_recognizer,
    recognizer_folder,
    recognizer_name,
    word_errors,
)
from q2d2cli.files import file_stamp

FULL_RATE = 24_000
"""Of the metrics that look above 8 kHz."""
MAX_SECONDS = 30.0
"""Longest piece that PESQ and the networks see: P.862 is not defined for more, and memory stays bounded."""
UTMOS_VARIABLE = "Q2D2_UTMOS_WEIGHTS"
"""Environment variable that names UTMOS's weights."""
UTMOS_REPOSITORY = "Blinorot/UTMOS-PyTorch"
UTMOS_FILE = "utmos_state_dict.pt"


def pesq(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Wide-band PESQ (ITU-T P.862.2) of two `(samples,)` signals at 16 kHz; None where it is not defined."""
    from pesq import NoUtterancesError
    from pesq import pesq as measure
    from pesq.cypesq import BufferTooShortError

    if not reference.any():
        return None
    try:
        score = float(measure(SPEECH_RATE, reference, degraded, "wb"))
    except (NoUtterancesError, BufferTooShortError):
        return None
    return score if math.isfinite(score) else None


def stoi(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """STOI of two `(samples,)` signals at 16 kHz; None where it is not defined (under 0.4 s of speech)."""
    from pystoi import stoi as measure

    if not reference.any():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(reference, degraded, SPEECH_RATE))
        except (RuntimeWarning, ValueError):
            return None


def si_sdr(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """Scale-invariant signal-to-distortion ratio of two `(samples,)` signals in dB (Le Roux et al., 2019).

    None for silence; at most 100 dB, since a perfect copy has no distortion.
    """
    a, b = (x.astype(np.float64) - x.mean(dtype=np.float64) for x in (reference, degraded))
    energy = a @ a
    if energy < 1e-9:
        return None
    target = (a @ b) / energy * a
    return float(10 * np.log10(max(target @ target, 1e-20) / max(np.sum((b - target) ** 2), energy * 1e-10)))


def level(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """How far the RMS level of one `(samples,)` signal is from the other's, dB; None for silence, at most 100."""
    a, b = (float(np.mean(x.astype(np.float64) ** 2)) for x in (reference, degraded))
    return abs(10 * math.log10(max(b, 1e-10 * a) / a)) if a > 1e-12 else None


def lines(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """How much more one `(samples,)` signal at 24 kHz repeats itself after some one delay than the other does.

    Decoders that repeat a phase where they know none sound metallic, and their spectrograms show lines. Measured is the
    autocorrelation in bands of 1 kHz from 2 kHz up, over windows of 2048 samples, averaged; of all delays from 2 to
    20 ms the one counts where it rises most. About 0 for noise in place of noise, 1 for a buzz in place of noise. None
    under a tenth of a second.
    """
    size, bins = 2048, 1025
    if len(reference) < FULL_RATE // 10:
        return None
    hertz = np.arange(bins) * FULL_RATE / size
    delays = np.arange(FULL_RATE // 500, FULL_RATE // 50 + 1)
    waves = np.cos(2 * np.pi * np.outer(np.arange(bins), delays) / size)
    bands = range(2000, FULL_RATE // 2, 1000)
    rise = np.zeros(len(delays))
    for audio, sign in ((reference, -1), (degraded, 1)):
        padded = np.pad(audio, (0, -len(audio) % (size // 2) + size))
        frames = np.lib.stride_tricks.sliding_window_view(padded, size)[:: size // 2]
        # The floor keeps digital silence, which has nothing that could repeat, at 0.
        power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2 + 1e-5
        for low in bands:
            band = (hertz >= low) & (hertz < low + 1000)
            part = power[:, band]
            rise += sign * (part @ waves[band] / part.sum(1, keepdims=True)).mean(0) / len(bands)
    return float(rise.max())


def mel(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """L1 distance of natural-log mel spectrograms of two `(samples,)` signals at 24 kHz.

    100 bands, window 1024, hop 256, magnitudes, floor 1e-5: the spectrogram of Vocos and WavTokenizer.
    """
    import librosa

    spectra = [
        librosa.feature.melspectrogram(
            y=x,
            sr=FULL_RATE,
            n_fft=1024,
            hop_length=256,
            n_mels=100,
            power=1.0,
            norm=None,
            htk=True,
            pad_mode="constant",
        )
        for x in (reference, degraded)
    ]
    return float(np.abs(np.log(np.maximum(spectra[0], 1e-5)) - np.log(np.maximum(spectra[1], 1e-5))).mean())


def utmos(_: np.ndarray, degraded: np.ndarray) -> float | None:
    """UTMOS22 strong learner of a `(samples,)` signal at 16 kHz; None under 0.1 s."""
    import torch

    if len(degraded) < SPEECH_RATE // 10:
        return None
    with torch.inference_mode():
        return float(load_utmos()(torch.from_numpy(degraded)[None]).squeeze())


def utmos_weights() -> Path | None:
    """UTMOS's weights: from the environment variable `Q2D2_UTMOS_WEIGHTS`, the Hub's cache or the Hub; None if nowhere.

    Raises:
        UsageError: if the variable names a file that is not there.
    """
    if named := os.environ.get(UTMOS_VARIABLE):
        if not Path(named).is_file():
            raise UsageError(f"no UTMOS weights at {named}: check --utmos-weights or {UTMOS_VARIABLE}")
        return Path(named)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils.logging import set_verbosity_error

    if isinstance(cached := try_to_load_from_cache(UTMOS_REPOSITORY, UTMOS_FILE), str):
        return Path(cached)
    set_verbosity_error()  # a warning for each retry
    try:
        return Path(hf_hub_download(UTMOS_REPOSITORY, UTMOS_FILE))
    except (OSError, HfHubHTTPError, ValueError):  # offline, in all its forms
        return None


@lru_cache(maxsize=1)
def load_utmos() -> Callable[[Any], Any]:
    """The network, once per process.

    Raises:
        UsageError: if its weights are no such weights.
    """
    from utmos_pytorch import UTMOSScoreTorch

    weights = utmos_weights()
    assert weights is not None  # the command looks for them first
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # about weight_norm
            model = UTMOSScoreTorch(str(weights))
    except Exception as error:  # whatever a file that is not UTMOS makes torch raise
        raise UsageError(f"{weights} does not hold UTMOS's weights: get {UTMOS_FILE} of {UTMOS_REPOSITORY}") from error
    model.eval()
    return model.score


def dnsmos(_: np.ndarray, degraded: np.ndarray) -> float | None:
    """DNSMOS P.835 overall score of a `(samples,)` signal at 16 kHz; None for nothing at all.

    As the package does, signals shorter than 9 s are repeated.
    """
    if not len(degraded):
        return None
    # The package refuses what a decoder may overshoot.
    return float(load_dnsmos()(degraded.clip(-1.0, 1.0), SPEECH_RATE, False)["ovrl_mos"])


@lru_cache(maxsize=1)
def load_dnsmos() -> Callable[[np.ndarray, int, bool], dict[str, Any]]:
    """The networks, once per process."""
    import onnxruntime
    from speechmos import dnsmos as package

    models = Path(package.__file__).parent / "dnsmos_models"
    paths = [str(models / name) for name in ("sig_bak_ovr.onnx", "model_v8.onnx")]
    scorer = package.DNSMOS(*paths)
    # One thread, since there is one process per core; the package lets each take all of them.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    scorer.onnx_sess, scorer.p808_onnx_sess = (onnxruntime.InferenceSession(path, options) for path in paths)
    return scorer


def vuv_f1(reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """F1 score of voiced frames of two `(samples,)` signals at 16 kHz, as WavTokenizer (after CARGAN) computes it.

    A frame of 10 ms is voiced if CREPE's periodicity is at least 0.21 and its perceptually weighted level
    at least -60 dB. None where neither signal has a voiced frame.
    """
    if min(len(reference), len(degraded)) < 1024:
        return None
    a, b = voiced(reference), voiced(degraded)
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def voiced(audio: np.ndarray) -> np.ndarray:
    """`(samples,)` at 16 kHz to `(frames,)` bool: which frames of 10 ms are voiced."""
    return _voiced(np.ascontiguousarray(audio, np.float32).tobytes())


@lru_cache(maxsize=8)
def _voiced(samples: bytes) -> np.ndarray:
    # Cached: the reference is the same for every codec, and CREPE is by far the dearest metric.
    import librosa
    import torch
    import torchcrepe

    audio = np.frombuffer(samples, np.float32)
    _, periodicity = torchcrepe.predict(
        torch.from_numpy(audio.copy())[None],
        torchcrepe.SAMPLE_RATE,
        fmin=50.0,
        fmax=550.0,
        model="full",
        return_periodicity=True,
        batch_size=512,
        pad=False,
    )
    n_fft = torchcrepe.WINDOW_SIZE
    spectrum = librosa.stft(audio, n_fft=n_fft, hop_length=torchcrepe.SAMPLE_RATE // 100, center=False)
    frequencies = librosa.fft_frequencies(sr=torchcrepe.SAMPLE_RATE, n_fft=n_fft)
    with np.errstate(divide="ignore"):  # the weight of 0 Hz
        level = librosa.perceptual_weighting(np.abs(spectrum) ** 2, frequencies) - torchcrepe.loudness.REF_DB
    return (periodicity[0].numpy() >= 0.21) & (level.mean(axis=0) >= -60.0)


@dataclass(frozen=True)
class Metric:
    """What a metric is and how to compute it.

    Attributes:
        title: for tables, with its unit.
        score: reference and degraded `(samples,)` float32 of equal length to a value, or None where not defined. With
            `takes_text` also what is said (None if not known), and a value comes with its weight in means.
        packages: modules it needs.
        rate: of both signals, Hz.
        reference_free: does not look at the reference, so that the recordings themselves have a score too.
        higher_is_better: direction.
        decimals: that mean something.
        max_seconds: longer signals are cut into equal pieces no longer than this, whose scores are averaged.
        takes_text: compares with what is said; where that is known, with no look at the reference.
        extra: of this package, that brings `packages`.
    """

    title: str
    score: Callable[..., Any]
    packages: tuple[str, ...]
    rate: int = SPEECH_RATE
    reference_free: bool = False
    higher_is_better: bool = True
    decimals: int = 3
    max_seconds: float | None = None
    takes_text: bool = False
    extra: str = "eval"

    def scores_recordings(self, text: str | None) -> bool:
        """Whether recordings themselves have a score that says something, what is said in them being `text`."""
        return self.reference_free or (self.takes_text and text is not None)


METRICS: dict[str, Metric] = {
    "utmos": Metric("UTMOS", utmos, ("utmos_pytorch",), reference_free=True, max_seconds=MAX_SECONDS),
    "dnsmos": Metric("DNSMOS", dnsmos, ("speechmos", "onnxruntime", "librosa"), reference_free=True),
    "pesq": Metric("PESQ", pesq, ("pesq",), max_seconds=MAX_SECONDS),
    "stoi": Metric("STOI", stoi, ("pystoi",)),
    "distillmos": Metric(
        "DistillMOS",
        distillmos,
        ("distillmos",),
        reference_free=True,
        decimals=2,
        max_seconds=MAX_SECONDS,
        extra="judges",
    ),
    "wer": Metric(
        "WER, %",
        word_errors,
        ("faster_whisper", "jiwer", "transformers"),
        higher_is_better=False,
        decimals=1,
        takes_text=True,
        extra="judges",
    ),
    "speaker": Metric("speaker", speaker, ("resemblyzer",), extra="judges"),
    "visqol": Metric("ViSQOL", visqol, ("visqol",), decimals=2, max_seconds=MAX_SECONDS, extra="judges"),
    "vuv_f1": Metric("V/UV F1", vuv_f1, ("torchcrepe", "librosa"), max_seconds=MAX_SECONDS),
    "si_sdr": Metric("SI-SDR, dB", si_sdr, (), decimals=2),
    "level": Metric("level error, dB", level, (), rate=FULL_RATE, higher_is_better=False, decimals=2),
    "lines": Metric("lines", lines, (), rate=FULL_RATE, higher_is_better=False, max_seconds=MAX_SECONDS),
    "mel": Metric("mel", mel, ("librosa",), rate=FULL_RATE, higher_is_better=False),
}


SPEED = {"rtf": ("rtf_encode", "rtf_decode"), "memory": ("memory_mb",)}
"""What can be measured of codecs themselves, beside the metrics of their audio; and its keys in a result."""


def check_names(names: Sequence[str], speed: bool = False) -> None:
    """Raise UsageError if a name is no metric's, nor, where `speed` is measured too, of `SPEED`."""
    known = [*METRICS, *(SPEED if speed else ())]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown metric {name!r}: choose from {', '.join(known)}")


def why_not(name: str) -> str | None:
    """Why a metric cannot be computed here (a package, weights), and what to do; None if it can.

    Raises:
        UsageError: if weights or a recognizer were named that do not exist.
    """
    metric = METRICS[name]
    missing = [package for package in metric.packages if importlib.util.find_spec(package) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        return f'{", ".join(missing)} {are} not installed: pip install "q2d2[{metric.extra}]"'
    if name == "utmos":
        if utmos_weights() is None:
            return (
                f"its weights are not here: where there is a network, run 'hf download {UTMOS_REPOSITORY} "
                f"{UTMOS_FILE}', then give the file with --utmos-weights or {UTMOS_VARIABLE}"
            )
        load_utmos()  # to fail here if it must
    if name == "wer":
        try:
            load_recognizer(recognizer_name())
        except UsageError:
            raise
        except Q2D2Error as error:
            return f"{error} with --recognizer or {RECOGNIZER_VARIABLE}"
    return None


def basis(name: str, text: str | None) -> str:
    """What a metric's value depends on beside the signals: changes when it would.

    Versions of its packages, weights, recognizer, and `text` where it is looked at.
    """
    metric = METRICS[name]
    parts = [versions(metric.packages)]
    if name == "utmos" and (weights := utmos_weights()) is not None:
        parts.append(file_stamp(weights))
    if metric.takes_text:
        recognizer = recognizer_name()
        parts += [recognizer, file_stamp(recognizer_folder(recognizer) / WEIGHTS_NAME), f"beam {BEAM}"]
        parts.append("heard" if text is None else hashlib.sha256(text.encode()).hexdigest()[:16])
    return " ".join(parts)


@cache
def versions(packages: tuple[str, ...]) -> str:
    """Names and versions of the distributions that hold these packages."""
    from importlib.metadata import packages_distributions, version

    holders = packages_distributions()
    names = sorted({name for package in packages for name in holders.get(package, ())})
    return ", ".join(f"{name} {version(name)}" for name in names)


def check_metrics(names: Sequence[str]) -> None:
    """Raise UsageError if a metric is unknown or cannot be computed here."""
    check_names(names)
    for name in names:
        if (reason := why_not(name)) is not None:
            raise UsageError(f"metric {name!r} cannot be computed: {reason}")


class Scored(NamedTuple):
    """What metrics say of one pair of signals."""

    values: dict[str, float | None]
    """By metric; None where it is not defined, or failed."""
    weights: dict[str, float]
    """How much each value counts in a mean; those not named here, 1."""
    problems: dict[str, str]
    """Why metrics failed."""


def score(
    names: Sequence[str], reference: np.ndarray, degraded: np.ndarray, rate: int, text: str | None = None
) -> Scored:
    """Metrics of two `(samples,)` signals of equal length.

    Args:
        names: keys of `METRICS`.
        reference: the recording, float32 in [-1, 1].
        degraded: what became of it.
        rate: of both, Hz; metrics get them at their own.
        text: what is said, for `wer`; None to compare with what is heard in the recording.

    Returns:
        Every metric, whatever one of them raised.
    """
    resampled: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    scored = Scored({}, {}, {})
    for name in names:
        metric = METRICS[name]
        if metric.rate not in resampled:
            a, b = (Resampler(rate, metric.rate, 1).push(x[None], last=True)[0] for x in (reference, degraded))
            resampled[metric.rate] = a, b
        scored.values[name] = None
        try:
            if not metric.takes_text:
                value = in_pieces(metric, *resampled[metric.rate])
            elif (result := metric.score(*resampled[metric.rate], text)) is None:
                value = None
            else:
                value, scored.weights[name] = result
            if value is not None and not math.isfinite(value):
                raise ValueError(f"its value is {value}")
            scored.values[name] = value
        except Exception as error:  # of one of a dozen libraries, for one clip: not worth the others
            scored.problems[name] = f"{type(error).__name__}: {error}"
    return scored


def in_pieces(metric: Metric, reference: np.ndarray, degraded: np.ndarray) -> float | None:
    """A metric of two `(samples,)` signals at its rate, over equal pieces if they are long."""
    longest = None if metric.max_seconds is None else int(metric.max_seconds * metric.rate)
    count = 1 if longest is None else max(1, -(-len(reference) // longest))
    pieces = zip(np.array_split(reference, count), np.array_split(degraded, count), strict=True)
    values = [value for a, b in pieces if (value := metric.score(a, b)) is not None]
    return float(np.mean(values)) if values else None
