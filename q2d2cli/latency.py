"""How much a live stream lags, whatever computes it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from q2d2cli.models.config import ModelConfig

LIVE_BLOCK_SECONDS = 0.2
"""About how much audio a pass and a block of a live stream hold."""


@dataclass(frozen=True)
class Latency:
    """Seconds between a sample's going into the encoder and its coming out of the decoder, and what they go to.

    Computing and the way between the two come on top.
    """

    block: float
    """Until the block of its frame is full."""
    encoder: float
    """What the encoder's layers look ahead."""
    decoder: float
    """What the decoder's layers look ahead."""
    resampling: float
    """What is held back by the sample rate conversion to the model's rate and back."""

    @property
    def total(self) -> float:
        """Of the sample that waits longest."""
        return self.block + self.encoder + self.decoder + self.resampling


def latency(config: ModelConfig, sample_rate: int, block_seconds: float = LIVE_BLOCK_SECONDS) -> Latency | None:
    """The least possible latency of a model's live streams; None if one of its layers sees the whole recording.

    Args:
        config: of the model.
        sample_rate: of the audio, Hz.
        block_seconds: audio in a block.
    """
    from q2d2cli.audio.resampling import held_back  # the command line asks this module for a number

    encoder, decoder = config.encoder_context, config.decoder_context
    if encoder is None or decoder is None:
        return None
    resampling = held_back(sample_rate, config.sample_rate) + held_back(config.sample_rate, sample_rate)
    block = live_frames(config, block_seconds)
    return Latency(block / config.frame_rate, encoder / config.frame_rate, decoder / config.frame_rate, resampling)


def live_frames(config: ModelConfig, block_seconds: float) -> int:
    """Frames in a block of a live stream: at least one."""
    return max(1, round(block_seconds * config.frame_rate))
