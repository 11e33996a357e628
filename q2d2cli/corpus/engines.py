"""Who makes the shards: this machine, on every GPU or all cores, or a Ray cluster."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from q2d2cli.codec import Codec
from q2d2cli.corpus.folder import Job, Record, TokenFolder, begin, locked
from q2d2cli.corpus.formats import open_format
from q2d2cli.corpus.sources import CorpusPlan, CorpusSpec, Unit, make_plan
from q2d2cli.corpus.tokenize import Progress, describe_output, encode_unit
from q2d2cli.corpus.vocabulary import Vocabulary
from q2d2cli.errors import Q2D2Error, UsageError

Numbered = tuple[int, Unit]
Engine = Callable[[Codec, str, Job, Sequence[Numbered], Path, Progress], Iterator[Record]]
"""Makes the shards of units and gives a record of each as it is done, in any order."""


@dataclass(frozen=True)
class Settings:
    """What a job is asked to do.

    Attributes:
        corpus: what is read.
        model: name, folder or Hub id.
        device: as `Codec.from_pretrained` takes it; `auto` is every GPU there is.
        ids: kind of ids, see `Vocabulary`.
        format: of the shards, see `FORMATS`.
        engine: see `ENGINES`.
    """

    corpus: CorpusSpec
    model: str
    device: str = "auto"
    ids: str = "pair"
    format: str = "parquet"
    engine: str = "local"


def run_job(
    settings: Settings, path: Path, progress: Progress, planned: Callable[[CorpusPlan, TokenFolder], None]
) -> TokenFolder:
    """Make an output, or what is missing of it.

    Args:
        settings: what is asked for.
        path: the output; a cluster's nodes must all see it under this name.
        progress: called after each batch, or each shard where others make them.
        planned: called once before the first shard, with the plan and what is there already.

    Raises:
        UsageError: if the corpus is empty, or the folder holds something else or another job works in it.
        StoreError: if a store cannot be reached.
        Q2D2Error: if the output cannot be written.
    """
    if settings.engine not in ENGINES:
        raise UsageError(f"unknown engine {settings.engine!r}: choose from {', '.join(ENGINES)}")
    open_format(settings.format, path, {"dtype": "uint16"})  # tells of what is missing before the work begins
    plan = make_plan(settings.corpus, path)
    codec = Codec.from_pretrained(settings.model, settings.device)
    vocabulary = Vocabulary(codec.quantizer, settings.ids)
    description, count = describe_output(codec, vocabulary), len(plan.units)
    job = Job(
        settings.model, codec.fingerprint.hex(), settings.corpus, plan.digest(), count, settings.format, description
    )
    with locked(path):
        folder = begin(path, job)
        planned(plan, folder)
        missing = [(number, plan.units[number]) for number in folder.missing]
        for record in ENGINES[settings.engine](codec, settings.device, job, missing, path, progress):
            folder.add(record)
        if not folder.finished:
            folder.finish()
    return folder


def run_local(
    codec: Codec, device: str, job: Job, units: Sequence[Numbered], folder: Path, progress: Progress
) -> Iterator[Record]:
    """This machine: one unit after the other on all cores, or a unit on each GPU."""
    others = torch.cuda.device_count() if device == "auto" and codec.device.type == "cuda" else 1
    if others < 2 or len(units) < 2:
        for number, unit in units:
            yield encode_unit(codec, job, unit, number, folder, progress)
        return
    free: queue.SimpleQueue[Codec] = queue.SimpleQueue()
    for number in range(min(others, len(units))):
        free.put(Codec.from_pretrained(job.model, f"cuda:{number}"))
    lock = threading.Lock()

    def report(clips: int, seconds: float) -> None:
        with lock:
            progress(clips, seconds)

    def one(item: Numbered) -> Record:
        own = free.get()
        try:
            return encode_unit(own, job, item[1], item[0], folder, report)
        finally:
            free.put(own)

    with ThreadPoolExecutor(free.qsize(), "q2d2-gpu") as pool:
        yield from pool.map(one, units)


class RayWorker:
    """An actor of a Ray cluster that holds the model and makes shards.

    Args:
        job: what is made.
        folder: the output.
        device: as `Codec.from_pretrained` takes it.
    """

    def __init__(self, job: Job, folder: Path, device: str) -> None:
        self.job, self.folder = job, folder
        self.codec = Codec.from_pretrained(job.model, device)
        if self.codec.fingerprint.hex() != job.fingerprint:
            raise Q2D2Error(f"model {job.model} has other weights on this node: copy the same ones to all nodes")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the shard of the pickled unit `row["unit"]`; gives a pickled record."""
        unit = pickle.loads(row["unit"])  # made by this job's own driver, a moment ago
        record = encode_unit(self.codec, self.job, unit, row["number"], self.folder, lambda clips, seconds: None)
        return {"record": pickle.dumps(record)}


def run_ray(
    codec: Codec, device: str, job: Job, units: Sequence[Numbered], folder: Path, progress: Progress
) -> Iterator[Record]:
    """A Ray cluster: that of `RAY_ADDRESS` or of this machine, or else a new one on this machine alone.

    Ray Data hands out the units and hands out again those of nodes that are lost; each actor holds the model.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError('--engine ray needs more packages: pip install "q2d2[ray]"') from error
    if not units:
        return
    begun = not ray.is_initialized()
    try:
        if begun:
            check_address(os.environ.get("RAY_ADDRESS", ""))
            ray.init(log_to_driver=False, configure_logging=False)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if device in ("auto", "cuda") else 0
        actors = max(1, min(len(units), gpus or int(resources.get("CPU", 1))))
        rows = [{"number": number, "unit": pickle.dumps(unit)} for number, unit in units]
        worker: Any = RayWorker
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            worker,
            fn_constructor_args=(job, folder.resolve(), "cuda" if gpus else device if device != "auto" else "cpu"),
            compute=ray.data.ActorPoolStrategy(min_size=1, initial_size=actors, max_size=actors),
            num_cpus=None if gpus else 1,
            num_gpus=1 if gpus else None,
        )
        for row in made.iter_rows():
            record = pickle.loads(row["record"])
            progress(record.clips + len(record.rejected), record.seconds)
            yield record
    except (ray.exceptions.RayError, ray.exceptions.RayTaskError) as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise Q2D2Error(f"the Ray job failed: {reason}; run the same command again to go on") from error
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise Q2D2Error(f"cannot reach the Ray cluster: {reason}; start it with ray start --head") from error
    finally:
        if begun:
            ray.shutdown()


def check_address(address: str) -> None:
    """Connect to `host:port` or `ray://host:port`: Ray itself tries for minutes.

    Raises:
        OSError: if there is nobody. Addresses of another form are Ray's matter.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


ENGINES: dict[str, Engine] = {"local": run_local, "ray": run_ray}
"""What `q2d2 tokenize --engine` offers."""
