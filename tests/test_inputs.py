"""What goes into `encode` and `decode` through the real command: pipes, raw PCM, folders, names."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import CLIP, Run

from q2d2cli import UsageError
from q2d2cli.audio import AudioReader, read_original
from q2d2cli.evaluation.clips import find_clips
from q2d2cli.training.data import FileCorpus, FilesCorpus, MemoryCorpus, find_audio

SECOND = slice(16_000, 32_000)


def test_raw_pcm_in_and_out_of_pipes(run: Run, tiny: Path, clip: tuple[np.ndarray, int]) -> None:
    stereo = np.stack([clip[0][SECOND], clip[0][:16_000]], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, 16_000, format="WAV", subtype="FLOAT")
    expected = run("encode", "-", "-", "-m", tiny, stdin=buffer.getvalue())
    floats = ("--raw", "--sample-format", "f32le")
    raw = run(
        "encode", *floats, "--rate", "16000", "--channels", "2", "-", "-", "-m", tiny,
        stdin=stereo.astype("<f4").tobytes(),
    )  # fmt: skip
    assert raw.returncode == 0, raw.stderr.decode()
    assert raw.stdout == expected.stdout

    wav = run("decode", "-", "-", "-m", tiny, stdin=raw.stdout).stdout
    pcm = run("decode", "--raw", "-", "-", "-m", tiny, stdin=raw.stdout).stdout
    assert pcm == wav[44:]
    exact = np.frombuffer(run("decode", *floats, "-", "-", "-m", tiny, stdin=raw.stdout).stdout, "<f4")
    np.testing.assert_allclose(exact, np.frombuffer(pcm, "<i2") / 32767, atol=1 / 32767)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["encode", "--raw"], "--rate"),
        (["encode", "--rate", "8000"], "--raw"),
        (["encode", "--raw", "--rate", "0"], "--rate"),
        (["encode", "--raw", "--rate", "8000", "--channels", "65"], "--channels"),
        (["encode", "--raw", "--rate", "8000", "--sample-format", "u8"], "s16le, f32le"),
        (["decode", "--sample-format", "f32le"], "--raw"),
    ],
)
def test_raw_options_that_make_no_sense(run: Run, arguments: list[str], words: str) -> None:
    result = run(*arguments, CLIP, "out")
    assert result.returncode == 2
    (line,) = result.stderr.decode().splitlines()
    assert words in line


def test_a_file_that_is_cut_off_is_encoded_with_a_warning(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.wav").write_bytes(CLIP.read_bytes()[:64_044])
    audio, rate = soundfile.read(CLIP)
    soundfile.write(tmp_path / "cut.flac", audio, rate)
    data = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 3])
    for name, target in (("cut.wav", "a.q2d"), ("cut.flac", "b.q2d"), ("cut.flac", "-")):
        result = run("encode", tmp_path / name, target, "-m", tiny, "-q", "--json")
        assert result.returncode == 0
        warning, *rest = result.stderr.decode().splitlines()
        assert "is damaged or cut off" in warning
        summary = json.loads(rest[0] if target == "-" else result.stdout)
        assert len(summary["warnings"]) == 1
        q2d = {"stdin": result.stdout} if target == "-" else {}
        facts = json.loads(run("info", target, "--json", **q2d).stdout)
        assert facts["duration"] == pytest.approx(summary["duration"])
        assert facts["duration"] < 5


def a_folder(folder: Path, clip: tuple[np.ndarray, int]) -> Path:
    """Good files under odd names, a broken one, two of one name, and what is no audio."""
    source = folder / "in"
    names = [b"caf\xe9.wav", b"[a]*?.wav", b"-q.wav", b"x" * 251 + b".wav", b" a b.flac", b"same.flac", b"same.wav"]
    (source / "sub").mkdir(parents=True)
    for name in names:
        buffer = io.BytesIO()
        soundfile.write(buffer, clip[0][:4000], 16_000, format="FLAC" if name.endswith(b"flac") else "WAV")
        (source / os.fsdecode(name)).write_bytes(buffer.getvalue())
    soundfile.write(source / "sub" / "b.aiff", clip[0][:4000], 16_000)
    (source / "broken.wav").write_bytes(b"RIFF....")
    (source / "._same.wav").write_bytes(b"\0\5\x16\7")
    (source / "notes.txt").write_text("none")
    return source


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_folder_with_everything_in_it(run: Run, tiny: Path, tmp_path: Path, clip, threads: str) -> None:
    source, cores = a_folder(tmp_path, clip), {"OMP_NUM_THREADS": threads}
    result = run("encode", source, "-o", "out", "-m", tiny, environment=cores)
    assert result.returncode == 2
    *lines, last = result.stderr.decode(errors="surrogateescape").splitlines()
    assert [line for line in lines if line.startswith("q2d2: ") and "broken.wav" in line]
    assert last.startswith("7 done, 1 failed, 3 skipped: ")
    for reason in ("(._same.wav)", "1 of another kind (notes.txt)", "(same.wav)"):
        assert reason in last
    out = tmp_path / "cwd" / "out"
    made = sorted(os.fsencode(path.relative_to(out)) for path in out.rglob("*.q2d"))
    names = [b"caf\xe9", b"[a]*?", b"-q", b"x" * 251, b" a b", b"same", b"sub/b"]
    assert made == sorted(name + b".q2d" for name in names)

    # Again: nothing is overwritten, nothing said of each; and every file is named in information about it.
    again = run("encode", source, "-o", "out", "-m", tiny, environment=cores)
    assert again.returncode == 2
    assert again.stderr.decode().splitlines()[-1].startswith("0 done, 1 failed, 10 skipped: ")
    info = run("info", *sorted(out.rglob("*.q2d")))
    assert info.returncode == 0, info.stderr
    assert b"caf\\udce9.q2d" in info.stdout

    back = run("decode", "out", "-o", "back", "-m", tiny, environment=cores)
    assert back.returncode == 0, back.stderr
    assert back.stderr.splitlines()[-1] == b"7 done, 0 failed, 0 skipped"
    for path in (tmp_path / "cwd" / "back").rglob("*.wav"):
        assert AudioReader(path).num_samples == 4000


def test_tokens_do_not_depend_on_how_many_files_are_encoded_at_once(
    run: Run, tiny: Path, tmp_path: Path, clip: tuple[np.ndarray, int]
) -> None:
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", clip[0][number * 16_000 :], 16_000)
    files = sorted(tmp_path.glob("*.wav"))
    for threads in ("1", "2"):
        result = run("encode", *files, "-o", threads, "-m", tiny, "--json", environment={"OMP_NUM_THREADS": threads})
        assert result.returncode == 0, result.stderr
        assert [json.loads(line)["input"] for line in result.stdout.splitlines()] == [str(path) for path in files]
    for path in files:
        one, two = (tmp_path / "cwd" / name / f"{path.stem}.q2d" for name in ("1", "2"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_names_that_are_no_files(run: Run, command: str) -> None:
    for arguments in (["."], ["/"], [".."], [""], ["", "-o", "out"], [".", "-o", ""]):
        result = run(command, *arguments)
        assert result.returncode == 2
        (line,) = result.stderr.decode().splitlines()
        assert "is a folder" in line or "empty name" in line


def test_rates_of_a_file_with_lost_blocks(run: Run, tiny: Path) -> None:
    assert run("encode", "--robust", CLIP, "a.q2d", "-m", tiny).returncode == 0
    assert run("channel", "a.q2d", "b.q2d", "--packet-loss", "0.4", "--seed", "1").returncode == 0
    whole, lossy = (json.loads(run("info", name, "--json").stdout) for name in ("a.q2d", "b.q2d"))
    assert lossy["lost_blocks"] > 1
    assert lossy["bit_rate"] == pytest.approx(whole["bit_rate"], rel=0.1)
    decoded = [
        json.loads(run("decode", name, "-f", "a.wav", "-m", tiny, "--json").stdout) for name in ("a.q2d", "b.q2d")
    ]
    for summary, facts in zip(decoded, (whole, lossy), strict=True):
        assert summary["bit_rate"] == pytest.approx(facts["bit_rate"])
    assert decoded[1]["payload_bit_rate"] == pytest.approx(decoded[0]["payload_bit_rate"], rel=0.1)


def test_audio_that_is_cut_off_is_scored_and_trained_on_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audio, rate = soundfile.read(CLIP, frames=16_000)
    for name in ("a.wav", "b.flac", "c.wav"):
        soundfile.write(tmp_path / name, audio, rate)
    for name in ("a.wav", "b.flac"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    for _ in range(2):
        clips = [read_original(path)[0] for path in sorted(tmp_path.iterdir())]
        assert [len(clip) < 16_000 for clip in clips] == [True, True, False]
    lines = capsys.readouterr().err.splitlines()
    assert ["a.wav is damaged or cut off" in line for line in lines] == [True, False]
    assert ["b.flac is damaged or cut off" in line for line in lines] == [False, True]

    # Read by seeking, FLAC is found out when a crop comes from what is missing.
    (tmp_path / "d.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    corpus = FileCorpus(tmp_path, 24_000)
    (line,) = capsys.readouterr().err.splitlines()
    assert "d.wav is damaged or cut off" in line or "a.wav is damaged or cut off" in line
    corpus.read(np.linspace(0, 0.99, 40), 2400)
    assert [path.name for path in corpus.broken] == ["b.flac"]


@pytest.mark.parametrize("kind", [FileCorpus, MemoryCorpus])
def test_training_reads_files_of_any_name(tmp_path: Path, kind: type[FilesCorpus]) -> None:
    for name in (b"caf\xe9.wav", b"[a].wav", b"._x.wav"):
        (tmp_path / os.fsdecode(name)).write_bytes(CLIP.read_bytes())
    corpus = kind(tmp_path, 24_000)
    assert [os.fsencode(path.name) for path in corpus.paths] == [b"[a].wav", b"caf\xe9.wav"]
    assert corpus.read(np.array([0.7]), 2400).abs().max() > 0


def test_short_clips_have_no_speed(run: Run, tiny: Path, tmp_path: Path, clip: tuple[np.ndarray, int]) -> None:
    for samples, told in ((1, False), (1500, False), (1600, True)):
        soundfile.write(tmp_path / "a.wav", clip[0][:samples], 16_000)
        result = run("encode", tmp_path / "a.wav", "a.q2d", "-f", "-m", tiny)
        assert result.returncode == 0
        assert (b"real-time factor" in result.stderr) == told


def test_one_reader_of_lists(tmp_path: Path) -> None:
    names = [b"a.wav", b"my file.wav", b"caf\xe9.wav", b"utt3.wav", b"#1.wav", b"[b].wav"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(CLIP.read_bytes())
    listing = tmp_path / "files.scp"
    listing.write_bytes(
        b"\xef\xbb\xbfa.wav\r\n# a comment\n\nmy file.wav\ncaf\xe9.wav\nutt3 utt3.wav\n#1.wav\nid "
        + os.fsencode(tmp_path / "[b].wav")
    )
    paths = [tmp_path / os.fsdecode(name) for name in names]
    assert find_audio(listing) == paths
    assert [clip.path for clip in find_clips(listing)] == paths
    for content, words in ((b"u sox a.wav - |\n", "command"), (b"\n# nothing\n", "empty"), (b"RIFF\0", "no list")):
        listing.write_bytes(content)
        for read in (find_audio, find_clips):
            with pytest.raises(UsageError, match=words):
                read(listing)
