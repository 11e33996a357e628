"""The example that decodes in a browser: its reader of files, and the page with onnxruntime-web where that is here."""

from __future__ import annotations

import base64
import functools
import json
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT

from q2d2cli import Codec, Tokens, checkpoints
from q2d2cli.container.coding import library
from q2d2cli.runtimes import graph

PAGE = ROOT / "examples" / "browser"
CODED: dict[str, dict[str, Any]] = json.loads((ROOT / "tests" / "golden" / "coded.json").read_text())
CONTEXT_FILES = (ROOT / "tests" / "golden" / "contexts").glob("*/*.safetensors")
CONTEXTS = {library.load(path).fingerprint.hex(): path for path in CONTEXT_FILES}
READ = """
const [text, model, done] = arguments;
const [bytes, chosen] = [text, model].map((code) => Uint8Array.from(atob(code), (letter) => letter.charCodeAt(0)));
Promise.all([import("/q2d.js"), import("/context.js")]).then(async ([{ readQ2d }, { readContext }]) => {
  const { header, channels } = readQ2d(bytes, model ? await readContext(chosen) : null);
  done({ header, channels: channels.map((channel) => [...channel]) });
}).catch((error) => done({ error: error.message }));
"""
METADATA = """
const [text, , done] = arguments;
const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
import("/q2d.js").then(({ readMetadata }) => done(Object.fromEntries(readMetadata(bytes))));
"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """The browser, at the example's page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(PAGE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser.get(f"http://127.0.0.1:{server.server_port}/index.html")
    browser.set_script_timeout(60)
    yield browser
    server.shutdown()
    server.server_close()


def run(page: Any, script: str, content: bytes, context: bytes = b"") -> dict[str, Any]:
    return page.execute_async_script(script, *(base64.b64encode(data).decode() for data in (content, context)))


def test_reader_reads_what_the_package_writes(page: Any, tiny: Path, tiny_codec: Codec, tmp_path: Path) -> None:
    audio, rate = soundfile.read(CLIP, dtype="float32", frames=40_001)
    files = {"mono": audio, "three channels": np.stack([audio, audio[::-1], audio / 2]), "one sample": audio[:1]}
    for name, waveform in files.items():
        path = tmp_path / f"{name}.q2d"
        tokens = tiny_codec.encode(waveform, rate)
        tokens.save(path)
        found = run(page, READ, path.read_bytes())
        assert "error" not in found, found
        assert found["header"]["numSamples"] == tokens.num_samples
        assert found["header"]["fingerprint"] == tiny_codec.fingerprint.hex()
        assert (found["header"]["model"], found["header"]["originalRate"]) == ("tiny", rate)
        indices = torch.tensor(found["channels"]).reshape(tokens.indices.shape)
        assert torch.equal(indices, tokens.indices), name
    content = (tmp_path / "mono.q2d").read_bytes()
    for place in range(4, len(content), len(content) // 25):
        damaged = content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        assert "error" in run(page, READ, damaged), place
        assert "error" in run(page, READ, content[:place]), place
    tokens.save(tmp_path / "robust.q2d", "robust")
    assert "robust payload" in run(page, READ, (tmp_path / "robust.q2d").read_bytes())["error"]
    said = run(page, METADATA, graph.build(checkpoints.find(str(tiny)), "decoder"))
    assert said == graph.metadata(checkpoints.find(str(tiny)), "decoder")


def test_reader_agrees_on_golden_files(page: Any) -> None:
    for path in sorted((ROOT / "tests" / "golden").glob("*.q2d")):
        if path.stem in CODED:
            continue
        found = run(page, READ, path.read_bytes())
        if "error" in found:
            words = ("payload", "version 1", "reader knows grids", "entropy coded")
            assert any(word in found["error"] for word in words), (path.name, found)
        else:
            indices = torch.tensor(found["channels"])
            assert torch.equal(indices.flatten(), Tokens.load(path).indices.flatten()), path.name


def test_reader_agrees_on_golden_coded_files(page: Any) -> None:
    for name, vector in CODED.items():
        content = (ROOT / "tests" / "golden" / f"{name}.q2d").read_bytes()
        context = CONTEXTS[vector.get("context", CODED["coded-recurrent-stereo"]["context"])]
        found = run(page, READ, content, context.read_bytes())
        if "error" in vector:
            assert found["error"].split(":")[0] == vector["error"].split(":")[0], name
        else:
            wanted = [[index for frame in channel for index in frame] for channel in vector["indices"]]
            assert found.get("channels") == wanted, (name, found.get("error"))


def test_context_models_are_told_apart(page: Any) -> None:
    content = (ROOT / "tests" / "golden" / "coded-recurrent-stereo.q2d").read_bytes()
    named = CODED["coded-recurrent-stereo"]["context"]
    other = next(path for fingerprint, path in CONTEXTS.items() if fingerprint != named)
    said = run(page, READ, content)["error"]
    assert f"context model {named} of golden: choose" in said
    said = run(page, READ, content, other.read_bytes())["error"]
    assert f"the one chosen is {library.load(other).fingerprint.hex()}" in said
    assert run(page, READ, content, content)["error"] == "is damaged, or not safetensors"
    weights = (checkpoints.find("speech-3k").folder / "config.json").read_bytes()
    assert run(page, READ, content, weights)["error"] == "is damaged, or not safetensors"


def test_page_decodes_a_file(page: Any, tiny: Path, tiny_codec: Codec, tmp_path: Path) -> None:
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("npm install onnxruntime-web in examples/browser")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def status(*words: str) -> str:
        def said(_: Any) -> str | bool:
            text = page.find_element(By.ID, "status").text
            return text if all(word in text for word in words) else False

        return WebDriverWait(page, 60).until(said)

    audio, rate = soundfile.read(CLIP, dtype="float32", frames=80_000)
    tokens = tiny_codec.encode(np.stack([audio, audio[::-1]]), rate)
    tokens.save(tmp_path / "clip.q2d")
    status("decoder")
    decoder = graph.write(graph.build(checkpoints.find(str(tiny)), "decoder"), tmp_path, "decoder")
    page.find_element(By.ID, "decoder").send_keys(str(decoder))
    status("decoder.onnx is loaded")
    page.find_element(By.ID, "file").send_keys(str(tmp_path / "clip.q2d"))
    status("clip.q2d: 5.00 s, tiny, decoded in")
    content = page.execute_async_script(
        """
        const done = arguments[0];
        fetch(document.getElementById("player").src).then((answer) => answer.arrayBuffer())
          .then((buffer) => done([...new Uint8Array(buffer)]));
        """
    )
    (tmp_path / "clip.wav").write_bytes(bytes(content))
    heard, model_rate = soundfile.read(tmp_path / "clip.wav", dtype="float32", always_2d=True)
    wanted = tiny_codec.decode(Tokens(tokens.indices, tiny_codec.header(24_000, 2, 120_000))).numpy().T
    assert (model_rate, heard.shape) == (24_000, wanted.shape)
    assert np.abs(heard - wanted.clip(-1, 1)).max() < 1e-3

    other = tmp_path / "other"
    other.mkdir()
    (other / "decoder.onnx").write_bytes(CLIP.read_bytes())
    page.find_element(By.ID, "decoder").send_keys(str(other / "decoder.onnx"))
    status("is not the decoder.onnx of a model")
