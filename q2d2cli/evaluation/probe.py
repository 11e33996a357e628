"""Semantic probe: how well a linear classifier tells classes apart from a codec's codes (paper Table 7)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from q2d2cli.audio import AudioReader
from q2d2cli.codec import Codec
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.manifests import Item
from q2d2cli.evaluation.statistics import half_width

Split = tuple[np.ndarray, np.ndarray]
"""Positions of the training and of the test files."""

MAX_ITERATIONS = 5000
"""Of the classifier's solver."""


def embed(codec: Codec, item: Item) -> np.ndarray:
    """Embedding of a file: time average of the quantized features that the decoder gets.

    The paper takes "embeddings corresponding to the discrete codebooks", as WavTokenizer does; the
    ARCH benchmark averages them over time. A grid has no codebook vectors: its place is taken by the
    output projection of the grid points. That projection is linear, so the average has no more
    degrees of freedom than the quantizer has dimensions.

    Args:
        codec: the codec.
        item: the file; channels are averaged, any length in bounded memory.

    Returns:
        `(feature_dim,)` float32.

    Raises:
        Q2D2Error: if the file cannot be read.
    """
    total, frames = torch.zeros(codec.config.feature_dim, dtype=torch.float64), 0
    with AudioReader(item.path) as reader, torch.inference_mode():
        encoder = codec.stream_encoder(reader.sample_rate)

        def add(piece: np.ndarray) -> None:
            nonlocal total, frames
            features = codec.model.quantizer.decode(torch.from_numpy(piece).to(codec.device))
            total += features[0].sum(dim=0).double().cpu()
            frames += piece.shape[1]

        for block in reader.blocks():
            for piece in encoder.push(block.mean(axis=0, keepdims=True)):
                add(piece)
        for piece in encoder.finish():
            add(piece)
    return (total / frames).float().numpy()


def probe_codes(
    codec: Codec,
    items: Sequence[Item],
    folds: int = 5,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Cross-validated accuracy of a linear classifier on the embeddings of labelled files.

    Logistic regression on standardized embeddings. Folds have the classes' shares of the whole,
    and keep groups together where items have them. This is stricter than the benchmark's random
    split of RAVDESS, and takes no notice of official splits: compare with numbers of this probe.

    Args:
        codec: the codec.
        items: the files; those that cannot be read are left out and named.
        folds: of the cross-validation.
        seed: of the split.
        progress: called with the number of files done.

    Returns:
        `accuracy` (mean over folds, half width of its 95% interval, a little too narrow since folds share training
        files, each fold's),
        `chance` (share of the most frequent class), `classes` (files, and share of them that was
        recognized), `groups` (their number or None), what was probed, and `skipped`.

    Raises:
        UsageError: if there are too few classes, files or groups.
        Q2D2Error: if no file could be read, or too few.
    """
    check(items, folds)
    split(*labels_and_groups(items), folds, seed)  # fails before the long part if it must fail
    embeddings, read, skipped = [], [], []
    for done, item in enumerate(items, 1):
        try:
            embeddings.append(embed(codec, item))
            read.append(item)
        except Q2D2Error as error:
            skipped.append(str(error))
        if progress:
            progress(done)
    if not read:
        raise Q2D2Error(f"none of the {len(items)} files could be read: {skipped[0]}")
    labels, groups = labels_and_groups(read)
    try:
        check(read, folds)
        splits = split(labels, groups, folds, seed)
    except UsageError as error:
        raise Q2D2Error(f"{error} ({len(skipped)} could not be read, the first: {skipped[0]})") from error
    right, scores = classify(np.stack(embeddings), labels, splits)
    counts = Counter(labels.tolist())
    return {
        "model": codec.name,
        "fingerprint": codec.fingerprint.hex(),
        "files": len(read),
        "groups": None if groups is None else len(set(groups.tolist())),
        "folds": folds,
        "seed": seed,
        "accuracy": {"mean": float(np.mean(scores)), "interval95": half_width(scores), "folds": scores},
        "chance": max(counts.values()) / len(read),
        "classes": {
            label: {"files": count, "recognized": float(right[labels == label].mean())}
            for label, count in sorted(counts.items())
        },
        "skipped": skipped,
    }


def check(items: Sequence[Item], folds: int) -> None:
    """Raise UsageError unless there are classes to tell apart and enough files for the folds (at least one file)."""
    counts = Counter(item.label for item in items)
    if len(counts) < 2:
        raise UsageError(f"all files are of class {items[0].label!r}: a probe needs at least two classes")
    label, least = min(counts.items(), key=lambda entry: entry[1])
    groups = {item.group for item in items}
    if groups != {None}:
        if len(groups) < folds:
            more = f"use --folds {len(groups)}" if len(groups) > 1 else "leave the groups out"
            raise UsageError(f"there are fewer groups ({len(groups)}) than folds ({folds}): {more}")
    elif least < folds:
        more = f"use --folds {least}, or add files" if least > 1 else "add files"
        raise UsageError(f"class {label!r} has fewer files ({least}) than there are folds ({folds}): {more}")


def labels_and_groups(items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray | None]:
    """`(files,)` labels, and groups if the items have them."""
    groups = None if items[0].group is None else np.array([item.group for item in items])
    return np.array([item.label for item in items]), groups


def split(labels: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> list[Split]:
    """Training and test files of each fold.

    Args:
        labels: `(files,)` strings; each fold gets its share of each, as far as groups allow.
        groups: `(files,)` strings that no fold separates, or None.
        folds: number of splits.
        seed: of their shuffle.

    Raises:
        UsageError: if groups leave a fold without two classes to learn from.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    splitter = (StratifiedKFold if groups is None else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Rare classes among groups: a fold without one of them is no reason to stop.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        try:
            splits = list(splitter.split(np.zeros((len(labels), 1)), labels, groups))
        except ValueError as error:
            raise UsageError(f"cannot make {folds} folds of these classes and groups: {error}") from error
    if any(len(set(labels[train].tolist())) < 2 or not len(test) for train, test in splits):
        raise UsageError(f"groups cannot be spread over {folds} folds: what each leaves must have two classes")
    return splits


def classify(embeddings: np.ndarray, labels: np.ndarray, splits: Sequence[Split]) -> tuple[np.ndarray, list[float]]:
    """Logistic regression on standardized embeddings, cross-validated.

    Args:
        embeddings: `(files, dim)`.
        labels: `(files,)` strings.
        splits: from `split`.

    Returns:
        `(files,)` whether each was recognized when it was left out, and the accuracy of each fold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right, scores = np.zeros(len(labels), bool), []
    for train, test in splits:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
        model.fit(embeddings[train], labels[train])
        right[test] = model.predict(embeddings[test]) == labels[test]
        scores.append(float(right[test].mean()))
    return right, scores
