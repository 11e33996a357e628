"""One step of training and one validation, and everything that makes up their state."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from q2d2cli import checkpoints
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.codebook import pair_entropies
from q2d2cli.hearing import Hearing
from q2d2cli.losses import (
    ComplexStftLoss,
    EnergyLoss,
    LevelLoss,
    LinesLoss,
    MelLoss,
    PesqLoss,
    Spectra,
    WordsLoss,
)
from q2d2cli.models.blocks import ConvNeXtBlock
from q2d2cli.models.config import QuantizerConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.models.precision import has_bfloat16
from q2d2cli.quantizers.base import Quantized
from q2d2cli.training import distill
from q2d2cli.training.clip import clip_frames
from q2d2cli.training.config import TrainConfig, difference
from q2d2cli.training.discriminators import Discriminators, Judgements
from q2d2cli.training.muon import Muon
from q2d2cli.training.rate import LEARNING_RATE, Rate
from q2d2cli.training.scores import Recording, measure
from q2d2cli.training.sharpen import unsharpened

VALID_BATCH = 8
MAX_GRAD_NORM = 1e4
"""A step whose gradient is larger than this, or not finite, is skipped."""
JUDGES = ("discriminator", "features")
"""Optimizers of discriminators, which have losses of their own."""
COUNTERS = ("step", "skipped", "minutes", "best", "adversarial_steps", "heads_steps")
"""Of a state; those it does not have begin at 0."""


class Measured(NamedTuple):
    """What one model makes of the validation audio."""

    losses: dict[str, float]
    """Means of those that have a weight, and of mel and stft."""
    scores: dict[str, float | None]
    """Mean metrics."""
    indices: Tensor
    """`(batch, frames, pairs)`."""
    values: Tensor
    """What was quantized, as in `Quantized`."""
    estimate: Tensor
    """The first reconstructions, `(at most 8, samples)`."""


class Trainer:
    """Everything that makes up the state of a run.

    Args:
        config: the checked configuration.
        accelerator: devices and processes; every process draws the same crops and takes its share.
        init: checkpoint whose weights to start from.

    Raises:
        UsageError: if `init` or the teacher does not fit the configuration.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, init: str | None = None) -> None:
        self.config, self.accelerator = config, accelerator
        self.device = device = accelerator.device
        torch.manual_seed(config.seed)
        self.rng = np.random.default_rng(config.seed)
        self.model = CodecModel(config.model).to(device)
        rate = config.model.sample_rate
        self.words: WordsLoss | None = None
        if config.loss.words or config.discriminator.features.weight:
            self.words = WordsLoss(Hearing(config.loss.recognizer, rate)).to(device)
        heard = self.words.hearing.dims if self.words is not None else ()
        self.discriminator = Discriminators(config.discriminator, heard).to(device)
        self.rate: Rate | None = None
        if config.loss.rate:
            spec = config.model.quantizer.spec()
            self.rate = Rate(spec, config.loss.rate, config.loss.rate_bits).to(device)
        kept = "decoder" in config.freeze
        self.notes = start_from(init, self.model, self.discriminator, as_exported=kept) if init else []
        self.sharpened: checkpoints.Sharpened | None = None
        """What `q2d2 export --sharpen` once did to the decoder, where it is kept as it was exported."""
        if init and kept:
            self.sharpened = checkpoints.find(init).sharpened
        self.bf16 = config.bf16 and has_bfloat16(device)
        if config.bf16 and not self.bf16:
            self.notes.append("this processor has no instructions for bfloat16: training in float32, which is quicker")
        self.teacher: distill.Teacher | None = None
        self._teacher_result: Measured | None = None
        if config.teacher is not None:
            self.teacher = distill.Teacher(config.teacher, config.model, device)
            self.teacher.lend(self.model)
        for part in config.freeze if self.teacher is None else distill.LENT:
            module = getattr(self.model, part)
            # Also out of training mode: a vector quantizer's codebooks would move without gradients.
            module.requires_grad_(False).eval()
        if config.optim.frame_clip:
            clip_frames(self.model.decoder.head.out, config.optim.frame_clip)
        self.ema = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizers = self._make_optimizers()
        # What runs forward in training: compiled, and with gradients averaged over processes.
        compiled = torch.compile(self.model) if config.compile else self.model
        self.parallel_model = accelerator.prepare_model(compiled)
        # One without weights cannot be prepared.
        judges = self.discriminator
        self.parallel_discriminator = accelerator.prepare_model(judges.families) if judges.weights else judges.families
        self.parallel_features = accelerator.prepare_model(judges.features) if judges.features is not None else None
        self.parallel_rate = accelerator.prepare_model(self.rate) if self.rate is not None else None
        self.mel = MelLoss(rate).to(device)
        self.stft = ComplexStftLoss(config.loss.stft_compression, config.loss.stft_phase_only).to(device)
        chosen: dict[str, Callable[[int], nn.Module]] = {
            "energy": EnergyLoss,
            "level": LevelLoss,
            "lines": LinesLoss,
            "pesq": PesqLoss,
        }
        # Beside mel and STFT, which are always measured.
        self.more_losses = nn.ModuleDict(
            {name: kind(rate) for name, kind in chosen.items() if getattr(config.loss, name)}
        ).to(device)
        self.step = 0
        self.skipped = 0
        self.minutes = 0.0
        self.best = math.inf
        self.adversarial_steps = 0
        self.heads_steps = 0
        self.cooldown: tuple[int, int] | None = None
        """Step at which learning rates begin to fall, and in how many more they do, if this is a cool-down."""

    def _make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optim = self.config.optim
        matrices = [p for n, p in self.trained.items() if optim.muon_lr and "pwconv" in n and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.trained.values() if id(p) not in chosen]
        optimizers: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(rest, lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay)
        }
        judges, settings = self.discriminator, self.config.discriminator
        if judges.weights:
            optimizers["discriminator"] = torch.optim.AdamW(
                judges.families.parameters(), lr=settings.lr, betas=optim.betas, weight_decay=0.0
            )
        if judges.features is not None:
            optimizers["features"] = torch.optim.AdamW(
                judges.features.parameters(), lr=settings.features.lr, betas=(0.5, 0.9), weight_decay=0.0
            )
        if self.rate is not None:
            optimizers["rate"] = torch.optim.AdamW(self.rate.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        if matrices:
            optimizers["muon"] = Muon(matrices, lr=optim.muon_lr, weight_decay=optim.weight_decay, bf16=self.bf16)
        # Not in the groups: those come back with a saved state, and the configuration decides.
        self.peaks = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
        return optimizers

    @property
    def progress(self) -> float:
        """Share of the run, or of a cool-down, that is done, in [0, 1]."""
        if self.cooldown is not None:
            begin, steps = self.cooldown
            return min(1.0, (self.step - begin) / steps)
        if self.config.steps is not None:
            return min(1.0, self.step / self.config.steps)
        assert self.config.minutes is not None
        return min(1.0, self.minutes / self.config.minutes)

    @property
    def lender(self) -> checkpoints.Lender | None:
        """The model whose quantizer and decoder a student keeps."""
        return None if self.teacher is None else self.teacher.lender

    @property
    def judged(self) -> bool:
        """Whether discriminators have been trained."""
        return any(self.optimizers[name].state for name in JUDGES if name in self.optimizers)

    @property
    def schedule(self) -> float:
        """Learning rates now, as a share of their peaks, but for the warm-up.

        What is constant first falls with 1 - sqrt at the end (Hägele et al. 2024, Scaling laws and compute-optimal
        training beyond fixed training durations).
        """
        optim = self.config.optim
        if optim.schedule == "cosine":
            share = 0.5 * (1 + math.cos(math.pi * self.progress))
        else:
            decay = optim.decay if self.cooldown is None else 1.0
            share = 1 - math.sqrt(max(0.0, 1 - (1 - self.progress) / decay)) if decay else 1.0
        return optim.final_lr + (1 - optim.final_lr) * share

    def _schedule(self) -> None:
        optim, share = self.config.optim, self.schedule
        for name, optimizer in self.optimizers.items():
            steps = self.adversarial_steps if name == "discriminator" else self.step
            # Heads on what is known already need no warm-up: they must be ahead of the model.
            warm = 1.0 if name == "features" else min(1.0, (steps + 1) / optim.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = self.peaks[name] * share * warm

    def train_step(self, audio: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One step on `(batch, samples)` audio; returns the losses, scalars, and the pair indices.

        Nothing here waits for the device but the check of the gradient.
        """
        config = self.config
        self._schedule()
        if self.teacher is not None and self.progress < config.loss.distillation_alone and self.cooldown is None:
            return self._agree(audio, self.teacher)
        begun = self.progress >= config.discriminator.start if self.cooldown is None else self.adversarial_steps > 0
        adversarial = self.discriminator.weights and begun
        autocast = self._autocast()
        with autocast:
            estimate, quantized = self.parallel_model(audio)
        decoded, original = Spectra(estimate), Spectra(audio)
        mel, stft = self.mel(decoded, original), self.stft(decoded, original)
        total = config.loss.mel * mel + config.loss.stft * stft + config.loss.commitment * quantized.loss
        losses = {"mel": mel, "stft": stft}
        for name, loss in self.more_losses.items():
            losses[f"{name}_loss"] = value = loss(decoded, original)
            total = total + getattr(config.loss, name) * value
        if self.words is not None:
            with autocast:
                with torch.no_grad():
                    wanted = self.words.hearing(audio)
                heard = self.words.hearing(estimate)
            losses["words"] = self.words.compare(heard, wanted)
            total = total + config.loss.words * losses["words"]
            if self.discriminator.features is not None:
                layers = [self.discriminator.layers(*pair) for pair in ((heard, decoded), (wanted, original))]
                losses["d_features"], losses["adv_features"] = self._judge(*layers)
                settings = config.discriminator.features
                weight = settings.weight * min(1.0, self.heads_steps / settings.fade_steps)
                total = total + weight * losses["adv_features"]
        if self.rate is not None:
            assert self.parallel_rate is not None
            losses["rate_bits"] = self.parallel_rate(quantized.values, quantized.indices).mean()
            losses["rate_weight"] = self.rate.weight.clone()
            total = total + losses["rate_weight"] * losses["rate_bits"]
        if self.teacher is not None:
            losses["distillation"] = self._distillation(audio, quantized, self.teacher)
            total = total + config.loss.distillation * losses["distillation"]
        if adversarial:
            self.adversarial_steps += 1
            length = min(audio.shape[-1], int(config.discriminator.crop_seconds * config.model.sample_rate))
            start = int(self.rng.integers(0, audio.shape[-1] - length + 1))
            real, fake = audio[:, start : start + length], estimate[:, start : start + length]
            with autocast:
                # In one pass: gradients of two could not be averaged over processes.
                judged = self.parallel_discriminator(torch.cat([real, fake.detach()]))
                d_loss = self.discriminator.loss(*split_judgements(judged))
            self._update(d_loss, ["discriminator"], self.discriminator.families)
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
            losses |= {"d": d_loss, "adv": adversarial_loss, "fm": matching}
        if self._move(total) and self.rate is not None:
            # The mean over processes, so that all agree on the weight.
            self.rate.follow(self.accelerator.reduce(losses["rate_bits"].detach(), "mean"))
        return {name: loss.detach() for name, loss in losses.items()}, quantized.indices

    def _agree(self, audio: Tensor, teacher: distill.Teacher) -> tuple[dict[str, Tensor], Tensor]:
        """A step of `train_step` in which the codes of the teacher are all that counts."""
        with self._autocast():
            _, quantized = self.parallel_model(audio, decode=False)
        loss = self._distillation(audio, quantized, teacher)
        self._move(self.config.loss.distillation * loss)
        return {"distillation": loss.detach()}, quantized.indices

    def _distillation(self, audio: Tensor, quantized: Quantized, teacher: distill.Teacher) -> Tensor:
        """How far what the student quantized is from what the teacher would have."""
        with self._autocast():
            target = teacher.quantize(audio)
        return F.l1_loss(quantized.values, target.values)

    def _move(self, loss: Tensor) -> bool:
        """One step of the codec and of the average of its weights; False if it was not sound and neither moved."""
        moved = self._update(loss, [n for n in self.optimizers if n not in JUDGES], self.model)
        if moved:
            self._average()
        self.step += 1
        return moved

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def _judge(self, decoded: list[Tensor], original: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Update the heads on layers of both; returns their loss and, through `decoded`, the codec's."""
        heads, settings = self.discriminator.features, self.config.discriminator.features
        assert heads is not None
        assert self.parallel_features is not None
        both = [torch.cat(pair) for pair in zip(original, (layer.detach() for layer in decoded), strict=True)]
        for _ in range(settings.updates * (2 if self.heads_steps < settings.fade_steps else 1)):
            with self._autocast():
                loss = heads.loss(self.parallel_features(both))
            self._update(loss, ["features"], heads)
        self.heads_steps += 1
        # Their own gradients come from the updates alone.
        heads.requires_grad_(False)
        with self._autocast():
            adversarial = heads.generator_loss(heads(decoded))
        heads.requires_grad_(True)
        return loss, adversarial

    @torch.no_grad()
    def _average(self) -> None:
        """Move the average of the weights towards them."""
        # A warm-up, so that it does not drag the initial weights along.
        weight = 1 - min(self.config.optim.ema_decay, (self.step + 1) / (self.step + 10))
        pairs: list[tuple[Tensor, Tensor]] = [(self.ema[name], p) for name, p in self.trained.items()]
        for name, buffer in self.model.named_buffers():
            if name in self.ema:
                if buffer.is_floating_point():
                    pairs.append((self.ema[name], buffer))
                else:
                    self.ema[name].copy_(buffer)
        averages, weights = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(averages), list(weights), weight)

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
    def validate(self, audio: Tensor, clips: Sequence[Recording] = ()) -> tuple[dict[str, Any], Tensor]:
        """Measure the averaged weights on `(batch, samples)` audio; metrics on `clips`, if any.

        Returns:
            Losses, metrics and pair entropies; with a teacher also its metrics, and how often both give the same
            codes. Then the first reconstructions, `(at most 8, samples)`.
        """
        model = CodecModel(self.config.model).to(self.device).eval()
        model.load_state_dict(self.ema)
        mine = self._measure(model, audio, clips)
        numbers: dict[str, Any] = {f"valid_{name}": loss for name, loss in mine.losses.items()}
        entropies = pair_entropies(mine.indices.flatten(0, 1).cpu().numpy(), model.quantizer.spec.sizes)
        weights = self.config.loss
        numbers["valid"] = sum(getattr(weights, name) * loss for name, loss in mine.losses.items())
        numbers |= {"entropy": [round(e, 3) for e in entropies], **mine.scores}
        if self.rate is not None:
            numbers["valid_rate_bits"] = self.rate(mine.values, mine.indices).mean().item()
        if self.teacher is not None:
            if self._teacher_result is None:
                # It does not change: measured once.
                self._teacher_result = self._measure(self.teacher.model, audio, clips)
            theirs = self._teacher_result
            gap = F.l1_loss(mine.values, theirs.values).item()
            share, pairs = distill.agreement(mine.indices, theirs.indices)
            numbers["valid"] += weights.distillation * gap
            numbers |= {"valid_distillation": gap, "agreement": share, "agreement_pairs": [round(p, 4) for p in pairs]}
            numbers |= {f"teacher_{name}": score for name, score in {**theirs.losses, **theirs.scores}.items()}
        return numbers, mine.estimate

    def _validated(self) -> dict[str, nn.Module]:
        """Losses that a validation measures: mel, STFT, and those that have a weight."""
        words = {"words": self.words} if self.words is not None else {}
        return {"mel": self.mel, "stft": self.stft, **self.more_losses, **words}

    def _measure(self, model: CodecModel, audio: Tensor, clips: Sequence[Recording]) -> Measured:
        metrics, rate = self.config.validate_metrics, self.config.model.sample_rate
        parts = audio.split(VALID_BATCH)
        estimates, quantized = zip(*(model(part) for part in parts), strict=True)
        losses = {
            name: float(np.mean([loss(e, part).item() for e, part in zip(estimates, parts, strict=True)]))
            for name, loss in self._validated().items()
        }
        if clips:
            recorded, texts = zip(*clips, strict=True)
            scores = measure(metrics, rate, recorded, [model(clip[None])[0][0] for clip in recorded], texts)
        else:
            scores = measure(metrics, rate, audio, torch.cat(estimates))
        indices, values = (torch.cat([getattr(q, name) for q in quantized]) for name in ("indices", "values"))
        return Measured(losses, scores, indices, values, estimates[0])

    def add_minutes(self, minutes: float) -> None:
        """Count time; the first process's clock decides for all, so that all agree where the run stands."""
        self.minutes += minutes
        if self.accelerator.num_processes > 1 and self.config.minutes is not None:
            clock = [self.minutes]
            broadcast_object_list(clock)
            self.minutes = clock[0]

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on."""
        return {
            "config": self.config.model.model_dump_json(),
            "model": self.model.state_dict(),
            "ema": self.ema,
            "discriminator": self.discriminator.state_dict(),
            "rate": self.rate.state_dict() if self.rate is not None else {},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "rng": json.dumps(self.rng.bit_generator.state),
            "torch_rng": torch.get_rng_state(),
            "sharpened": asdict(self.sharpened) if self.sharpened is not None else None,
            **{name: getattr(self, name) for name in COUNTERS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            Q2D2Error: if it is of another model or other discriminators.
        """
        mine = self.config.model.model_dump(mode="json")
        # States of 0.1.0's first runs do not say; then the weights must fit.
        theirs = json.loads(state["config"]) if "config" in state else mine
        if (change := difference({**theirs, "name": ""}, {**mine, "name": ""})) is not None:
            key, there, here = change
            raise Q2D2Error(
                f"the saved state is of another model: model.{key} is {there} there and {here} in the configuration"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.discriminator.load_state_dict(state["discriminator"])
            if self.rate is not None:
                self.rate.load_state_dict(state["rate"])
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise Q2D2Error(f"the saved state does not fit this configuration: {reason}") from error
        for name, tensor in state["ema"].items():
            self.ema[name].copy_(tensor)
        self.rng.bit_generator.state = json.loads(state["rng"])
        torch.set_rng_state(state["torch_rng"])
        # Earlier states do not say.
        if (done := state.get("sharpened")) is not None:
            self.sharpened = checkpoints.Sharpened(**done)
        for name in COUNTERS:
            setattr(self, name, state.get(name, 0))


def split_judgements(judged: Judgements) -> tuple[Judgements, Judgements]:
    """Judgements of a batch to those of its two halves."""
    halves: tuple[Judgements, Judgements] = ({}, {})
    for name, members in judged.items():
        for half, chosen in enumerate(halves):
            chosen[name] = [(score.chunk(2)[half], [h.chunk(2)[half] for h in hidden]) for score, hidden in members]
    return halves


def more_dimensions(
    theirs: QuantizerConfig, mine: QuantizerConfig, source: dict[str, Tensor], target: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Projections for a quantizer that has another one's levels and more after them; nothing if it has not.

    The new dimensions are projected in as `target` has it, and out to nothing.
    """
    old, new = tuple(theirs.levels), tuple(mine.levels)
    names = ("quantizer.project_in.weight", "quantizer.project_in.bias", "quantizer.project_out.weight")
    more = len(new) > len(old) and new[: len(old)] == old
    # A layer norm would mix the new dimensions into the others.
    alike = theirs.model_copy(update={"levels": mine.levels}) == mine and mine.projection != "layernorm"
    if not (more and alike and {*names} <= source.keys() & target.keys()):
        return {}
    rows, bias, columns = (target[name].clone() for name in names)
    rows[: len(old)], bias[: len(old)] = source[names[0]], source[names[1]]
    columns.zero_()[:, : len(old)] = source[names[2]]
    return dict(zip(names, (rows, bias, columns), strict=True))


def start_from(init: str, model: CodecModel, discriminators: Discriminators, *, as_exported: bool = False) -> list[str]:
    """Copy the weights of another model where names and shapes agree, discriminators too if it has them.

    Blocks that the other model does not have begin as the identity where it has the blocks before them, and quantized
    dimensions that it does not have are not heard at first where it has those before them: a deeper model, and one of
    more dimensions, starts as what it is made from. A sharpened decoder (`q2d2 export --sharpen`) begins as it was
    before that, unless `as_exported`.

    Returns:
        What was taken and what was not, a line each.

    Raises:
        UsageError: if nothing fits.
    """
    checkpoint = checkpoints.find(init)
    source = checkpoints.load(checkpoint).state_dict() if as_exported else unsharpened(checkpoint)
    target = model.state_dict()
    fitting = {name: t for name, t in source.items() if name in target and target[name].shape == t.shape}
    if not fitting:
        raise UsageError(f"model {init!r} shares no weights with this configuration")
    fitting |= more_dimensions(checkpoint.config.quantizer, model.config.quantizer, source, target)
    model.load_state_dict(fitting, strict=False)
    new = [name for name in target if name not in fitting]
    for name, module in model.named_modules():
        stack, _, _ = name.rpartition(".")
        if isinstance(module, ConvNeXtBlock) and f"{stack}.0.gamma" in fitting and f"{name}.gamma" not in fitting:
            nn.init.zeros_(module.gamma)
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
