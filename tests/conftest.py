"""Shared fixtures: the real command, real speech, a tiny model."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
import yaml

from q2d2cli import Codec, checkpoints
from q2d2cli import __main__ as main
from q2d2cli.models.config import ModelConfig, QuantizerConfig, SpectralEncoderConfig, VocosDecoderConfig
from q2d2cli.models.model import CodecModel

# Of the processes that tests start: one whose files may not grow would leave half of a compiled module behind.
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "examples" / "librivox.wav"

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def one_line(result: subprocess.CompletedProcess[bytes], code: int, *words: str) -> None:
    """The command failed with this code and said so in one line with these words."""
    text = result.stderr.decode()
    assert result.returncode == code, text
    assert text.startswith("q2d2: ")
    assert text.count("\n") == 1, text
    for word in words:
        assert word in text
    assert result.stdout == b""


READ_LATE = ("Q2D2_", "XDG_")
"""Beginnings of variables that the command reads when it runs; others may count at import."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what drives a browser."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the real command in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def command(
        *arguments: str | Path,
        stdin: bytes | None = None,
        environment: dict[str, str] | None = None,
        file_limit: int | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        given = environment or {}
        everything = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **given}
        if all(name.startswith(READ_LATE) for name in given):
            return warm.run([str(argument) for argument in arguments], folder, everything, stdin, file_limit)
        assert file_limit is None, "only a forked process has a limit"
        return subprocess.run(
            [sys.executable, "-m", "q2d2cli", *map(str, arguments)],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            cwd=folder,
            env=everything,
            timeout=300,
            check=False,
        )

    return command


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """The command in this process: it does the same there, and that saves seconds."""
    handler = signal.getsignal(signal.SIGTERM)

    def command(*arguments: str | Path, **_: Any) -> subprocess.CompletedProcess[bytes]:
        monkeypatch.setattr(sys, "argv", ["q2d2", *map(str, arguments)])
        capfd.readouterr()
        code = main.run()
        gc.unfreeze()  # what the command has imported: this process does not end with it
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, code, printed.out.encode(), printed.err.encode())

    yield command
    signal.signal(signal.SIGTERM, handler)


TINY = ModelConfig(
    name="tiny",
    hop=48,
    feature_dim=16,
    encoder=SpectralEncoderConfig(dim=16, hidden=32, layers=2, kernel=3),
    quantizer=QuantizerConfig(kind="rhombic", levels=(5, 5, 3, 3)),
    decoder=VocosDecoderConfig(dim=16, hidden=32, layers=2, kernel=3),
)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with random weights, large enough to spread the codes."""
    torch.manual_seed(0)
    model = CodecModel(TINY)
    with torch.no_grad():
        model.quantizer.project_in.weight.mul_(20)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    checkpoints.save(folder, TINY, model.state_dict())
    return folder


@pytest.fixture(scope="session")
def tiny_codec(tiny: Path) -> Codec:
    return Codec.from_pretrained(tiny, device="cpu")


@pytest.fixture(scope="session")
def speech() -> Codec:
    """The shipped model."""
    return Codec.from_pretrained("speech-3k", device="cpu")


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding in float32, on processors with bfloat16 too."""
    monkeypatch.setenv("Q2D2_BFLOAT16", "0")


@pytest.fixture(scope="session")
def clip() -> tuple[np.ndarray, int]:
    """Ten seconds of read speech, `(samples,)` float32 and its rate."""
    import soundfile

    return soundfile.read(CLIP, dtype="float32")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A short run on the clip, with one broken file among the audio."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "clip.wav").write_bytes(CLIP.read_bytes())
    (data / "broken.wav").write_bytes(b"RIFF")
    content = {
        "model": TINY.model_dump(mode="json"),
        "data": {"train": str(data), "valid": str(data), "crop_seconds": 0.2},
        "optim": {"batch_size": 2, "warmup_steps": 5},
        "discriminator": {"start": 0.5, "band": {"weight": 1.0, "channels": 2, "sizes": [256]}},
        "steps": 60,
        "validate_every": 30,
        "save_every": 20,
        "log_every": 10,
        "validate_metrics": ["stoi"],
        # Rounded to 8 bits, so short runs learn too little to tell, and not on every processor.
        "bf16": False,
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A real browser; downloads go to a folder of that name in `tmp_path`."""
    if CHROMIUM is None:
        pytest.skip("no chromium binary")
    if CHROMEDRIVER is None and not os.environ.get("CI"):
        pytest.skip("chromium is here but chromedriver is not")
    assert CHROMEDRIVER, "chromium is here but chromedriver is not: selenium would look for one on the network"
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "autoplay-policy=no-user-gesture-required",
        "mute-audio",
        "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no page may need another host
        "window-size=1000,1100",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{flag}")
    (tmp_path / "downloads").mkdir()
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield driver
    finally:
        driver.quit()
