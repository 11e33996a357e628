"""Listening tests: a folder with a web page that plays, asks and saves (MUSHRA, CMOS-Q, CMOS-P)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from q2d2cli.audio import read_original
from q2d2cli.errors import UsageError
from q2d2cli.evaluation.clips import Clip
from q2d2cli.evaluation.kinds import Kind
from q2d2cli.evaluation.subjects import Subject, fit
from q2d2cli.files import atomic_output, make_folder

HIDDEN_REFERENCE = "hidden reference"
LOW_ANCHOR = "low anchor"
"""Names of the two MUSHRA stimuli that are no system under test."""

MAX_SYSTEMS = 7
"""Of a MUSHRA trial: with hidden reference and anchor nine stimuli, one for each digit key."""

PASS_BAND, STOP_BAND, STOP_ATTENUATION = 3500.0, 4000.0, 60.0
"""Low anchor, in Hz and dB. BS.1534-3 asks for ripple of at most 0.1 dB up to 3.5 kHz and for attenuation of at
least 25 dB at 4 kHz and 50 dB at 4.5 kHz."""

MIN_RATE = 8000

PLACEHOLDER = "{{manifest}}"

MOST_CLIPS = 30
"""More take a listener longer than anybody can judge: BS.1534 asks for sessions below half an hour."""
CLIP_SECONDS = 12.0
"""Longest excerpt; BS.1534 recommends about 10 s."""


@dataclass(frozen=True)
class Trial:
    """One excerpt of speech, as it was and as each system gives it back.

    Attributes:
        name: names the excerpt in the results; listeners do not see it.
        rate: sample rate of all signals in Hz, at least 8000.
        reference: `(samples,)` in [-1, 1].
        systems: signals `(samples,)` by name of the system. The first is the one the others of a CMOS test are
            compared with. Another length than the reference's is cut or padded with silence; levels stay.
    """

    name: str
    rate: int
    reference: np.ndarray
    systems: dict[str, np.ndarray]


def make_trial(clip: Clip, subjects: Sequence[Subject]) -> Trial:
    """The beginning of a clip, and what each codec makes of it.

    Raises:
        Q2D2Error: if it cannot be read, or a codec fails.
    """
    audio, rate = read_original(clip.path)
    audio = audio[: int(CLIP_SECONDS * rate)]
    return Trial(clip.name, rate, audio, {s.name: s.reconstruct(audio, rate, Path(clip.name)).audio for s in subjects})


def build_listening_test(out: Path, kind: Kind | str, title: str, trials: Sequence[Trial], seed: int = 0) -> Path:
    """Write a folder with a listening test that runs in any browser, from a disk or a web server.

    `mushra` follows ITU-R BS.1534-3 with hidden reference and low anchor; `cmos-q` and `cmos-p` compare the first
    system with each other one on the seven points of ITU-T P.800 Annex E, for the quality (clarity, high
    frequencies) and the prosody (speech rate, pauses, pitch) of the Q2D2 paper's Table 6.

    The audio goes into numbered scripts that each carry a 16-bit WAV file: a page opened from a disk may not read
    other files, but may run scripts beside it, and only decoded audio can be switched without a gap.

    Args:
        out: folder that does not exist or is empty.
        kind: the test.
        title: heading of the page.
        trials: excerpts, all with the same systems: 1 to 7 of them for MUSHRA, at least 2 for CMOS.
        seed: decides which number each audio file gets. The orders a listener meets are drawn by the page.

    Returns:
        The page, `out/index.html`.

    Raises:
        UsageError: if the folder holds something or the trials do not make a test.
        Q2D2Error: if writing fails.
    """
    try:
        kind = Kind(kind)
    except ValueError as error:
        raise UsageError(f"unknown listening test {kind!r}: choose from {', '.join(Kind)}") from error
    check_trials(kind, trials)
    pages, stimuli = lay_out(kind, trials, np.random.default_rng(seed))
    digest = hashlib.sha256(json.dumps([kind, title, pages]).encode())
    for number in sorted(stimuli):
        digest.update(stimuli[number])
    manifest = {"test": digest.hexdigest()[:16], "kind": kind, "title": title, "pages": pages}
    template = resources.files("q2d2cli.evaluation").joinpath("listening.html").read_text("utf-8")
    page = template.replace(PLACEHOLDER, base64.b64encode(json.dumps(manifest).encode()).decode())

    make_folder(out)
    if any(out.iterdir()):
        raise UsageError(f"folder {out} is not empty: name a new one for the listening test")
    make_folder(out / "audio")
    for number, wav in stimuli.items():
        with atomic_output(out / "audio" / f"{number}.js") as file:
            file.write(f'stimulus("{number}", "{base64.b64encode(wav).decode()}");\n'.encode())
    index = out / "index.html"
    with atomic_output(index) as file:
        file.write(page.encode())
    return index


def lay_out(
    kind: Kind, trials: Sequence[Trial], generator: np.random.Generator
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The pages of a test and its audio.

    Returns:
        Pages, each with trial, number of the reference and numbers of the stimuli by system; and WAV files by
        number, numbered in random order.
    """
    count = sum(len(trial.systems) + (3 if kind is Kind.MUSHRA else 1) for trial in trials)
    free = [f"{number:04d}" for number in generator.permutation(count) + 1]
    stimuli: dict[str, bytes] = {}

    def add(signal: np.ndarray, trial: Trial) -> str:
        number = free.pop()
        # A length must not give a system away.
        stimuli[number] = wav_bytes(fit(signal, len(trial.reference)), trial.rate)
        return number

    pages: list[dict[str, Any]] = []
    for trial in trials:
        page = {"trial": trial.name, "reference": add(trial.reference, trial)}
        numbers = {system: add(signal, trial) for system, signal in trial.systems.items()}
        if kind is Kind.MUSHRA:
            # the hidden reference has a number of its own, or the page would give it away
            numbers[HIDDEN_REFERENCE] = add(trial.reference, trial)
            numbers[LOW_ANCHOR] = add(low_anchor(trial.reference, trial.rate), trial)
            pages.append({**page, "stimuli": numbers})
            continue
        first, *others = numbers
        for other in others:
            pages.append({**page, "baseline": first, "stimuli": {name: numbers[name] for name in (first, other)}})
    return pages, stimuli


def low_anchor(signal: np.ndarray, rate: int) -> np.ndarray:
    """BS.1534-3's low anchor: the signal without what is above 3.5 kHz, in place (linear phase, delay removed).

    Args:
        signal: `(samples,)`.
        rate: Hz, at least 8000.

    Returns:
        `(samples,)` float64.
    """
    from scipy.signal import firwin, kaiserord, oaconvolve

    taps, beta = kaiserord(STOP_ATTENUATION, (STOP_BAND - PASS_BAND) / (rate / 2))
    # an odd number of taps, for a delay of whole samples
    kernel = firwin(taps | 1, (PASS_BAND + STOP_BAND) / 2, window=("kaiser", beta), fs=rate)
    delay = len(kernel) // 2
    return oaconvolve(np.asarray(signal, dtype=np.float64), kernel)[delay : delay + len(signal)]


def wav_bytes(signal: np.ndarray, rate: int) -> bytes:
    """A 16-bit WAV file of a `(samples,)` signal; beyond [-1, 1] it clips, as it would in any player."""
    buffer = io.BytesIO()
    soundfile.write(buffer, signal, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def check_trials(kind: Kind, trials: Sequence[Trial]) -> None:
    """Raise UsageError unless these trials make a test of this kind."""
    if not trials:
        raise UsageError("a listening test needs at least one trial")
    systems = list(trials[0].systems)
    if kind is Kind.MUSHRA:
        if not 1 <= len(systems) <= MAX_SYSTEMS:
            raise UsageError(f"a MUSHRA test takes 1 to {MAX_SYSTEMS} systems, not {len(systems)}")
        for name in (HIDDEN_REFERENCE, LOW_ANCHOR):
            if name in systems:
                raise UsageError(f"no system may be called {name!r}: the test adds it")
    elif len(systems) < 2:
        raise UsageError(f"a CMOS test compares at least 2 systems, not {len(systems)}")
    seen: set[str] = set()
    for trial in trials:
        if trial.name in seen:
            raise UsageError(f"two trials are called {trial.name!r}: give each its own name")
        seen.add(trial.name)
        if list(trial.systems) != systems:
            raise UsageError(
                f"trial {trial.name!r} has systems {', '.join(trial.systems)}, not {', '.join(systems)}: "
                "all trials need the same ones in the same order"
            )
        if trial.rate < MIN_RATE:
            raise UsageError(f"trial {trial.name!r} is at {trial.rate} Hz: a test needs at least {MIN_RATE}")
        for name, signal in {"the reference": trial.reference, **trial.systems}.items():
            if signal.ndim != 1 or not len(signal) or not np.isfinite(signal).all():
                raise UsageError(
                    f"trial {trial.name!r}: {name} is not one channel of finite samples "
                    f"(its shape is {signal.shape}): mix it down or repair it first"
                )
