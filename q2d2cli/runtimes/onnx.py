"""A model's passes in ONNX Runtime, on arrays. Imports no torch.

The graphs lie beside the weights, as `encoder.onnx` and `decoder.onnx`; else they are made of the weights once, and
kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from q2d2cli.checkpoints import Checkpoint, decoding_part
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.models.config import ModelConfig
from q2d2cli.passes import Rate, Results, run_alone
from q2d2cli.runtimes.graph import Part, build, check_config, file_name, metadata, write


class OnnxNetwork:
    """`passes.Network` of a model: as many passes side by side as `threads` says, each on one core.

    Args:
        checkpoint: the model; its weights are only read where there are no graphs yet.

    Raises:
        UsageError: if a part of the model has no graph, or a student's lender is not here.
        Q2D2Error: if that is not what the student was made for.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        check_config(checkpoint.config)
        decoding_part(checkpoint)  # even if the graphs hold what it lends: a cache may not decide what works
        self._checkpoint = checkpoint
        self._sizes = np.array(checkpoint.config.quantizer.spec().sizes)
        self._sessions: dict[Part, Any] = {}
        self._loading = threading.Lock()

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self._checkpoint.config

    @property
    def threads(self) -> int:
        """How many passes it makes side by side."""
        return threads()

    def encode(self, audio: Sequence[np.ndarray]) -> Results:
        """As `Network.encode`."""
        session = self._session("encoder")
        return run_alone(lambda one: session.run(None, {"audio": one[0]})[0][None], audio, self.threads)

    def decode(self, indices: Sequence[np.ndarray]) -> Results:
        """As `Network.decode`.

        Raises:
            ValueError: if an index is out of range; names the value.
        """
        session = self._session("decoder")
        for one in indices:
            self._check(one)
        return run_alone(lambda one: session.run(None, {"indices": one[0]})[0][None], indices, self.threads)

    def search(self, rounds: int, on_round: Callable[[float], None], rate: Rate | None) -> NoReturn:
        """Not possible: a search needs gradients."""
        raise UsageError("an effort above 0 searches with gradients, which runtime onnx has not: take runtime torch")

    def _check(self, indices: np.ndarray) -> None:
        wrong = (indices < 0) | (indices >= self._sizes)
        if wrong.any():
            position = tuple(np.argwhere(wrong)[0])
            pair = position[-1]
            raise ValueError(f"index {indices[position]} is out of range: pair {pair} has {self._sizes[pair]} points")

    def _session(self, part: Part) -> Any:
        with self._loading:
            if part not in self._sessions:
                self._sessions[part] = open_part(self._checkpoint, part)
            return self._sessions[part]


def threads() -> int:
    """How many passes to make side by side: `$OMP_NUM_THREADS`, as PyTorch does, or the cores that are there."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_part(checkpoint: Checkpoint, part: Part) -> Any:
    """The session of a model's encoder or decoder.

    Raises:
        UsageError: if the graph has to be made, and the package for that is missing.
        Q2D2Error: if the graph beside the weights is damaged, or not theirs.
    """
    expected = metadata(checkpoint, part)
    beside = checkpoint.folder / file_name(part)
    if beside.is_file():
        try:
            return open_session(beside, expected)
        except Q2D2Error as error:
            folder = checkpoint.folder
            anew = f"remove it, or make it anew with q2d2 export --onnx --force {folder} {folder}"
            raise Q2D2Error(f"{beside} {error}: {anew}") from error
    kept = cache_folder() / checkpoint.fingerprint().hex() / file_name(part)
    if kept.is_file():
        # One of another version of this program, or a damaged one, is made anew.
        with contextlib.suppress(Q2D2Error):
            return open_session(kept, expected)
    content = build(checkpoint, part)
    # Where nothing can be kept, it is made each time.
    with contextlib.suppress(Q2D2Error):
        write(content, kept.parent, part)
    return open_session(content, expected)


def cache_folder() -> Path:
    """Where graphs are kept: `q2d2/onnx` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "q2d2" / "onnx"


def library() -> Any:
    """The package `onnxruntime`; it reports nothing to anybody.

    Raises:
        UsageError: if it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError('runtime onnx needs more packages: pip install "q2d2[onnx]"') from error
    return onnxruntime


def open_session(graph: Path | bytes, expected: dict[str, str]) -> Any:
    """A graph ready to run.

    Args:
        graph: the file or its content.
        expected: what it has to say of itself.

    Raises:
        Q2D2Error: if it is no graph, or says something else.
    """
    onnxruntime = library()
    options = onnxruntime.SessionOptions()
    # One core for each pass: on several, results would depend on how many.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        source = str(graph) if isinstance(graph, Path) else graph
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # what it raises has no common base
        reason = " ".join(str(error).split())[:200]
        raise Q2D2Error(
            f"is damaged, or no graph that ONNX Runtime {onnxruntime.__version__} reads ({reason})"
        ) from error
    found = session.get_modelmeta().custom_metadata_map
    for key, value in expected.items():
        if found.get(key) != value:
            raise Q2D2Error(
                f"is of another model or version: its {key} is {found.get(key, 'missing')}, expected {value}"
            )
    return session
