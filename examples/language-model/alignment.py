"""Text as symbols, and which symbol each frame of a recording says."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np

BEGIN, END = "^", "$"
"""Of what is said: silence, as a rule."""
PAUSES = f"{BEGIN}{END}.,;:!?"
ROUNDS = 12
"""Of training the alignment."""


def spell(texts: list[str], phonemes: bool) -> list[str]:
    """Texts in symbols: small letters and punctuation, or English phonemes as espeak-ng has them."""
    plain = [re.sub(r"\s*--+\s*", ", ", " ".join(text.split())) for text in texts]
    if phonemes:
        try:
            import espeakng_loader
            from phonemizer import phonemize
            from phonemizer.backend.espeak.wrapper import EspeakWrapper
        except ImportError as error:
            raise SystemExit("phonemes need more packages: pip install phonemizer espeakng-loader") from error

        EspeakWrapper.set_library(espeakng_loader.get_library_path())
        EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
        plain = phonemize(plain, "en-us", preserve_punctuation=True, with_stress=True)
    return [f"{BEGIN}{text.strip().lower()}{END}" for text in plain]


def takes_time(symbol: str) -> bool:
    """Whether there are frames that say it: letters, digits and pauses; not spaces and signs of stress and length."""
    kind = unicodedata.category(symbol)
    return symbol in PAUSES or (kind[0] in "LN" and kind != "Lm")


def learn_alignment(texts: list[np.ndarray], clips: list[np.ndarray], sizes: list[int], symbols: int) -> np.ndarray:
    """How likely each index is while a symbol is said, found from whole clips and their texts alone.

    A hidden Markov model whose states are the symbols, each of one frame or more, with a table for each pair. It begins
    with every symbol of a clip as long as the others and is trained by its own best alignments (Viterbi training).

    Args:
        texts: symbols that take time, of each clip.
        clips: `(frames, pairs)` indices.
        sizes: of the pairs.
        symbols: how many there are.

    Returns:
        `(symbols, pairs, largest size)` logarithms.
    """
    paths = [np.arange(len(clip)) * len(text) // len(clip) for text, clip in zip(texts, clips, strict=True)]
    for _ in range(ROUNDS):
        counts = np.zeros((symbols, len(sizes), max(sizes)))
        for text, clip, path in zip(texts, clips, paths, strict=True):
            for pair in range(len(sizes)):
                np.add.at(counts[:, pair], (text[path], clip[:, pair]), 1)
        everywhere = counts.sum(0) + 1e-3
        counts += 10 * everywhere / everywhere.sum(-1, keepdims=True)
        table = np.log(counts / counts.sum(-1, keepdims=True)).astype(np.float32)
        paths = align(table, texts, clips)
    return table


def align(table: np.ndarray, texts: list[np.ndarray], clips: list[np.ndarray], batch: int = 64) -> list[np.ndarray]:
    """The likeliest place in its text of each frame of each clip: it begins at 0, never goes back or leaves one out."""
    found: list[Any] = [None] * len(clips)
    order = sorted(range(len(clips)), key=lambda number: len(clips[number]))
    for first in range(0, len(order), batch):
        some = order[first : first + batch]
        lengths = np.array([len(clips[number]) for number in some])
        last = np.array([len(texts[number]) - 1 for number in some])
        said = np.zeros((len(some), last.max() + 1), dtype=int)
        heard = np.zeros((len(some), lengths.max(), table.shape[1]), dtype=int)
        for row, number in enumerate(some):
            said[row, : last[row] + 1] = texts[number]
            heard[row, : lengths[row]] = clips[number]
        best = np.full(said.shape, -np.inf, dtype=np.float32)
        came = np.zeros((heard.shape[1], *said.shape), dtype=bool)  # from the symbol before
        for time in range(heard.shape[1]):
            before = np.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-np.inf)
            if time == 0:
                before[:, 0] = 0.0
            came[time] = before > best
            best = np.maximum(best, before)
            for pair in range(table.shape[1]):
                best += table[said, pair, heard[:, time, pair, None]]
        at, rows = last.copy(), np.arange(len(some))
        paths = np.zeros(heard.shape[:2], dtype=int)
        for time in range(heard.shape[1] - 1, -1, -1):
            paths[:, time] = at
            at -= came[time, rows, at] & (time < lengths) & (time > 0)
        for row, number in enumerate(some):
            found[number] = paths[row, : lengths[row]]
    return found
