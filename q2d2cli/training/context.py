"""Training of context models for entropy coding: tokens of a folder of audio, tables, the recurrent network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import torchaudio
from safetensors.numpy import load_file
from torch import Tensor, nn

from q2d2cli.audio.reading import read_mono
from q2d2cli.codec import Codec
from q2d2cli.container.coding import library
from q2d2cli.container.coding.recurrent import HIDDEN_BITS, MAX_POINTS, PRE_BITS, WEIGHT_BITS, RecurrentModel
from q2d2cli.container.labelling import coordinates, shapes
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.models.precision import has_bfloat16
from q2d2cli.quantizers.spec import QuantizerSpec
from q2d2cli.training.augment import SPEEDS
from q2d2cli.training.data import find_audio

ROW_SECONDS, ROWS = 10.0, 16
"""Audio of a row of tokens, and how many rows the encoder takes at once."""
CHANGED = 0.5
"""Share of the files that are played at another speed, and share of those at another level."""
LEVEL = (-24.0, 6.0)
"""Mean and deviation of the other levels, dB below full scale."""
FRAMES, BATCH = 128, 64
"""Frames of a crop that the network learns from, and crops of a step."""
UNITS, WIDTH, EMBEDDED = 128, 96, 32
"""Of the recurrent unit, the hidden layers and the embeddings."""
DEGREE = 6
"""Of the smooth functions of a point's coordinates that embeddings and logits have a part of."""
LEARNING_RATE, WEIGHT_DECAY = 4e-3, 0.02
ADAPTIVE_STEP = 64
"""What a point adds to its count in adaptive tables."""
COUNTS_TOTAL = 2**15
"""About what the counts of a row of a table add up to."""

Report = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""
Tensors = dict[str, np.ndarray]


def make(
    codec: Codec,
    folder: Path,
    target: Path,
    *,
    kind: library.Kind,
    minutes: float,
    steps: int,
    seed: int,
    report: Report,
    start: Path | None = None,
) -> None:
    """Train a context model and write it.

    Args:
        codec: the model whose tokens it is for.
        folder: as `gather` takes it.
        target: the file.
        kind: of context model.
        minutes: of audio.
        steps: of training the recurrent network.
        seed: decides everything.
        report: told how far it is.
        start: file of a recurrent network whose weights this one begins with: of the model's version before, say.

    Raises:
        UsageError: if there is no audio, a grid is too large for a context model, or `start` is for other grids.
        Q2D2Error: if `start` cannot be read or is damaged.
    """
    if max(codec.quantizer.sizes) > MAX_POINTS:
        raise UsageError(
            f"a grid of {max(codec.quantizer.sizes)} points is too large for a context model: {MAX_POINTS} is the most"
        )
    before = None if start is None else first_weights(start, codec.quantizer)
    tokens = gather(codec, folder, minutes, seed, report)
    if kind == "recurrent":
        tensors = train_network(tokens, codec.quantizer, steps, seed, report, before)
    else:
        tensors = count_tables(tokens, codec.quantizer, ADAPTIVE_STEP if kind == "adaptive" else 0)
    library.save(target, kind, tensors, codec.fingerprint)


def first_weights(path: Path, spec: QuantizerSpec) -> Tensors:
    """What `Network.begin_with` takes, of a file.

    Raises:
        UsageError: if it holds no recurrent network, or one for other grids.
        Q2D2Error: if it cannot be read or is damaged.
    """
    model = library.load(path)
    if not isinstance(model, RecurrentModel):
        raise UsageError(f"{path} holds tables: --init takes a recurrent network")
    if model.sizes != spec.sizes:
        here, there = (" x ".join(map(str, sizes)) for sizes in (spec.sizes, model.sizes))
        raise UsageError(f"{path} is for grids of {there} points, the model's have {here}: leave --init out")
    tensors = load_file(path)
    if (tensors["hidden.0"].shape, len(tensors["input.0"])) != ((UNITS, WIDTH), EMBEDDED):
        raise UsageError(f"{path} holds a network of another size than this q2d2 makes: leave --init out")
    return tensors


def gather(codec: Codec, folder: Path, minutes: float, seed: int, report: Report) -> np.ndarray:
    """Tokens of audio in random order, some of it at other speeds and levels: more tokens than there is audio.

    Args:
        codec: the model.
        folder: with audio, or a list of paths; files that cannot be read are left out.
        minutes: of audio to encode; files come again, changed, where there are fewer.
        seed: decides everything.
        report: told of the minutes.

    Returns:
        `(rows, frames, pairs)` int64.

    Raises:
        UsageError: if there is no audio.
    """
    paths = find_audio(folder)
    rng = np.random.default_rng(seed)
    length = round(ROW_SECONDS * codec.frame_rate) * codec.config.hop
    wanted = max(1, round(minutes * 60 / ROW_SECONDS))
    rows: list[Tensor] = []
    audio = endless(paths, codec.sample_rate, rng)
    rest = torch.empty(0)
    bf16 = has_bfloat16(codec.device)
    while (done := sum(map(len, rows))) < wanted:
        report("encoding", round(done * ROW_SECONDS / 60), round(minutes))
        count = min(ROWS, wanted - done)
        parts = [rest]
        while sum(map(len, parts)) < count * length:
            parts.append(next(audio))
        joined = torch.cat(parts)
        batch, rest = joined[: count * length].view(count, length), joined[count * length :]
        with torch.inference_mode(), torch.autocast(codec.device.type, torch.bfloat16, enabled=bf16):
            rows.append(codec.model.encode(batch.to(codec.device)).cpu())
    return torch.cat(rows).numpy()


def endless(paths: list[Path], sample_rate: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Files over and over, `(samples,)` each, changed as `gather` says.

    Raises:
        UsageError: if none could be read.
    """
    while True:
        found = False
        for number in rng.permutation(len(paths)):
            try:
                audio = torch.from_numpy(np.ascontiguousarray(read_mono(paths[number], sample_rate)))
            except (Q2D2Error, soundfile.LibsndfileError, OSError):
                continue
            if not len(audio):
                continue
            found = True
            if rng.random() < CHANGED:
                audio = torchaudio.functional.resample(audio, int(rng.choice(SPEEDS)), 20)
            if rng.random() < CHANGED:
                rms, peak = float(audio.square().mean().sqrt()), float(audio.abs().max())
                audio = audio * min(10 ** (rng.normal(*LEVEL) / 20) / (rms + 1e-5), 0.99 / (peak + 1e-5))
            yield audio
        if not found:
            raise UsageError("no audio that could be read to make a context model from")


def count_tables(tokens: np.ndarray, spec: QuantizerSpec, step: int) -> Tensors:
    """Tables of `TableModel` from `(rows, frames, pairs)` tokens."""
    tensors = {"step": np.array([step], np.int32)}
    for pair, size in enumerate(spec.sizes):
        before, after = tokens[:, :-1, pair].reshape(-1), tokens[:, 1:, pair].reshape(-1)
        alone = np.bincount(tokens[:, :, pair].reshape(-1), minlength=size) + 0.5
        alone /= alone.sum()
        joint = np.bincount(before * size + after, minlength=size * size).reshape(size, size)
        # What was seen too seldom leans on what is frequent anywhere.
        share = (joint + 20 * alone) / (joint.sum(axis=1, keepdims=True) + 20)
        share = np.concatenate([share, alone[None]])
        tensors[f"table.{pair}"] = np.maximum(1, np.rint(share * COUNTS_TOTAL)).astype(np.uint16)
    return tensors


def train_network(
    tokens: np.ndarray, spec: QuantizerSpec, steps: int, seed: int, report: Report, start: Tensors | None = None
) -> Tensors:
    """Train the recurrent network.

    Args:
        tokens: `(rows, frames, pairs)`.
        spec: the quantizer.
        steps: of `BATCH` crops of `FRAMES` frames.
        seed: decides everything.
        report: told of the steps, and the bits per frame of late.
        start: weights to begin with, as `Network.begin_with` takes them; None for random ones.

    Returns:
        What `RecurrentModel` takes.
    """
    generator = torch.Generator().manual_seed(seed)
    network = Network(spec, generator)
    if start is not None:
        network.begin_with(start)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    known = torch.from_numpy(tokens.astype(np.int64))
    rows, frames, _ = known.shape
    length = min(FRAMES, frames)
    smoothed = spec.bits_per_frame
    bf16 = has_bfloat16(torch.device("cpu"))
    for step in range(steps):
        rate = min(1.0, (step + 1) / 30) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        row = torch.randint(rows, (BATCH,), generator=generator)
        begin = torch.randint(frames - length + 1, (BATCH,), generator=generator)
        crops = known[row[:, None], begin[:, None] + torch.arange(length)]
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            bits = network.bits(crops)
        optimizer.zero_grad()
        bits.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        smoothed += (bits.item() - smoothed) * max(0.05, 1 / (step + 1))
        report(f"training, {smoothed:.2f} bits a frame", step + 1, steps)
    return network.export()


def rounded(weights: Tensor, bits: int) -> Tensor:
    """Weights as 8 bits hold them, `bits` of those behind the point; the gradient passes straight through."""
    scale = 2.0**bits
    return weights + ((weights * scale).round().clamp(-127, 127) / scale - weights).detach()


def smooth(kind: str, levels: tuple[int, ...]) -> Tensor:
    """`(points, functions)`: products of cosines over a grid, so that near points are alike.

    Chebyshev polynomials of the coordinates, up to `DEGREE` together on a plane.
    """
    places = coordinates(kind, levels).astype(np.float64)
    angles = np.arccos(places / np.maximum(np.abs(places).max(axis=0), 1))
    axes = places.shape[1]
    # Of lattices about as many functions: those of lower degree.
    degree = 2 * DEGREE // axes
    orders = [order for order in itertools.product(range(degree + 1), repeat=axes) if sum(order) <= degree]
    functions = [np.cos(angles * order).prod(axis=1) for order in orders]
    return torch.from_numpy(np.stack(functions, axis=1)).float()


class Network(nn.Module):
    """`RecurrentModel` in floating point, its weights rounded as they will be.

    Args:
        spec: the quantizer.
        generator: draws the weights.
    """

    def __init__(self, spec: QuantizerSpec, generator: torch.Generator) -> None:
        super().__init__()
        self.sizes = spec.sizes
        pairs = range(len(spec.sizes))
        if spec.kind in ("vq", "rvq"):
            self.smooth = [torch.zeros(size, 1) for size in spec.sizes]
        else:
            self.smooth = [smooth(*shape) for shape in shapes(spec)]

        def normal(*shape: int, deviation: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * deviation)

        inside = EMBEDDED**-0.5
        self.embedding = nn.ParameterList([normal(size + 1, EMBEDDED, deviation=0.3) for size in spec.sizes])
        self.embedding_smooth = nn.ParameterList([normal(s.shape[1], EMBEDDED, deviation=0.1) for s in self.smooth])
        self.input = nn.ParameterList([normal(EMBEDDED, 2 * UNITS, deviation=inside) for _ in pairs])
        # The state changes slowly to begin with.
        self.recurrent_bias = nn.Parameter(torch.cat([-torch.ones(UNITS), torch.zeros(UNITS)]))
        self.recurrent = normal(UNITS, 2 * UNITS, deviation=0.6 * UNITS**-0.5)
        self.hidden = nn.ParameterList([normal(UNITS, WIDTH, deviation=UNITS**-0.5) for _ in pairs])
        self.hidden_bias = nn.ParameterList([nn.Parameter(torch.full((WIDTH,), 0.3)) for _ in pairs])
        self.within = nn.ParameterDict(
            {f"{j}_{k}": normal(EMBEDDED, WIDTH, deviation=inside) for j in pairs for k in range(j)}
        )
        self.out = nn.ParameterList([normal(WIDTH, size, deviation=0.2) for size in spec.sizes])
        self.out_smooth = nn.ParameterList([normal(WIDTH, s.shape[1], deviation=0.1) for s in self.smooth])
        self.out_bias = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in spec.sizes])

    def weights(self) -> dict[str, tuple[Tensor, int]]:
        """The tensors of `RecurrentModel`, and the bits behind the point that each has."""
        pairs = range(len(self.sizes))
        found: dict[str, tuple[Tensor, int]] = {
            "recurrent": (self.recurrent, WEIGHT_BITS["state"]),
            "recurrent_bias": (self.recurrent_bias, PRE_BITS),
        }
        for j in pairs:
            embedding = self.embedding[j] + F.pad(self.smooth[j] @ self.embedding_smooth[j], (0, 0, 0, 1))
            out = self.out[j] + self.out_smooth[j] @ self.smooth[j].T
            found[f"embedding.{j}"] = (embedding, WEIGHT_BITS["embedding"])
            found[f"input.{j}"] = (self.input[j], WEIGHT_BITS["input"])
            found[f"hidden.{j}"] = (self.hidden[j], WEIGHT_BITS["state"])
            found[f"hidden_bias.{j}"] = (self.hidden_bias[j], PRE_BITS)
            found[f"out.{j}"] = (out, WEIGHT_BITS["out"])
            found[f"out_bias.{j}"] = (self.out_bias[j], HIDDEN_BITS + WEIGHT_BITS["out"])
            for k in range(j):
                found[f"within.{j}.{k}"] = (self.within[f"{j}_{k}"], WEIGHT_BITS["input"])
        return found

    def bits(self, crops: Tensor) -> Tensor:
        """Mean bits per frame of `(batch, frames, pairs)` indices, each crop the beginning of a block."""
        batch, frames, pairs = crops.shape
        w = {name: value if "bias" in name else rounded(value, bits) for name, (value, bits) in self.weights().items()}
        first = torch.tensor(self.sizes).expand(batch, 1, pairs)
        before = torch.cat([first, crops[:, :-1]], dim=1)
        inputs = w["recurrent_bias"].expand(batch, frames, -1)
        for j in range(pairs):
            inputs = inputs + F.embedding(before[..., j], w[f"embedding.{j}"] @ w[f"input.{j}"])
        state, states = torch.zeros(batch, UNITS), []
        for given in inputs.unbind(1):
            gate, change = (given + state @ w["recurrent"]).chunk(2, dim=1)
            state = torch.lerp(state, change.clamp(-1, 1), (gate * 0.25 + 0.5).clamp(0, 1))
            states.append(state)
        stacked = torch.stack(states, dim=1)
        total = torch.zeros(())
        for j in range(pairs):
            hidden = stacked @ w[f"hidden.{j}"] + w[f"hidden_bias.{j}"]
            for k in range(j):
                hidden = hidden + F.embedding(crops[..., k], w[f"embedding.{k}"] @ w[f"within.{j}.{k}"])
            logits = hidden.clamp(0, 1) @ w[f"out.{j}"] + w[f"out_bias.{j}"]
            # Logits are in bits.
            total = total + F.cross_entropy(logits.flatten(0, 1) * math.log(2), crops[..., j].flatten())
        return total / math.log(2)

    @torch.no_grad()
    def begin_with(self, tensors: Tensors) -> None:
        """Take the weights of what `export` gave; embeddings and logits then have no smooth part to begin with."""
        for parameter in (*self.embedding_smooth, *self.out_smooth):
            parameter.zero_()
        summed = {"embedding": self.embedding, "out": self.out}
        for name, (value, bits) in self.weights().items():
            kind, _, pair = name.partition(".")
            parameter = summed[kind][int(pair)] if kind in summed else value
            parameter.copy_(torch.from_numpy(tensors[name]).float() / 2.0**bits)

    @torch.no_grad()
    def export(self) -> Tensors:
        """Whole numbers."""
        tensors = {}
        for name, (value, bits) in self.weights().items():
            scaled = (value * 2.0**bits).round()
            tensors[name] = (
                scaled.to(torch.int32) if "bias" in name else scaled.clamp(-127, 127).to(torch.int8)
            ).numpy()
        return tensors
