"""The demo page: what it counts and shows, and clicking through it in a real browser that sees no other host."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, Run, one_line

from q2d2cli import Codec, Q2D2Error, Tokens
from q2d2cli.demo import pictures
from q2d2cli.demo.roundtrip import LONGEST_SECONDS, Damage, RoundTrip, round_trip

SECONDS = 3


@pytest.fixture
def voice(clip: tuple[np.ndarray, int], tmp_path: Path) -> Path:
    path = tmp_path / "voice.wav"
    soundfile.write(path, clip[0][: SECONDS * 16_000], 16_000)
    return path


@pytest.fixture
def trip(tiny_codec: Codec, voice: Path) -> RoundTrip:
    return round_trip(tiny_codec, voice)


def test_a_round_trip_is_what_the_commands_do(trip: RoundTrip, tiny_codec: Codec, voice: Path) -> None:
    audio, rate = soundfile.read(voice, dtype="float32")
    tokens = tiny_codec.encode(audio, rate)
    assert torch.equal(trip.tokens.indices, tokens.indices)
    assert trip.decoded is not None
    assert np.array_equal(trip.decoded, tiny_codec.decode(tokens)[0].numpy())
    assert torch.equal(Tokens.load(io.BytesIO(trip.data)).indices, tokens.indices)
    for payload, sizes in trip.sizes.items():
        file = io.BytesIO()
        tokens.save(file, payload)
        assert sizes.total == len(file.getvalue())
        assert min(sizes.payload, sizes.checksums, sizes.header) > 0
    assert trip.sizes["packed"].payload < trip.sizes["robust"].payload


@pytest.mark.parametrize("kind", ["bits", "packets"])
def test_damage_is_refused_concealed_or_small(tiny_codec: Codec, voice: Path, kind: Any) -> None:
    amount = 1e-3 if kind == "bits" else 0.3
    plain = round_trip(tiny_codec, voice, damage=Damage(kind, amount, robust=False, conceal=False, seed=3))
    assert plain.decoded is None
    assert "is damaged" in plain.refusal
    assert "Refused" in pictures.result(plain)
    concealed = round_trip(tiny_codec, voice, damage=Damage(kind, amount, robust=False, conceal=True, seed=3))
    assert concealed.decoded is not None
    assert concealed.decoded.shape == plain.original.shape
    assert concealed.faults
    robust = round_trip(tiny_codec, voice, damage=Damage(kind, amount, robust=True, conceal=kind == "packets", seed=3))
    assert robust.payload == "robust"
    assert robust.decoded is not None
    assert robust.faults
    assert pictures.result(robust).count('class="q2-faults"') == 1
    whole = tiny_codec.decode(robust.tokens)[0].numpy()
    assert np.abs(robust.decoded - whole).max() > 0
    if kind == "bits":  # nothing is missing: most of it is as it was
        assert np.mean(np.isclose(robust.decoded, whole, atol=1e-4)) > 0.5


def test_long_wide_and_broken_clips(tiny_codec: Codec, clip: tuple[np.ndarray, int], tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    longer = np.tile(clip[0], 4)
    soundfile.write(path, np.stack([longer, np.zeros_like(longer)], axis=1), 16_000)
    trip = round_trip(tiny_codec, path)
    assert len(trip.original) == LONGEST_SECONDS * 16_000
    assert np.allclose(trip.original, longer[: len(trip.original)] / 2, atol=1e-4)
    assert len(trip.notes) == 2
    assert all(note in pictures.headline(trip) for note in trip.notes)
    soundfile.write(path, np.zeros(100), 16_000)
    with pytest.raises(Q2D2Error, match="at least"):
        round_trip(tiny_codec, path)
    path.write_bytes(b"RIFF")
    with pytest.raises(Q2D2Error, match="as audio"):
        round_trip(tiny_codec, path)


class Elements(HTMLParser):
    """Counts elements by name and class, and notes addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.count: dict[str, int] = {}
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        for name in (tag, f"{tag}.{names.get('class')}"):
            self.count[name] = self.count.get(name, 0) + 1
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_draws_every_point_of_every_grid(trip: RoundTrip) -> None:
    page = Elements(pictures.result(trip))
    points = sum(trip.tokens.header.quantizer.sizes)
    assert page.count["polygon"] == page.count["title"] == points
    assert page.count["circle"] == points + trip.tokens.header.quantizer.num_indices
    assert page.count["div.q2-row"] + page.count["div.q2-row q2-sent"] == len(trip.sizes)
    assert page.count["audio"] == 2
    assert all(address.startswith("data:") for address in page.addresses)
    used = [int(n) for n in re.findall(r"<title>point \d+: (\d+) times", pictures.grids(trip))]
    assert sum(used) == trip.tokens.indices.numel()


def test_a_port_in_use_and_wrong_hosts_are_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one_line(run("demo", "--port", port), 2, f"port {port}", "in use", "--port")
    one_line(run("demo", "--port", "70000"), 2, "--port")
    one_line(run("demo", "--host", "192.0.2.1", "--port", "0"), 2, "192.0.2.1")


def test_without_gradio_the_extra_is_named(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    one_line(call("demo", "--port", "0"), 2, 'pip install "q2d2[demo]"')


@pytest.fixture
def outside() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy for all hosts, which only notes who asks for one."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(200))

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def demo(tiny: Path, tmp_path: Path, outside: tuple[str, list[bytes]]) -> Iterator[str]:
    """Address of a real page with a tiny model."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), outside[0])
    process = subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", "demo", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **proxies, "no_proxy": "127.0.0.1", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        | {"Q2D2_MODELS": str(tmp_path / "models")},
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "http://127.0.0.1:" in line, line + process.stderr.read()
        yield line.split()[2]
    finally:
        process.terminate()
        rest = process.communicate(timeout=60)[1]
        assert "Traceback" not in rest, rest
        # What was uploaded and made is gone.
        assert not list(tmp_path.glob("q2d2-demo-*"))


@pytest.mark.slow
def test_clicking_through(browser: Any, demo: str, outside: tuple[str, list[bytes]], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 120)

    def script(code: str) -> Any:
        return browser.execute_script(code)

    def press_and_wait() -> None:
        script("document.querySelector('.q2-result')?.classList.add('old')")
        browser.find_element(By.ID, "go").click()
        sections = "return document.querySelectorAll('.q2-result:not(.old) section').length"
        wait.until(lambda _: script(sections) == 3, browser.find_element(By.TAG_NAME, "body").text[:2000])

    browser.get(demo)
    upload = wait.until(lambda _: browser.find_element(By.CSS_SELECTOR, "#clip input[type=file]"))
    wait.until(lambda _: browser.find_elements(By.ID, "go"))
    browser.find_element(By.CSS_SELECTOR, "#model input[value='tiny']").click()
    upload.send_keys(str(CLIP))
    wait.until(lambda _: script("return document.querySelectorAll('#clip input[type=file]').length") == 0)
    press_and_wait()
    # Audio of the right length, pictures that are drawn, grids with their points.
    lengths = "return [...document.querySelectorAll('.q2-card audio')].map(a => a.duration)"
    wait.until(lambda _: script(lengths) == pytest.approx([10.0, 10.0], abs=0.1))
    assert script("return [...document.querySelectorAll('.q2-result img')].every(i => i.complete && i.naturalWidth)")
    assert len(browser.find_elements(By.CSS_SELECTOR, ".q2-cells polygon")) == 41 + 13
    # What is decoded plays, the point that is heard moves, and the switch keeps the place.
    now = "const c = document.querySelector('.q2-now'); return [c.getAttribute('cx'), c.getAttribute('cy')].join()"
    before = script(now)
    browser.find_element(By.CSS_SELECTOR, ".q2-play").click()
    playing = "return [...document.querySelectorAll('.q2-card audio')].map(a => !a.paused)"
    wait.until(lambda _: script(playing) == [False, True])
    wait.until(lambda _: script(now) != before)
    browser.find_element(By.CSS_SELECTOR, ".q2-switch [data-which=original]").click()
    wait.until(lambda _: script(playing) == [True, False])
    assert script("return document.querySelector('.q2-card audio').currentTime") > 0
    browser.find_element(By.CSS_SELECTOR, ".q2-play").click()
    wait.until(lambda _: script(playing) == [False, False])
    # Bit errors in a file that is made for them: it plays, and what was hit is marked.
    browser.find_element(By.CSS_SELECTOR, "#damage input[value='bits']").click()
    robust = wait.until(lambda _: browser.find_element(By.CSS_SELECTOR, "#robust input"))
    wait.until(lambda _: robust.is_displayed())
    press_and_wait()
    assert browser.find_elements(By.CSS_SELECTOR, ".q2-faults i")
    # The file that was made is there to keep.
    browser.find_element(By.ID, "file").click()
    kept = tmp_path / "downloads" / "tiny.q2d"
    wait.until(lambda _: kept.is_file() and kept.stat().st_size)
    assert Tokens.load(kept).header.payload == "robust"
    assert Tokens.load(kept).num_samples == soundfile.info(CLIP).frames
    # Nobody else was asked for anything: neither by the page nor by its server.
    loaded = script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded
    assert [name for name in loaded if not name.startswith((demo, "data:", "blob:"))] == []
    assert outside[1] == []
