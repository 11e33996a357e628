"""The configuration of `Q2D2Model`: a `ModelConfig` in the form that `transformers` keeps."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from q2d2cli.models.config import ModelConfig


class Q2D2Config(PretrainedConfig):
    """Configuration of a codec model.

    Args:
        codec: fields of `q2d2cli.models.config.ModelConfig`; its defaults where they are missing.
        **kwargs: as `PretrainedConfig` takes them.

    Raises:
        ValueError: if a field of `codec` is unknown or impossible.
    """

    model_type = "q2d2"

    def __init__(self, codec: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.codec = ModelConfig.model_validate(codec or {}).model_dump(mode="json")
        super().__init__(**kwargs)

    @property
    def model(self) -> ModelConfig:
        """The same as the package's own configuration."""
        return ModelConfig.model_validate(self.codec)

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the model takes and gives."""
        return self.model.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return self.model.hop

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.model.frame_rate

    @property
    def num_quantizers(self) -> int:
        """Codes per frame: pairs of the grids."""
        return self.model.quantizer.spec().num_indices

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """How many values each of a frame's codes has."""
        return self.model.quantizer.spec().sizes

    @property
    def codebook_size(self) -> int:
        """The largest of `codebook_sizes`: one embedding table of so many rows serves every code."""
        return max(self.codebook_sizes)
