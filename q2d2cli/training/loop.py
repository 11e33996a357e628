"""The training loop: one process or many, validations, saves, stops and resume."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from q2d2cli import checkpoints
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.recognizer import RECOGNIZER_VARIABLE, recognizer_name
from q2d2cli.files import atomic_output, make_folder
from q2d2cli.runtimes.pytorch import pick_device
from q2d2cli.signals import Stop
from q2d2cli.training.config import RUN_CONFIG_NAME, TrainConfig, to_yaml
from q2d2cli.training.corpus import Corpus, validation_crops
from q2d2cli.training.data import MemoryCorpus, open_corpus
from q2d2cli.training.guard import only_run
from q2d2cli.training.scores import validation_clips
from q2d2cli.training.state import States
from q2d2cli.training.trainer import Trainer
from q2d2cli.training.watch import Watch


def train_model(
    config: TrainConfig,
    out: Path,
    *,
    device: str = "auto",
    init: str | None = None,
    resume: bool = False,
    cooldown: int | None = None,
    quiet: bool = False,
) -> Path:
    """Run (or resume) a training run, or cool it down, and return the folder of its best checkpoint.

    A cool-down goes on from the newest state of the run in a folder of its own, `out/cooldown-STEP`, while learning
    rates fall to their end; the run itself stays as it is and can go on, even meanwhile.

    Under `accelerate launch` or `torchrun` it trains in all processes together; the first one writes.
    Ctrl-C or SIGTERM ends it after the step it is in, saved; a second Ctrl-C at once.

    Args:
        config: the checked configuration.
        out: folder of the run.
        device: `auto`, or as torch names it.
        init: model whose weights to start from.
        resume: go on with the run in `out`.
        cooldown: steps of a cool-down; the run in `out` must have `optim.schedule: constant`.
        quiet: print nothing.

    Raises:
        UsageError: if there is no audio, `out` already holds a run and `resume` is false, another process is at work in
            it, a run has another schedule than a cool-down needs, or what it trains on is to judge it.
        Q2D2Error: if saving fails, the saved state does not fit, or memory runs out.
    """
    check_judge(config)
    accelerator = make_accelerator(device)
    source: States | None = None
    if cooldown is not None:
        source = States(out, config.keep_states)
        out = cooldown_folder(config, source)
    make_folder(out)
    try:
        with only_run(out) if accelerator.is_main_process else contextlib.nullcontext():
            return run(
                config, out, accelerator, init=init, resume=resume, quiet=quiet, source=source, cooldown=cooldown
            )
    except torch.OutOfMemoryError as error:
        raise Q2D2Error(
            f"{accelerator.device} ran out of memory: lower optim.batch_size or data.crop_seconds"
        ) from error


def check_judge(config: TrainConfig) -> None:
    """Raise UsageError if validations would count the word errors of the recognizer that is trained against."""
    hears = config.loss.words or config.discriminator.features.weight
    if hears and "wer" in config.validate_metrics and recognizer_name() == config.loss.recognizer:
        raise UsageError(
            f"recognizer {config.loss.recognizer!r} is in the loss and cannot judge wer: name another with "
            f"{RECOGNIZER_VARIABLE}, or leave wer out of validate_metrics"
        )


def cooldown_folder(config: TrainConfig, states: States) -> Path:
    """Where a cool-down of the run with these states goes.

    Raises:
        UsageError: if there is no run, or its learning rates are not constant.
    """
    if config.optim.schedule != "constant":
        raise UsageError("a cool-down needs constant learning rates before it: set optim.schedule to constant")
    if not states.paths():
        raise UsageError(f"{states.folder} holds no run to cool down")
    return states.folder / f"cooldown-{states.load()[0]['step']}"


def run(
    config: TrainConfig,
    out: Path,
    accelerator: Accelerator,
    *,
    init: str | None,
    resume: bool,
    quiet: bool,
    source: States | None,
    cooldown: int | None,
) -> Path:
    """What `train_model` does once the folder is its own; `source` has the states of the run that is cooled down."""
    main = accelerator.is_main_process
    states = States(out, config.keep_states)
    if not resume and states.paths():
        raise UsageError(f"{out} already holds a run: go on with --resume, or name another folder")
    if resume and source is None and not states.paths():
        raise UsageError(f"{out} holds no run to resume: leave --resume out")
    each = Console(stderr=True, quiet=quiet)
    console = each if main else Console(quiet=True)
    trainer = Trainer(config, accelerator, init)
    if resume:
        # A cool-down that was stopped goes on with its own states.
        state, notes = (states if source is None or states.paths() else source).load()
        trainer.restore(state)
        trainer.notes += notes
    if cooldown is not None:
        begin = int(out.name.removeprefix("cooldown-"))
        trainer.cooldown = begin, cooldown
        if trainer.step == begin:
            trainer.best = math.inf
    accelerator.wait_for_everyone()
    if main:
        with atomic_output(out / RUN_CONFIG_NAME) as file:
            file.write(to_yaml(config).encode())
    rate = config.model.sample_rate
    with console.status("reading audio"):
        corpus = open_corpus(
            config.data, rate, accelerator.device, seed=config.seed, processes=accelerator.num_processes
        )
        valid_corpus = MemoryCorpus(config.data.valid, rate, accelerator.device)
        if resume:
            trainer.notes += seek(corpus, state.get("corpus"), accelerator)
    for note in trainer.notes:
        console.print(note, soft_wrap=True)
    named = set[Path | str]()

    def name(broken: dict[Path | str, str], where: Console) -> None:
        for path, reason in broken.items():
            if path not in named:
                where.print(f"skipped {reason if str(path) in reason else f'{path}: {reason}'}", soft_wrap=True)
        named.update(broken)

    name({**corpus.broken, **valid_corpus.broken}, console)
    console.print(corpus.summary)
    valid = validation_crops(valid_corpus, config.data)
    clips = []
    if main:
        clips = validation_clips(
            valid_corpus.paths, config.validate_clips, rate, accelerator.device, config.validate_texts
        )

    def save() -> None:
        positions = gather_object([corpus.position])
        if main:
            states.save({**trainer.state(), "corpus": positions})

    best = out / "best"
    watching = Watch(config, out, accelerator, console, step=trainer.step, progress=trainer.progress)
    with watching as watch, Stop() as stop:
        while trainer.progress < 1:
            advance(trainer, corpus, watch)
            done = trainer.progress >= 1
            if trainer.step % config.log_every == 0 or done:
                counts = {"skipped": trainer.skipped, "broken": len(corpus.broken)}
                watch.report(trainer.step, trainer.minutes, counts)
                # Every process reads files of its own.
                name(corpus.broken, each)
            if main and (trainer.step % config.validate_every == 0 or done):
                result, estimate = trainer.validate(valid, clips)
                # Discriminators and the rate trade some of this loss for what it does not measure: the end counts, too.
                chosen = result["valid"] < trainer.best or (done and (trainer.judged or trainer.rate is not None))
                if chosen:
                    trainer.best = result["valid"]
                    checkpoints.save(
                        best, config.model, trainer.ema, lender=trainer.lender, sharpened=trainer.sharpened
                    )
                    if trainer.judged:
                        checkpoints.save_discriminators(best, trainer.discriminator.state_dict())
                result["best"] = chosen
                watch.validated(trainer.step, trainer.minutes, result, reference=valid, estimate=estimate)
            stopping = agreed(accelerator, stop)
            if trainer.step % config.save_every == 0 or done or stopping:
                save()
            if stopping:
                break
        if stop.signal:
            console.print(f"stopped after step {trainer.step}, saved: go on with --resume")
    stop.finish()
    accelerator.end_training()
    return best


def advance(trainer: Trainer, corpus: Corpus, watch: Watch) -> None:
    """Draw a batch and take one step."""
    config, accelerator = trainer.config, trainer.accelerator
    started = time.monotonic()
    share = config.optim.batch_size
    first = accelerator.process_index * share
    batch = corpus.crops(
        share * accelerator.num_processes,
        int(config.data.crop_seconds * config.model.sample_rate),
        config.data,
        trainer.rng,
        slice(first, first + share),
    )
    losses, indices = trainer.train_step(batch.to(accelerator.device))
    minutes = (time.monotonic() - started) / 60
    trainer.add_minutes(minutes)
    watch.count(losses, indices, minutes)
    watch.moved(trainer.step, trainer.progress)


def seek(corpus: Corpus, positions: list[tuple[int, int] | None] | None, accelerator: Accelerator) -> list[str]:
    """Put a stream where the saved state's processes stood; returns what is to be said about it.

    Args:
        corpus: any.
        positions: of each process's corpus, None in states that have none.
        accelerator: the processes now.
    """
    known = [position for position in positions or [] if position is not None]
    if corpus.position is None or not known:
        return []
    if len(known) == accelerator.num_processes:
        corpus.position = known[accelerator.process_index]
        return []
    corpus.position = (max(turn for turn, _ in known) + 1, 0)
    return [f"saved by {len(known)} processes, {accelerator.num_processes} now: the shards begin a new pass"]


def agreed(accelerator: Accelerator, stop: Stop) -> bool:
    """Whether any process has been asked to stop: all must do so after the same step."""
    if accelerator.num_processes == 1:
        return bool(stop.signal)
    asked = torch.tensor(float(bool(stop.signal)), device=accelerator.device)
    return float(accelerator.reduce(asked, "sum")) > 0


def make_accelerator(device: str) -> Accelerator:
    """Accelerate's view of the processes, on `device` (`auto`: CUDA when present, else the CPU).

    Raises:
        UsageError: if the device is not there.
    """
    target = pick_device(device)
    if target.type == "cuda" and target.index is not None:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(target)
    return Accelerator(cpu=target.type == "cpu")
