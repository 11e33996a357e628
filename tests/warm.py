"""Real processes of the command that start at once: forked from one that has imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory

MODULES = [
    "torch",
    "torch._dynamo",
    "torchaudio",
    "soundfile",
    "soxr",
    "safetensors.torch",
    "rich.progress",
    "q2d2cli.cli",
    "q2d2cli.transcode",
    "q2d2cli.training.loop",
    "q2d2cli.training.export",
    "q2d2cli.evaluation.compare",
    "q2d2cli.evaluation.report",
    "scipy.stats",
    "librosa.feature",
    "matplotlib.figure",
    "pesq",
    "pystoi",
    "speechmos.dnsmos",
    "warm",
]
TIMEOUT = 300

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(MODULES)


def run(
    arguments: Sequence[str],
    folder: Path,
    environment: dict[str, str],
    stdin: bytes | None,
    file_limit: int | None = None,
) -> CompletedProcess:
    """The command in a process of its own, as `subprocess.run` would; standard input is empty if there is none.

    With `file_limit` no file may grow beyond so many bytes, which is what a full disk is like.
    """
    with TemporaryDirectory() as temporary:
        # Pipes, not files: nobody can seek in them.
        streams = [Path(temporary) / name for name in ("in", "out", "err")]
        for stream in streams:
            os.mkfifo(stream)
        paths = [str(streams[0]) if stdin else os.devnull, str(streams[1]), str(streams[2])]
        process = context.Process(target=command, args=(list(arguments), str(folder), environment, paths, file_limit))
        process.start()
        with ThreadPoolExecutor(2) as pool:
            outputs = [pool.submit(stream.read_bytes) for stream in streams[1:]]
            if stdin:
                feed(streams[0], stdin)
            process.join(TIMEOUT)
            if process.exitcode is None:
                process.kill()
                process.join()
                raise TimeoutExpired(list(arguments), TIMEOUT)
            return CompletedProcess(list(arguments), process.exitcode, *(output.result() for output in outputs))


def feed(path: Path, data: bytes) -> None:
    """Write into a named pipe until all is read or the reader is gone."""
    try:
        with path.open("wb") as file:
            file.write(data)
    except BrokenPipeError:
        pass


def command(
    arguments: list[str], folder: str, environment: dict[str, str], streams: list[str], file_limit: int | None
) -> None:
    """What the forked process does."""
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    for number, (path, flags) in enumerate(
        zip(
            streams,
            (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            strict=True,
        )
    ):
        file = os.open(path, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - for good
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["q2d2", *arguments]
    from q2d2cli.__main__ import main

    main()
