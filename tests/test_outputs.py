"""Outputs: whole or not at all, never an input, through links and pipes, after signals and kills, on full disks."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import CLIP, ROOT, Run

from q2d2cli import Codec, Tokens, UsageError
from q2d2cli.audio import open_sink
from q2d2cli.cli import decode, encode
from q2d2cli.cli.common import plan
from q2d2cli.files import atomic_output, check_output

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def start(*arguments: str | Path, shell: str = "", **more: Any) -> subprocess.Popen[bytes]:
    """Start the real command; `shell` has redirections that only a shell can make."""
    command = [sys.executable, "-m", "q2d2cli", *map(str, arguments)]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    return subprocess.Popen(command, env=ENVIRONMENT, **{"stderr": subprocess.PIPE, **more})


def outcome(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Exit code and what was said."""
    _, stderr = process.communicate(timeout=120)
    text = (stderr or b"").decode()
    assert "Traceback" not in text
    assert "Exception ignored" not in text
    return process.returncode, text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def q2d(tiny_codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds, encoded."""
    audio, rate = soundfile.read(CLIP, dtype="float32", frames=32_000)
    path = tmp_path_factory.mktemp("encoded") / "clip.q2d"
    tiny_codec.encode(audio, rate).save(path)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """The current folder, with a recording without suffix, another, and a .q2d file without suffix."""
    audio, rate = soundfile.read(CLIP, frames=8000)
    soundfile.write(tmp_path / "1.sph", audio, rate, format="NIST", subtype="PCM_16")
    soundfile.write(tmp_path / "2.sph", audio, rate, format="NIST", subtype="PCM_16")
    soundfile.write(tmp_path / "rec", audio, rate, format="WAV")
    with contextlib.chdir(tmp_path):
        yield tmp_path


# Names


def jobs(command: str, *arguments: str, out_dir: str | None = None, force: bool = True) -> list[tuple[Path, Path]]:
    """What `encode` or `decode` would convert to what, after all its checks of names."""
    paths, folder = [Path(name) for name in arguments], None if out_dir is None else Path(out_dir)
    module, suffix, sources = (encode, ".q2d", {".wav"}) if command == "encode" else (decode, ".wav", {".q2d"})
    found = plan(paths, folder, suffix, sources, module.check_name).jobs
    module.check_jobs(found, folder, force)
    return found


@pytest.mark.parametrize(
    ("command", "arguments", "out_dir", "words"),
    [
        ("encode", ["1.sph", "2.sph"], None, "--out-dir"),
        ("encode", ["1.sph", "rec"], None, "--out-dir"),
        ("encode", ["1.sph", "new.flac"], None, "named like audio"),
        ("encode", ["rec", "rec"], None, "both input and output"),
        ("encode", ["rec", "./sub/../rec"], None, "both input and output"),
        ("encode", ["rec", "link"], None, "both input and output"),
        ("encode", ["rec", "hard"], None, "both input and output"),
        ("encode", ["rec", "hard.q2d"], None, "both input and output"),
        ("encode", ["hard.q2d"], None, "use q2d2 decode"),
        ("encode", ["a.q2d"], None, "does not exist"),
        ("encode", ["sub"], None, "is a folder"),
        ("encode", ["."], None, "is a folder"),
        ("encode", [""], None, "is a folder"),
        ("encode", ["/"], None, "is a folder"),
        ("encode", [".."], None, "is a folder"),
        ("encode", ["rec", "sub"], None, "is a folder"),
        ("encode", ["rec", ""], None, "is a folder"),
        ("encode", ["rec", "x" * 300], None, "File name too long"),
        ("encode", ["rec", "none/new.q2d"], None, "does not exist"),
        ("encode", ["-"], None, "needs an output"),
        ("encode", ["/dev/stdin"], None, "needs an output"),
        ("encode", ["rec", "1.sph", "2.sph"], None, "--out-dir"),
        ("encode", ["hard.q2d", "1.sph"], ".", "both input and output"),
        ("encode", ["rec"], "1.sph", "cannot make folder"),
        ("decode", ["one.q2d", "one.q2d"], None, "both input and output"),
        ("decode", ["one.q2d", "two"], None, "is a .q2d file"),
        ("decode", ["one.q2d", "new.q2d"], None, "is a .q2d file"),
        ("decode", ["one.q2d", "new.xyz"], None, "unknown audio format"),
        ("decode", ["one.wav"], None, "use q2d2 encode"),
        ("decode", ["sub"], None, "is a folder"),
    ],
)
def test_an_input_is_no_output_and_a_name_says_what_it_is(
    here: Path, q2d: Path, command: str, arguments: list[str], out_dir: str | None, words: str
) -> None:
    (here / "sub").mkdir()
    (here / "link").symlink_to("rec")
    (here / "hard").hardlink_to("rec")
    (here / "hard.q2d").hardlink_to("rec")
    for name in ("one.q2d", "two", "one.wav"):
        (here / name).write_bytes(q2d.read_bytes())
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    with pytest.raises(UsageError) as error:
        jobs(command, *arguments, out_dir=out_dir)
    assert words in str(error.value)
    assert {path: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


def test_what_may_be_overwritten(here: Path, q2d: Path) -> None:
    (here / "old").write_bytes(q2d.read_bytes())
    (here / "empty").touch()
    (here / "old.q2d").write_bytes(b"no .q2d file, but so named")
    for name in ("old", "empty", "old.q2d"):
        assert jobs("encode", "rec", name) == [(Path("rec"), Path(name))]
        with pytest.raises(UsageError, match="--force"):
            jobs("encode", "rec", name, force=False)
    assert jobs("decode", "old", "1.sph".replace("sph", "wav")) == [(Path("old"), Path("1.wav"))]
    assert jobs("encode", "rec") == [(Path("rec"), Path("rec.q2d"))]
    assert jobs("encode", "rec", "/dev/null") == [(Path("rec"), Path("/dev/null"))]
    assert jobs("encode", "-", "-") == [(Path("-"), Path("-"))]


def test_the_command_keeps_the_second_recording(run: Run, here: Path, tiny: Path) -> None:
    before = (here / "2.sph").read_bytes()
    result = run("encode", "-f", here / "1.sph", here / "2.sph", "-m", tiny)
    assert result.returncode == 2
    assert b"--force" not in result.stderr
    assert result.stderr.count(b"\n") == 1
    assert (here / "2.sph").read_bytes() == before


def test_channel_and_redirections_keep_their_input(tmp_path: Path, q2d: Path) -> None:
    own = tmp_path / "own.q2d"
    own.write_bytes(q2d.read_bytes())
    for arguments, shell in (
        ((own, own), ""),
        ((own, "-"), f">> {own}"),
        (("-", own), f"< {own}"),
        (("/dev/stdin", own), f"< {own}"),
        (("-", "/dev/fd/5"), f"< {own} 5>> {own}"),
    ):
        code, text = outcome(start("channel", "-f", "--ber", "0.1", *arguments, shell=shell))
        assert code == 2
        assert "both input and output" in text
        assert text.count("\n") == 1
        assert own.read_bytes() == q2d.read_bytes()


# Links, permissions, descriptors


def write(path: Path, data: bytes) -> None:
    with atomic_output(path) as file:
        file.write(data)


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "old").write_bytes(b"old")
    for name in ("old", "new"):
        link, again = tmp_path / f"{name}.1", tmp_path / f"{name}.2"
        link.symlink_to(Path("real") / name)
        again.symlink_to(link)
        write(again, b"new")
        assert again.is_symlink()
        assert link.is_symlink()
        assert (tmp_path / "real" / name).read_bytes() == b"new"
    assert names(tmp_path / "real") == ["new", "old"]
    nowhere = tmp_path / "nowhere"
    nowhere.symlink_to(tmp_path / "none" / "file")
    with pytest.raises(UsageError, match="does not exist"):
        check_output(nowhere, True)


def test_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for mode in (0o600, 0o664, 0o444, 0o755):
            path = tmp_path / f"{mode:o}"
            path.write_bytes(b"old")
            path.chmod(mode)
            with atomic_output(path) as file:
                file.write(b"new")
                (partial,) = tmp_path.glob(".*")
                assert stat.S_IMODE(partial.stat().st_mode) & ~mode & 0o077 == 0, "open to others meanwhile"
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert path.read_bytes() == b"new"
        write(tmp_path / "new", b"new")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_the_mask_stays_as_it_is(tmp_path: Path) -> None:
    """What other threads write meanwhile gets the permissions it should have."""
    before, stop, modes = os.umask(0o077), threading.Event(), set()

    def others() -> None:
        while not stop.is_set():
            handle = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY, 0o666)
            modes.add(stat.S_IMODE(os.fstat(handle).st_mode))
            os.close(handle)
            os.unlink(tmp_path / "other")

    thread = threading.Thread(target=others)
    try:
        thread.start()
        for _ in range(200):
            write(tmp_path / "mine", b"x")
    finally:
        stop.set()
        thread.join()
        os.umask(before)
    assert modes == {0o600}


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, os.fsdecode(b"\xff" * 255), "-n", "[a]*?", ".hidden"])
def test_any_name_a_file_can_have(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"1")
    write(tmp_path / name, b"2")
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"2"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_APPEND, 0])
def test_standard_output_gets_what_is_written_where_it_stands(
    tmp_path: Path, tiny_codec: Codec, capfd: pytest.CaptureFixture[str], name: str, flags: int, known: bool
) -> None:
    """A redirected file may be opened for append, have bytes in it already, or stand anywhere."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    path = tmp_path / "link" if name == "link" else Path(name)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 500)).astype(np.float32)
    target = tmp_path / "out"
    target.write_bytes(b"before")
    saved, number = os.dup(1), os.open(target, os.O_RDWR | flags)
    try:
        if not flags:
            os.lseek(number, 0, os.SEEK_END)
        os.dup2(number, 1)
        with (
            atomic_output(path) as file,
            open_sink(file, path, 16_000, 1, 500 if known else None) as sink,
        ):
            sink.write(samples)
        os.write(1, b"after")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(number)
    data = target.read_bytes()
    assert data.startswith(b"" if flags == os.O_TRUNC else b"before")
    assert data.endswith(b"after")
    wav = data[0 if flags == os.O_TRUNC else 6 : -5]
    assert len(wav) == 44 + 1000
    np.testing.assert_allclose(soundfile.read(io.BytesIO(wav))[0], samples[0], atol=1e-4)
    size = int.from_bytes(wav[40:44], "little")
    assert size == (0xFFFFFFFF if flags == os.O_APPEND and not known else 1000)


def test_a_q2d_is_appended_whole(tmp_path: Path, run: Run, tiny: Path) -> None:
    new = tmp_path / "new.q2d"
    process = start("encode", "-", "-", "-m", tiny, shell=f">> {new}", stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(CLIP.read_bytes())
    code, text = outcome(process)
    assert code == 0, text
    assert Tokens.load(new).num_samples == 161_440


def test_a_format_that_needs_to_seek_does_not_go_into_a_pipe(tmp_path: Path) -> None:
    fifo = tmp_path / "out.flac"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with (
        pytest.raises(UsageError, match="pipe"),
        atomic_output(fifo) as file,
        open_sink(file, fifo, 16_000, 1, 100) as sink,
    ):
        sink.write(np.zeros((1, 100), np.float32))
    os.close(reader)
    assert fifo.is_fifo()


# Two at once, and killed


def test_two_writers_of_one_output_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_output(path) as first:
        first.write(b"1" * 100_000)
        with atomic_output(path) as second:
            second.write(b"2" * 70_000)
            assert len(names(tmp_path)) == 2
            first.write(b"1" * 100_000)
        assert path.read_bytes() == b"2" * 70_000
        first.write(b"1")
    assert path.read_bytes() == b"1" * 200_001
    assert names(tmp_path) == ["out"]


@pytest.mark.slow
def test_many_writers_at_once(tmp_path: Path) -> None:
    path, failures = tmp_path / "out", []

    def many(value: int) -> None:
        try:
            for count in range(30):
                write(path, bytes([value]) * (5000 + count))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=many, args=(value,)) for value in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    data = path.read_bytes()
    assert len(set(data)) == 1
    assert len(data) == 5029
    assert names(tmp_path) == ["out"]


WRITER = """
import sys
from pathlib import Path
from q2d2cli.files import atomic_output
path, value = Path(sys.argv[1]), 0
print(flush=True)
while True:
    value = (value + 1) % 256
    with atomic_output(path) as file:
        for _ in range(50):
            file.write(bytes([value]) * 10_000)
"""


@pytest.mark.slow
def test_killed_at_any_moment_leaves_the_old_file_or_the_new_one_or_none(tmp_path: Path) -> None:
    path, rng, found = tmp_path / "out", np.random.default_rng(), 0
    for _ in range(12):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            process.kill()
        if path.exists():
            found += 1
            data = path.read_bytes()
            assert len(data) == 500_000
            assert len(set(data)) == 1
        assert len(names(tmp_path)) <= 2, "the next one removes what this one left"
    assert found
    write(path, b"end")
    assert names(tmp_path) == ["out"]


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".out.0.partial").write_bytes(b"dead")
    (tmp_path / ".out.1.partial").write_bytes(b"dead")
    (tmp_path / ".other.0.partial").write_bytes(b"another's")
    (tmp_path / "victim").write_bytes(b"victim")
    (tmp_path / ".linked.0.partial").symlink_to("victim")
    write(tmp_path / "out", b"new")
    write(tmp_path / "linked", b"new")
    assert names(tmp_path) == [".linked.0.partial", ".other.0.partial", "linked", "out", "victim"]
    assert (tmp_path / "victim").read_bytes() == b"victim"


def recorder(
    folder: Path, tiny: Path, output: str, seconds: float = 6, *, data: bytes = b"", **more: Any
) -> subprocess.Popen[bytes]:
    """The command at work on a pipe that has given `data`, or some seconds of WAV, and gives no more for now."""
    process = start(
        *("encode", "-", output, "-m", tiny),
        stdin=subprocess.PIPE,
        cwd=folder,
        # As in a terminal: tests that run in the background have it ignored, and what they start inherits that.
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGHUP)],
        **more,
    )
    assert process.stdin
    process.stdin.write(data or CLIP.read_bytes()[: 44 + int(2 * 16_000 * seconds)])
    process.stdin.flush()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_a_recording(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    piped = number == signal.SIGINT
    with (tmp_path / "live.q2d").open("wb") if piped else contextlib.nullcontext() as output:
        process = recorder(tmp_path, tiny, "-" if piped else "live.q2d", **({"stdout": output} if piped else {}))
        # The command is at work when there is an output, or when it has read more than pipes hold.
        wait_for(lambda: waiting_bytes(process) == 0 if piped else list(tmp_path.glob(".live.q2d.*")))
        process.send_signal(number)
        code, text = outcome(process)
    assert code == 128 + number, text
    assert names(tmp_path) == ["live.q2d"]
    tokens = Tokens.load(tmp_path / "live.q2d")
    assert 0 < tokens.num_samples <= 6 * 16_000
    assert "kbit/s" in text


@pytest.mark.parametrize("kind", ["FLAC", "MP3"])
def test_a_signal_finishes_a_recording_that_is_not_read_as_it_comes(tiny: Path, tmp_path: Path, kind: str) -> None:
    audio, rate = soundfile.read(CLIP)
    soundfile.write(tmp_path / "clip", audio, rate, format=kind)
    data = (tmp_path / "clip").read_bytes()
    process = recorder(tmp_path, tiny, "live.q2d", data=data[: len(data) // 2])
    wait_for(lambda: waiting_bytes(process) == 0)
    process.send_signal(signal.SIGINT)
    code, text = outcome(process)
    assert code == 130, text
    assert names(tmp_path) == ["clip", "live.q2d"]
    assert 3 * rate < Tokens.load(tmp_path / "live.q2d").num_samples < 7 * rate


def waiting_bytes(process: subprocess.Popen[bytes]) -> int:
    """Bytes in the pipe to a process that it has not read."""
    assert process.stdin
    return int.from_bytes(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_recording_without_audio_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    process = recorder(tmp_path, tiny, "live.q2d", seconds=0)
    wait_for(lambda: list(tmp_path.glob(".live.q2d.*")))
    process.send_signal(signal.SIGTERM)
    code, text = outcome(process)
    assert code == 143
    assert text.count("\n") == 1
    assert names(tmp_path) == []


@pytest.mark.slow
def test_a_killed_recording_is_removed_by_the_next(tiny: Path, tmp_path: Path) -> None:
    process = recorder(tmp_path, tiny, "live.q2d")
    wait_for(lambda: list(tmp_path.glob(".live.q2d.*")))
    process.kill()
    process.communicate()
    assert names(tmp_path) == [".live.q2d.0.partial"]
    first, second = (recorder(tmp_path, tiny, "live.q2d") for _ in range(2))
    wait_for(lambda: len(names(tmp_path)) == 2)
    for each in (first, second):
        assert outcome(each)[0] == 0
    assert names(tmp_path) == ["live.q2d"]
    assert Tokens.load(tmp_path / "live.q2d").num_samples == 6 * 16_000


# Standard streams


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "words"),
    [
        (["info", "clip.q2d"], ">/dev/full", 1, "cannot write to standard output: No space left"),
        (["info", "clip.q2d", "--json"], ">/dev/full", 1, "cannot write to standard output: No space left"),
        (["models"], ">/dev/full", 1, "cannot write to standard output: No space left"),
        (["models", "--json"], ">/dev/full", 1, "cannot write to standard output: No space left"),
        (["channel", "clip.q2d", "o", "--ber", "0", "--json"], ">/dev/full", 1, "cannot write to standard output"),
        (["--help"], ">/dev/full", 1, "cannot write to standard output"),
        (["info", "clip.q2d"], ">&-", 1, "cannot write to standard output: it is closed"),
        (["--version"], ">&-", 1, "cannot write to standard output: it is closed"),
        (["channel", "clip.q2d", "-", "--ber", "0"], ">&-", 1, "cannot write to standard output: it is closed"),
        (["info", "-"], "<&-", 1, "cannot read standard input: it is closed"),
        (["channel", "-", "o", "--ber", "0"], "<&-", 1, "cannot read standard input: it is closed"),
        (["info", "none"], "2>&-", 2, ""),
        (["info", "none"], "2>/dev/full", 2, ""),
        (["info", "clip.q2d"], "<&- 2>&-", 0, ""),
        (["info", "clip.q2d"], "<&- >&- 2>&-", 1, ""),
    ],
)
def test_streams_that_are_closed_or_full(
    tmp_path: Path, q2d: Path, arguments: list[str], redirection: str, code: int, words: str
) -> None:
    (tmp_path / "clip.q2d").write_bytes(q2d.read_bytes())
    got, text = outcome(start(*arguments, shell=redirection, cwd=tmp_path, stdout=subprocess.DEVNULL))
    assert got == code
    assert text.count("\n") == (1 if words else 0)
    assert words in text


@pytest.mark.parametrize("closed", ["0", "1", "2", "012"])
def test_what_is_said_never_gets_into_a_file(tmp_path: Path, q2d: Path, closed: str) -> None:
    """The numbers of closed streams go to the files that are opened next."""
    (tmp_path / "clip.q2d").write_bytes(q2d.read_bytes())
    redirection = " ".join(f"{number}{'<' if number == '0' else '>'}&-" for number in closed)
    for name, more in (("a", []), ("b", ["--json"])):
        outcome(start("channel", "clip.q2d", name, "--ber", "0", *more, shell=redirection, cwd=tmp_path))
        assert (tmp_path / name).read_bytes() == q2d.read_bytes()


def test_a_reader_that_goes_away_is_no_error_to_speak_of(tmp_path: Path, q2d: Path) -> None:
    for arguments in (["models"], ["info", q2d], ["channel", q2d, "-", "--ber", "0"]):
        read_end, write_end = os.pipe()
        os.close(read_end)
        process = start(*arguments, stdout=write_end)
        os.close(write_end)
        assert outcome(process) == (1, "")


def test_a_signal_while_an_output_is_made_leaves_nothing(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from q2d2cli.files import atomic_output

def stop(*_):
    raise SystemExit(143)

def lock(event, arguments):  # the temporary file is there, and nobody knows of it yet
    if event == "fcntl.flock":
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, stop)
sys.addaudithook(lock)
with atomic_output(Path("a.q2d")) as file:
    file.write(b"not so far")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=False)
    assert result.returncode == 143
    assert list(tmp_path.iterdir()) == []
