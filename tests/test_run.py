"""A run's safety and what can be watched: saved states, lock, full disk, signals, log, display, TensorBoard."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from accelerate import Accelerator
from conftest import CLIP, ROOT, Run
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.modules.module import register_module_forward_hook

from q2d2cli.errors import UsageError
from q2d2cli.models.model import CodecModel
from q2d2cli.training.config import read_config
from q2d2cli.training.loop import make_accelerator, train_model
from q2d2cli.training.state import States
from q2d2cli.training.trainer import Trainer
from q2d2cli.training.watch import Watch

PLAIN = ("discriminator.start=1", "validate_every=1000", "tensorboard=false")
"""Settings of the quickest run."""


def settings(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def start(*arguments: str | Path, **more: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", "train", *map(str, arguments)],
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **more,
    )


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        assert process.poll() is None
        time.sleep(0.02)


def one_line(stderr: bytes) -> str:
    """What is said besides the progress display."""
    (line,) = [line for line in stderr.decode().splitlines() if line.startswith("q2d2: ")]
    assert "Traceback" not in stderr.decode()
    return line


@pytest.mark.slow
def test_log_and_tensorboard_tell_the_same(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("train", "-c", config, "-o", out).returncode == 0
    assert run("train", "-c", config, "-o", out, "--resume", *settings("steps=90")).returncode == 0
    board = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0, "audio": 0})
    board.Reload()
    tags = board.Tags()
    entries = log(out)
    assert {e["step"] for e in entries} == set(range(10, 91, 10))
    for entry in entries:
        group = "valid" if "valid" in entry else "train"
        for name, value in entry.items():
            if name in ("step", "minutes") or value is None or isinstance(value, bool):
                continue
            curves = {f"{group}/{name}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else None
            for tag, expected in (curves or {f"{group}/{name}": value}).items():
                found = {event.step: event.value for event in board.Scalars(tag)}
                assert found[entry["step"]] == pytest.approx(expected, rel=1e-5), tag
    assert {"train/mel", "train/d", "train/utilization/1", "valid/valid_mel", "valid/stoi"} <= set(tags["scalars"])
    clips = {f"clip {i}/{kind}" for i in range(3) for kind in ("reference", "estimate")}
    assert set(tags["images"]) == set(tags["audio"]) == clips
    assert [event.step for event in board.Audio("clip 0/estimate")] == [30, 60, 90]
    (first, *_) = board.Audio("clip 0/reference")
    assert first.sample_rate == 24_000
    assert first.length_frames == 3 * 24_000

    trained = [entry for entry in entries if "mel" in entry]
    for entry in trained:
        assert entry["audio_seconds_per_second"] == pytest.approx(entry["steps_per_second"] * 2 * 0.2, rel=0.02)
        assert all(0 < share <= 1 for share in entry["utilization"])
    assert trained[5]["minutes"] > trained[0]["minutes"] > 0

    quiet = tmp_path / "quiet"
    assert run("train", "-c", config, "-o", quiet, *settings("steps=2", "tensorboard=false")).returncode == 0
    assert not (quiet / "tensorboard").exists()


def test_display_has_losses_speed_and_use_of_the_codebook(config: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=120)
    with Watch(read_config(config), tmp_path, Accelerator(cpu=True), console) as watch:
        for step in (1, 2):
            # Pair 0 has 41 points and uses 2 of them, pair 1 has 13 and uses 1.
            watch.count({"mel": torch.tensor(float(step))}, torch.tensor([[[step, 3]]]), 0.5 / 60)
            watch.moved(step, step / 4)
        watch.report(2, 1 / 60, {"skipped": 0})
        watch.display.refresh()
    shown = screen.getvalue()
    for words in ("mel 1.500", "2.00 steps/s", "0.8 s of audio/s", "points used 5% 8%", "50%", "step 2"):
        assert words in shown, words
    assert log(tmp_path)[0]["utilization"] == [round(2 / 41, 4), round(1 / 13, 4)]


def test_what_is_not_finite_stays_out_of_means_and_of_the_log(config: Path, tmp_path: Path) -> None:
    with Watch(read_config(config), tmp_path, Accelerator(cpu=True), Console(quiet=True)) as watch:
        for mel, adv in ((1.0, math.nan), (math.inf, math.nan), (2.0, math.inf)):
            losses = {"mel": torch.tensor(mel), "adv": torch.tensor(adv, dtype=torch.bfloat16)}
            watch.count(losses, torch.zeros(1, 1, 2, dtype=torch.int64), 1.0)
        watch.report(3, 1.0, {"loss": math.nan})
    (text,) = (tmp_path / "log.jsonl").read_text().splitlines()
    entry = json.loads(text, parse_constant=pytest.fail)
    assert (entry["mel"], entry["adv"], entry["loss"]) == (1.5, None, None)


def test_off_a_terminal_a_line_comes_now_and_then(run: Run, config: Path, tmp_path: Path) -> None:
    screen = io.StringIO()
    console, begun = Console(file=screen, width=40), time.monotonic()
    changes = (*PLAIN, "log_every=1")
    arguments = (read_config(config, changes), tmp_path, Accelerator(cpu=True), console)
    with Watch(*arguments, step=50, progress=0.5) as watch:
        for step in range(51, 61):
            # Gone on with at a half, a hundredth in ten seconds.
            watch.begun_at = begun - 10 * (step - 50)
            watch.count({"mel": torch.tensor(1.0)}, torch.zeros(1, 1, 2, dtype=torch.int64), 1.0)
            watch.moved(step, step / 100)
            watch.report(step, 1.0, {})
    (line,) = screen.getvalue().splitlines()
    assert line.startswith("step 51 (51%, 0:08:1")
    assert "mel 1.000" in line
    result = run("train", "-c", config, "-o", tmp_path / "run", *settings(*PLAIN, "steps=3", "log_every=1"))
    assert "step 1 (33%, " in result.stderr.decode()
    result = run("train", "-c", config, "-o", tmp_path / "quiet", "-q", *settings(*PLAIN, "steps=3", "log_every=1"))
    assert not result.stderr


def test_nan_in_a_file_that_is_read_by_seeking(run: Run, config: Path, tmp_path: Path) -> None:
    audio, rate = soundfile.read(CLIP, dtype="float32")
    audio[:: rate // 10] = np.nan
    soundfile.write(tmp_path / "data" / "nan.wav", audio, rate, subtype="FLOAT")
    out = tmp_path / "run"
    result = run("train", "-c", config, "-o", out, *settings(*PLAIN, "data.in_memory=false", "steps=20"))
    assert result.returncode == 0
    assert result.stderr.decode().count("nan.wav holds a NaN") == 1
    lines = (out / "log.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail).get("skipped", 0) for line in lines] == [0] * len(lines)


@pytest.mark.parametrize("start", [0.1, 1.0])
def test_the_end_is_best_only_if_it_is_or_discriminators_have_run(config: Path, tmp_path: Path, start: float) -> None:
    out = tmp_path / "run"
    changes = (PLAIN[-1], "validate_every=4", "steps=8", f"discriminator.start={start}", "discriminator.band.weight=1")
    train_model(read_config(config, changes), out, device="cpu", quiet=True)
    # Learning rates that no run survives, so that its end cannot be best.
    rates = ("optim.lr=3", "optim.muon_lr=3", "steps=16")
    train_model(read_config(config, (*changes, *rates)), out, device="cpu", resume=True, quiet=True)
    validations = [entry for entry in log(out) if "valid" in entry]
    assert [entry["step"] for entry in validations] == [4, 8, 12, 16]
    assert validations[-1]["valid"] > 1.2 * validations[1]["valid"], "configured learning rates count after a resume"
    assert [entry["best"] for entry in validations] == [True, True, False, start < 1]
    judges = out / "best" / "discriminators.safetensors"
    assert judges.exists() == (start < 1), "what never learnt to judge is not shipped"


def test_learning_rates_of_the_schedules(config: Path) -> None:
    shares = {}
    for name, changes in (("cosine", ()), ("constant", ()), ("decay", ("optim.decay=0.5",))):
        schedule = "cosine" if name == "cosine" else "constant"
        settings = read_config(config, [*changes, "steps=100", "optim.final_lr=0.1", f"optim.schedule={schedule}"])
        trainer, shares[name] = Trainer(settings, make_accelerator("cpu")), []
        for trainer.step in range(0, 101, 10):
            shares[name].append(trainer.schedule)
    assert shares["constant"] == [1.0] * 11
    assert shares["cosine"] == sorted(shares["cosine"], reverse=True)
    assert shares["decay"][:6] == [1.0] * 6
    assert shares["decay"][5:] == sorted(set(shares["decay"][5:]), reverse=True)
    for name in ("cosine", "decay"):
        assert shares[name][0] == 1
        assert shares[name][-1] == pytest.approx(0.1)
    trainer.step, trainer.cooldown = 40, (40, 20)
    assert (trainer.progress, trainer.schedule) == (0, 1)
    trainer.step = 60
    assert (trainer.progress, trainer.schedule) == (1, pytest.approx(0.1))


@pytest.mark.slow
def test_a_run_is_cooled_down_and_goes_on_from_before(run: Run, config: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    common = (PLAIN[-1], "discriminator.start=0", "optim.schedule=constant", "validate_every=5", "log_every=4")

    def go_on(folder: Path, steps: int, **options: Any) -> None:
        train_model(read_config(config, (*common, f"steps={steps}")), folder, device="cpu", quiet=True, **options)

    def state(folder: Path) -> dict[str, Any]:
        return torch.load(folder / "state.pt", weights_only=True)

    go_on(out, 10)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    command = ("train", "-c", config, "-o", out, *settings(*common, "steps=1000"), "--cooldown", "8")
    result = run(*command)
    assert result.returncode == 2
    assert "--resume" in one_line(result.stderr)
    result = run(*command, "--resume")
    assert result.returncode == 0, result.stderr.decode()
    cooled = out / "cooldown-10"
    assert str(cooled / "best") in result.stderr.decode().replace("\n", "")
    assert {path: path.read_bytes() for path in before} == before, "the run is as it was"
    validations = [entry for entry in log(cooled) if "valid" in entry]
    assert [entry["step"] for entry in validations] == [15, 18]
    assert "d" in log(cooled)[0], "discriminators go on if they had begun"
    assert (cooled / "best" / "model.safetensors").is_file()
    assert state(cooled)["step"] == 18
    rates = [state(folder)["optimizers"]["adamw"]["param_groups"][0]["lr"] for folder in (out, cooled)]
    assert 0 < rates[1] < 0.2 * rates[0]
    # It is there: nothing is done again.
    go_on(out, 1000, resume=True, cooldown=8)
    assert [entry for entry in log(cooled) if "valid" in entry] == validations

    # The run goes on as if there had been no cool-down.
    go_on(out, 15, resume=True)
    go_on(whole, 15)
    assert all(torch.equal(tensor, state(whole)["model"][name]) for name, tensor in state(out)["model"].items())

    with pytest.raises(UsageError, match=r"optim\.schedule"):
        train_model(read_config(config), out, resume=True, cooldown=8)


@pytest.mark.slow
def test_older_states_stay_and_serve_when_the_newest_is_damaged(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = settings(*PLAIN, "save_every=10", "steps=40", "keep_states=3")
    assert run("train", "-c", config, "-o", out, *changes).returncode == 0
    assert {path.name for path in out.glob("*.pt")} == {"state.pt", "state-30.pt", "state-20.pt"}
    expected = torch.load(out / "state.pt", weights_only=True)["model"]

    whole = (out / "state.pt").read_bytes()
    (out / "state.pt").write_bytes(whole[: len(whole) // 2])
    (out / "state-30.pt").write_bytes(b"")
    result = run("train", "-c", config, "-o", out, "--resume", *changes)
    assert result.returncode == 0, result.stderr.decode()
    said = " ".join(result.stderr.decode().split())
    for name in ("state.pt", "state-30.pt"):
        assert f"{name} is damaged" in said.replace("- ", "-")
    assert "step 20" in said
    state = torch.load(out / "state.pt", weights_only=True)
    assert state["step"] == 40
    assert all(torch.equal(expected[name], tensor) for name, tensor in state["model"].items())
    assert {path.name for path in out.glob("*.pt")} == {"state.pt", "state-30.pt", "state-20.pt"}
    assert torch.load(out / "state-30.pt", weights_only=True)["step"] == 30

    for path in out.glob("*.pt"):
        path.write_bytes(b"nothing")
    result = run("train", "-c", config, "-o", out, "--resume", *changes)
    assert result.returncode == 1
    assert "no state in" in one_line(result.stderr)


def test_a_state_outlives_each_moment_of_the_next_save(tmp_path: Path) -> None:
    states = States(tmp_path, keep=1)
    states.save({"step": 1})
    states.save({"step": 2})
    assert [path.name for path in states.paths()] == ["state.pt"]
    # Between the two renames there is no state.pt: the one before it is found.
    (tmp_path / "state.pt").rename(tmp_path / "state-2.pt")
    assert States(tmp_path, keep=1).load() == ({"step": 2}, [])


def test_one_run_in_a_folder(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("-c", config, "-o", out, *settings(*PLAIN, "steps=100000", "save_every=10"))
    try:
        wait_for(out / "state.pt", process)
        for more in ([], ["--resume"]):
            result = run("train", "-c", config, "-o", out, *more)
            assert result.returncode == 2
            assert "another run is at work" in one_line(result.stderr)
            assert result.stderr.count(b"\n") == 1
        assert "steps: 100000" in (out / "config.yaml").read_text(), "nothing is overwritten"
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    # A killed run leaves no lock behind.
    assert run("train", "-c", config, "-o", out, "--resume", *settings(*PLAIN, "steps=1")).returncode == 0


@pytest.mark.parametrize("board", ["false", "true"])
def test_full_disk(run: Run, config: Path, tmp_path: Path, board: str) -> None:
    out = tmp_path / "run"
    assert run("train", "-c", config, "-o", out, *settings(*PLAIN, "steps=20")).returncode == 0
    before = (out / "state.pt").read_bytes()
    lines = (out / "log.jsonl").read_text()
    limit = 100_000
    assert len(before) > limit
    changes = settings(*PLAIN[:-1], f"tensorboard={board}", "validate_every=5", "steps=40", "save_every=30")
    result = run("train", "-c", config, "-o", out, "--resume", *changes, file_limit=limit)
    assert result.returncode == 1, result.stderr.decode()
    assert "cannot write" in one_line(result.stderr)
    assert (out / "state.pt").read_bytes() == before
    assert (out / "log.jsonl").read_text().startswith(lines)
    assert not list(out.glob("*.partial"))
    # With room again, it goes on.
    assert run("train", "-c", config, "-o", out, "--resume", *changes).returncode == 0
    assert log(out)[-1]["step"] == 40


def test_what_cannot_be_is_one_line(run: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    judged = "discriminator.start=0"
    for device, words in (("cuda:77", "not available"), ("abacus", "unknown device")):
        result = run("train", "-c", config, "-o", out, "--device", device)
        assert result.returncode == 2
        assert words in one_line(result.stderr)
    assert run("train", "-c", config, "-o", out, *settings(*PLAIN, judged, "steps=2")).returncode == 0
    before = (out / "state.pt").read_bytes()
    for change, words in (
        ("model.encoder.dim=24", "model.encoder.dim is 16 there and 24"),
        ("discriminator.band.channels=3", "does not fit this configuration: size mismatch"),
    ):
        result = run("train", "-c", config, "-o", out, "--resume", *settings(*PLAIN, judged, "steps=4", change))
        assert result.returncode == 1
        assert words in one_line(result.stderr)
    assert (out / "state.pt").read_bytes() == before


@pytest.mark.parametrize("rate", [8000, 96_000])
@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_audio_of_any_rate_fits(run: Run, config: Path, tmp_path: Path, rate: int, in_memory: str) -> None:
    audio, _ = soundfile.read(CLIP, dtype="float32", frames=50_000)
    (tmp_path / "rate").mkdir()
    soundfile.write(tmp_path / "rate" / "a.wav", audio, rate)
    changes = settings(*PLAIN, f"data.train={tmp_path / 'rate'}", f"data.in_memory={in_memory}", "steps=2")
    result = run("train", "-c", config, "-o", tmp_path / "run", *changes)
    assert result.returncode == 0, result.stderr.decode()
    assert f"1 files, {50_000 / rate / 3600:.2f} hours" in result.stderr.decode()
    assert log(tmp_path / "run")[0]["skipped"] == 0


class Interrupt:
    """Sends SIGINT to this process from within the forward pass of one training step, `times` times."""

    def __init__(self, step: int, times: int = 1) -> None:
        self.left, self.times, self.sent = step, times, False

    def __call__(self, module: torch.nn.Module, *_: object) -> None:
        if isinstance(module, CodecModel) and module.training:
            self.left -= 1
            if self.left == 0:
                self.sent = True
                for _ in range(self.times):
                    os.kill(os.getpid(), signal.SIGINT)
                    # A launcher's echo, which counts for nothing; then long enough for another key.
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(1.1)


def interrupted(path: Path, out: Path, interrupt: Interrupt, resume: bool = False) -> None:
    handle = register_module_forward_hook(interrupt)
    try:
        train_model(
            read_config(path, [*PLAIN, "steps=12", "save_every=100"]), out, device="cpu", resume=resume, quiet=True
        )
    finally:
        handle.remove()


def test_interrupt_within_a_step_finishes_it_and_saves(config: Path, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    interrupted(config, whole, Interrupt(0))
    interrupt = Interrupt(5)
    with pytest.raises(KeyboardInterrupt):
        interrupted(config, stopped, interrupt)
    assert interrupt.sent
    assert torch.load(stopped / "state.pt", weights_only=True)["step"] == 5
    interrupted(config, stopped, Interrupt(0), resume=True)
    ends = [torch.load(out / "state.pt", weights_only=True) for out in (whole, stopped)]
    assert [end["step"] for end in ends] == [12, 12]
    for part in ("model", "ema", "discriminator"):
        assert all(torch.equal(tensor, ends[1][part][name]) for name, tensor in ends[0][part].items()), part
    assert ends[0]["rng"] == ends[1]["rng"]


def test_second_interrupt_stops_at_once_and_saves_nothing(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        interrupted(config, out, Interrupt(5, times=2))
    assert not list(out.glob("*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_with_a_saved_state(config: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = start("-c", config, "-o", out, *settings(*PLAIN, "steps=100000", "save_every=10", "log_every=1"))
    wait_for(out / "state.pt", process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr.decode()
    assert "Traceback" not in stderr.decode()
    step = torch.load(out / "state.pt", weights_only=True)["step"]
    assert step == log(out)[-1]["step"] >= 10
    assert f"stopped after step {step}, saved" in " ".join(stderr.decode().split())
