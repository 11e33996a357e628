"""Models: configuration checks, shapes, the paper's sizes."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError

from q2d2cli.models.config import ModelConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.models.packed import PackedLinear

PAPER_ROWS = [
    ((7, 7, 7, 7, 7, 7), (6, 5, 5, 3), 1025),
    ((9, 9, 7, 7, 7, 7), (6, 4, 3, 2), 3333),
    ((9, 9, 9, 9, 7, 7), (6, 4, 3, 1), 6923),
]


@pytest.mark.parametrize(("levels", "strides", "rate"), PAPER_ROWS)
def test_paper_model_builds_and_runs(levels: tuple[int, ...], strides: tuple[int, ...], rate: int) -> None:
    hop = int(torch.tensor(strides).prod())
    config = ModelConfig.model_validate(
        {
            "hop": hop,
            "encoder": {"type": "seanet", "strides": strides},
            "quantizer": {"kind": "rhombic", "levels": levels},
            "decoder": {"dim": 768, "hidden": 2304, "layers": 12, "attention": True, "norm_embeddings": 4},
        }
    )
    assert config.bit_rate == pytest.approx(rate, abs=1)
    model = CodecModel(config).eval()
    audio = torch.randn(2, 10 * hop + 1) * 0.1
    indices = model.encode(audio)
    assert indices.shape == (2, 11, 3)
    assert model.decode(indices).shape == (2, 11 * hop)


@pytest.mark.parametrize("encoder", [{"type": "spectral"}, {"type": "seanet", "filters": 4, "lstm_layers": 0}])
def test_forward_is_decode_of_encode(encoder: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = CodecModel(ModelConfig.model_validate({"feature_dim": 32, "encoder": encoder})).eval()
    audio = torch.randn(2, 5000) * 0.1
    with torch.inference_mode():
        estimate, quantized = model(audio)
    indices = model.encode(audio)
    assert torch.equal(indices, quantized.indices)
    torch.testing.assert_close(model.decode(indices)[:, :5000], estimate, atol=1e-5, rtol=1e-4)


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = CodecModel(ModelConfig(feature_dim=16))
    estimate, _ = model(torch.randn(1, 2000) * 0.1)
    estimate.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hop": 145, "encoder": {"type": "seanet"}}, "multiply to 144, but hop is 145"),
        ({"quantizer": {"levels": [8, 9]}}, "level 8 is even"),
        ({"quantizer": {"levels": [9, 9, 7]}}, "give a multiple of 2"),
        ({"decoder": {"layers": 0}}, "greater than 0"),
        ({"hop": 145}, "cannot be centred"),
        ({"decoder": {"stride": 5}}, "decoder.stride 5 does not divide hop 144"),
        ({"decoder": {"stride": 2, "tokens": 2}}, "decoder has both stride and tokens"),
        ({"decoder": {"window": 99}}, "a window of 99 samples with hop 144 cannot be centred"),
        ({"colour": "blue"}, "colour"),
        ({"name": "../evil"}, "name"),
    ],
)
def test_impossible_configurations_are_named(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ModelConfig.model_validate(change)


def test_tokens_that_share_an_inner_frame_start_different() -> None:
    torch.manual_seed(0)
    model = CodecModel(
        ModelConfig.model_validate({"hop": 72, "encoder": {"type": "spectral", "tokens": 2}, "decoder": {"tokens": 2}})
    )
    with torch.inference_mode():
        values = model(torch.randn(1, 72_000) * 0.1)[1].values
    first, second = values[0].unflatten(0, (-1, 2)).unbind(1)
    first, second = first - first.mean(0), second - second.mean(0)
    # What the first does not say, linearly, about the second: a sixth or less of it if both start as copies.
    basis = torch.linalg.qr(first).Q
    rest = second - basis @ (basis.T @ second)
    assert rest.square().sum() > 0.5 * second.square().sum()


def test_packed_weights_follow_the_weights() -> None:
    torch.manual_seed(0)
    layer, x = PackedLinear(48, 96), torch.randn(2, 31, 48)

    def check() -> None:
        with torch.inference_mode():
            expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(layer.gelu(x), torch.nn.functional.gelu(expected), rtol=1e-4, atol=1e-5)

    check()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    layer(x).square().sum().backward()
    optimizer.step()
    check()
    layer.load_state_dict({name: 2 * value for name, value in layer.state_dict().items()})
    check()
    layer.weight.data = torch.randn(96, 48)
    check()
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.zero_()
    check()
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_packed_layers_leave_other_types_alone() -> None:
    layer, x = PackedLinear(8, 8), torch.randn(3, 8)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64
        assert layer.float()(torch.empty(0, 8)).shape == (0, 8)
