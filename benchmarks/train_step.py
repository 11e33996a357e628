"""What a training step costs, part by part, in seconds of processor time.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py --config examples/speech/speech-3k.yaml

One thread, one process, random weights, noise for audio: how long a step takes depends on neither. The parts are
those of `Trainer.train_step`; the last line is that function itself, without drawing the crops. Each number is the
least of several.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from q2d2cli.losses import Spectra
from q2d2cli.training.config import read_config
from q2d2cli.training.loop import make_accelerator
from q2d2cli.training.trainer import Trainer


def clocked(times: dict[str, float], name: str, call: Callable[[], Any]) -> Any:
    """What `call` gives; the least time of it so far is kept under `name`."""
    started = time.process_time()
    result = call()
    times[name] = min(times.get(name, float("inf")), time.process_time() - started)
    return result


def parts(trainer: Trainer, audio: torch.Tensor, times: dict[str, float]) -> None:
    """One step in pieces."""
    config = trainer.config

    def forward() -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.bf16):
            return trainer.model(audio)

    estimate, _ = clocked(times, "forward", forward)
    decoded, original = Spectra(estimate), Spectra(audio)
    losses = []
    for name, loss in {"mel": trainer.mel, "stft": trainer.stft, **trainer.more_losses}.items():
        losses.append(getattr(config.loss, name) * clocked(times, name, lambda loss=loss: loss(decoded, original)))
    if trainer.words is not None:

        def listen(signal: torch.Tensor) -> list[torch.Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.bf16):
                return trainer.words.hearing(signal)

        with torch.no_grad():
            wanted = clocked(times, "hearing the recording", lambda: listen(audio))
        heard = clocked(times, "hearing the decoded", lambda: listen(estimate))
        losses.append(config.loss.words * clocked(times, "words", lambda: trainer.words.compare(heard, wanted)))
        if trainer.discriminator.features is not None:
            layers = [trainer.discriminator.layers(*pair) for pair in ((heard, decoded), (wanted, original))]
            trainer.heads_steps = config.discriminator.features.fade_steps
            losses.append(clocked(times, "heads", lambda: trainer._judge(*layers))[1])
    total = torch.stack(losses).sum()
    (gradient,) = clocked(times, "backward, losses", lambda: torch.autograd.grad(total, estimate, retain_graph=True))
    clocked(times, "backward, model", lambda: estimate.backward(gradient))
    for name in ("muon", "adamw"):
        if name in trainer.optimizers:
            clocked(times, name, trainer.optimizers[name].step)
    clocked(times, "average", trainer._average)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as q2d2 train takes it")
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = read_config(arguments.config, arguments.set)
    trainer = Trainer(config, make_accelerator("cpu"))
    audio = 0.1 * torch.randn(config.optim.batch_size, int(config.data.crop_seconds * config.model.sample_rate))
    times: dict[str, float] = {}
    for _ in range(arguments.repeat):
        parts(trainer, audio, times)
    for _ in range(arguments.repeat):
        clocked(times, "step", lambda: trainer.train_step(audio))
    if arguments.json:
        print(json.dumps({"bf16": trainer.bf16, **{name: round(seconds, 4) for name, seconds in times.items()}}))
        return
    print("bfloat16" if trainer.bf16 else "float32")
    for name, seconds in times.items():
        print(f"{name:22s} {seconds:.3f}")


if __name__ == "__main__":
    main()
