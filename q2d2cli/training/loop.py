"""The training loop: one process or many, schedules, atomic saves, resume."""

from __future__ import annotations

import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from q2d2cli import checkpoints
from q2d2cli.codec import pick_device
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.codebook import pair_entropies
from q2d2cli.evaluation.evaluate import summarize
from q2d2cli.evaluation.metrics import score
from q2d2cli.files import atomic_output, make_folder
from q2d2cli.models.model import CodecModel
from q2d2cli.training.config import CONFIG_NAME, LOG_NAME, TrainConfig, to_yaml
from q2d2cli.training.data import open_corpus
from q2d2cli.training.discriminators import Discriminators, Judgements
from q2d2cli.training.losses import ComplexStftLoss, MelLoss

STATE_NAME = "state.pt"
VALID_SECONDS = 3.0
VALID_CROPS = 32
VALID_BATCH = 8
MAX_GRAD_NORM = 1e4
"""A step whose gradient is larger than this, or not finite, is skipped."""


class Trainer:
    """Everything that makes up the state of a run.

    Args:
        config: the checked configuration.
        out: run folder; gets `log.jsonl`, `state.pt` and the best checkpoint in `best/`.
        accelerator: devices and processes; every process draws the same crops and takes its share.
        init: checkpoint whose weights to start from.
        resume: go on from `state.pt` in `out`.
    """

    def __init__(
        self, config: TrainConfig, out: Path, accelerator: Accelerator, init: str | None = None, resume: bool = False
    ) -> None:
        self.config, self.out, self.accelerator = config, out, accelerator
        self.device = device = accelerator.device
        if not resume and (out / STATE_NAME).exists():
            raise UsageError(f"{out} already holds a run: go on with --resume, or name another folder")
        if resume and not (out / STATE_NAME).exists():
            raise UsageError(f"{out} holds no run to resume: leave --resume out")
        torch.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.model = CodecModel(config.model).to(device)
        self.discriminator = Discriminators(config.discriminator).to(device)
        self.notes = start_from(init, self.model, self.discriminator) if init else []
        for part in config.freeze:
            module = getattr(self.model, part)
            # Also out of training mode: a vector quantizer's codebooks would move without gradients.
            module.requires_grad_(False).eval()
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.optimizers = self._make_optimizers()
        # What runs forward in training: compiled, and with gradients averaged over processes.
        compiled = torch.compile(self.model) if config.compile else self.model
        self.parallel_model = accelerator.prepare_model(compiled)
        self.parallel_discriminator = accelerator.prepare_model(self.discriminator)
        self.mel = MelLoss(config.model.sample_rate).to(device)
        self.stft = ComplexStftLoss(config.loss.stft_compression).to(device)
        self.step = 0
        self.skipped = 0
        self.minutes = 0.0
        self.best = math.inf
        self.adversarial_steps = 0

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optim = self.config.optim
        named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if optim.muon_lr and "pwconv" in n and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        optimizers: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(rest, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay),
            "discriminator": torch.optim.AdamW(
                self.discriminator.parameters(), lr=self.config.discriminator.lr, betas=optim.betas, weight_decay=0.0
            ),
        }
        if matrices:
            optimizers["muon"] = torch.optim.Muon(
                matrices, lr=optim.muon_lr, weight_decay=optim.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]
        return optimizers

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.config.steps is not None:
            return min(1.0, self.step / self.config.steps)
        assert self.config.minutes is not None
        return min(1.0, self.minutes / self.config.minutes)

    def _schedule(self) -> None:
        optim = self.config.optim
        cosine = optim.final_lr + (1 - optim.final_lr) * 0.5 * (1 + math.cos(math.pi * self.progress))
        for name, optimizer in self.optimizers.items():
            steps = self.adversarial_steps if name == "discriminator" else self.step
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * cosine * min(1.0, (steps + 1) / optim.warmup_steps)

    def train_step(self, audio: Tensor) -> dict[str, float]:
        """One step on `(batch, samples)` audio; returns the losses."""
        config = self.config
        losses: dict[str, float] = {}
        self._schedule()
        adversarial = self.progress >= config.discriminator.start
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=config.bf16)
        with autocast:
            estimate, quantized = self.parallel_model(audio)
        mel, stft = self.mel(estimate, audio), self.stft(estimate, audio)
        total = config.loss.mel * mel + config.loss.stft * stft + config.loss.commitment * quantized.loss
        losses |= {"mel": mel.item(), "stft": stft.item()}
        if adversarial:
            self.adversarial_steps += 1
            length = min(audio.shape[-1], int(config.discriminator.crop_seconds * config.model.sample_rate))
            start = int(self.rng.integers(0, audio.shape[-1] - length + 1))
            real, fake = audio[:, start : start + length], estimate[:, start : start + length]
            with autocast:
                # In one pass: gradients of two could not be averaged over processes.
                judged = self.parallel_discriminator(torch.cat([real, fake.detach()]))
                d_loss = self.discriminator.loss(*split_judgements(judged))
            self._update(d_loss, ["discriminator"], self.discriminator)
            # Back through the discriminators to their input only: their own gradients stay as they are.
            leaf = fake.detach().requires_grad_()
            with autocast:
                with torch.no_grad():
                    judged_real = self.discriminator(real)
                judged_fake = self.discriminator(leaf)
                adversarial_loss = self.discriminator.generator_loss(judged_fake)
                matching = self.discriminator.feature_matching_loss(judged_real, judged_fake)
            weighted = config.loss.adversarial * adversarial_loss + config.loss.feature_matching * matching
            (gradient,) = torch.autograd.grad(weighted, leaf)
            total = total + (fake * gradient).sum()
            losses |= {"d": d_loss.item(), "adv": adversarial_loss.item(), "fm": matching.item()}
        if self._update(total, [n for n in self.optimizers if n != "discriminator"], self.model):
            # A warm-up of the average, so that it does not drag the initial weights along.
            decay = min(config.optim.ema_decay, (self.step + 1) / (self.step + 10))
            for name, tensor in self.model.state_dict().items():
                if tensor.is_floating_point():
                    self.ema[name].lerp_(tensor, 1 - decay)
                else:
                    self.ema[name].copy_(tensor)
        self.step += 1
        return losses

    def _update(self, loss: Tensor, names: list[str], module: nn.Module) -> bool:
        """Backward pass and optimizer steps; False, and nothing changed, if the step is not sound."""
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(module.parameters(), self.config.optim.grad_clip)
        if not torch.isfinite(norm) or norm > MAX_GRAD_NORM:
            self.skipped += 1
            return False
        for name in names:
            self.optimizers[name].step()
        return True

    @torch.inference_mode()
    def validate(self, audio: Tensor) -> dict[str, Any]:
        """Losses and pair entropies of the averaged weights on `(batch, samples)` audio."""
        model = CodecModel(self.config.model).to(self.device).eval()
        model.load_state_dict(self.ema)
        mel: list[float] = []
        stft: list[float] = []
        indices: list[Tensor] = []
        measured: dict[str, float | None] = {}
        for part in audio.split(VALID_BATCH):
            estimate, quantized = model(part)
            if not mel:
                measured = self.measure(part, estimate)
            mel.append(self.mel(estimate, part).item())
            stft.append(self.stft(estimate, part).item())
            indices.append(quantized.indices.flatten(0, 1))
        entropies = pair_entropies(torch.cat(indices).cpu().numpy(), model.quantizer.spec.sizes)
        loss = self.config.loss
        mean_mel, mean_stft = float(np.mean(mel)), float(np.mean(stft))
        return {
            "valid_mel": mean_mel,
            "valid_stft": mean_stft,
            "valid": loss.mel * mean_mel + loss.stft * mean_stft,
            "entropy": [round(e, 3) for e in entropies],
            **measured,
        }

    def measure(self, reference: Tensor, estimate: Tensor) -> dict[str, float | None]:
        """Mean of each of the configuration's metrics over `(batch, samples)` pairs, None where undefined."""
        names, rate = self.config.validate_metrics, self.config.model.sample_rate
        rows = [
            score(names, a.float().cpu().numpy(), b.float().cpu().numpy(), rate)
            for a, b in zip(reference, estimate, strict=True)
        ]
        return {name: summarize(row[name] for row in rows)["mean"] for name in names}

    def add_minutes(self, minutes: float) -> None:
        """Count time; the first process's clock decides for all, so that all agree where the run stands."""
        self.minutes += minutes
        if self.accelerator.num_processes > 1 and self.config.minutes is not None:
            clock = [self.minutes]
            broadcast_object_list(clock)
            self.minutes = clock[0]

    def mean(self, values: list[float]) -> float:
        """Mean over values and processes."""
        mean = torch.tensor(values, dtype=torch.float64 if self.device.type != "mps" else None).mean().to(self.device)
        return float(self.accelerator.reduce(mean, "mean"))

    def save(self) -> None:
        """Write the whole state atomically (first process only)."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "discriminator": self.discriminator.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "step": self.step,
            "skipped": self.skipped,
            "minutes": self.minutes,
            "best": self.best,
            "adversarial_steps": self.adversarial_steps,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with atomic_output(self.out / STATE_NAME) as file:
            file.write(buffer.getbuffer())

    def load(self) -> None:
        """Go on from the saved state."""
        path = self.out / STATE_NAME
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.discriminator.load_state_dict(state["discriminator"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (RuntimeError, KeyError, ValueError, EOFError) as error:
            raise Q2D2Error(
                f"{path} does not fit this configuration or is damaged: {str(error).splitlines()[0]}"
            ) from error
        self.ema = state["ema"]
        self.rng.bit_generator.state = json.loads(state["rng"])
        torch.set_rng_state(state["torch_rng"].cpu())
        for name in ("step", "skipped", "minutes", "best", "adversarial_steps"):
            setattr(self, name, state[name])

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to the log (first process only)."""
        if not self.accelerator.is_main_process:
            return
        with (self.out / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "minutes": round(self.minutes, 3), **entry}) + "\n")


def split_judgements(judged: Judgements) -> tuple[Judgements, Judgements]:
    """Judgements of a batch to those of its two halves."""
    halves: tuple[Judgements, Judgements] = ({}, {})
    for name, members in judged.items():
        for half, chosen in enumerate(halves):
            chosen[name] = [(score.chunk(2)[half], [h.chunk(2)[half] for h in hidden]) for score, hidden in members]
    return halves


def start_from(init: str, model: CodecModel, discriminators: Discriminators) -> list[str]:
    """Copy the weights of another model where names and shapes agree, discriminators too if it has them.

    Returns:
        What was taken and what was not, a line each.

    Raises:
        UsageError: if nothing fits.
    """
    checkpoint = checkpoints.find(init)
    source = checkpoints.load(checkpoint).state_dict()
    target = model.state_dict()
    fitting = {name: t for name, t in source.items() if name in target and target[name].shape == t.shape}
    if not fitting:
        raise UsageError(f"model {init!r} shares no weights with this configuration")
    model.load_state_dict(fitting, strict=False)
    new = [name for name in target if name not in fitting]
    notes = [f"{len(fitting)} of {len(target)} weights from {checkpoint.config.name}"]
    if new:
        notes.append(f"new: {', '.join(new[:8])}{' and more' if len(new) > 8 else ''}")
    judges = checkpoints.load_discriminators(checkpoint.folder)
    if judges is not None:
        mine = discriminators.state_dict()
        same = {name: t for name, t in judges.items() if name in mine and mine[name].shape == t.shape}
        discriminators.load_state_dict(same, strict=False)
        notes.append(f"{len(same)} of {len(mine)} discriminator weights")
    return notes


def train(config: TrainConfig, out: Path, device: str, init: str | None, resume: bool, quiet: bool) -> Path:
    """Run (or resume) a training run and return the folder of its best checkpoint.

    Under `accelerate launch` or `torchrun` it trains in all processes together; the first one writes.

    Raises:
        UsageError: if there is no audio, or `out` already holds a run and `resume` is false.
        Q2D2Error: if saving fails.
    """
    accelerator = make_accelerator(device)
    main = accelerator.is_main_process
    make_folder(out)
    trainer = Trainer(config, out, accelerator, init, resume)
    if resume:
        trainer.load()
    accelerator.wait_for_everyone()
    if main:
        with atomic_output(out / CONFIG_NAME) as file:
            file.write(to_yaml(config).encode())
    console = Console(stderr=True, quiet=quiet or not main)
    rate = config.model.sample_rate
    with console.status("reading audio"):
        corpus = open_corpus(config.data.train, rate, config.data.in_memory, accelerator.device)
        valid_corpus = open_corpus(config.data.valid, rate, True, accelerator.device)
    for note in trainer.notes:
        console.print(note)
    for path in corpus.broken + valid_corpus.broken:
        console.print(f"skipped {path}: not readable as audio")
    console.print(f"{corpus.files} files, {corpus.seconds / 3600:.2f} hours of audio")
    valid = valid_corpus.crops(VALID_CROPS, int(VALID_SECONDS * rate), config.data, np.random.default_rng(0))
    length = int(config.data.crop_seconds * rate)
    share = config.optim.batch_size
    first = accelerator.process_index * share
    best = out / "best"

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1)
        bar.update(task, completed=trainer.progress)
        recent: dict[str, list[float]] = {}
        try:
            while trainer.progress < 1:
                started = time.monotonic()
                batch = corpus.crops(
                    share * accelerator.num_processes, length, config.data, trainer.rng, slice(first, first + share)
                )
                losses = trainer.train_step(batch.to(accelerator.device))
                trainer.add_minutes((time.monotonic() - started) / 60)
                done = trainer.progress >= 1
                for name, value in losses.items():
                    recent.setdefault(name, []).append(value)
                if trainer.step % config.log_every == 0 or done:
                    means = {name: round(trainer.mean(values), 4) for name, values in recent.items()}
                    recent.clear()
                    trainer.log({**means, "skipped": trainer.skipped})
                    text = " ".join(f"{name} {value:.3f}" for name, value in means.items())
                    bar.update(task, completed=trainer.progress, description=f"step {trainer.step} {text}")
                if main and (trainer.step % config.validate_every == 0 or done):
                    result = trainer.validate(valid)
                    trainer.log(result)
                    console.print(f"step {trainer.step}: " + " ".join(f"{k} {v}" for k, v in result.items()))
                    # The adversarial stage trades some of this loss for quality: its end counts, too.
                    if result["valid"] < trainer.best or done:
                        trainer.best = result["valid"]
                        checkpoints.save(best, config.model, trainer.ema)
                        checkpoints.save_discriminators(best, trainer.discriminator.state_dict())
                if trainer.step % config.save_every == 0:
                    trainer.save()
        finally:
            # Also on Ctrl-C: nothing done so far is lost.
            trainer.save()
    accelerator.end_training()
    return best


def make_accelerator(device: str) -> Accelerator:
    """Accelerate's view of the processes, on `device` (`auto`: CUDA when present, else the CPU).

    Raises:
        UsageError: if the device is not there.
    """
    target = pick_device(device)
    if target.type == "cuda" and target.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(target)
    return Accelerator(cpu=target.type == "cpu")
