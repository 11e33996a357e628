"""An independent reading of the authors' Q2D2 and WavTokenizer: their key names, EnCodec's encoder and plain PyTorch.

The encoder is `transformers`' EnCodec; quantizers and Vocos are written here from the papers. Nothing of the package is
used.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import EncodecConfig, EncodecModel

State = dict[str, Tensor]
ENCODER = "feature_extractor.encodec.encoder.model"
GRIDS = "feature_extractor.encodec.quantizer.quantizer.vq"
CODEBOOK = "feature_extractor.encodec.quantizer.vq.layers.0._codebook"
WIDTH, HIDDEN, LAYERS = 64, 96, 2


def make_encoder(strides: tuple[int, ...]) -> Any:
    config = EncodecConfig(
        hidden_size=512, upsampling_ratios=list(strides), use_causal_conv=False, codebook_size=2, codebook_dim=512
    )
    return EncodecModel(config).encoder.eval()


def theirs(key: str) -> str:
    """A key of transformers' encoder as the authors' code, with the old weight norm, has it."""
    key = key.replace("layers.", f"{ENCODER}.", 1)
    if ".lstm." in key:
        return key
    for number, letter in enumerate("gv"):
        key = key.replace(f".conv.parametrizations.weight.original{number}", f".conv.conv.weight_{letter}")
    return key.replace(".conv.bias", ".conv.conv.bias")


def make_state(strides: tuple[int, ...], levels: tuple[int, ...] = (), bins: int = 0, adaptive: int = 4) -> State:
    """Random weights under the authors' names, with what their checkpoints hold beside the codec."""
    hop = math.prod(strides)
    state = {theirs(key): value for key, value in make_encoder(strides).state_dict().items()}
    for key in state:
        if key.endswith("weight_g"):
            state[key] = 2 * state[key]  # or little would be left of the audio at the end

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.1

    def norm(name: str) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * torch.randn(WIDTH), 0.1 * torch.randn(WIDTH)

    def conditioned(name: str) -> None:
        if not adaptive:
            norm(name)
            return
        state[f"{name}.scale.weight"] = 1 + 0.1 * torch.randn(adaptive, WIDTH)
        state[f"{name}.shift.weight"] = 0.1 * torch.randn(adaptive, WIDTH)

    if levels:
        layer(f"{GRIDS}.project_in.0", len(levels), 512)
        layer(f"{GRIDS}.project_out", 512, len(levels))
        layer("feature_extractor.encodec.quantizer.quantizer.project_in", len(levels), 512)
        layer("feature_extractor.encodec.quantizer.quantizer.project_out", 512, len(levels))
    else:
        book = 0.1 * torch.randn(bins, 512)
        state |= {f"{CODEBOOK}.embed": book, f"{CODEBOOK}.embed_avg": book.clone()}
        state |= {f"{CODEBOOK}.inited": torch.ones(1), f"{CODEBOOK}.cluster_size": torch.full((bins,), 3.0)}
    layer("backbone.embed", WIDTH, 512, 7)
    for number in (0, 1, 3, 4):
        for part in (1, 2):
            norm(f"backbone.pos_net.{number}.norm{part}")
            layer(f"backbone.pos_net.{number}.conv{part}", WIDTH, WIDTH, 3)
    norm("backbone.pos_net.2.norm")
    for part in ("q", "k", "v", "proj_out"):
        layer(f"backbone.pos_net.2.{part}", WIDTH, WIDTH, 1)
    norm("backbone.pos_net.5")
    conditioned("backbone.norm")
    for number in range(LAYERS):
        block = f"backbone.convnext.{number}"
        layer(f"{block}.dwconv", WIDTH, 1, 7)
        conditioned(f"{block}.norm")
        layer(f"{block}.pwconv1", HIDDEN, WIDTH)
        layer(f"{block}.pwconv2", WIDTH, HIDDEN)
        state[f"{block}.gamma"] = torch.rand(WIDTH)
    norm("backbone.final_layer_norm")
    layer("head.out", 4 * hop + 2, WIDTH)
    state["head.istft.window"] = torch.hann_window(4 * hop)
    layer("feature_extractor.encodec.decoder.model.0.conv.conv", 4, 512, 7)
    layer("multiperioddisc.discriminators.0.convs.0", 4, 1, 5)
    layer("dac.discriminators.0.convs.0.0", 4, 1, 5)
    state["melspec_loss.mel_spec.spectrogram.window"] = torch.hann_window(1024)
    return state


def grid_points(kind: str, a: int, b: int) -> list[tuple[float, float]]:
    """Points in the order of the authors' code."""
    x, y = ([i - (n - 1) / 2 for i in range(n)] for n in (a, b))
    if kind == "hexagon":
        return [(c + (-0.25 if i % 2 else 0.25), row) for i, row in enumerate(x) for c in x]
    points = list(itertools.product(x, y))
    if kind == "rhombic":
        points += [(c + 0.5, r + 0.5) for c, r in itertools.product(x[:-1], y[:-1])]
    return points


def spread(state: State, features: Tensor) -> None:
    """Let the quantizer of a random model use all of its tokens on such `(frames, 512)` features."""
    if f"{CODEBOOK}.embed" in state:
        chosen = features[:: max(1, len(features) // len(state[f"{CODEBOOK}.embed"]))]
        state[f"{CODEBOOK}.embed"][: len(chosen)] = chosen[: len(state[f"{CODEBOOK}.embed"])] + 0.01 * features.std(0)
        return
    weight = torch.randn_like(state[f"{GRIDS}.project_in.0.weight"])
    values = features @ weight.T
    state[f"{GRIDS}.project_in.0.weight"] = weight / values.std(0)[:, None]
    state[f"{GRIDS}.project_in.0.bias"] = -values.mean(0) / values.std(0)


class Reading:
    """The codec that a state describes."""

    def __init__(
        self, state: State, strides: tuple[int, ...], kind: str | None = None, levels: tuple[int, ...] = ()
    ) -> None:
        self.state, self.hop, self.kind, self.levels = state, math.prod(strides), kind, levels
        self.encoder = make_encoder(strides)
        self.encoder.load_state_dict({key: state[theirs(key)] for key in self.encoder.state_dict()})

    @torch.no_grad()
    def features(self, audio: Tensor) -> Tensor:
        """`(samples,)` to `(frames, 512)`."""
        return self.encoder(audio[None, None])[0].T

    @torch.no_grad()
    def encode(self, audio: Tensor) -> Tensor:
        """`(samples,)` to `(frames,)` tokens."""
        features = self.features(audio)
        if self.kind is None:
            return torch.cdist(features, self.state[f"{CODEBOOK}.embed"]).argmin(-1)
        z = torch.tanh(self.linear(f"{GRIDS}.project_in.0", features))
        tokens, step = torch.zeros(len(z), dtype=torch.long), 1
        for j in range(len(self.levels) // 2):
            pair = self.levels[2 * j : 2 * j + 2]
            bounded = z[:, 2 * j : 2 * j + 2] * torch.tensor([(n - 1) * (1 + 1e-3) / 2 for n in pair])
            points = torch.tensor(grid_points(self.kind, *pair))
            tokens += step * (bounded[:, None] - points).square().sum(-1).argmin(-1)
            step *= len(points)
        return tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """`(frames,)` tokens to `(frames * hop,)` samples."""
        if self.kind is None:
            features = self.state[f"{CODEBOOK}.embed"][tokens]
        else:
            codes = []
            for j in range(len(self.levels) // 2):
                pair = self.levels[2 * j : 2 * j + 2]
                points = torch.tensor(grid_points(self.kind, *pair)) / torch.tensor([float(n // 2) for n in pair])
                codes.append(points[tokens % len(points)])
                tokens = tokens // len(points)
            features = self.linear(f"{GRIDS}.project_out", torch.cat(codes, -1))
        return self.head(self.backbone(features.T[None]))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def conv(self, name: str, x: Tensor, groups: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv1d(x, weight, self.state[f"{name}.bias"], padding=weight.shape[-1] // 2, groups=groups)

    def group_norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def condition(self, name: str, x: Tensor) -> Tensor:
        """Layer norm of `(1, width, frames)`; bandwidth_id is 0."""
        x = F.layer_norm(x.transpose(1, 2), x.shape[1:2], eps=1e-6)
        if f"{name}.weight" in self.state:
            x = x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]
        else:
            x = x * self.state[f"{name}.scale.weight"][0] + self.state[f"{name}.shift.weight"][0]
        return x.transpose(1, 2)

    def backbone(self, x: Tensor) -> Tensor:
        x = self.conv("backbone.embed", x)
        for number in range(5):
            name = f"backbone.pos_net.{number}"
            if number == 2:
                y = self.group_norm(f"{name}.norm", x)
                q, k, v = (self.conv(f"{name}.{part}", y)[0] for part in "qkv")
                x = x + self.conv(f"{name}.proj_out", (v @ torch.softmax(q.T @ k / math.sqrt(len(q)), -1).T)[None])
                continue
            y = self.conv(f"{name}.conv1", F.silu(self.group_norm(f"{name}.norm1", x)))
            x = x + self.conv(f"{name}.conv2", F.silu(self.group_norm(f"{name}.norm2", y)))
        x = self.condition("backbone.norm", self.group_norm("backbone.pos_net.5", x))
        for number in range(LAYERS):
            name = f"backbone.convnext.{number}"
            y = self.condition(f"{name}.norm", self.conv(f"{name}.dwconv", x, groups=WIDTH)).transpose(1, 2)
            y = self.linear(f"{name}.pwconv2", F.gelu(self.linear(f"{name}.pwconv1", y)))
            x = x + (self.state[f"{name}.gamma"] * y).transpose(1, 2)
        return self.condition("backbone.final_layer_norm", x)

    def head(self, x: Tensor) -> Tensor:
        out = self.linear("head.out", x[0].T)
        size = 4 * self.hop
        magnitude, phase = out[:, : size // 2 + 1].exp().clip(max=100), out[:, size // 2 + 1 :]
        frames = torch.fft.irfft(magnitude * torch.exp(1j * phase), n=size) * torch.hann_window(size)
        length = (len(frames) - 1) * self.hop + size
        total, weight = torch.zeros(length), torch.zeros(length)
        for number, frame in enumerate(frames):
            place = slice(number * self.hop, number * self.hop + size)
            total[place] += frame
            weight[place] += torch.hann_window(size).square()
        edge = (size - self.hop) // 2
        return (total / weight.clamp(min=1e-11))[edge : length - edge]
