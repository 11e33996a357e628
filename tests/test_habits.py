"""What people know from opusenc, flac and torchaudio: -o, --test, --verify, --gain, --rate, load and save."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, Run, one_line

import q2d2cli
from q2d2cli import Codec, Q2D2Error, Tokens, UsageError
from q2d2cli.cli.common import progress_bar
from q2d2cli.files import OutputFile

SECONDS = 2


@pytest.fixture
def voice(clip: tuple[np.ndarray, int]) -> np.ndarray:
    return clip[0][: SECONDS * 16_000]


@pytest.fixture
def recordings(voice: np.ndarray, tmp_path: Path) -> Path:
    """A folder with two recordings, in the folder that commands run in."""
    folder = tmp_path / "cwd" / "in"
    folder.mkdir(parents=True)
    for name in ("a.wav", "b.wav"):
        soundfile.write(folder / name, voice, 16_000)
    return folder


@pytest.fixture
def run(run: Run, tiny: Path) -> Run:
    """The command, with the tiny model."""
    return lambda command, *rest, **more: run(command, *rest, "-m", tiny, **more)


@pytest.fixture
def encoded(tiny_codec: Codec, voice: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "voice.q2d"
    tiny_codec.encode(voice, 16_000).save(path)
    return path


@pytest.fixture
def run_here(tmp_path: Path) -> Path:
    return tmp_path / "cwd"


def test_o_names_a_file_or_a_folder(run: Run, recordings: Path) -> None:
    here = recordings.parent

    def made(*arguments: str | Path) -> list[str]:
        before = set(here.rglob("*.q2d"))
        result = run("encode", *arguments)
        assert result.returncode == 0, result.stderr
        return sorted(str(path.relative_to(here)) for path in set(here.rglob("*.q2d")) - before)

    assert made("in/a.wav", "-o", "one.q2d") == ["one.q2d"]
    assert made("-o", "two.q2d", "in/a.wav") == ["two.q2d"]
    (here / "there").mkdir()
    assert made("in/a.wav", "--output", "there") == ["there/a.q2d"]
    assert made("in/a.wav", "-o", "new/") == ["new/a.q2d"]
    assert made("in", "-o", "whole") == ["whole/a.q2d", "whole/b.q2d"]
    assert made("in/a.wav", "in/b.wav", "-o", "several") == ["several/a.q2d", "several/b.q2d"]
    assert run("decode", "one.q2d", "-o", "one.flac").returncode == 0
    assert soundfile.info(here / "one.flac").format == "FLAC"
    piped = run("encode", "-", "-o", "-", stdin=(recordings / "a.wav").read_bytes())
    (here / "piped.q2d").write_bytes(piped.stdout)
    assert Tokens.load(here / "piped.q2d").num_samples == SECONDS * 16_000


def test_o_is_never_taken_for_what_it_cannot_be(run: Run, recordings: Path) -> None:
    one_line(run("encode", "in/a.wav", "-o", "a.q2d", "--out-dir", "x"), 2, "--out-dir")
    for name in ("all.q2d", "-", "in/a.wav"):
        one_line(run("encode", "in/a.wav", "in/b.wav", "-o", name), 2, f"several inputs do not go into {name}")
    one_line(run("encode", "in", "-o", "all.q2d"), 2, "several inputs")
    one_line(run("encode", "in/a.wav", "-o", "in/a.wav"), 2, "both input and output")
    one_line(run("encode", "in/a.wav", "-o", "in/b.wav"), 2, "named like audio")
    one_line(run("encode", "in/a.wav", "out.q2d", "-o", "third.q2d"), 2, "several inputs")
    assert sorted(os.listdir(recordings.parent)) == ["in"]


@pytest.mark.parametrize("payload", [(), ("--robust",)])
def test_test_decodes_and_writes_nothing(run: Run, recordings: Path, payload: tuple[str, ...]) -> None:
    assert run("encode", *payload, "in", "-o", "in").returncode == 0
    before = {path: path.read_bytes() for path in recordings.parent.rglob("*") if path.is_file()}
    sound = run("decode", "-t", "in/a.q2d", "in/b.q2d")
    assert sound.returncode == 0, sound.stderr
    assert [line.split(",")[0] for line in sound.stderr.decode().splitlines()] == [
        "in/a.q2d: OK",
        "in/b.q2d: OK",
        "2 done",
    ]
    data = bytearray(before[recordings / "a.q2d"])
    data[len(data) // 2] ^= 1
    (recordings / "a.q2d").write_bytes(data)
    before[recordings / "a.q2d"] = bytes(data)
    found = run("decode", "--test", "in")
    assert found.returncode == 1
    lines = found.stderr.decode().splitlines()
    assert lines[0].startswith("q2d2: in/a.q2d is damaged: ")
    assert lines[1].startswith("in/b.q2d: OK")
    piped = run("decode", "-t", "-", "-q", stdin=before[recordings / "b.q2d"])
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, b"", b"")
    one_line(run("decode", "-t", "-", stdin=bytes(data[:-10])), 1, "standard input")
    one_line(run("decode", "-t", "in/a.wav"), 1, "in/a.wav")
    one_line(run("decode", "-t", "none.q2d"), 2, "does not exist")
    one_line(run("decode", "-t", "in/b.q2d", "-o", "x.wav"), 2, "--test writes nothing")
    assert before == {path: path.read_bytes() for path in recordings.parent.rglob("*") if path.is_file()}


def test_verify_passes_what_is_right(run: Run, recordings: Path) -> None:
    for number, more in enumerate([(), ("--robust",), ("--effort", "1", "--runtime", "torch"), ("--live",)]):
        result = run("encode", "--verify", *more, "in/a.wav", f"{number}.q2d")
        assert result.returncode == 0, result.stderr
    result = run("encode", "--verify", "-", "piped.q2d", stdin=(recordings / "a.wav").read_bytes())
    assert result.returncode == 0, result.stderr
    assert run("encode", "in/a.wav", "plain.q2d").returncode == 0
    assert (recordings.parent / "0.q2d").read_bytes() == (recordings.parent / "plain.q2d").read_bytes()
    one_line(run("encode", "--verify", "in/a.wav", "-"), 2, "--verify", "name a file")


@pytest.mark.parametrize("robust", [False, True])
def test_verify_removes_what_is_not(
    call: Run, tiny: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch, robust: bool
) -> None:
    """A disk that flips a bit of what it is given stands for every way in which a file goes wrong."""
    honest = OutputFile.write

    def flip(self: OutputFile, data: Any) -> int:
        changed = bytearray(data)
        changed[len(changed) * 3 // 4] ^= 1
        return honest(self, bytes(changed))

    monkeypatch.setattr(OutputFile, "write", flip)
    target = recordings / "a.q2d"
    more = ["--robust"] if robust else []
    one_line(call("encode", "--verify", *more, recordings / "a.wav", target, "-m", tiny), 1, str(target), "removed")
    assert sorted(os.listdir(recordings)) == ["a.wav", "b.wav"]
    assert call("encode", *more, recordings / "a.wav", target, "-m", tiny).returncode == 0


def test_gain_is_in_decibels(run: Run, encoded: Path, run_here: Path) -> None:
    for name, more in {"plain": (), "loud": ("--gain", "6"), "soft": ("--gain", "-20.5")}.items():
        assert run("decode", encoded, name, "--raw", "--sample-format", "f32le", *more).returncode == 0
    plain, loud, soft = (np.fromfile(run_here / name, "<f4") for name in ("plain", "loud", "soft"))
    assert np.allclose(loud, plain * 10 ** (6 / 20), rtol=1e-5)
    assert np.allclose(soft, plain * 10 ** (-20.5 / 20), rtol=1e-5)
    # Too loud for 16 bits is clipped, and never turns over.
    assert run("decode", encoded, "clipped.wav", "--gain", "60").returncode == 0
    clipped = soundfile.read(run_here / "clipped.wav", dtype="int16")[0]
    heard = np.abs(plain) > 1e-4
    assert (np.sign(clipped[heard]) == np.sign(plain[heard])).all()
    assert np.abs(clipped.astype(int)).max() == 32767
    for wrong in ("nan", "inf", "1000"):
        one_line(run("decode", encoded, "x.wav", "--gain", wrong), 2, "--gain")


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 48_000])
def test_rate_converts_and_keeps_the_length(run: Run, encoded: Path, run_here: Path, rate: int) -> None:
    result = run("decode", encoded, "out.wav", "--rate", rate, "--json")
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["sample_rate"], summary["duration"]) == (rate, SECONDS)
    assert (soundfile.info(run_here / "out.wav").samplerate, soundfile.info(run_here / "out.wav").frames) == (
        rate,
        SECONDS * rate,
    )
    assert run("decode", encoded, "plain.wav").returncode == 0
    if rate == 16_000:
        assert (run_here / "out.wav").read_bytes() == (run_here / "plain.wav").read_bytes()
    # The same sound: half a second of it is what is there at that time in the whole.
    part = ("--start", "0.5", "--duration", "0.5")
    assert run("decode", encoded, "part.wav", "--rate", rate, *part).returncode == 0
    whole, some = (soundfile.read(run_here / name, dtype="int16")[0] for name in ("out.wav", "part.wav"))
    assert np.array_equal(some, whole[rate // 2 : rate])


def test_rate_of_a_pipe_and_of_a_damaged_file(run: Run, encoded: Path, run_here: Path) -> None:
    piped = run("decode", "-", "-", "--raw", "--rate", 8000, stdin=encoded.read_bytes())
    assert len(piped.stdout) == 2 * 8000 * SECONDS
    Tokens.load(encoded).save(run_here / "robust.q2d", payload="robust")  # of several blocks
    (run_here / "cut.q2d").write_bytes((run_here / "robust.q2d").read_bytes()[:-100])
    assert run("decode", "--conceal", "cut.q2d", "cut.wav", "--rate", 48_000).returncode == 0
    assert abs(soundfile.info(run_here / "cut.wav").duration - SECONDS) < SECONDS
    one_line(run("decode", encoded, "x.wav", "--rate", "0"), 2, "--rate")


def test_load_gives_parts_of_the_whole(tiny: Path, encoded: Path, tiny_codec: Codec) -> None:
    model = {"model": str(tiny), "device": "cpu"}
    whole, rate = q2d2cli.load(encoded, **model)
    assert (rate, whole.shape) == (16_000, (1, SECONDS * 16_000))
    assert torch.equal(whole, tiny_codec.decode(Tokens.load(encoded)))
    for offset, count in [(0, -1), (0, 1), (1, 4000), (12_345, 777), (31_999, 50), (5000, -1)]:
        part, _ = q2d2cli.load(encoded, frame_offset=offset, num_frames=count, **model)
        assert torch.equal(part, whole[:, offset : None if count < 0 else offset + count]), (offset, count)
    assert q2d2cli.load(encoded, 32_000, 10, **model)[0].shape == (1, 0)
    assert q2d2cli.load(encoded, 100, 0, **model)[0].shape == (1, 0)
    assert torch.equal(q2d2cli.load(str(encoded), channels_first=False, **model)[0], whole.T)
    for wrong in ({"frame_offset": -1}, {"num_frames": -2}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            q2d2cli.load(encoded, **wrong, **model)


def test_save_and_info(tiny: Path, voice: np.ndarray, tmp_path: Path, tiny_codec: Codec) -> None:
    path = tmp_path / "stereo.q2d"
    stereo = torch.from_numpy(np.stack([voice, voice[::-1]]).copy())
    q2d2cli.save(path, stereo, 22_050, model=str(tiny), device="cpu")
    assert q2d2cli.info(path) == (22_050, len(voice), 2, 0, "Q2D")
    expected = tiny_codec.encode(stereo, 22_050).indices
    assert torch.equal(Tokens.load(path).indices, expected)
    # As torchaudio's does, it replaces what is there.
    q2d2cli.save(path, stereo.T, 22_050, channels_first=False, model=str(tiny), device="cpu")
    assert torch.equal(Tokens.load(path).indices, expected)
    path.write_bytes(b"RIFF" + bytes(100))
    with pytest.raises(Q2D2Error, match=r"stereo\.q2d"):
        q2d2cli.info(path)
    with pytest.raises(UsageError, match="does not exist"):
        q2d2cli.load(tmp_path / "none.q2d")


def test_file_knows_q2d(encoded: Path, tmp_path: Path) -> None:
    """As packaging/README.md installs it."""
    (tmp_path / ".magic").write_bytes((ROOT / "packaging" / "q2d2.magic").read_bytes())
    nameless = tmp_path / "nameless"
    nameless.write_bytes(encoded.read_bytes())
    other = tmp_path / "other.q2d"
    other.write_bytes(encoded.read_bytes().replace(b"\r\n", b"\n", 1))

    def ask(*arguments: str | Path) -> str:
        environment = {**os.environ, "HOME": str(tmp_path)}
        return subprocess.run(
            ["file", "-b", *arguments], capture_output=True, text=True, env=environment
        ).stdout.strip()

    assert ask(nameless) == "q2d2 speech audio, version 2.0"
    assert ask("--mime-type", nameless) == "audio/x-q2d"
    assert ask("--mime-type", other) != "audio/x-q2d"
    assert "wav" in ask("--mime-type", CLIP)


def test_desktops_know_q2d(encoded: Path, tmp_path: Path) -> None:
    packages = tmp_path / "share" / "mime" / "packages"
    packages.mkdir(parents=True)
    (packages / "q2d2.xml").write_bytes((ROOT / "packaging" / "q2d2.xml").read_bytes())
    result = subprocess.run(["update-mime-database", packages.parent], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    nameless = tmp_path / "nameless"
    nameless.write_bytes(encoded.read_bytes())
    environment = {**os.environ, "XDG_DATA_HOME": str(tmp_path / "share")}
    for path in (nameless, encoded):
        command = ["gio", "info", "-a", "standard::content-type", path]
        told = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
        assert "standard::content-type: audio/x-q2d" in told


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    """The script that `--show-completion` prints, in a real shell."""
    program = tmp_path / "bin" / "q2d2"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m q2d2cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    script = """
        eval "$(q2d2 --show-completion bash)"
        complete -p q2d2 >/dev/null || exit 3
        COMP_WORDS=(q2d2 dec) COMP_CWORD=1; _q2d2_completion q2d2; echo "${COMPREPLY[@]}"
        COMP_WORDS=(q2d2 decode --ga) COMP_CWORD=2; _q2d2_completion q2d2; echo "${COMPREPLY[@]}"
        COMP_WORDS=(q2d2 encode --model speech-3) COMP_CWORD=3; _q2d2_completion q2d2; echo "${COMPREPLY[@]}"
    """
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, timeout=250)
    *others, models = result.stdout.splitlines()
    assert others == ["decode", "--gain"], result.stderr
    assert "speech-3k" in models.split()
    assert all(name.startswith("speech-3") for name in models.split())


def test_names_of_models_are_completed_without_opening_one(tmp_path: Path) -> None:
    (tmp_path / "mine-v2").mkdir()
    (tmp_path / "mine-v2" / "config.json").write_text("{")
    (tmp_path / "empty").mkdir()
    code = (
        "import sys; from q2d2cli.cli.common import models_like; print(models_like('mine'), models_like('empty'));"
        "print([name for name in ('torch', 'numpy', 'pydantic', 'huggingface_hub') if name in sys.modules])"
    )
    environment = {**os.environ, "Q2D2_MODELS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=250)
    assert result.stdout.splitlines() == ["['mine', 'mine-v2'] []", "[]"], result.stderr


def test_manual_pages_have_every_command_and_option(tmp_path: Path) -> None:
    from q2d2cli.cli import manual

    folder = tmp_path / "man1"
    made = subprocess.run(
        [sys.executable, "-m", "q2d2cli.cli.manual", folder], capture_output=True, text=True, cwd=ROOT, timeout=250
    )
    assert made.returncode == 0, made.stderr
    names = []
    for name, command, context in manual.commands("q2d2", manual.root(), None):
        names.append(f"{name}.1")
        shown = subprocess.run(
            ["groff", "-man", "-ww", "-Tascii", "-P-cbou", folder / f"{name}.1"], capture_output=True, text=True
        )
        assert (shown.returncode, shown.stderr) == (0, ""), name
        for parameter in command.get_params(context):
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in shown.stdout, (name, option)
    assert sorted(os.listdir(folder)) == sorted(names)
    assert {"q2d2.1", "q2d2-encode.1", "q2d2-listening-build.1"} <= set(names)


def test_bar_tells_time_speed_and_bit_rate_on_a_terminal() -> None:
    def bar(quiet: bool, terminal: bool) -> str:
        written = io.StringIO()
        written.isatty = lambda: terminal  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr", written)
            patch.setenv("COLUMNS", "160")
            patch.setenv("TERM", "xterm")
            with progress_bar("a.wav", quiet) as update:
                time.sleep(0.6)
                update(30.0, 60.0, 3330.0)
        return written.getvalue()

    shown = bar(quiet=False, terminal=True)
    assert "30 of 60 s" in shown
    assert "x real time" in shown
    assert "3.33 kbit/s" in shown
    assert bar(quiet=True, terminal=True) == bar(quiet=False, terminal=False) == ""
