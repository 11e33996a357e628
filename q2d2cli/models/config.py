"""One configuration for encoder, quantizer and decoder, written into every checkpoint. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from q2d2cli.quantizers.spec import QuantizerSpec


class Strict(BaseModel):
    """Base of all configurations: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Framing(Strict):
    """How encoder or decoder divide time inside; the same rate as the tokens unless said otherwise."""

    stride: PositiveInt = 1
    """Inner frames per token."""
    tokens: PositiveInt = 1
    """Tokens per inner frame, instead of `stride`: blocks run at a fraction of a high token rate."""
    window_hops: PositiveInt = 4
    """STFT window length in inner hops."""
    window: PositiveInt | None = None
    """STFT window length in samples, instead of `window_hops`."""

    def inner_hop(self, hop: int) -> int:
        """Samples per inner frame, for `hop` samples per token."""
        return hop * self.tokens // self.stride

    def n_fft(self, hop: int) -> int:
        """STFT window length in samples, for `hop` samples per token."""
        return self.window or self.window_hops * self.inner_hop(hop)

    def seen(self, hop: int, blocks: int) -> int:
        """Tokens seen on either side of one: the STFT window, and so many inner frames of the blocks; whole ones."""
        inner = self.inner_hop(hop)
        overlap = math.ceil((self.n_fft(hop) - inner) / (2 * inner))
        return math.ceil((overlap + blocks) / self.stride) * self.tokens + self.tokens - 1

    def check(self, part: str, hop: int) -> None:
        """Raise ValueError unless the windows fit `hop` samples per token."""
        if self.stride > 1 and self.tokens > 1:
            raise ValueError(f"{part} has both stride and tokens: one of them must be 1")
        if hop % self.stride:
            raise ValueError(f"{part}.stride {self.stride} does not divide hop {hop}")
        n_fft, inner = self.n_fft(hop), self.inner_hop(hop)
        if (n_fft - inner) % 2 or n_fft < inner:
            raise ValueError(
                f"{part}: a window of {n_fft} samples with hop {inner} cannot be centred: change window_hops or window"
            )


class SpectralEncoderConfig(Framing):
    """STFT front end and ConvNeXt blocks."""

    compression: ClassVar[float] = 0.3
    """Exponent of the magnitude in the phase-aware channels."""
    type: Literal["spectral"] = "spectral"
    dim: PositiveInt = 256
    """Width of the blocks."""
    hidden: PositiveInt = 768
    """Width inside a block."""
    layers: PositiveInt = 6
    kernel: PositiveInt = 7

    takes_parts: ClassVar[bool] = False
    """Of frames, at the end: the last must be filled with zeros."""

    def context(self, hop: int) -> int:
        """Tokens that the encoder sees on either side of one."""
        return self.seen(hop, self.layers * (self.kernel // 2))


class SeanetEncoderConfig(Strict):
    """SEANet (EnCodec's encoder), as in the paper."""

    type: Literal["seanet"] = "seanet"
    strides: tuple[PositiveInt, ...] = (6, 4, 3, 2)
    """Decoder order, as the paper writes them; the encoder applies them in reverse."""
    filters: PositiveInt = 32
    lstm_layers: Annotated[int, Field(ge=0)] = 2
    """Zero leaves the LSTM out and makes the receptive field finite."""
    kernel: ClassVar[int] = 7
    """Of the first and the last convolution."""
    unit_kernel: ClassVar[int] = 3
    """Of a residual unit."""
    tokens: ClassVar[int] = 1
    """Per inner frame, as `Framing.tokens` of other encoders."""
    takes_parts: ClassVar[bool] = True
    """Of frames, at the end: zeros there would change the tokens."""

    def context(self, hop: int) -> int | None:
        """Tokens that the encoder sees on either side of one; None for all (LSTM)."""
        if self.lstm_layers:
            return None
        step, samples = 1, self.kernel - 1
        for stride in reversed(self.strides):
            samples += (self.unit_kernel - 1 + 2 * stride - 1) * step
            step *= stride
        return math.ceil((samples + (self.kernel - 1) * step) / hop)


class QuantizerConfig(Strict):
    """Kind and levels of the quantizer, and the switches of the paper's ablations (grids and lattices only)."""

    kind: Literal["rectangular", "rhombic", "hexagonal", "fsq", "vq", "rvq", "body-centred", "d4", "e8"] = "rhombic"
    levels: tuple[int, ...] = (9, 9, 7, 7, 7, 7)
    """Levels of each dimension; for vq and rvq the size of each codebook."""
    projection: Literal["tanh", "linear", "layernorm"] = "tanh"
    bound: Literal["code", "paper"] = "code"
    spread: PositiveFloat = 1.0
    hexagonal_offset: Annotated[float, Field(ge=0, le=0.5)] = 0.25
    gradient: Literal["straight-through", "rotation"] = "straight-through"

    @model_validator(mode="after")
    def _valid(self) -> QuantizerConfig:
        self.spec()
        return self

    def spec(self) -> QuantizerSpec:
        """The same as a `QuantizerSpec`."""
        return QuantizerSpec(self.kind, self.levels)


class VocosDecoderConfig(Framing):
    """Vocos: ConvNeXt blocks and an inverse-STFT head."""

    max_magnitude: ClassVar[float] = 100.0
    """Clip of the predicted magnitude, as in Vocos."""
    type: Literal["vocos"] = "vocos"
    dim: PositiveInt = 384
    hidden: PositiveInt = 1152
    layers: PositiveInt = 8
    kernel: PositiveInt = 7
    attention: bool = False
    """The `pos_net` of WavTokenizer (ResNet blocks around self-attention); makes the receptive field infinite."""
    norm_embeddings: Annotated[int, Field(ge=0)] = 0
    """Rows of WavTokenizer's adaptive layer norm (4 there, only row 0 used); 0 is a plain layer norm."""

    def context(self, hop: int) -> int | None:
        """Tokens that the decoder sees on either side of one; None for all (attention and GroupNorm)."""
        return None if self.attention else self.seen(hop, (self.layers + 1) * (self.kernel // 2))


EncoderConfig = Annotated[SpectralEncoderConfig | SeanetEncoderConfig, Field(discriminator="type")]


NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a model can be called."""


class ModelConfig(Strict):
    """A whole codec model."""

    name: Annotated[str, Field(pattern=NAME)] = "unnamed"
    sample_rate: PositiveInt = 24_000
    hop: PositiveInt = 144
    """Samples per frame."""
    feature_dim: PositiveInt = 512
    """Width of the features on both sides of the quantizer."""
    encoder: EncoderConfig = SpectralEncoderConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    decoder: VocosDecoderConfig = VocosDecoderConfig()

    @model_validator(mode="after")
    def _valid(self) -> ModelConfig:
        if isinstance(self.encoder, SeanetEncoderConfig) and math.prod(self.encoder.strides) != self.hop:
            product = math.prod(self.encoder.strides)
            raise ValueError(f"encoder.strides multiply to {product}, but hop is {self.hop}")
        if isinstance(self.encoder, SpectralEncoderConfig):
            self.encoder.check("encoder", self.hop)
        self.decoder.check("decoder", self.hop)
        return self

    @property
    def encoder_context(self) -> int | None:
        """Frames that the encoder sees on either side of one, None if unbounded."""
        return self.encoder.context(self.hop)

    @property
    def decoder_context(self) -> int | None:
        """Frames that the decoder sees on either side of one, None if unbounded."""
        return self.decoder.context(self.hop)

    @property
    def alignment(self) -> int:
        """Frames that encoder or decoder handle as one: what starts at a multiple of it gets the codes of the whole."""
        return math.lcm(self.encoder.tokens, self.decoder.tokens)

    @property
    def frame_rate(self) -> float:
        """Frames (and tokens) per second."""
        return self.sample_rate / self.hop

    @property
    def bit_rate(self) -> float:
        """Payload bits per second and channel."""
        return self.quantizer.spec().bit_rate(self.sample_rate, self.hop)
