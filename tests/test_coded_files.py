"""Entropy-coded .q2d files: the command line, the API, golden files, damage, context models that are not here."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import torch
from conftest import CLIP, ROOT, Run

from q2d2cli import Codec, Tokens, checkpoints
from q2d2cli.container.coding import library
from q2d2cli.container.mending import Mended
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.training import context

GOLDEN = Path(__file__).parent / "golden"
CONTEXTS = GOLDEN / "contexts"
VECTORS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "coded.json").read_text())
SOUND = [name for name, vector in VECTORS.items() if "indices" in vector]


@pytest.fixture(scope="module")
def coded_model(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny model with a recurrent context model that knows the clip, and no other test's for the same weights."""
    folder = tmp_path_factory.mktemp("coded") / "tiny"
    shutil.copytree(tiny, folder)
    codec = Codec.from_pretrained(folder, "cpu")
    clip = folder.parent / "data"
    clip.mkdir()
    shutil.copy(CLIP, clip)
    tokens = context.gather(codec, clip, 0.2, 0, lambda what, done, total: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context, "BATCH", 8)
        tensors = context.train_network(tokens, codec.quantizer, 25, 0, lambda what, done, total: None)
    library.save(folder / checkpoints.CONTEXT_NAME, "recurrent", tensors, codec.fingerprint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "_folders", [])
        yield folder


@pytest.fixture(scope="module")
def codec(coded_model: Path) -> Codec:
    return Codec.from_pretrained(coded_model, "cpu")


@pytest.fixture(scope="module")
def tokens(codec: Codec, clip: tuple[np.ndarray, int]) -> Tokens:
    return codec.encode(np.stack([clip[0][: 3 * clip[1]], clip[0][-3 * clip[1] :]]), clip[1])


def info(run: Run, path: Path) -> dict[str, object]:
    return json.loads(run("info", path, "--json").stdout)


def test_coded_is_the_default_and_the_same_audio(run: Run, coded_model: Path, tmp_path: Path) -> None:
    environment = {"Q2D2_MODELS": str(coded_model.parent)}
    for name, options in (("coded", ()), ("packed", ("--payload", "packed")), ("robust", ("--robust",))):
        done = run("encode", CLIP, tmp_path / f"{name}.q2d", "-m", "tiny", *options, environment=environment)
        assert done.returncode == 0, done.stderr
        done = run("decode", tmp_path / f"{name}.q2d", tmp_path / f"{name}.wav", environment=environment)
        assert done.returncode == 0, done.stderr
    facts = {name: info(run, tmp_path / f"{name}.q2d") for name in ("coded", "packed", "robust")}
    assert [facts[name]["payload"] for name in facts] == list(facts)
    assert facts["coded"]["payload_bytes"] < 0.9 * facts["packed"]["payload_bytes"]
    assert facts["coded"]["context"] == library.load(coded_model / checkpoints.CONTEXT_NAME).fingerprint.hex()
    coded = facts["coded"]
    assert coded["bits_per_frame"] == pytest.approx(8 * coded["payload_bytes"] / coded["tokens"], abs=1e-4)
    assert b"saved), context " in run("info", tmp_path / "coded.q2d").stdout
    audio = {(tmp_path / f"{name}.wav").read_bytes() for name in facts}
    assert len(audio) == 1


def test_through_pipes(run: Run, coded_model: Path) -> None:
    coded = run("encode", "-", "-", "-m", coded_model, stdin=CLIP.read_bytes())
    assert coded.returncode == 0, coded.stderr
    piped = run("decode", "-", "-", "-m", coded_model, stdin=coded.stdout)
    assert piped.returncode == 0, piped.stderr
    packed = run("encode", "-", "-", "-m", coded_model, "--payload", "packed", stdin=CLIP.read_bytes())
    assert len(coded.stdout) < len(packed.stdout)
    assert run("decode", "-", "-", "-m", coded_model, stdin=packed.stdout).stdout == piped.stdout


def test_tokens_change_payloads(tokens: Tokens, codec: Codec, tmp_path: Path) -> None:
    assert tokens.header.payload == "coded"
    sizes = {}
    for payload in ("coded", "packed", "robust", None):
        path = tmp_path / f"{payload}.q2d"
        tokens.save(path, payload)
        loaded = Tokens.load(path)
        assert torch.equal(loaded.indices, tokens.indices)
        assert loaded.header.payload == (payload or "coded")
        loaded.save(tmp_path / "again.q2d", "coded", overwrite=True)
        assert (tmp_path / "again.q2d").read_bytes() == (tmp_path / "coded.q2d").read_bytes()
        sizes[payload] = path.stat().st_size
    assert sizes[None] == sizes["coded"] < sizes["packed"] < sizes["robust"]
    assert torch.equal(codec.decode(Tokens.load(tmp_path / "coded.q2d")), codec.decode(tokens))


def test_blocks_are_packed_where_that_is_smaller(codec: Codec, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(codec.quantizer.codebook_size, (3000,), generator=generator)
    noise = codec.tokens(ids)
    noise.save(tmp_path / "coded.q2d")
    noise.save(tmp_path / "packed.q2d", "packed")
    with Reader((tmp_path / "coded.q2d").open("rb")) as reader:
        assert all(block.packed.plain for block in reader.blocks())
    # The header names the context model.
    assert (tmp_path / "coded.q2d").stat().st_size <= (tmp_path / "packed.q2d").stat().st_size + 8
    assert torch.equal(Tokens.load(tmp_path / "coded.q2d").tokens[0], ids)


def test_blocks_that_need_no_bytes(codec: Codec, tmp_path: Path) -> None:
    # Index 0 all the time: the low end of the range stays 0, and zeros at the end are left out.
    for frames in (1, 700):
        zeros = codec.tokens(torch.zeros(frames, dtype=torch.int64))
        zeros.save(tmp_path / f"{frames}.q2d")
        assert torch.equal(Tokens.load(tmp_path / f"{frames}.q2d").indices, zeros.indices)


def test_every_block_decodes_alone(tokens: Tokens, tmp_path: Path) -> None:
    from dataclasses import replace

    header = replace(tokens.header, frames_per_block=100)
    with (tmp_path / "x.q2d").open("wb") as file:
        writer = Writer(file, header, batch=4)
        writer.write(tokens.indices.numpy())
        writer.close(tokens.num_samples)
    with Reader((tmp_path / "x.q2d").open("rb")) as reader:
        blocks = list(reader.blocks())
        assert len(blocks) > 10
        for block in blocks[::-3]:
            expected = tokens.indices[:, block.first : block.first + block.frames]
            assert torch.equal(torch.from_numpy(reader.unpack(block)), expected)
    # One by one they are the same bytes.
    with (tmp_path / "y.q2d").open("wb") as file:
        writer = Writer(file, header)
        for begin in range(0, tokens.indices.shape[1], 37):
            writer.write(tokens.indices[:, begin : begin + 37].numpy())
        writer.close(tokens.num_samples)
    assert (tmp_path / "x.q2d").read_bytes() == (tmp_path / "y.q2d").read_bytes()


def test_without_the_context_model(run: Run, tiny: Path, tokens: Tokens, codec: Codec, tmp_path: Path) -> None:
    path = tmp_path / "coded.q2d"
    tokens.save(path)
    for options in ((), ("-m", tiny)):
        done = run("decode", path, tmp_path / "x.wav", *options, environment={"Q2D2_MODELS": str(tiny.parent)})
        assert done.returncode == 1
        said = done.stderr.decode()
        assert said.count("\n") == 1
        assert f"{path} needs the context model {tokens.header.context.hex()} of model 'tiny'" in said
        assert not (tmp_path / "x.wav").exists()
    assert info(run, path)["payload"] == "coded"
    done = run("encode", CLIP, tmp_path / "y.q2d", "-m", tiny, "--payload", "coded")
    assert (done.returncode, done.stderr.decode().count("\n")) == (2, 1)
    assert b"make one with q2d2 context" in done.stderr
    done = run("encode", CLIP, tmp_path / "y.q2d", "-m", tiny)
    assert done.returncode == 0
    assert info(run, tmp_path / "y.q2d")["payload"] == "packed"


def test_options_that_make_no_sense(run: Run, coded_model: Path, tmp_path: Path) -> None:
    for options in (("--payload", "zip"), ("--payload", "coded", "--robust")):
        done = run("encode", CLIP, tmp_path / "y.q2d", "-m", coded_model, *options)
        assert (done.returncode, done.stderr.decode().count("\n")) == (2, 1)


def test_coded_without_a_context_model(tiny_codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiny_codec.context is None
    monkeypatch.setattr(library, "_folders", [])
    tokens = tiny_codec.tokens(torch.zeros(5, dtype=torch.int64))
    with pytest.raises(UsageError, match="no context model"):
        tokens.save(tmp_path / "z.q2d", "coded")
    assert not (tmp_path / "z.q2d").exists()


def test_a_context_model_of_other_weights_is_left_alone(coded_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(coded_model, folder)
    state = checkpoints.read_safetensors(folder / checkpoints.WEIGHTS_NAME)
    config = checkpoints.open_checkpoint(folder).config
    checkpoints.save(folder, config, {name: tensor * 1.5 for name, tensor in state.items()})
    assert Codec.from_pretrained(folder, "cpu").header(24000, 1, 48).payload == "packed"


def test_damage_is_one_clear_line(run: Run, tokens: Tokens, coded_model: Path, tmp_path: Path) -> None:
    tokens.save(tmp_path / "whole.q2d")
    whole = (tmp_path / "whole.q2d").read_bytes()
    rng = np.random.default_rng(0)
    for number, place in enumerate(rng.integers(0, len(whole), 8)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << number % 8
        for data in (bytes(flipped), whole[:place]):
            (tmp_path / "bad.q2d").write_bytes(data)
            with pytest.raises(Q2D2Error) as caught:
                Tokens.load(tmp_path / "bad.q2d")
            assert "\n" not in str(caught.value)
    (tmp_path / "bad.q2d").write_bytes(whole[: len(whole) // 2])
    done = run("decode", tmp_path / "bad.q2d", tmp_path / "bad.wav", "-m", coded_model)
    assert (done.returncode, done.stderr.decode().count("\n")) == (1, 1)
    assert not (tmp_path / "bad.wav").exists()


def test_eval_counts_what_is_spent(coded_model: Path, tiny: Path, clip: tuple[np.ndarray, int]) -> None:
    from q2d2cli.evaluation.codecs import open_subject

    audio = clip[0][: 2 * clip[1]]
    coded, packed = (open_subject(f"q2d2:{model}", "cpu") for model in (coded_model, tiny))
    assert coded.identity.startswith(packed.identity)
    results = [subject.reconstruct(audio, clip[1], Path("x.wav")) for subject in (coded, packed)]
    np.testing.assert_array_equal(results[0].audio, results[1].audio)
    assert results[0].size.payload_bits < 0.9 * results[1].size.payload_bits
    assert results[0].size.payload_bits < 8 * results[0].size.file_bytes


@pytest.mark.parametrize("name", SOUND)
def test_golden_coded_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(CONTEXTS))
    data, vector = (GOLDEN / f"{name}.q2d").read_bytes(), VECTORS[name]
    tokens = Tokens.load(io.BytesIO(data))
    assert tokens.indices.tolist() == vector["indices"]
    assert tokens.header.context.hex() == vector["context"]
    contexts = [path.read_bytes() for path in CONTEXTS.rglob("*.safetensors")]
    assert reference_decoder.decode(data, contexts) == {"version": [2, 0], **vector}
    if not name.endswith("resealed"):
        file = io.BytesIO()
        tokens.save(file)
        assert file.getvalue() == data


def test_golden_coded_file_with_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(CONTEXTS))
    data, vector = (GOLDEN / "coded-parity.q2d").read_bytes(), json.loads((GOLDEN / "coded-parity.json").read_text())
    share = vector.pop("parity")
    with Reader(io.BytesIO(data)) as reader:
        blocks = list(reader.blocks())
        indices = np.concatenate([reader.unpack(block) for block in blocks], axis=1)
    assert indices.tolist() == vector["indices"]
    file = io.BytesIO()
    writer = Writer(file, reader.header, parity=share)
    writer.write(indices)
    writer.close(vector["num_samples"])
    assert file.getvalue() == data
    contexts = [path.read_bytes() for path in CONTEXTS.rglob("*.safetensors")]
    assert reference_decoder.decode(data, contexts) == {"version": [2, 0], **vector}
    # The layout says where the data blocks are, which differ in size, and what is lost of them is mended.
    ((begin, _, layout),) = reference_decoder.parity_windows(data)
    assert begin == 0
    assert layout == (0, [*(block.offset for block in blocks), blocks[-1].end])
    assert len({block.end - block.offset for block in blocks[:-1]}) > 2
    bad = data
    for block in (blocks[8], blocks[3], blocks[0]):
        bad = bad[: block.offset] + bad[block.end :]
    assert Mended(io.BytesIO(bad)).read() == data


def test_golden_coded_files_have_blocks_of_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(CONTEXTS))
    for name in SOUND:
        with Reader((GOLDEN / f"{name}.q2d").open("rb")) as reader:
            plain = [block.packed.plain for block in reader.blocks()]
        assert set(plain) == ({False} if name.endswith("one-block") else {False, True})


@pytest.mark.parametrize("name", [name for name in VECTORS if name not in SOUND])
def test_golden_coded_files_that_are_damaged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(CONTEXTS))
    data, vector = (GOLDEN / f"{name}.q2d").read_bytes(), VECTORS[name]
    with pytest.raises(Q2D2Error) as caught:
        Tokens.load(io.BytesIO(data))
    assert str(caught.value).endswith(vector["error"])
    contexts = [path.read_bytes() for path in CONTEXTS.rglob("*.safetensors")]
    with pytest.raises(AssertionError):
        reference_decoder.decode(data, contexts)
    # The other blocks are as they were.
    whole = np.array(VECTORS["coded-recurrent-stereo"]["indices"])
    with Reader((GOLDEN / f"{name}.q2d").open("rb"), conceal=True) as reader:
        blocks = [block for block in reader.blocks() if block.state == "whole"]
        assert [[block.first, block.frames] for block in blocks] == vector["whole"]
        for block in blocks:
            np.testing.assert_array_equal(reader.unpack(block), whole[:, block.first : block.first + block.frames])


def test_golden_coded_files_on_other_threads() -> None:
    script = (
        "import json, sys\nimport numpy as np\nfrom q2d2cli.container.stream import Reader\n"
        "readers = [Reader(open(name, 'rb')) for name in sys.argv[1:]]\n"
        "print(json.dumps([np.concatenate([r.unpack(b) for b in r.blocks()], axis=1).tolist() for r in readers]))\n"
    )
    variables = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "3")
    done = subprocess.run(
        [sys.executable, "-c", script, *(str(GOLDEN / f"{name}.q2d") for name in SOUND)],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT), "Q2D2_MODELS": str(CONTEXTS)},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == [VECTORS[name]["indices"] for name in SOUND]


def test_golden_coded_files_are_not_written_again() -> None:
    before = {path: path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()}
    for name in ("make_coded.py", "make_coded_parity.py"):
        done = subprocess.run([sys.executable, GOLDEN / name], cwd=ROOT, capture_output=True, check=False)
        assert done.returncode != 0
    assert {path: path.read_bytes() for path in GOLDEN.rglob("*") if path.is_file()} == before


def test_models_say_which_have_a_context_model(run: Run, coded_model: Path, tiny: Path, tmp_path: Path) -> None:
    for folder, name in ((coded_model, "good"), (coded_model, "spoilt"), (tiny, "none")):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "spoilt" / checkpoints.CONTEXT_NAME).write_bytes(b"none")
    environment = {"Q2D2_MODELS": str(tmp_path), "COLUMNS": "150"}
    done = run("models", "--json", environment=environment)
    assert done.returncode == 0
    found = {Path(row["folder"]).name: row["context"] for row in json.loads(done.stdout)}
    good = library.load(coded_model / checkpoints.CONTEXT_NAME).fingerprint.hex()
    assert [found[name] for name in ("good", "spoilt", "none")] == [good, None, None]
    assert done.stderr.decode().count("\n") == 1
    assert "is damaged or no context model" in done.stderr.decode()
    table = run("models", environment=environment).stdout.decode()
    assert [("yes" in line) for line in table.splitlines() if line.startswith("tiny")] == [True, False, False]
