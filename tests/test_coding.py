"""Entropy coding: the range coder, context models in whole numbers, blocks side by side, training."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIP, ROOT, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from q2d2cli import checkpoints
from q2d2cli.container.coding import library, ranges
from q2d2cli.container.coding.blocks import BlockCoder
from q2d2cli.container.coding.context import ContextModel
from q2d2cli.container.coding.recurrent import RecurrentModel, powers
from q2d2cli.container.coding.tables import TableModel
from q2d2cli.container.header import FormatError
from q2d2cli.errors import Q2D2Error
from q2d2cli.quantizers.spec import QuantizerSpec

SPEC = QuantizerSpec("rhombic", (5, 5, 3, 3))
SIZES = SPEC.sizes
Tensors = dict[str, np.ndarray]


def numbers(seed: str, *shape: int, low: int, high: int) -> np.ndarray:
    """Whole numbers in `[low, high]` that are the same in every version of every library."""
    data = np.frombuffer(hashlib.shake_256(seed.encode()).digest(4 * math.prod(shape)), "<u4")
    return (low + data.astype(np.int64) % (high - low + 1)).reshape(shape)


def recurrent_tensors(sizes: tuple[int, ...] = SIZES, units: int = 24, width: int = 16, size: int = 8) -> Tensors:
    """A network with random weights."""
    tensors = {
        "recurrent": numbers("recurrent", units, 2 * units, low=-40, high=40).astype(np.int8),
        "recurrent_bias": numbers("bias", 2 * units, low=-(2**17), high=2**17).astype(np.int32),
    }
    for j, points in enumerate(sizes):
        shapes = {
            f"embedding.{j}": (points + 1, size),
            f"input.{j}": (size, 2 * units),
            f"hidden.{j}": (units, width),
            f"out.{j}": (width, points),
            **{f"within.{j}.{k}": (size, width) for k in range(j)},
        }
        for name, shape in shapes.items():
            tensors[name] = numbers(name, *shape, low=-60, high=60).astype(np.int8)
        tensors[f"hidden_bias.{j}"] = numbers(f"hb{j}", width, low=0, high=2**16).astype(np.int32)
        tensors[f"out_bias.{j}"] = numbers(f"ob{j}", points, low=-(2**12), high=2**12).astype(np.int32)
    return tensors


def table_tensors(step: int, sizes: tuple[int, ...] = SIZES) -> Tensors:
    tables = {f"table.{j}": numbers(f"t{j}", n + 1, n, low=1, high=900).astype(np.uint16) for j, n in enumerate(sizes)}
    return {"step": np.array([step], np.int32), **tables}


MODELS: dict[str, ContextModel] = {
    "static": TableModel(table_tensors(0)),
    "adaptive": TableModel(table_tensors(200)),
    "recurrent": RecurrentModel(recurrent_tensors()),
}


def random_blocks(seed: int, lengths: list[int], channels: int, sizes: tuple[int, ...] = SIZES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, sizes, (channels, length, len(sizes))) for length in lengths]


@given(st.lists(st.lists(st.integers(1, 2**20), min_size=1, max_size=9), max_size=200), st.randoms())
def test_range_coder_gives_back_every_symbol(counts: list[list[int]], random: object) -> None:
    chosen = [random.randrange(len(row)) for row in counts]  # type: ignore[attr-defined]
    coded = ranges.encode((sum(row[:s]), row[s], sum(row)) for row, s in zip(counts, chosen, strict=True))
    decoder = ranges.Decoder([coded])
    assert [int(decoder.decode(np.array([row], np.uint64))[0]) for row in counts] == chosen
    decoder.check(0, coded)
    ideal = sum(math.log2(Fraction(sum(row), row[s])) for row, s in zip(counts, chosen, strict=True))
    # Words lose a little where a count is rounded, and the end costs up to a byte.
    assert 8 * len(coded) <= ideal * 1.001 + 0.02 * len(counts) + 9


def test_carries_run_through_long_streams() -> None:
    # The last alternative every time: the low end of the range creeps up to all ones.
    row = [1, 2**24 - 1]
    symbols = [(1, row[1], 2**24)] * 30000 + [(0, 1, 2**24)] * 300
    coded = ranges.encode(symbols)
    decoder = ranges.Decoder([coded])
    found = [int(decoder.decode(np.array([row], np.uint64))[0]) for _ in symbols]
    assert found == [1] * 30000 + [0] * 300


@pytest.mark.parametrize("kind", MODELS)
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 99))
def test_blocks_come_back_and_do_not_depend_on_their_company(
    kind: str, lengths: list[int], channels: int, seed: int
) -> None:
    coder = BlockCoder(MODELS[kind])
    blocks = random_blocks(seed, lengths, channels)
    coded = coder.encode(blocks)
    for block, found in zip(blocks, coder.decode(coded, lengths, channels), strict=True):
        np.testing.assert_array_equal(found, block)
    for block, data in zip(blocks, coded, strict=True):
        assert coder.encode([block]) == [data]
        np.testing.assert_array_equal(coder.decode([data], [block.shape[1]], channels)[0], block)


@pytest.mark.parametrize("kind", MODELS)
@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=60), st.integers(1, 30), st.integers(1, 2))
def test_any_bytes_decode_to_indices_in_range_or_an_error(kind: str, data: bytes, frames: int, channels: int) -> None:
    try:
        (found,) = BlockCoder(MODELS[kind]).decode([data], [frames], channels)
    except FormatError:
        return
    assert found.shape == (channels, frames, len(SIZES))
    assert (found >= 0).all()
    assert (found < SIZES).all()


@pytest.mark.parametrize("kind", MODELS)
def test_bits_of_every_point_are_those_that_are_spent(kind: str) -> None:
    model = MODELS[kind]
    indices = np.concatenate(random_blocks(9, [70, 70], 1))
    spans = model.intervals(indices, np.array([70, 70]))
    for pair, bits in enumerate(model.bits(indices)):
        assert bits.shape == (2, 70, SIZES[pair])
        np.testing.assert_allclose(np.exp2(-bits).sum(axis=-1), 1, atol=1e-4)
        spent = np.take_along_axis(bits, indices[..., pair, None], axis=-1)[..., 0]
        np.testing.assert_allclose(spent, np.log2(spans[:, :, pair, 2] / spans[:, :, pair, 1]), rtol=1e-5, atol=1e-5)


def test_more_rows_than_go_side_by_side() -> None:
    coder = BlockCoder(MODELS["recurrent"])
    lengths = [1 + i % 5 for i in range(150)]
    blocks = random_blocks(3, lengths, 2)
    found = coder.decode(coder.encode(blocks), lengths, 2)
    assert all(np.array_equal(a, b) for a, b in zip(found, blocks, strict=True))


def test_powers_are_those_of_two() -> None:
    table = powers()
    assert [int(table[k]) for k in (0, 64, 640, 1024)] == [65536, 32768, 64, 1]
    for k in range(0, 1025, 7):
        assert int(table[k]) ** 64 <= 2 ** (1024 - k) < (int(table[k]) + 1) ** 64


def counts_in_integers(tensors: Tensors, indices: np.ndarray) -> list[list[list[int]]]:
    """Counts of `(frames, pairs)` indices as docs/entropy-coding.md defines them, in 64-bit integers."""
    t = {name: tensor.astype(np.int64) for name, tensor in tensors.items()}
    units, pairs = len(t["recurrent"]), indices.shape[1]
    table = [math.isqrt(0)] * 1025
    for k in range(1025):
        table[k] = int(2 ** (16 - k / 64) + 2)
        while table[k] ** 64 > 2 ** (1024 - k):
            table[k] -= 1
    state = np.zeros(units, np.int64)
    before = [t[f"embedding.{j}"].shape[0] - 1 for j in range(pairs)]
    result = []
    for frame in indices:
        mixed = t["recurrent_bias"] + state @ t["recurrent"]
        for j in range(pairs):
            mixed = mixed + 32 * (t[f"embedding.{j}"][before[j]] @ t[f"input.{j}"])
        gate = np.clip((mixed[:units] >> 11) + 128, 0, 256)
        change = np.clip(mixed[units:] >> 7, -1024, 1024)
        state = state + ((gate * (change - state) + 128) >> 8)
        row = []
        for j in range(pairs):
            hidden = state @ t[f"hidden.{j}"] + t[f"hidden_bias.{j}"]
            for k in range(j):
                hidden = hidden + 32 * (t[f"embedding.{k}"][frame[k]] @ t[f"within.{j}.{k}"])
            logits = np.clip(hidden >> 9, 0, 256) @ t[f"out.{j}"] + t[f"out_bias.{j}"]
            row.append([table[min(1024, int(d) >> 6)] for d in logits.max() - logits])
        result.append(row)
        before = list(frame)
    return result


def test_the_network_is_exact() -> None:
    tensors = recurrent_tensors((85, 145, 13), units=128, width=96, size=32)
    model = RecurrentModel(tensors)
    indices = random_blocks(5, [20], 1, model.sizes)[0][0]
    predictor = model.begin(1)
    for frame, expected in zip(indices, counts_in_integers(tensors, indices), strict=True):
        for pair in range(3):
            assert predictor.counts(pair)[0].tolist() == expected[pair]
            predictor.take(pair, frame[[pair]])


def digest(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "little") + part for part in parts)).hexdigest()[:16]


GOLDEN = {"static": "ffa1d03e21b98552", "adaptive": "06f4423180224ea5", "recurrent": "b08863ac18fc7394"}


def golden_blocks() -> list[np.ndarray]:
    return [numbers(f"block{i}", 2, 30 + i, 2, low=0, high=12) for i in range(3)]


@pytest.mark.parametrize("kind", MODELS)
def test_bytes_are_the_same_everywhere(kind: str) -> None:
    assert digest(BlockCoder(MODELS[kind]).encode(golden_blocks())) == GOLDEN[kind]


@pytest.mark.parametrize("threads", [1, 3])
def test_another_process_with_other_threads_reads_them(threads: int, tmp_path: Path) -> None:
    tensors = recurrent_tensors((85, 85, 85), units=128, width=96, size=32)
    library.save(tmp_path / "c.safetensors", "recurrent", tensors, b"weights!")
    coder = BlockCoder(library.load(tmp_path / "c.safetensors"))
    blocks = random_blocks(7, [40, 40, 33], 1, coder.model.sizes)
    (tmp_path / "coded.json").write_text(json.dumps([data.hex() for data in coder.encode(blocks)]))
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom q2d2cli.container.coding import library\n"
        "from q2d2cli.container.coding.blocks import BlockCoder\n"
        "data = [bytes.fromhex(x) for x in json.loads(Path('coded.json').read_text())]\n"
        "found = BlockCoder(library.load(Path('c.safetensors'))).decode(data, [40, 40, 33], 1)\n"
        "print(json.dumps([x.tolist() for x in found]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    variables = {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT), "OPENBLAS_CORETYPE": "Haswell"},
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout) == [block.tolist() for block in blocks]


@pytest.mark.parametrize("kind", MODELS)
def test_files_of_context_models(kind: library.Kind, tmp_path: Path) -> None:
    tensors = {"static": table_tensors(0), "adaptive": table_tensors(200), "recurrent": recurrent_tensors()}[kind]
    path = tmp_path / "m" / checkpoints.CONTEXT_NAME
    path.parent.mkdir()
    library.save(path, kind, tensors, b"12345678")
    model = library.load(path)
    assert model.weights == b"12345678"
    assert model.sizes == SIZES
    assert model.fingerprint == hashlib.sha256(path.read_bytes()).digest()[:8]
    blocks = random_blocks(1, [9], 1)
    assert BlockCoder(model).encode(blocks) == BlockCoder(MODELS[kind]).encode(blocks)


def test_found_by_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(tmp_path))
    for name, step in (("a", 0), ("b", 7)):
        (tmp_path / name).mkdir()
        library.save(tmp_path / name / checkpoints.CONTEXT_NAME, "adaptive", table_tensors(step), b"12345678")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / checkpoints.CONTEXT_NAME).write_bytes(b"none")
    wanted = library.load(tmp_path / "b" / checkpoints.CONTEXT_NAME)
    assert library.find(wanted.fingerprint, "a") is wanted
    with pytest.raises(Q2D2Error, match=r"needs the context model 00.* of model 'x', which is not here: put"):
        library.find(bytes(8), "x")


def test_damaged_files_are_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    library.save(path, "recurrent", recurrent_tensors(), b"12345678")
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[:-1], b"x" * 100, whole.replace(b"recurrent_bias", b"recurrent_bits")):
        path.write_bytes(data)
        with pytest.raises(Q2D2Error, match="is damaged or no context model") as caught:
            library.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole.replace(b"context model 1", b"context model 2"))
    with pytest.raises(Q2D2Error, match="upgrade q2d2"):
        library.load(path)
    with pytest.raises(Q2D2Error, match="cannot read"):
        library.load(tmp_path / "none")


def test_what_could_be_inexact_is_refused() -> None:
    tensors = recurrent_tensors(units=128)
    tensors["recurrent"] = np.full((128, 256), 127, np.int8)
    with pytest.raises(ValueError, match="too large to be exact"):
        RecurrentModel(tensors)
    with pytest.raises(ValueError, match="grids"):
        RecurrentModel(recurrent_tensors((300,)))
    with pytest.raises(ValueError, match="shape"):
        RecurrentModel({**recurrent_tensors(), "out_bias.1": np.zeros(5, np.int32)})
    with pytest.raises(ValueError, match="table"):
        TableModel({**table_tensors(0), "table.0": np.zeros((42, 41), np.uint16)})
    with pytest.raises(ValueError, match="step"):
        TableModel(table_tensors(2**20))


def walk(rows: int, frames: int) -> np.ndarray:
    """Tokens that a context model can learn from: each index is near the one before."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-1, 2, (rows, frames, len(SIZES)))
    return (rng.integers(0, SIZES, (rows, 1, len(SIZES))) + steps.cumsum(axis=1)) % SIZES


def test_training_finds_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from q2d2cli.training import context

    monkeypatch.setattr(context, "BATCH", 16)
    tokens = walk(41, 150)
    blocks = [tokens[40:]]
    network = RecurrentModel(context.train_network(tokens[:40], SPEC, 40, 0, lambda what, done, total: None))
    # Each index is one of three: 3.2 bits a frame, of 9.1.
    assert 8 * len(BlockCoder(network).encode(blocks)[0]) / 150 < 6
    tables = TableModel(context.count_tables(tokens[:40], SPEC, 0))
    assert 8 * len(BlockCoder(tables).encode(blocks)[0]) / 150 < 4.5


def test_training_counts_the_bits_that_are_spent() -> None:
    import torch

    from q2d2cli.training.context import Network

    network = Network(SPEC, torch.Generator().manual_seed(0))
    blocks = random_blocks(0, [400], 1)
    coded = BlockCoder(RecurrentModel(network.export())).encode(blocks)[0]
    expected = 400 * network.bits(torch.from_numpy(blocks[0])).item()
    assert abs(8 * len(coded) / expected - 1) < 0.01


def test_a_network_goes_on_from_another() -> None:
    import torch

    from q2d2cli.training import context

    tokens = np.concatenate(random_blocks(0, [400] * 8, 1)).reshape(8, 400, -1)
    first = context.train_network(tokens, SPEC, 30, 0, lambda *_: None)
    again = context.Network(SPEC, torch.Generator().manual_seed(1))
    again.begin_with(first)
    assert all(np.array_equal(tensor, first[name]) for name, tensor in again.export().items())
    # A step further it is near to it, and better than one that has just begun.
    crops = torch.from_numpy(tokens[:, :100].astype(np.int64))
    further, fresh = context.Network(SPEC, torch.Generator()), context.Network(SPEC, torch.Generator())
    further.begin_with(context.train_network(tokens, SPEC, 1, 1, lambda *_: None, first))
    fresh.begin_with(context.train_network(tokens, SPEC, 1, 1, lambda *_: None))
    assert further.bits(crops).item() < fresh.bits(crops).item()


def test_the_command_makes_one(run: Run, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "clip.wav").write_bytes(CLIP.read_bytes())
    out = tmp_path / checkpoints.CONTEXT_NAME
    command = ("context", tiny, "--data", data, "--out", out, "--minutes", "0.2")
    done = run(*command, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert library.load(out).weights == checkpoints.fingerprint(tiny / checkpoints.WEIGHTS_NAME)
    assert "already exists: use --force" in run(*command).stderr.decode()
    further = tmp_path / "further.safetensors"
    done = run(*command[:-4], "--out", further, "--minutes", "0.2", "--steps", "1", "--seed", "1", "--init", out)
    assert done.returncode == 0, done.stderr
    before, after = load_file(out), load_file(further)
    assert all(np.abs(before[name].astype(int) - after[name]).max() <= 1 for name in before if "bias" not in name)
    assert run(*command, "--force", "--kind", "adaptive").returncode == 0
    assert isinstance(library.load(out), TableModel)
    for more, words in ((["--kind", "static"], "for recurrent"), ([], "holds tables")):
        wrong = run(*command, "--force", "--init", out, *more)
        assert (wrong.returncode, wrong.stderr.decode().count("\n")) == (2, 1)
        assert words in wrong.stderr.decode()
    other = checkpoints.find("speech-3k").folder / checkpoints.CONTEXT_NAME
    assert "is for grids of" in run(*command, "--force", "--init", other).stderr.decode()
    wrong = run(*command, "--force", "--kind", "best")
    assert (wrong.returncode, wrong.stderr.decode().count("\n")) == (2, 1)
    empty = run("context", tiny, "--data", tmp_path / "nothing", "--out", tmp_path / "x")
    assert (empty.returncode, empty.stderr.decode().count("\n")) == (2, 1)
