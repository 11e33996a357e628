"""ONNX Runtime beside PyTorch: the same tokens and audio, without torch; graphs of all kinds of models; bad graphs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, TINY, Run, one_line

from q2d2cli import Codec, Q2D2Error, Tokens, UsageError, checkpoints
from q2d2cli.coder import Coder
from q2d2cli.models.config import (
    ModelConfig,
    QuantizerConfig,
    SeanetEncoderConfig,
    SpectralEncoderConfig,
    VocosDecoderConfig,
)
from q2d2cli.models.model import CodecModel
from q2d2cli.quantizers import Q2D2
from q2d2cli.runtimes import graph
from q2d2cli.runtimes.onnx import cache_folder, open_part

RATE = 24_000
OTHER_CONFIGS = {
    "inner frames, another window": {
        "hop": 90,
        "encoder": SpectralEncoderConfig(dim=16, hidden=32, layers=1, stride=3, window=112),
        "decoder": VocosDecoderConfig(dim=16, hidden=32, layers=1, stride=3, window=112, kernel=5),
    },
    "tokens in inner frames": {
        "hop": 24,
        "encoder": SpectralEncoderConfig(dim=16, hidden=32, layers=1, tokens=3),
        "decoder": VocosDecoderConfig(dim=16, hidden=32, layers=1, tokens=2),
    },
    "adaptive norms": {"decoder": VocosDecoderConfig(dim=16, hidden=32, layers=2, norm_embeddings=4)},
    "rectangular": {"quantizer": QuantizerConfig(kind="rectangular", levels=(4, 3, 2, 5))},
    "hexagonal": {"quantizer": QuantizerConfig(kind="hexagonal", levels=(5, 5, 4, 4), hexagonal_offset=0.3)},
    "lattice": {"quantizer": QuantizerConfig(kind="d4", levels=(5, 3, 5, 3))},
    "one pair, no tanh": {
        "quantizer": QuantizerConfig(levels=(21, 19), projection="linear", spread=1.5, bound="paper")
    },
    "norm instead of tanh": {"quantizer": QuantizerConfig(levels=(5, 5, 3, 3), projection="layernorm")},
}


@pytest.fixture(scope="module")
def voice(clip: tuple[np.ndarray, int]) -> np.ndarray:
    """Eleven seconds at 24 kHz: three passes, the last frame not whole."""
    audio, _ = clip
    return np.tile(audio, 2)[: 11 * RATE + 17].copy()


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's cache, in this process and in those it starts."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def save(folder: Path, **changes: object) -> Path:
    """A model with random weights, large enough to spread the codes."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**TINY.model_dump(), **changes})
    model = CodecModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if isinstance(model.quantizer, Q2D2):
            model.quantizer.project_in.weight.mul_(20 if config.quantizer.projection == "tanh" else 2)
    checkpoints.save(folder, config, model.state_dict())
    return folder


def both(folder: str | Path) -> tuple[Codec, Codec]:
    return Codec.from_pretrained(folder, "cpu"), Codec.from_pretrained(folder, runtime="onnx")


@pytest.mark.parametrize("name", [*OTHER_CONFIGS])
@pytest.mark.parametrize("samples", [1, 700, 60_017])
@pytest.mark.usefixtures("float32")
def test_every_kind_of_model_has_a_graph(name: str, samples: int, tmp_path: Path, voice: np.ndarray) -> None:
    torch_codec, onnx_codec = both(save(tmp_path, **OTHER_CONFIGS[name]))
    tokens, found = (codec.encode(voice[-samples:], RATE) for codec in (torch_codec, onnx_codec))
    assert len(np.unique(tokens.tokens)) > 1 or samples < 100
    same = (tokens.indices == found.indices).all(-1).float().mean()
    assert same > 0.999
    audio = torch_codec.decode(tokens)
    assert torch.allclose(onnx_codec.decode(tokens), audio, atol=1e-5 * max(1.0, float(audio.abs().max())))


@pytest.mark.usefixtures("float32")
def test_shipped_model_gives_the_same_on_real_speech(speech: Codec) -> None:
    audio, rate = soundfile.read(CLIP, dtype="float32")
    codec = Codec.from_pretrained("speech-3k", runtime="onnx")
    tokens, found = speech.encode(audio, rate), codec.encode(audio, rate)
    assert tokens.indices.shape == found.indices.shape
    assert (tokens.tokens == found.tokens).float().mean() >= 0.999
    assert (codec.decode(tokens) - speech.decode(tokens)).abs().max() < 1e-3


@pytest.mark.parametrize("threads", ["1", "3"])
def test_chunks_parts_and_threads_change_nothing(
    tiny: Path, voice: np.ndarray, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec.from_pretrained(tiny, runtime="onnx")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    whole = codec.encode(voice, RATE, chunk_seconds=None)
    audio = codec.decode(whole)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    encoder = codec.stream_encoder(RATE)
    pieces = [piece for start in range(0, len(voice), 7001) for piece in encoder.push(voice[start : start + 7001])]
    assert np.array_equal(np.concatenate([*pieces, *encoder.finish()], axis=1), whole.indices)
    assert torch.equal(codec.decode(whole, chunk_seconds=None), audio)
    decoder = codec.stream_decoder(whole.header, chunk_seconds=10.0, start=7 * RATE + 5)
    part = [*decoder.push(whole.indices.numpy()[:, decoder.first_frame :]), *decoder.finish(len(voice))]
    assert np.array_equal(np.concatenate(part, axis=1), audio[:, 7 * RATE + 5 :])
    batch, frames = codec.encode_batch(torch.from_numpy(np.stack([voice, voice[::-1]])), [len(voice), 5000])
    assert torch.equal(batch[0], whole.indices[0])
    assert torch.equal(batch[1, : frames[1]], codec.encode(voice[::-1][:5000], RATE).indices[0])


COMMANDS = {
    "plain": ([], []),
    "robust": (["--robust"], []),
    "packed": (["--payload", "packed"], []),
    "parity": (["--parity", "10%"], []),
    "live": (["--live"], []),
    "verified": (["--verify"], []),
    "a part": ([], ["--start", "6.5", "--duration", "2"]),
    "concealed": ([], ["--conceal"]),
    "another rate, louder": ([], ["--rate", "8000", "--gain", "3"]),
}


@pytest.mark.parametrize("name", [*COMMANDS])
def test_commands_give_the_same_under_both_runtimes(run: Run, tiny: Path, tmp_path: Path, name: str) -> None:
    encode, decode = COMMANDS[name]
    indices, audio = {}, {}
    for runtime in ("torch", "onnx"):
        environment = {"Q2D2_RUNTIME": runtime} if name == "plain" else {}
        option = [] if name == "plain" else ["--runtime", runtime]
        q2d, wav = tmp_path / f"{runtime}.q2d", tmp_path / f"{runtime}.wav"
        result = run("encode", CLIP, q2d, "-m", tiny, *option, *encode, environment=environment)
        assert result.returncode == 0, result.stderr.decode()
        result = run("decode", tmp_path / "torch.q2d", wav, "-m", tiny, *option, *decode, environment=environment)
        assert result.returncode == 0, result.stderr.decode()
        indices[runtime], audio[runtime] = Tokens.load(q2d).indices, soundfile.read(wav)
    assert indices["torch"].shape == indices["onnx"].shape
    assert (indices["torch"] == indices["onnx"]).float().mean() > 0.999
    assert audio["torch"][1] == audio["onnx"][1]
    assert np.abs(audio["torch"][0] - audio["onnx"][0]).max() < 1e-3


def test_folders_and_pipes(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number}.wav").write_bytes(CLIP.read_bytes())
    onnx_runtime = ("-m", tiny, "--runtime", "onnx")
    assert run("encode", tmp_path / "in", "--out-dir", tmp_path / "q2d", *onnx_runtime).returncode == 0
    piped = run("encode", "-", "-", *onnx_runtime, stdin=CLIP.read_bytes())
    assert piped.returncode == 0, piped.stderr.decode()
    (tmp_path / "piped.q2d").write_bytes(piped.stdout)
    wanted = Tokens.load(tmp_path / "piped.q2d").indices
    for number in range(3):
        assert torch.equal(Tokens.load(tmp_path / "q2d" / f"{number}.q2d").indices, wanted)
    assert run("decode", "-", "-", *onnx_runtime, stdin=piped.stdout).stdout[:4] == b"RIFF"
    assert run("decode", "--test", tmp_path / "q2d", *onnx_runtime).returncode == 0


def without(package: str, folder: Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """The command in a process in which a package cannot be imported."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"raise ImportError('no {package} here')\n")

    def command(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"}
        parts = [sys.executable, "-m", "q2d2cli", *map(str, arguments)]
        return subprocess.run(parts, env=environment, capture_output=True, timeout=120, check=False)

    return command


def test_torch_is_not_needed(tiny: Path, tiny_codec: Codec, tmp_path: Path) -> None:
    bare = without("torch", tmp_path / "bare")
    graphs, q2d, wav = tmp_path / "graphs", tmp_path / "clip.q2d", tmp_path / "clip.wav"
    result = bare("export", "--onnx", tiny, graphs)
    assert result.returncode == 0, result.stderr.decode()
    assert leftovers(graphs) == ["decoder.onnx", "encoder.onnx"]
    for arguments in (("encode", CLIP, q2d, "--live"), ("decode", q2d, wav)):
        result = bare(*arguments, "-m", tiny, "--runtime", "onnx")
        assert result.returncode == 0, result.stderr.decode()
    audio, rate = soundfile.read(CLIP, dtype="float32")
    assert (Tokens.load(q2d).indices == tiny_codec.encode(audio, rate).indices).float().mean() > 0.999
    assert soundfile.info(wav).frames == len(audio)
    result = bare("decode", q2d, tmp_path / "other.wav", "-m", tiny, "--runtime", "torch")
    one_line(result, 2, "runtime torch needs PyTorch")


def test_missing_extra_is_named(tiny: Path, tmp_path: Path) -> None:
    result = without("onnxruntime", tmp_path / "bare")(
        "encode", CLIP, tmp_path / "a.q2d", "-m", tiny, "--runtime", "onnx"
    )
    one_line(result, 2, 'pip install "q2d2[onnx]"')
    result = without("onnx", tmp_path / "bare2")("export", "--onnx", tiny, tmp_path / "graphs")
    one_line(result, 2, 'pip install "q2d2[onnx]"')
    assert leftovers(tmp_path) == ["bare", "bare2"]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("encode", CLIP, "out.q2d", "--effort", "2"), "--effort searches with gradients"),
        (("encode", CLIP, "out.q2d", "--device", "cuda"), "runtime onnx computes on the CPU"),
        (("decode", "in.q2d", "out.wav", "--device", "mps"), "runtime onnx computes on the CPU"),
    ],
)
def test_what_it_cannot_do(
    run: Run, tiny: Path, tiny_codec: Codec, tmp_path: Path, arguments: tuple, words: str
) -> None:
    tiny_codec.encode(np.zeros(500, np.float32), RATE).save(tmp_path / "cwd" / "in.q2d")
    result = run(*arguments, "-m", tiny, "--runtime", "onnx")
    one_line(result, 2, words)
    assert leftovers(tmp_path / "cwd") == ["in.q2d"]
    unknown = run(*arguments[:3], "-m", tiny, "--runtime", "tflite")
    one_line(unknown, 2, "choose from torch, onnx")


def test_a_model_without_a_graph_is_named(tmp_path: Path) -> None:
    decoder = VocosDecoderConfig(dim=32, hidden=32, layers=1, attention=True)
    encoder = SeanetEncoderConfig(strides=(4, 3, 2, 2), filters=2)
    changes = {"encoder": {"encoder": encoder}, "attention": {"decoder": decoder}}
    for name, change in changes.items():
        folder = save(tmp_path / name, feature_dim=32, **change)
        with pytest.raises(UsageError, match=f"no ONNX graph: .*{name}.*; take runtime torch"):
            Coder.from_pretrained(folder, runtime="onnx")


def test_a_codec_without_a_module_says_so(tiny: Path) -> None:
    codec = Codec.from_pretrained(tiny, runtime="onnx")
    assert codec.device.type == "cpu"
    with pytest.raises(UsageError, match="take runtime torch"):
        _ = codec.model
    with pytest.raises(UsageError, match="gradients"):
        codec.encode(np.zeros(500, np.float32), RATE, effort=1)
    with pytest.raises(ValueError, match="index 41 is out of range: pair 0 has 41 points"):
        codec.decode(Tokens(torch.full((1, 9, 2), 41), codec.header(RATE, 1, 400)))


def of_another_model(path: Path) -> None:
    graph_of(path, fingerprint="0123456789abcdef")


def of_another_opset(path: Path) -> None:
    graph_of(path, opset="17")


def of_a_coming_opset(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version = 999
    onnx.save(model, path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def of_nobody(path: Path) -> None:
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)


def graph_of(path: Path, **changes: str) -> None:
    """Let a graph say something else of itself."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {**{entry.key: entry.value for entry in model.metadata_props}, **changes})
    onnx.save(model, path)


FAULTS = [of_another_model, of_another_opset, of_a_coming_opset, cut_short, emptied, of_text, of_nobody]


@pytest.mark.parametrize("damage", FAULTS)
def test_wrong_graphs_beside_the_weights_are_refused_and_in_the_cache_made_anew(
    call: Run, tiny: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for path in tiny.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    options = ("-m", folder, "--runtime", "onnx")
    assert call("encode", CLIP, tmp_path / "good.q2d", *options).returncode == 0
    cached = cache_folder() / checkpoints.find(str(tiny)).fingerprint().hex() / "encoder.onnx"
    damage(cached)
    assert call("encode", CLIP, tmp_path / "again.q2d", *options).returncode == 0
    assert (tmp_path / "again.q2d").read_bytes() == (tmp_path / "good.q2d").read_bytes()

    assert call("export", "--onnx", folder, folder).returncode == 0
    assert call("encode", CLIP, tmp_path / "beside.q2d", *options).returncode == 0
    damage(folder / "encoder.onnx")
    result = call("encode", CLIP, tmp_path / "bad.q2d", *options)
    one_line(result, 1, "encoder.onnx", "q2d2 export --onnx --force")
    assert not (tmp_path / "bad.q2d").exists()
    refused = call("export", "--onnx", folder, folder)
    one_line(refused, 2, "already exists")
    assert call("export", "--onnx", "--force", folder, folder).returncode == 0
    assert call("encode", CLIP, tmp_path / "bad.q2d", *options).returncode == 0


def test_a_cache_that_cannot_be_written_is_done_without(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert open_part(checkpoints.find(str(tiny)), "decoder") is not None
    assert leftovers(tmp_path) == ["file"]


def test_export_takes_runs_or_models(call: Run, tiny: Path, tmp_path: Path) -> None:
    result = call("export", tiny, tmp_path / "model")
    one_line(result, 2, "--test is missing")
    result = call("export", "--onnx", tiny, tmp_path / "model", "--test", tmp_path)
    one_line(result, 2, "--test is for runs")
    assert not (tmp_path / "model").exists()


def test_export_puts_the_context_model_beside_the_graphs(call: Run, tmp_path: Path) -> None:
    assert call("export", "--onnx", "speech-3k", tmp_path / "page", "-q").returncode == 0
    assert leftovers(tmp_path / "page") == ["context.safetensors", "decoder.onnx", "encoder.onnx"]
    context = checkpoints.find("speech-3k").folder / "context.safetensors"
    assert (tmp_path / "page" / "context.safetensors").read_bytes() == context.read_bytes()


def test_a_graph_is_small_plain_and_says_what_it_is(tmp_path: Path) -> None:
    checkpoint = checkpoints.find("speech-3k")
    sizes = 0
    for part in graph.PARTS:
        content = graph.build(checkpoint, part)
        sizes += len(content)
        model = onnx.load_from_string(content)
        said = {entry.key: entry.value for entry in model.metadata_props}
        assert said["model"] == checkpoint.config.name
        assert said["fingerprint"] == checkpoint.fingerprint().hex()
        assert said["levels"] == "9,9,7,7,7,7"
        assert (said["hop"], said["sample_rate"], said["opset"]) == ("144", "24000", "20")
        assert {node.domain for node in model.graph.node} == {""}, "no operator is anybody's own"
        assert not {"STFT", "DFT"} & {node.op_type for node in model.graph.node}
    assert sizes < 1.02 * checkpoint.weights.stat().st_size


def test_weights_that_do_not_fit_are_named(tiny: Path, tmp_path: Path) -> None:
    config = TINY.model_copy(update={"decoder": VocosDecoderConfig(dim=16, hidden=32, layers=3, kernel=3)})
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    checkpoints.write_config(checkpoints.Checkpoint(folder, config, {}))
    with pytest.raises(Q2D2Error, match=r"does not fit config.json beside it: decoder.blocks.2"):
        graph.build(checkpoints.find(str(folder)), "decoder")
