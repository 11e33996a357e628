"""SEANet encoder, as in EnCodec, WavTokenizer and the paper (appendix A)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from q2d2cli.models.config import SeanetEncoderConfig


def reflect_pad(x: Tensor, left: int, right: int) -> Tensor:
    """Reflection padding of `(batch, channels, length)` that also serves inputs shorter than the padding."""
    extra = max(0, max(left, right) + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, extra)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - extra] if extra else padded


class Conv(nn.Module):
    """Weight-normalised convolution whose output has `length / stride` samples, rounded up.

    What is missing for a whole stride is reflected, as in EnCodec.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(channels_in, channels_out, kernel, stride))
        self.total = kernel - stride

    @property
    def kernel(self) -> int:
        """Kernel size."""
        return self.total + self.stride

    @property
    def stride(self) -> int:
        """Samples in for one out."""
        return self.conv.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels_in, length)` to `(batch, channels_out, length / stride)`."""
        right = self.total // 2
        return self.conv(reflect_pad(x, self.total - right, right + -x.shape[-1] % self.stride))


class ResidualUnit(nn.Module):
    """ELU, conv 3, ELU, conv 1, beside a 1x1 convolution shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 2
        self.conv1 = Conv(channels, hidden, SeanetEncoderConfig.unit_kernel)
        self.conv2 = Conv(hidden, channels, 1)
        self.shortcut = Conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, length)` to the same."""
        return self.shortcut(x) + self.conv2(F.elu(self.conv1(F.elu(x))))


class SeanetEncoder(nn.Module):
    """Strided convolutions with residual units, an optional LSTM, and a last convolution.

    Args:
        config: strides (in decoder order), filters, LSTM layers.
        out_dim: width of the output features.
    """

    def __init__(self, config: SeanetEncoderConfig, out_dim: int) -> None:
        super().__init__()
        channels = config.filters
        self.first = Conv(1, channels, config.kernel)
        self.units = nn.ModuleList()
        self.downs = nn.ModuleList()
        for stride in reversed(config.strides):
            self.units.append(ResidualUnit(channels))
            self.downs.append(Conv(channels, 2 * channels, 2 * stride, stride))
            channels *= 2
        self.lstm = nn.LSTM(channels, channels, config.lstm_layers) if config.lstm_layers else None
        self.last = Conv(channels, out_dim, config.kernel)

    def forward(self, audio: Tensor) -> Tensor:
        """`(batch, samples)` to `(batch, frames, out_dim)`; the last frame need not be whole."""
        x = self.first(audio.unsqueeze(1))
        for unit, down in zip(self.units, self.downs, strict=True):
            x = down(F.elu(unit(x)))
        if self.lstm is not None:
            y, _ = self.lstm(x.permute(2, 0, 1))
            x = x + y.permute(1, 2, 0)
        return self.last(F.elu(x)).transpose(1, 2)
