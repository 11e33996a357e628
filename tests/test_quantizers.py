"""Quantizers: closed form against search, point order, tokens, gradients, errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from q2d2cli.quantizers.base import Quantizer, indices_to_tokens, tokens_to_indices
from q2d2cli.quantizers.baselines import FsqQuantizer, VqQuantizer
from q2d2cli.quantizers.geometry import DIMENSIONS
from q2d2cli.quantizers.grids import GRIDS, make_grids
from q2d2cli.quantizers.q2d2 import Q2D2, rotate
from q2d2cli.quantizers.spec import GRID_KINDS, LATTICE_KINDS, QuantizerSpec


@st.composite
def specs(draw: st.DrawFn, pairs: int = 1) -> QuantizerSpec:
    kind = draw(st.sampled_from(GRID_KINDS))
    level = st.integers(1, 7).map(lambda n: 2 * n + 1) if kind == "rhombic" else st.integers(2, 15)
    return QuantizerSpec(kind, tuple(draw(level) for _ in range(2 * pairs)))


@settings(max_examples=150, deadline=None)
@given(spec=specs(), double=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_closed_form_is_the_search(spec: QuantizerSpec, double: bool, seed: int) -> None:
    grid = make_grids(spec)[0]
    dtype = torch.float64 if double else torch.float32
    rng = np.random.default_rng(seed)
    extent = max(spec.levels) / 2 * 1.5
    anywhere = torch.from_numpy(rng.uniform(-extent, extent, (300, 2)))
    # Cell borders of every grid lie on multiples of 1/4 and 1/8: ties are common there.
    borders = torch.from_numpy(rng.integers(-8 * extent, 8 * extent + 1, (600, 2)) / rng.choice([4, 8], (600, 1)))
    points = grid.points.double()[rng.integers(0, len(grid), 100)]
    z = torch.cat([anywhere, borders, points, 2 * points]).to(dtype)
    ends = torch.tensor([-torch.inf, torch.inf], dtype=dtype)
    z = torch.cat([z, torch.nextafter(z, ends[0]), torch.nextafter(z, ends[1])])
    assert torch.equal(grid.nearest(z), grid.nearest_by_search(z))


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_closed_form_on_all_ties(kind: str) -> None:
    grid = GRIDS[kind]((7, 5))
    steps = torch.arange(-40, 41) / 8
    z = torch.cartesian_prod(steps, steps)
    assert torch.equal(grid.nearest(z), grid.nearest_by_search(z))


@st.composite
def lattices(draw: st.DrawFn) -> QuantizerSpec:
    kind = draw(st.sampled_from(LATTICE_KINDS))
    size = DIMENSIONS[kind]
    # One axis of E8 is enough to be longer: what is searched has thousands of points.
    level = st.sampled_from((3,) if kind == "e8" else (3, 5) if kind == "d4" else (3, 5, 7, 9))
    levels = draw(st.lists(level, min_size=size, max_size=size))
    if kind == "e8":
        levels[draw(st.integers(0, size - 1))] = draw(st.sampled_from((3, 5)))
    return QuantizerSpec(kind, tuple(levels))


@settings(max_examples=40, deadline=None)
@given(spec=lattices(), seed=st.integers(0, 2**32 - 1))
def test_lattices_closed_form_is_the_search(spec: QuantizerSpec, seed: int) -> None:
    grid = make_grids(spec)[0]
    rng = np.random.default_rng(seed)
    extent, shape = max(spec.levels) / 2 * 1.5, (100, spec.dim)
    # Cell borders lie on quarters: ties are the rule there, and the lowest index counts.
    borders = torch.from_numpy(rng.integers(-4 * extent, 4 * extent + 1, shape) / rng.choice([1, 2, 4], (100, 1)))
    points = grid.points.double()[rng.integers(0, len(grid), (2, 50))]
    z = torch.cat([borders, points[0], points.mean(0), 2 * points[0]]).float()
    assert torch.equal(grid.nearest(z), grid.nearest_by_search(z))
    # Anywhere else: as near as any, were two so alike that only rounding tells them apart.
    anywhere = torch.from_numpy(rng.uniform(-extent, extent, shape))
    for z in (anywhere, torch.nextafter(borders, anywhere)):
        distance = (z - grid.points[grid.nearest(z)]).square().sum(-1)
        least = (z - grid.points[grid.nearest_by_search(z)]).square().sum(-1)
        torch.testing.assert_close(distance, least, rtol=0, atol=1e-12)


@pytest.mark.parametrize("levels", [(3,) * 8, (3, 5, 3, 3, 3, 3, 3, 3)])
def test_e8_is_even_and_has_its_kissing_number(levels: tuple[int, ...]) -> None:
    points = GRIDS["e8"](levels).points.double()
    origin = points[(points == 0).all(-1)]
    assert len(origin) == 1
    # Even and integral: squared distances are even numbers; 240 points are nearest, as far as the cube has them.
    squared = (points - origin).square().sum(-1)
    assert torch.equal(squared % 2, torch.zeros_like(squared))
    assert (squared == 2).sum() == 112 + 128


def test_d4_has_its_kissing_number() -> None:
    squared = GRIDS["d4"]((3,) * 4).points.square().sum(-1)
    assert torch.equal(squared.unique(), torch.arange(5.0))
    assert (squared == 1).sum() == 24


@pytest.mark.parametrize("kind", LATTICE_KINDS)
def test_every_lattice_point_is_its_own_nearest(kind: str) -> None:
    spec = QuantizerSpec(kind, (3, 5, 3)[: DIMENSIONS[kind]] + (3,) * (DIMENSIONS[kind] - 3))
    grid = make_grids(spec)[0]
    assert spec.sizes == (len(grid),)
    assert torch.equal(grid.nearest(grid.points), torch.arange(len(grid)))
    for value in (torch.nan, torch.inf, -torch.inf):
        z = torch.zeros(spec.dim)
        z[-1] = value
        for place in (z, torch.full((spec.dim,), value)):
            assert 0 <= grid.nearest(place) < len(grid)


@pytest.mark.parametrize("kind", LATTICE_KINDS)
@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_lattices_share_the_interface(kind: str, gradient: str) -> None:
    torch.manual_seed(0)
    spec = QuantizerSpec(kind, (3,) * 2 * DIMENSIONS[kind])
    quantizer = Q2D2(spec, 8, gradient=gradient)
    x = (torch.randn(2, 30, 8) * 3).requires_grad_()
    quantized = quantizer(x)
    assert quantized.indices.shape == (2, 30, 2)
    assert torch.equal(quantizer.encode(x), quantized.indices)
    torch.testing.assert_close(quantizer.decode(quantized.indices), quantized.features)
    assert torch.equal(tokens_to_indices(indices_to_tokens(quantized.indices, spec), spec), quantized.indices)
    quantized.features.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    half = x.detach().bfloat16()
    assert torch.equal(quantizer.encode(half), quantizer.encode(half.float()))
    with pytest.raises(ValueError, match=f"index {spec.sizes[0]} is out of range: position 0 has"):
        quantizer.decode(torch.full((1, 1, 2), spec.sizes[0]))


def test_not_a_number_is_still_an_index() -> None:
    for kind in GRID_KINDS:
        index = GRIDS[kind]((5, 5)).nearest(torch.tensor([[float("nan"), 0.0], [0.0, float("inf")]]))
        assert ((index >= 0) & (index < 41)).all()


def linspace(level: int) -> np.ndarray:
    return np.linspace(-(level - 1) / 2, (level - 1) / 2, level)


@pytest.mark.parametrize("levels", [(7, 7), (9, 9), (5, 9), (3, 3)])
def test_points_are_in_the_authors_order(levels: tuple[int, int]) -> None:
    rectangle = np.array(list(itertools.product(linspace(levels[0]), linspace(levels[1]))))
    np.testing.assert_array_equal(GRIDS["rectangular"](levels).points, rectangle)
    centres = list(itertools.product(linspace(levels[0])[:-1] + 0.5, linspace(levels[1])[:-1] + 0.5))
    np.testing.assert_array_equal(GRIDS["rhombic"](levels).points, np.concatenate([rectangle, centres]))
    level = levels[0]
    rows = [[(x + (-0.25 if i % 2 else 0.25), y) for x in linspace(level)] for i, y in enumerate(linspace(level))]
    np.testing.assert_array_equal(GRIDS["hexagonal"](levels).points, np.concatenate(rows))


@pytest.mark.parametrize(
    ("kind", "levels", "sizes"),
    [
        ("rhombic", (7, 7), (85,)),
        ("rhombic", (9, 9), (145,)),
        ("rhombic", (11, 11), (221,)),
        ("rectangular", (4, 5, 3, 3), (20, 9)),
        ("hexagonal", (9, 7), (81,)),
    ],
)
def test_sizes(kind: str, levels: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    spec = QuantizerSpec(kind, levels)
    assert spec.sizes == sizes == tuple(len(grid) for grid in make_grids(spec))


@pytest.mark.parametrize(
    ("levels", "hop", "rate"), [((7,) * 6, 450, 1025), ((9, 9, 7, 7, 7, 7), 144, 3333), ((9, 9, 9, 9, 7, 7), 72, 6923)]
)
def test_bit_rates_of_the_paper(levels: tuple[int, ...], hop: int, rate: int) -> None:
    assert int(QuantizerSpec("rhombic", levels).bit_rate(24_000, hop)) == rate


@settings(max_examples=50, deadline=None)
@given(spec=specs(pairs=3), seed=st.integers(0, 2**32 - 1))
def test_tokens_and_indices_are_each_others_inverse(spec: QuantizerSpec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indices = torch.from_numpy(np.stack([rng.integers(0, size, (2, 30)) for size in spec.sizes], axis=-1))
    tokens = indices_to_tokens(indices, spec)
    assert torch.equal(tokens_to_indices(tokens, spec), indices)
    g0, g1, _ = spec.sizes
    assert torch.equal(tokens, indices[..., 0] + g0 * indices[..., 1] + g0 * g1 * indices[..., 2])


@settings(max_examples=50, deadline=None)
@given(spec=specs(pairs=2))
def test_every_point_is_its_own_nearest(spec: QuantizerSpec) -> None:
    quantizer = Q2D2(spec, 4)
    count = max(spec.sizes)
    indices = torch.stack([torch.arange(count) % size for size in spec.sizes], dim=-1)
    # Back from the scaled code to the bounded value, and from there to the value before bounding.
    z = quantizer.codes(indices) * quantizer.scale.flatten() / quantizer.bound
    assert torch.equal(quantizer.quantize(z), indices)


def test_code_is_the_point_over_half_the_levels() -> None:
    quantizer = Q2D2(QuantizerSpec("rhombic", (9, 9, 7, 7)), 4)
    codes = quantizer.codes(torch.tensor([[0, 0], [144, 49]]))
    torch.testing.assert_close(codes, torch.tensor([[-1, -1, -1, -1], [3.5 / 4, 3.5 / 4, -2.5 / 3, -2.5 / 3]]))


def test_bounding_follows_the_authors_code() -> None:
    quantizer = Q2D2(QuantizerSpec("rectangular", (7, 8)), 4)
    torch.testing.assert_close(quantizer.bound, torch.tensor([3 * 1.001, 3.5 * 1.001]))


@pytest.mark.parametrize("kind", GRID_KINDS)
def test_gradient_goes_straight_through_to_the_tanh_output(kind: str) -> None:
    torch.manual_seed(0)
    quantizer = Q2D2(QuantizerSpec(kind, (5, 5, 7, 7)), 8)
    x, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(2, 5, 8)
    parameters = [x, *quantizer.parameters()]
    through = torch.autograd.grad((quantizer(x).features * weight).sum(), parameters)
    codes = quantizer.codes(quantizer.encode(x))
    z = torch.tanh(quantizer.project_in(x))
    expected = torch.autograd.grad((quantizer.project_out(z + (codes - z).detach()) * weight).sum(), parameters)
    for a, b in zip(through, expected, strict=True):
        torch.testing.assert_close(a, b)
    # In numbers: the gradient of x is that of linear, tanh, linear.
    inner = (weight @ quantizer.project_out.weight) * (1 - z**2)
    torch.testing.assert_close(through[0], inner @ quantizer.project_in.weight)


def test_forward_encode_and_decode_agree() -> None:
    torch.manual_seed(0)
    quantizer = Q2D2(QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7)), 16)
    x = torch.randn(2, 50, 16) * 3
    quantized = quantizer(x)
    assert torch.equal(quantizer.encode(x), quantized.indices)
    torch.testing.assert_close(quantizer.decode(quantized.indices), quantized.features)


@pytest.mark.parametrize(
    ("kind", "levels", "words"),
    [
        ("triangular", (7, 7), "'triangular'"),
        ("rhombic", (7, 7, 7), "3 levels"),
        ("rhombic", (), "0 levels"),
        ("rectangular", (7, 1), "level 1 is"),
        ("rectangular", (7, -3), "level -3 is"),
        ("hexagonal", (4096, 7), "level 4096 is"),
        ("vq", (65536,), "level 65536 is"),
        ("vq", (512, 512), "2 levels"),
        ("rvq", (512, 256), "differ"),
        ("rhombic", (9, 8), "level 8 is even"),
        ("d4", (3, 3, 3, 4), "level 4 is even"),
        ("body-centred", (3, 3, 3, 3), "4 levels given: body-centred snaps 3"),
        ("e8", (7,) * 8, "3722209 points"),
    ],
)
def test_impossible_specs_are_named(kind: str, levels: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizerSpec(kind, levels)


def test_values_out_of_range_are_named() -> None:
    spec = QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7))
    for bad in (145 * 85 * 85, -1):
        with pytest.raises(ValueError, match=f"token {bad} is out of range"):
            tokens_to_indices(torch.tensor([0, bad]), spec)
    with pytest.raises(ValueError, match="index 85 is out of range: pair 2 has 85 points"):
        indices_to_tokens(torch.tensor([[0, 0, 85]]), spec)
    with pytest.raises(ValueError, match="index -1 is out of range"):
        Q2D2(spec, 4).decode(torch.tensor([[[-1, 0, 0]]]))
    with pytest.raises(ValueError, match="3 pairs"):
        indices_to_tokens(torch.tensor([[0, 0]]), spec)
    with pytest.raises(ValueError, match="do not fit one 64-bit token"):
        tokens_to_indices(torch.tensor([0]), QuantizerSpec("rectangular", (99,) * 10))


@pytest.mark.parametrize("offset", [0.0, 0.25, 0.5])
def test_hexagonal_offsets(offset: float) -> None:
    grid = make_grids(QuantizerSpec("hexagonal", (6, 6)), offset)[0]
    assert grid.points[0, 0] == -2.5 + offset
    assert grid.points[6, 0] == -2.5 - offset
    steps = torch.arange(-40, 41) / 8
    z = torch.cartesian_prod(steps, steps)
    assert torch.equal(grid.nearest(z), grid.nearest_by_search(z))


@pytest.mark.parametrize(
    "options",
    [
        {"projection": "linear"},
        {"projection": "layernorm"},
        {"bound": "paper"},
        {"spread": 1.2},
        {"gradient": "rotation"},
    ],
)
def test_ablations_decode_what_they_encode(options: dict[str, str | float]) -> None:
    torch.manual_seed(0)
    quantizer = Q2D2(QuantizerSpec("rhombic", (9, 9, 7, 7)), 8, **options)
    x = torch.randn(2, 30, 8, requires_grad=True)
    quantized = quantizer(x)
    torch.testing.assert_close(quantizer.decode(quantized.indices), quantized.features)
    quantized.features.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_rotation_reaches_the_target_and_turns_the_gradient() -> None:
    source = torch.tensor([[1.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 2.0]])
    rotated = rotate(source, target)
    torch.testing.assert_close(rotated, target)
    # A quarter turn and twice the length: the gradient goes back by a quarter turn, twice as long.
    (gradient,) = torch.autograd.grad(rotated[0, 1], source)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 0.0]]))


BASELINES = [("fsq", (8, 5, 5, 5)), ("fsq", (3,) * 16), ("fsq", (2, 2, 4)), ("vq", (64,)), ("rvq", (32, 32, 32))]


@pytest.mark.parametrize(("kind", "levels"), BASELINES)
def test_baselines_share_the_interface(kind: str, levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    spec = QuantizerSpec(kind, levels)
    quantizer: Quantizer = FsqQuantizer(spec, 16) if kind == "fsq" else VqQuantizer(spec, 16)
    x = torch.randn(4, 50, 16)
    loss = quantizer(x).loss
    assert (loss > 0) == (kind != "fsq")
    quantizer.eval()
    quantized = quantizer(x)
    assert torch.equal(quantizer.encode(x), quantized.indices)
    assert quantized.indices.shape == (4, 50, spec.num_indices)
    assert (quantized.indices >= 0).all()
    assert (quantized.indices < torch.tensor(spec.sizes)).all()
    torch.testing.assert_close(quantizer.decode(quantized.indices), quantized.features, atol=1e-5, rtol=1e-4)
    tokens = indices_to_tokens(quantized.indices, spec)
    assert torch.equal(tokens_to_indices(tokens, spec), quantized.indices)
    with pytest.raises(ValueError, match=f"index {levels[0]} is out of range: position 0"):
        quantizer.decode(torch.full((1, 1, spec.num_indices), levels[0]))


def test_fsq_tokens_are_those_of_the_library() -> None:
    import vector_quantize_pytorch

    torch.manual_seed(0)
    quantizer = FsqQuantizer(QuantizerSpec("fsq", (8, 5, 5, 5)), 16)
    reference = vector_quantize_pytorch.FSQ([8, 5, 5, 5], dim=16)
    reference.load_state_dict(quantizer.fsq.state_dict())
    x = torch.randn(2, 100, 16)
    features, indices = reference(x)
    assert torch.equal(indices_to_tokens(quantizer.encode(x), quantizer.spec), indices.long())
    torch.testing.assert_close(quantizer(x).features, features)
