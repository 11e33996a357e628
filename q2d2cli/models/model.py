"""The codec model: encoder, quantizer and decoder built from one configuration."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from q2d2cli.models.config import ModelConfig, QuantizerConfig, SeanetEncoderConfig
from q2d2cli.models.precision import full_precision
from q2d2cli.models.seanet import SeanetEncoder
from q2d2cli.models.spectral import SpectralEncoder
from q2d2cli.models.vocos import VocosDecoder
from q2d2cli.quantizers.base import Quantized, Quantizer
from q2d2cli.quantizers.q2d2 import Q2D2


class CodecModel(nn.Module):
    """Mono audio at the model's rate to pair indices and back.

    Attributes:
        config: what it was built from.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: SeanetEncoder | SpectralEncoder
        if isinstance(config.encoder, SeanetEncoderConfig):
            self.encoder = SeanetEncoder(config.encoder, config.feature_dim)
        else:
            self.encoder = SpectralEncoder(config.encoder, config.hop, config.feature_dim)
        self.quantizer = make_quantizer(config.quantizer, config.feature_dim)
        self.decoder = VocosDecoder(config.decoder, config.hop, config.feature_dim)

    @property
    def encoder_context(self) -> int | None:
        """Frames the encoder sees on either side of one, None if unbounded."""
        return self.config.encoder_context

    @property
    def decoder_context(self) -> int | None:
        """Frames the decoder sees on either side of one, None if unbounded."""
        return self.config.decoder_context

    def pad(self, audio: Tensor) -> Tensor:
        """Append zeros to `(batch, samples)` so that it fills whole frames, where the encoder needs them."""
        if self.config.encoder.takes_parts:
            return audio
        missing = math.ceil(audio.shape[-1] / self.config.hop) * self.config.hop - audio.shape[-1]
        return nn.functional.pad(audio, (0, missing))

    def forward(self, audio: Tensor, decode: bool = True) -> tuple[Tensor | None, Quantized]:
        """`(batch, samples)` to its reconstruction of the same shape, None without `decode`, and what was quantized."""
        quantized = self.quantizer(self.encoder(self.pad(audio)))
        return self.decoder(quantized.features)[..., : audio.shape[-1]] if decode else None, quantized

    @full_precision()
    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """`(batch, samples)` to `(batch, frames, pairs)` int64 indices; the last frame need not be whole.

        In float32, whatever the caller's autocast and precision are set to.
        """
        return self.quantizer.encode(self.encoder(self.pad(audio)))

    @full_precision()
    @torch.inference_mode()
    def decode(self, indices: Tensor) -> Tensor:
        """`(batch, frames, pairs)` int64 indices to `(batch, frames * hop)` samples.

        In float32, as `encode`, but for the blocks' products, which are in bfloat16 where a CPU has it: some 50 dB
        below the speech, and no token depends on them.
        """
        return self.decoder(self.quantizer.decode(indices))


def make_quantizer(config: QuantizerConfig, dim: int) -> Quantizer:
    """The quantizer that a configuration describes, for features of width `dim`."""
    spec = config.spec()
    if spec.snaps:
        return Q2D2(
            spec,
            dim,
            projection=config.projection,
            bound=config.bound,
            spread=config.spread,
            hexagonal_offset=config.hexagonal_offset,
            gradient=config.gradient,
        )
    from q2d2cli.quantizers.baselines import FsqQuantizer, VqQuantizer

    return FsqQuantizer(spec, dim) if spec.kind == "fsq" else VqQuantizer(spec, dim)
