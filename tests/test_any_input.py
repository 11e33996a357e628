"""Every command with each of its inputs and outputs replaced: one line and an exit code, never a traceback."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile
import yaml
from conftest import CLIP, TINY

from q2d2cli import Codec
from q2d2cli.__main__ import run
from q2d2cli.corpus.engines import Settings, run_job
from q2d2cli.corpus.sources import CorpusSpec

SHORTEST = ("--kind", "static", "--minutes", "0.1")
PLACES = {
    "encode input": ("encode", "-f", "@", "out.q2d", "-m", "tiny"),
    "encode output": ("encode", "-f", "clip.wav", "@", "-m", "tiny"),
    "encode folder": ("encode", "clip.wav", "-o", "@", "-m", "tiny"),
    "encode model": ("encode", "-f", "clip.wav", "out.q2d", "-m", "@"),
    "decode input": ("decode", "-f", "@", "out.wav", "-m", "tiny"),
    "decode output": ("decode", "-f", "clip.q2d", "@", "-m", "tiny"),
    "decode folder": ("decode", "clip.q2d", "-o", "@", "-m", "tiny"),
    "info": ("info", "@"),
    "tag": ("tag", "@"),
    "tag changed": ("tag", "--title", "T", "@"),
    "tag picture": ("tag", "--picture", "@", "clip.q2d"),
    "tag export": ("tag", "-f", "--export-picture", "@", "clip.q2d"),
    "encode picture": ("encode", "-f", "clip.wav", "out.q2d", "-m", "tiny", "--picture", "@"),
    "channel input": ("channel", "-f", "@", "out.q2d", "--ber", "0"),
    "channel output": ("channel", "-f", "clip.q2d", "@", "--ber", "0"),
    "eval originals": ("eval", "@", "refs", "--metrics", "stoi"),
    "eval decoded": ("eval", "refs", "@", "--metrics", "stoi"),
    "eval codec": ("eval", "refs", "-c", "q2d2:@", "--metrics", "stoi"),
    "eval out": ("eval", "refs", "refs", "--metrics", "stoi", "--out", "@"),
    "eval texts": ("eval", "refs", "-c", "original", "--metrics", "stoi", "--texts", "@"),
    "eval recognizer": ("eval", "refs", "refs", "--metrics", "wer", "--recognizer", "@"),
    "listening clips": ("listening", "build", "@", "page", "-c", "q2d2:tiny"),
    "listening page": ("listening", "build", "refs", "@", "-c", "q2d2:tiny"),
    "listening results": ("listening", "results", "@"),
    "tokenize corpus": ("tokenize", "@", "-o", "ids", "-m", "tiny"),
    "tokenize out": ("tokenize", "refs", "-o", "@", "-m", "tiny"),
    "tokenize manifest": ("tokenize", "refs", "-o", "ids", "-m", "tiny", "--manifest", "@"),
    "tokenize model": ("tokenize", "refs", "-o", "ids", "-m", "@"),
    "tokenize verify": ("tokenize", "--verify", "@"),
    "detokenize folder": ("detokenize", "@", "-o", "wavs"),
    "detokenize out": ("detokenize", "tokens", "-o", "@"),
    "detokenize model": ("detokenize", "tokens", "-o", "wavs", "-m", "@"),
    "context model": ("context", "@", "--data", "refs", "-o", "c", *SHORTEST),
    "context data": ("context", "-f", "tiny", "--data", "@", "-o", "c", *SHORTEST),
    "context init": ("context", "tiny", "--data", "refs", "-o", "c", "--init", "@", *SHORTEST),
    "context out": ("context", "tiny", "--data", "refs", "-o", "@", *SHORTEST),
    "demo host": ("demo", "--port", "0", "--host", "@"),
    "analyze": ("analyze", "@", "-m", "tiny"),
    "analyze out": ("analyze", "refs", "-m", "tiny", "--out", "@"),
    "probe": ("probe", "@", "-m", "tiny"),
    "probe manifest": ("probe", "--manifest", "@", "-m", "tiny"),
    "train config": ("train", "-q", "-c", "@", "-o", "run"),
    "train out": ("train", "-q", "-c", "config.yaml", "-o", "@"),
    "train init": ("train", "-q", "-c", "config.yaml", "-o", "run", "--init", "@"),
    "train data": ("train", "-q", "-c", "config.yaml", "-o", "run", "--set", "data.train=@"),
    "export run": ("export", "@", "model", "--test", "refs"),
    "export model": ("export", "tiny", "@", "--test", "refs"),
    "export test": ("export", "tiny", "model", "--test", "@"),
    "export notes": ("export", "tiny", "model", "--test", "refs", "--notes", "@"),
    "export texts": ("export", "tiny", "model", "--test", "refs", "--texts", "@"),
    "export onnx model": ("export", "--onnx", "@", "graphs"),
    "export onnx folder": ("export", "--onnx", "tiny", "@"),
    "models import checkpoint": ("models", "import", "@", "-c", "config.yaml", "mine"),
    "models import config": ("models", "import", "clip.wav", "-c", "@", "mine"),
    "models pull": ("models", "pull", "@"),
    "models push": ("models", "push", "@", "owner/name"),
}
KINDS = {
    "folder": "folder",
    "empty name": "",
    "full device": "/dev/full",
    "closed stream": "/dev/fd/99",
    "name that is not UTF-8": os.fsdecode(b"\xff.none"),
    "file whose name is not UTF-8": os.fsdecode(b"\xff.wav"),
}


@pytest.fixture(scope="session")
def tokens(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ids that q2d2 tokenize has written."""
    folder = tmp_path_factory.mktemp("ids")
    audio, rate = soundfile.read(CLIP, dtype="float32", frames=16_000)
    soundfile.write(folder / "a.wav", audio, rate)
    settings = Settings(CorpusSpec((str(folder / "a.wav"),)), str(tiny), "cpu")
    run_job(settings, folder / "tokens", lambda clips, seconds: None, lambda plan, folder: None)
    return folder / "tokens"


@pytest.fixture
def folder(tiny: Path, tokens: Path, tiny_codec: Codec, tmp_path: Path) -> Iterator[Path]:
    """The folder that commands run in, with something of everything."""
    here = tmp_path
    (here / "refs").mkdir()
    (here / "folder").mkdir()
    (here / "tiny").symlink_to(tiny)
    (here / "tokens").symlink_to(tokens)
    audio, rate = soundfile.read(CLIP, dtype="float32", frames=16_000)
    for name in ("clip.wav", "refs/a.wav"):
        soundfile.write(here / name, audio, rate)
    (here / KINDS["file whose name is not UTF-8"]).write_bytes((here / "clip.wav").read_bytes())
    tiny_codec.encode(audio, rate).save(here / "clip.q2d")
    content = {
        "model": TINY.model_dump(mode="json"),
        "data": {"train": "refs", "valid": "refs", "crop_seconds": 0.2},
        "optim": {"batch_size": 2},
        "discriminator": {"start": 1},
        "steps": 1,
        "tensorboard": False,
        "validate_metrics": ["stoi"],
    }
    (here / "config.yaml").write_text(yaml.safe_dump(content))
    # What has no end must not fill the disk.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000_000, limit[1]))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    # What options put into the environment is for the processes that a command starts.
    environment = dict(os.environ)
    with contextlib.chdir(here):
        yield here
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("place", PLACES)
def test_any_place_takes_anything(
    folder: Path, place: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process: 150 times the command itself would take minutes."""
    for kind, value in KINDS.items():
        monkeypatch.setattr(sys, "argv", ["q2d2", *(word.replace("@", value) for word in PLACES[place])])
        code = run()
        text = capfd.readouterr().err
        assert code in (0, 1, 2), f"{kind}: {text}"
        assert "Traceback" not in text, f"{kind}: {text}"
        if code:
            said = [line for line in text.splitlines() if line.startswith("q2d2: ")]
            assert said, kind
            assert len(said) == 1 or code == 1, f"{kind}: {text}"
        if kind in ("folder", "empty name") and place.endswith(("input", "output", "info", "notes", "config")):
            assert code == 2, f"{kind}: {text}"
        if kind == "name that is not UTF-8" and place in ("encode input", "decode input", "info", "channel input"):
            assert "does not exist" in text
    assert (folder / "clip.wav").is_file()
    assert (folder / KINDS["file whose name is not UTF-8"]).is_file()
