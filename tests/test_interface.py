"""What callers hand to the Python interface, and what their PyTorch is set to."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLIP, Run

from q2d2cli import Codec, Q2D2Error, Tokens, UsageError, checkpoints, quantizers
from q2d2cli.quantizers import Q2D2, FsqQuantizer, QuantizerSpec

Clip = tuple[np.ndarray, int]


@pytest.mark.parametrize("name", ["int16", "int32", "float64", "big-endian", "reversed", "strided", "tensor"])
def test_a_recording_has_the_same_tokens_in_every_form(tiny_codec: Codec, clip: Clip, name: str) -> None:
    # 16-bit audio, so that each of these types holds it exactly.
    pcm = (clip[0][:16_000] * 32767).astype(np.int16)
    audio = pcm.astype(np.float32) / 32768
    forms: dict[str, Any] = {
        "int16": pcm,
        "int32": pcm.astype(np.int32) << 16,
        "float64": audio.astype(np.float64),
        "big-endian": audio.astype(">f4"),
        "reversed": audio[::-1].copy()[::-1],
        "strided": np.stack([audio, -audio], axis=1)[:, 0],
        "tensor": torch.from_numpy(audio).requires_grad_(),
    }
    expected = tiny_codec.encode(audio, clip[1])
    assert torch.equal(tiny_codec.encode(forms[name], clip[1]).indices, expected.indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_audio_counts_as_the_numbers_it_holds(tiny_codec: Codec, clip: Clip, dtype: torch.dtype) -> None:
    audio = torch.from_numpy(clip[0][:8000]).to(dtype)
    assert torch.equal(tiny_codec.encode(audio, 16_000).indices, tiny_codec.encode(audio.float(), 16_000).indices)


@pytest.mark.parametrize("shape", [(16_000, 2), (2, 1), (256, 1000), (5000, 1)])
def test_channels_last_is_refused(tiny_codec: Codec, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"{shape[0]} channels of {shape[1]} samples.*\.T"):
        tiny_codec.encode(np.zeros(shape, np.float32), 16_000)


@pytest.mark.parametrize("rate", [16_000, 16_000.0, np.int64(16_000), np.float32(16_000), torch.tensor(16_000)])
def test_whole_rates_are_taken(tiny_codec: Codec, clip: Clip, tmp_path: Path, rate: Any) -> None:
    tokens = tiny_codec.encode(clip[0][:4000], rate)
    assert type(tokens.sample_rate) is int
    tokens.save(tmp_path / "a.q2d")
    assert Tokens.load(tmp_path / "a.q2d").sample_rate == 16_000


@pytest.mark.parametrize("rate", [16_000.5, float("nan"), float("inf"), "16000", True, None, 0, -16_000, 1 << 40])
def test_other_rates_are_refused_before_anything_is_encoded(tiny_codec: Codec, clip: Clip, rate: Any) -> None:
    for make in (lambda: tiny_codec.encode(clip[0], rate), lambda: tiny_codec.stream_encoder(rate)):
        with pytest.raises(UsageError, match="rate"):
            make()


@pytest.mark.parametrize(
    "ids",
    [
        torch.zeros(5),
        torch.zeros(5, dtype=torch.bfloat16),
        torch.zeros(5, dtype=torch.bool),
        np.zeros((1, 5), np.float64),
        np.zeros(5, complex),
        ["1", "2"],
        [0.5, 1],
        5,
        torch.tensor(5),
        torch.zeros(1, 2, 3, dtype=torch.int64),
    ],
)
def test_ids_that_are_no_ids_are_refused(tiny_codec: Codec, ids: Any) -> None:
    with pytest.raises(ValueError, match=r"integers|\(frames,\)"):
        tiny_codec.tokens(ids)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", ">i4", "uint64", "int64"])
def test_ids_of_any_integer_type(tiny_codec: Codec, dtype: str) -> None:
    ids = np.arange(100)
    expected = tiny_codec.tokens(torch.from_numpy(ids))
    for form in (ids.astype(dtype), ids[::-1].astype(dtype)[::-1]):
        assert torch.equal(tiny_codec.tokens(form).indices, expected.indices)
    assert torch.equal(expected.tokens[0], torch.from_numpy(ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool])
def test_indices_that_are_no_integers_are_refused(tiny_codec: Codec, clip: Clip, dtype: torch.dtype) -> None:
    tokens = tiny_codec.encode(clip[0][:4000], clip[1])
    wrong = tokens.indices.to(dtype)
    for use in (
        lambda: Tokens(wrong, tokens.header),
        lambda: tiny_codec.model.decode(wrong),
        lambda: tiny_codec.stream_decoder(tokens.header).push(wrong),
        lambda: quantizers.indices_to_tokens(wrong, tokens.header.quantizer),
        lambda: quantizers.tokens_to_indices(wrong[..., 0], tokens.header.quantizer),
    ):
        with pytest.raises(ValueError, match="expected integers"):
            use()


def test_indices_of_another_shape_are_refused(tiny_codec: Codec, clip: Clip) -> None:
    tokens = tiny_codec.encode(clip[0][:4000], clip[1])
    for wrong in (tokens.indices[0], tokens.indices[..., :1], tokens.indices.repeat(2, 1, 1), tokens.indices[0, 0, 0]):
        with pytest.raises(ValueError, match="have shape"):
            Tokens(wrong, tokens.header)
        with pytest.raises(ValueError, match="have shape"):
            tiny_codec.stream_decoder(tokens.header).push(wrong)


def test_narrow_indices_do_not_overflow() -> None:
    spec = QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7))
    indices = torch.tensor([[100, 80, 84]])
    assert torch.equal(
        quantizers.indices_to_tokens(indices.to(torch.uint8), spec), quantizers.indices_to_tokens(indices, spec)
    )


@contextmanager
def setting(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Any:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "medium": lambda: setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"),
    "meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("which", ["speech-3k", "tiny"])
def test_what_torch_is_set_to_changes_nothing(tiny: Path, clip: Clip, name: str, which: str) -> None:
    folder = str(tiny) if which == "tiny" else which
    codec = Codec.from_pretrained(folder, "cpu")
    audio = clip[0][:32_000]
    expected = codec.encode(audio, clip[1])
    sound = codec.decode(expected)
    with SURROUNDINGS[name]():
        for other in (codec, Codec.from_pretrained(folder, "cpu")):
            tokens = other.encode(audio, clip[1])
            assert torch.equal(tokens.indices, expected.indices)
            assert torch.equal(other.decode(tokens), sound)
            assert torch.equal(other.tokens(tokens.tokens.tolist()).indices, expected.indices)


def test_the_callers_precision_is_there_again(tiny_codec: Codec, clip: Clip) -> None:
    with setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"):
        tiny_codec.encode(clip[0][:4000], clip[1])
        assert torch.get_float32_matmul_precision() == "medium"


def test_a_search_in_another_default_type_is_refused(tiny_codec: Codec, clip: Clip) -> None:
    pytest.importorskip("torch_pesq")
    with SURROUNDINGS["float64"](), pytest.raises(UsageError, match=r"default type is torch\.float64"):
        tiny_codec.encode(clip[0][:4000], clip[1], effort=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["rhombic", "rectangular", "hexagonal", "fsq"])
def test_quantizers_give_half_precision_the_tokens_of_float32(dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(0)
    levels = (9, 9, 7, 7)
    quantizer = (
        FsqQuantizer(QuantizerSpec(kind, levels), 16) if kind == "fsq" else Q2D2(QuantizerSpec(kind, levels), 16)
    )
    x = (3 * torch.randn(2, 200, 16)).to(dtype)
    expected = quantizer.encode(x.float())
    for surroundings in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        with surroundings:
            assert torch.equal(quantizer.encode(x), expected)
            assert torch.equal(quantizer(x).indices, expected)
    if isinstance(quantizer, Q2D2):
        z = torch.tanh(quantizer.project(x)).to(dtype)
        assert torch.equal(quantizer.quantize(z), quantizer.quantize(z.float()))
        points = (3 * torch.randn(300, 2)).to(dtype)
        for grid in quantizer.grids:
            assert torch.equal(grid.nearest(points), grid.nearest(points.float()))
            assert torch.equal(grid.nearest_by_search(points), grid.nearest(points.float()))
    # A quantizer that was rounded itself would silently give others.
    for use in (quantizer.encode, quantizer, lambda _: quantizer.decode(expected)):
        with pytest.raises(TypeError, match="keep quantizers in float32"):
            quantizer.to(dtype) and use(x)


def test_grids_are_not_rounded_with_the_rest_of_a_model() -> None:
    quantizer = Q2D2(QuantizerSpec("rhombic", (301, 301)), 16)
    points, bound = quantizer.points_0.clone(), quantizer.bound.clone()
    quantizer.bfloat16().float()
    assert torch.equal(quantizer.points_0, points)
    assert torch.equal(quantizer.bound, bound)


def test_quantizers_are_exported() -> None:
    for name in quantizers.__all__:
        assert getattr(quantizers, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        quantizers.Nonsense  # noqa: B018


def test_tokens_say_what_they_are_in_a_line(tiny_codec: Codec, clip: Clip) -> None:
    text = repr(tiny_codec.encode(clip[0][:16_000], clip[1]))
    assert text == "Tokens(tiny, 1 channels, 500 frames of 2 indices, 1.000 s at 16000 Hz)"


def test_nothing_is_overwritten_unasked(tiny_codec: Codec, clip: Clip, tmp_path: Path) -> None:
    short, long = (tiny_codec.encode(clip[0][:n], clip[1]) for n in (4000, 8000))
    path = tmp_path / "a.q2d"
    short.save(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="already exists: pass overwrite=True"):
        long.save(str(path))
    assert path.read_bytes() == before
    long.save(path, overwrite=True)
    assert torch.equal(Tokens.load(path).indices, long.indices)


def test_tokens_in_file_objects(tiny_codec: Codec, clip: Clip, tmp_path: Path) -> None:
    tokens = tiny_codec.encode(clip[0][:8000], clip[1])
    memory = io.BytesIO()
    tokens.save(memory)
    tokens.save(tmp_path / "a.q2d")
    assert memory.getvalue() == (tmp_path / "a.q2d").read_bytes()
    memory.seek(0)
    assert torch.equal(Tokens.load(memory).indices, tokens.indices)
    with (tmp_path / "text").open("w") as text, pytest.raises(ValueError, match="open it in binary"):
        tokens.save(text)  # type: ignore[arg-type]
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as source, os.fdopen(write_end, "wb") as sink:
        tokens.save(sink)
        sink.close()
        assert torch.equal(Tokens.load(source).indices, tokens.indices)


def test_messages_of_the_python_interface_speak_no_command_line(tiny_codec: Codec, clip: Clip) -> None:
    from dataclasses import replace

    tokens = tiny_codec.encode(clip[0][:4000], clip[1])
    causes: list[Callable[[], Any]] = [
        lambda: Codec.from_pretrained("speech-3k", device="nonsense"),
        lambda: Codec.from_pretrained("speech-3k", device="cuda:99"),
        lambda: Codec.from_pretrained("nope"),
        lambda: tiny_codec.decode(Tokens(tokens.indices, replace(tokens.header, fingerprint=b"\0" * 8))),
        lambda: tiny_codec.encode(clip[0], 16_000, effort=-1),
    ]
    for cause in causes:
        with pytest.raises(Q2D2Error) as caught:
            cause()
        assert "--" not in str(caught.value)


def test_weights_are_hashed_once_as_long_as_they_stay(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny, folder)
    weights = folder / checkpoints.WEIGHTS_NAME
    opened: list[str] = []
    # Hooks cannot be taken away again: this one goes on counting a file that is gone.
    sys.addaudithook(lambda event, args: opened.append(event) if event == "open" and args[0] == str(weights) else None)
    first = checkpoints.fingerprint(weights)
    assert len(opened) == 1
    assert checkpoints.fingerprint(weights) == first
    assert len(opened) == 1
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoints.fingerprint(weights) != first


def foreign(folder: Path, tiny: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())


def half_copied(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder)
    whole = (tiny / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def without_weights(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()


def cut_config(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder)
    (folder / "config.json").write_text((tiny / "config.json").read_text()[:40])


def no_safetensors(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize("spoil", [foreign, half_copied, without_weights, cut_config, no_safetensors])
@pytest.mark.parametrize("name", ["other", "speech-3k"])
def test_a_broken_folder_among_the_models_is_named_once_and_passed_over(
    run: Run, tiny: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], name: str
) -> None:
    root = tmp_path / "models"
    root.mkdir()
    spoil(root / name, tiny)
    environment = {"Q2D2_MODELS": str(root)}
    result = run("models", "--json", environment=environment)
    assert result.returncode == 0, result.stderr.decode()
    assert b'"name": "speech-3k-v5"' in result.stdout
    assert result.stderr.decode().count(str(root / name)) == 1
    if spoil is half_copied:
        for arguments in (("encode", CLIP, "a.q2d", "-q"), ("encode", CLIP, "b.q2d", "-q", "-b", "3")):
            result = run(*arguments, environment=environment)
            assert result.returncode == 0, result.stderr.decode()
        result = run("decode", "a.q2d", "a.wav", "-q", environment=environment)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stderr.decode().count("passed over") == 1


def test_a_broken_model_that_is_asked_for_is_an_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_copied(tmp_path / "mine", tiny)
    monkeypatch.setenv("Q2D2_MODELS", str(tmp_path))
    for name in ("mine", str(tmp_path / "mine")):
        with pytest.raises(Q2D2Error, match="cut short: fetch it again"):
            Codec.from_pretrained(name)
