"""The feature extractor of `Q2D2Model`: mono audio of different lengths as one batch with its mask."""

from __future__ import annotations

from typing import Any

from transformers import EncodecFeatureExtractor


class Q2D2FeatureExtractor(EncodecFeatureExtractor):
    """EnCodec's feature extractor for mono audio at the model's rate.

    Takes `(samples,)` or a list of such; gives `input_values` `(batch, 1, samples)` float32, zeros after a clip's end,
    and `padding_mask` `(batch, samples)`, 1 where there is audio.

    Args:
        sampling_rate: of the audio that it takes, Hz.
        **kwargs: as `EncodecFeatureExtractor` takes them.
    """

    def __init__(self, sampling_rate: int = 24_000, **kwargs: Any) -> None:
        super().__init__(sampling_rate=sampling_rate, **kwargs)
