"""A model's encoder and decoder as ONNX graphs, quantizer and both Fourier transforms included. Imports no torch.

They are written node by node: torch's exporters know neither a Fourier transform that runs everywhere nor 16-bit
weights. Weights stay in the 16 bits they are stored in and are cast where they are used; tables (window, sines, grid
points) are made of a few numbers. A runtime does both once, when it loads the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from q2d2cli.checkpoints import CONTEXT_NAME, WEIGHTS_NAME, Checkpoint, decoding_part, joined
from q2d2cli.container.coding import library
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.files import atomic_output, check_output, make_folder
from q2d2cli.models.config import ModelConfig, SpectralEncoderConfig, VocosDecoderConfig
from q2d2cli.quantizers import geometry
from q2d2cli.quantizers.spec import BOUND_MARGIN

if TYPE_CHECKING:
    import onnx

Part = Literal["encoder", "decoder"]
PARTS: tuple[Part, ...] = ("encoder", "decoder")
OPSET = 20
"""The first with `Gelu`; ONNX Runtime knows it from 1.17 on."""
IR_VERSION = 9
"""The one that goes with this opset."""
LAYOUT = 1
"""Of the graphs: what they take and give, and their arithmetic."""
NORM_EPSILON = 1e-6
MOST_SEARCHED = 4096
"""Points of a lattice that are all looked at."""


def metadata(checkpoint: Checkpoint, part: Part) -> dict[str, str]:
    """What a graph says of itself, as ONNX metadata; on loading it has to be exactly this."""
    config = checkpoint.config
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()
    lender = {} if checkpoint.lender is None else {"lender": decoding_part(checkpoint).fingerprint().hex()}
    return {
        "layout": str(LAYOUT),
        "part": part,
        "model": config.name,
        "fingerprint": checkpoint.fingerprint().hex(),
        "quantizer": config.quantizer.kind,
        "levels": ",".join(map(str, config.quantizer.levels)),
        "hop": str(config.hop),
        "sample_rate": str(config.sample_rate),
        "opset": str(OPSET),
        "config": digest[:16],
        **lender,
    }


def build(checkpoint: Checkpoint, part: Part) -> bytes:
    """The encoder or the decoder of a model as an ONNX file.

    `encoder`: `audio`, `(samples,)` float32 of one channel at the model's rate, to `indices`, `(frames, pairs)` int64;
    the last frame need not be whole. `decoder`: `indices` to `audio`, `(frames * hop,)`.

    Raises:
        UsageError: if the package `onnx` is missing, or the model has parts that have no graph.
        Q2D2Error: if its weights are damaged.
    """
    try:
        import onnx
    except ImportError as error:
        raise UsageError('ONNX files are made with more packages: pip install "q2d2[onnx]"') from error
    config = checkpoint.config
    check_config(config)
    graph = Graph(read_weights(checkpoint), onnx)
    pairs, hop = config.quantizer.spec().num_indices, config.hop
    audio = onnx.helper.make_tensor_value_info("audio", onnx.TensorProto.FLOAT, ["samples"])
    indices = onnx.helper.make_tensor_value_info("indices", onnx.TensorProto.INT64, ["frames", pairs])
    if part == "encoder":
        graph.op("Identity", encode(graph, config), name="indices")
        ends = ([audio], [indices])
    else:
        graph.op("Identity", decode(graph, config), name="audio")
        ends = ([indices], [audio])
    text = f"{part} of {config.name}: mono audio at {config.sample_rate} Hz, {hop} samples a frame, {pairs} indices"
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, f"{config.name} {part}", *ends, graph.initializers, doc_string=text),
        producer_name="q2d2",
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(model, metadata(checkpoint, part))
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise Q2D2Error(f"{checkpoint.weights} does not fit the configuration beside it: fetch it again") from error
    return model.SerializeToString()


def write(content: bytes, folder: Path, part: Part) -> Path:
    """Write what `build` gave as `encoder.onnx` or `decoder.onnx` to a folder, whole or not at all.

    Raises:
        UsageError: if the folder cannot be written to.
        Q2D2Error: if writing fails.
    """
    make_folder(folder)
    path = folder / file_name(part)
    with atomic_output(path) as file:
        file.write(content)
    return path


def export_folder(checkpoint: Checkpoint, folder: Path, overwrite: bool) -> list[Path]:
    """Write what codes files elsewhere: both graphs, and the context model if the model has one. The paths of them.

    Raises:
        UsageError: as `build`, and if a file is there and not to be overwritten.
        Q2D2Error: as `build`, if the context model is damaged, or if writing fails.
    """
    contents = {file_name(part): build(checkpoint, part) for part in PARTS}
    make_folder(folder)
    beside_weights = folder.resolve() == checkpoint.folder.resolve()
    if not beside_weights and library.open_for(checkpoint) is not None:
        contents[CONTEXT_NAME] = (checkpoint.whole().folder / CONTEXT_NAME).read_bytes()
    paths = [folder / name for name in contents]
    for path in paths:
        check_output(path, overwrite)
    for path, content in zip(paths, contents.values(), strict=True):
        with atomic_output(path) as file:
            file.write(content)
    return paths


def file_name(part: Part) -> str:
    """Of a part's file."""
    return f"{part}.onnx"


def check_config(config: ModelConfig) -> None:
    """Raise UsageError if a part of a model has no graph; names it."""
    spec = config.quantizer.spec()
    missing = ""
    if not isinstance(config.encoder, SpectralEncoderConfig):
        missing = f"encoder {config.encoder.type}"
    elif config.decoder.attention:
        missing = "attention in the decoder"
    elif not spec.snaps or (spec.is_lattice and max(spec.sizes) > MOST_SEARCHED):
        missing = f"quantizer {spec.kind}"
    if missing:
        raise UsageError(f"model {config.name!r} has no ONNX graph: its {missing} has none; take runtime torch")


def read_weights(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """All arrays of a model.

    Raises:
        Q2D2Error: if its weights are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    def read(path: Path) -> dict[str, np.ndarray]:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise Q2D2Error(f"{path} is damaged or not safetensors ({error}): fetch it again") from error

    return joined(checkpoint, read)


class Graph:
    """Nodes and constants of a graph in the making; values go by their names.

    Args:
        weights: of the model, by name.
        library: the package `onnx`.
    """

    def __init__(self, weights: dict[str, np.ndarray], library: Any) -> None:
        self.weights, self._onnx = weights, library
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._cast: dict[str, str] = {}

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node with one result, and give that."""
        return self.split(kind, *inputs, names=[name], **attributes)[0]

    def split(self, kind: str, *inputs: str, names: Sequence[str], **attributes: Any) -> list[str]:
        """Add a node with several results, and give these."""
        number = len(self.nodes)
        outputs = [name or f"{kind}_{number}_{place}" for place, name in enumerate(names)]
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, f"{kind}_{number}", **attributes))
        return outputs

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        """A constant; the same one for the same values."""
        array: np.ndarray = np.asarray(values, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._store(array, f"constant_{len(self._known)}")
        return self._known[key]

    def integers(self, *values: int) -> str:
        """A constant list of int64."""
        return self.constant(values, np.int64)

    def weight(self, name: str, *shape: int) -> str:
        """A weight of the model in float32, in another shape if one is given.

        Raises:
            Q2D2Error: if the model has none of that name or size.
        """
        if name not in self._cast:
            try:
                array = self.weights[name]
                stored = self._store(array.reshape(shape) if shape else array, name)
            except (KeyError, ValueError) as error:
                raise Q2D2Error(f"{WEIGHTS_NAME} does not fit config.json beside it: {name}") from error
            half = array.dtype == np.float16
            self._cast[name] = self.op("Cast", stored, to=self._onnx.TensorProto.FLOAT) if half else stored
        return self._cast[name]

    def _store(self, array: np.ndarray, name: str) -> str:
        self.initializers.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    # What layers are made of; `x` is `(frames, width)` throughout.

    def linear(self, x: str, layer: str) -> str:
        """A linear layer with bias."""
        return self.op("Gemm", x, self.weight(f"{layer}.weight"), self.weight(f"{layer}.bias"), transB=1)

    def norm(self, x: str, layer: str) -> str:
        """A layer norm, plain or adaptive."""
        if f"{layer}.scale.weight" in self.weights:  # an embedding, of which row 0 counts
            rows = [
                self.op("Gather", self.weight(f"{layer}.{name}.weight"), self.constant(0, np.int64))
                for name in ("scale", "shift")
            ]
        else:
            rows = [self.weight(f"{layer}.{name}") for name in ("weight", "bias")]
        return self.op("LayerNormalization", x, *rows, axis=-1, epsilon=NORM_EPSILON)

    def block(self, x: str, layer: str, dim: int, kernel: int) -> str:
        """A ConvNeXt block."""
        # As a two-dimensional convolution, which ONNX Runtime knows to do channel by channel.
        y = self.op("Unsqueeze", self.op("Transpose", x, perm=[1, 0]), self.integers(0, 2))
        weight = self.weight(f"{layer}.dwconv.weight", dim, 1, 1, kernel)
        pads = [0, kernel // 2, 0, kernel // 2]
        y = self.op(
            "Conv", y, weight, self.weight(f"{layer}.dwconv.bias"), group=dim, pads=pads, kernel_shape=[1, kernel]
        )
        y = self.norm(self.op("Transpose", self.op("Squeeze", y, self.integers(0, 2)), perm=[1, 0]), f"{layer}.norm")
        y = self.linear(self.op("Gelu", self.linear(y, f"{layer}.pwconv1")), f"{layer}.pwconv2")
        return self.op("Add", x, self.op("Mul", y, self.weight(f"{layer}.gamma")))

    def length(self, x: str) -> str:
        """How long axis 0 is, `(1,)` int64."""
        return self.op("Shape", x, start=0, end=1)

    def as_integer(self, x: str) -> str:
        """Whole numbers as int64."""
        return self.op("Cast", x, to=self._onnx.TensorProto.INT64)

    def rounded_up(self, value: str, divisor: int) -> str:
        """An int64 divided and rounded up."""
        return self.op("Div", self.op("Add", value, self.integers(divisor - 1)), self.integers(divisor))

    def times(self, value: str, factor: int) -> str:
        """An int64 multiplied."""
        return self.op("Mul", value, self.integers(factor))

    def first(self, x: str, count: str) -> str:
        """The first so many rows."""
        return self.op("Slice", x, self.integers(0), count, self.integers(0))

    def waves(self, size: int, window: np.ndarray, scale: np.ndarray) -> str:
        """Windowed cosines and negative sines, `(2 * bins, 1, size)`, each bin with a scale of its own."""
        # Of a table of one turn: whole numbers say where in it, so that no rounding grows with the frequency.
        bins = len(scale)
        steps = self.op(
            "Mul", self.constant(np.arange(bins)[:, None], np.int64), self.constant(np.arange(size), np.int64)
        )
        steps = self.op("Mod", steps, self.integers(size))
        turn = 2 * np.pi * np.arange(size) / size
        halves = [self.op("Gather", self.constant(table), steps) for table in (np.cos(turn), -np.sin(turn))]
        waves = self.op("Mul", self.op("Concat", *halves, axis=0), self.constant(np.tile(scale, 2)[:, None]))
        return self.op("Unsqueeze", self.op("Mul", waves, self.constant(window)), self.integers(1))


def hann(size: int) -> np.ndarray:
    """A periodic Hann window, float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def encode(graph: Graph, config: ModelConfig) -> str:
    """`audio` to pair indices."""
    encoder = config.encoder
    assert isinstance(encoder, SpectralEncoderConfig)
    hop, size = encoder.inner_hop(config.hop), encoder.n_fft(config.hop)
    samples = graph.length("audio")
    frames = graph.rounded_up(samples, config.hop)
    inner = graph.rounded_up(graph.times(frames, encoder.stride), encoder.tokens)
    edge = (size - hop) // 2
    behind = graph.op("Sub", graph.op("Add", graph.times(inner, hop), graph.integers(edge)), samples)
    padded = graph.op("Pad", "audio", graph.op("Concat", graph.integers(edge), behind, axis=0))
    x = graph.norm(graph.linear(spectrum(graph, padded, hop, size), "encoder.embed"), "encoder.norm")
    for number in range(encoder.layers):
        x = graph.block(x, f"encoder.blocks.{number}", encoder.dim, encoder.kernel)
    if encoder.stride > 1:
        joined = graph.op("Reshape", x, graph.integers(-1, encoder.stride * encoder.dim))
        x = graph.linear(joined, "encoder.merge")
    if encoder.tokens > 1:
        parted = graph.op("Reshape", graph.linear(x, "encoder.split"), graph.integers(-1, encoder.dim))
        x = graph.first(parted, frames)
    features = graph.linear(graph.norm(x, "encoder.final_norm"), "encoder.out")
    return quantize(graph, config, graph.linear(features, "quantizer.project_in"))


def spectrum(graph: Graph, padded: str, hop: int, size: int) -> str:
    """Padded samples to `(inner frames, 3 * bins)`: log magnitude, compressed real and imaginary parts."""
    window, bins = hann(size), size // 2 + 1
    waves = graph.waves(size, window / np.sqrt(np.square(window).sum()), np.ones(bins))
    found = graph.op("Conv", graph.op("Unsqueeze", padded, graph.integers(0, 1)), waves, strides=[hop])
    both = graph.op("Transpose", graph.op("Squeeze", found, graph.integers(0)), perm=[1, 0])
    real, imaginary = graph.split("Split", both, names=["", ""], axis=1, num_outputs=2)
    power = graph.op("Add", graph.op("Mul", real, real), graph.op("Mul", imaginary, imaginary))
    log = graph.op("Log", graph.op("Add", power, graph.constant(1e-10)))
    level = graph.op("Add", graph.op("Mul", log, graph.constant(0.125)), graph.constant(1.0))
    # A power by way of the logarithm: vectors in every runtime, where `Pow` goes number by number.
    exponent = graph.constant((SpectralEncoderConfig.compression - 1) / 2)
    factor = graph.op("Exp", graph.op("Mul", graph.op("Log", graph.op("Add", power, graph.constant(1e-8))), exponent))
    parts = [level, graph.op("Mul", real, factor), graph.op("Mul", imaginary, factor)]
    return graph.op("Concat", *parts, axis=1)


def quantize(graph: Graph, config: ModelConfig, z: str) -> str:
    """Projections `(frames, d)` to pair indices `(frames, pairs)`."""
    quantizer, spec = config.quantizer, config.quantizer.spec()
    if quantizer.projection == "layernorm":
        rows = [graph.weight(f"quantizer.norm.{name}") for name in ("weight", "bias")]
        z = graph.op("LayerNormalization", z, *rows, axis=-1, epsilon=1e-5)
    if quantizer.projection == "tanh":
        z = graph.op("Tanh", z)
    levels = np.array(spec.levels, np.float32)
    bound = levels / 2 if quantizer.bound == "paper" else (levels - 1) / 2 * np.float32(1 + BOUND_MARGIN)
    z = graph.op("Div", graph.op("Mul", z, graph.constant(bound)), graph.constant(quantizer.spread))
    columns = graph.split("Split", z, names=[""] * spec.dim, axis=1, num_outputs=spec.dim)
    found = []
    for number, levels_of_pair in enumerate(spec.groups):
        own = columns[number * spec.group_size : (number + 1) * spec.group_size]
        if spec.kind in ("rectangular", "rhombic"):
            found.append(nearest_in_boxes(graph, own, geometry.boxes(spec.kind, *levels_of_pair)))
        else:
            points = geometry.points(spec.kind, *levels_of_pair, hexagonal_offset=quantizer.hexagonal_offset)
            found.append(nearest_of_all(graph, own, points))
    return graph.op("Concat", *found, axis=1)


def squared_distance(graph: Graph, z: Sequence[str], point: Sequence[str]) -> str:
    """As torch computes it: differences squared, and summed one after the other."""
    total = ""
    for value, coordinate in zip(z, point, strict=True):
        difference = graph.op("Sub", value, coordinate)
        square = graph.op("Mul", difference, difference)
        total = graph.op("Add", total, square) if total else square
    return total


def nearest_in_boxes(graph: Graph, z: Sequence[str], boxes: Sequence[tuple[int, ...]]) -> str:
    """The nearest of the points around `z` in each box, the lowest index on a tie; `(frames, 1)`."""
    candidates, offset = [], 0
    for columns, rows in boxes:
        sides = [below_and_above(graph, value, size) for value, size in zip(z, (columns, rows), strict=True)]
        for column, x in sides[0]:
            for row, y in sides[1]:
                index = graph.op("Add", graph.times(column, rows), row)
                candidates.append((graph.op("Add", index, graph.integers(offset)), (x, y)))
        offset += columns * rows
    distances = graph.op("Concat", *(squared_distance(graph, z, point) for _, point in candidates), axis=1)
    best = graph.op("ArgMin", distances, axis=1, keepdims=1)
    return graph.op("GatherElements", graph.op("Concat", *(index for index, _ in candidates), axis=1), best, axis=1)


def below_and_above(graph: Graph, value: str, size: int) -> list[tuple[str, str]]:
    """Position (int64) and coordinate of the neighbours of a value on an axis with so many points."""
    start = geometry.start(size)
    low = graph.op("Floor", graph.op("Sub", value, graph.constant(start)))
    low = graph.op("Clip", low, graph.constant(0.0), graph.constant(size - 2.0))
    high = graph.op("Add", low, graph.constant(1.0))
    return [(graph.as_integer(at), graph.op("Add", at, graph.constant(start))) for at in (low, high)]


def nearest_of_all(graph: Graph, z: Sequence[str], points: np.ndarray) -> str:
    """The nearest of all points, the lowest index on a tie; `(frames, 1)`."""
    distance = squared_distance(graph, z, [graph.constant(column[None]) for column in points.T])
    return graph.op("ArgMin", distance, axis=1, keepdims=1)


def decode(graph: Graph, config: ModelConfig) -> str:
    """`indices` to audio."""
    decoder = config.decoder
    hop, size = decoder.inner_hop(config.hop), decoder.n_fft(config.hop)
    frames = graph.length("indices")
    x = graph.linear(codes(graph, config), "quantizer.project_out")
    width = config.feature_dim
    if decoder.tokens > 1:
        # The last frame again, as often as it takes to fill an inner one.
        inner = graph.rounded_up(frames, decoder.tokens)
        last = graph.op("Sub", frames, graph.integers(1))
        count = graph.op("Squeeze", graph.times(inner, decoder.tokens))
        rows = graph.op("Range", graph.constant(0, np.int64), count, graph.constant(1, np.int64))
        x = graph.op("Gather", x, graph.op("Min", rows, last), axis=0)
        x = graph.linear(graph.op("Reshape", x, graph.integers(-1, decoder.tokens * width)), "decoder.merge")
    if decoder.stride > 1:
        x = graph.op("Reshape", graph.linear(x, "decoder.split"), graph.integers(-1, width))
    x = graph.op("Unsqueeze", graph.op("Transpose", x, perm=[1, 0]), graph.integers(0))
    pads = [decoder.kernel // 2] * 2
    x = graph.op("Conv", x, graph.weight("decoder.embed.weight"), graph.weight("decoder.embed.bias"), pads=pads)
    x = graph.norm(graph.op("Transpose", graph.op("Squeeze", x, graph.integers(0)), perm=[1, 0]), "decoder.norm")
    for number in range(decoder.layers):
        x = graph.block(x, f"decoder.blocks.{number}", decoder.dim, decoder.kernel)
    y = graph.linear(graph.norm(x, "decoder.final_norm"), "decoder.head.out")
    return graph.first(waveform(graph, y, hop, size), graph.times(frames, config.hop))


def codes(graph: Graph, config: ModelConfig) -> str:
    """`indices` to scaled grid points, `(frames, d)`."""
    quantizer, spec = config.quantizer, config.quantizer.spec()
    columns = graph.split("Split", "indices", names=[""] * spec.num_indices, axis=1, num_outputs=spec.num_indices)
    found = []
    for column, levels in zip(columns, spec.groups, strict=True):
        points = geometry.points(spec.kind, *levels, hexagonal_offset=quantizer.hexagonal_offset).astype(np.float32)
        scaled = points * np.float32(quantizer.spread) / (np.array(levels) // 2).astype(np.float32)
        found.append(graph.op("Gather", graph.constant(scaled), graph.op("Squeeze", column, graph.integers(1))))
    return graph.op("Concat", *found, axis=1) if len(found) > 1 else found[0]


def waveform(graph: Graph, y: str, hop: int, size: int) -> str:
    """Log magnitude and phase, `(inner frames, 2 * bins)`, to `(inner frames * hop,)` samples."""
    window, bins = hann(size), size // 2 + 1
    log, phase = graph.split("Split", y, names=["", ""], axis=1, num_outputs=2)
    magnitude = graph.op("Min", graph.op("Exp", log), graph.constant(VocosDecoderConfig.max_magnitude))
    parts = [graph.op("Mul", magnitude, graph.op(kind, phase)) for kind in ("Cos", "Sin")]
    both = graph.op("Transpose", graph.op("Concat", *parts, axis=1), perm=[1, 0])
    scale = np.full(bins, 2.0)
    scale[0] = 1.0
    if size % 2 == 0:
        scale[-1] = 1.0
    waves = graph.waves(size, window, scale / size)
    frames = graph.op("ConvTranspose", graph.op("Unsqueeze", both, graph.integers(0)), waves, strides=[hop])
    inner = graph.length(y)
    ones = graph.op("Expand", graph.constant([[[1.0]]]), graph.op("Concat", graph.integers(1, 1), inner, axis=0))
    squares = graph.constant(np.square(window.astype(np.float32))[None, None])
    envelope = graph.op("ConvTranspose", ones, squares, strides=[hop])
    edge = (size - hop) // 2
    end = graph.op("Add", graph.times(inner, hop), graph.integers(edge))
    cut = [graph.op("Slice", value, graph.integers(edge), end, graph.integers(2)) for value in (frames, envelope)]
    return graph.op("Squeeze", graph.op("Div", *cut), graph.integers(0, 1))
