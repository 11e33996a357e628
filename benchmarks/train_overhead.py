"""What the training loop adds to the model's own forward pass, losses, backward pass and optimizers.

    OMP_NUM_THREADS=1 python benchmarks/train_overhead.py --config examples/speech/speech-3k.yaml --data FOLDER

Both are timed in turn, in one process and on the same weights, before the discriminators start; the medians are
compared. The loop's step draws its crops, follows the schedule, clips, averages weights, counts, moves the display,
and at its share of the steps reports to log and TensorBoard. Validations and saves are not in it: how often they
come is up to the configuration.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from q2d2cli.training.config import read_config
from q2d2cli.training.data import open_corpus
from q2d2cli.training.loop import advance, make_accelerator
from q2d2cli.training.trainer import Trainer
from q2d2cli.training.watch import Watch


def bare_step(trainer: Trainer, audio: Tensor) -> None:
    """Forward, losses, backward, optimizers: what a step cannot do without."""
    config = trainer.config
    with torch.autocast(trainer.device.type, torch.bfloat16, enabled=config.bf16):
        estimate, quantized = trainer.parallel_model(audio)
    mel, stft = trainer.mel(estimate, audio), trainer.stft(estimate, audio)
    total = config.loss.mel * mel + config.loss.stft * stft + config.loss.commitment * quantized.loss
    optimizers = [o for name, o in trainer.optimizers.items() if name != "discriminator"]
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    total.backward()
    for optimizer in optimizers:
        optimizer.step()


def wait(device: torch.device) -> None:
    """Let the device finish, so that the clock sees it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="audio to train on instead of the configuration's")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as of q2d2 train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    changes = [f"data.train={arguments.data}", f"data.valid={arguments.data}", "discriminator.start=1"]
    config = read_config(arguments.config, [*changes, *arguments.overrides])
    accelerator = make_accelerator(arguments.device)
    trainer = Trainer(config, accelerator)
    corpus = open_corpus(config.data, config.model.sample_rate, accelerator.device)
    length = int(config.data.crop_seconds * config.model.sample_rate)
    batch = corpus.crops(config.optim.batch_size, length, config.data, trainer.rng).to(accelerator.device)
    bare: list[float] = []
    loop: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Watch(config, Path(folder), accelerator, Console(stderr=True), 0) as watch,
    ):
        for repeat in range(arguments.repeats + 3):
            started = time.perf_counter()
            bare_step(trainer, batch)
            wait(accelerator.device)
            between = time.perf_counter()
            advance(trainer, corpus, watch)
            wait(accelerator.device)
            ended = time.perf_counter()
            if repeat >= 3:  # The first steps set up the optimizers.
                bare.append(between - started)
                loop.append(ended - between)
        started = time.perf_counter()
        watch.report(trainer.step, trainer.minutes, {})
        report = (time.perf_counter() - started) / config.log_every
    own, whole = statistics.median(bare), statistics.median(loop) + report
    print(
        f"model {1000 * own:.1f} ms, loop {1000 * whole:.1f} ms a step (of it reports {1000 * report:.2f} ms): "
        f"overhead {100 * (whole - own) / own:.1f}%, medians of {len(bare)}"
    )


if __name__ == "__main__":
    main()
