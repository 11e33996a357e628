"""`Q2D2Model`: a codec behind the interface that `transformers` has for audio tokenizers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, modeling_utils
from transformers.utils.generic import ModelOutput

from q2d2cli import checkpoints, hub
from q2d2cli.errors import Q2D2Error
from q2d2cli.hf.configuration import Q2D2Config
from q2d2cli.models.model import CodecModel

# Since version 4.56; before that audio tokenizers had no base of their own.
Base: Any = getattr(modeling_utils, "PreTrainedAudioTokenizerBase", PreTrainedModel)


@dataclass
class Q2D2EncoderOutput(ModelOutput):
    """What `encode` gives."""

    audio_codes: Tensor | None = None
    """`(batch, num_quantizers, frames)` int64."""
    audio_codes_mask: Tensor | None = None
    """`(batch, frames)`, 1 where a frame holds audio; None without a padding mask."""


@dataclass
class Q2D2DecoderOutput(ModelOutput):
    """What `decode` gives."""

    audio_values: Tensor | None = None
    """`(batch, 1, samples)` float32."""


@dataclass
class Q2D2Output(ModelOutput):
    """What a forward pass gives."""

    audio_codes: Tensor | None = None
    """`(batch, num_quantizers, frames)` int64."""
    audio_values: Tensor | None = None
    """`(batch, 1, samples)` float32, as long as the input."""


class Q2D2Model(Base):  # type: ignore[misc]
    """A codec model with the methods of `EncodecModel`, `DacModel` and `MimiModel`.

    Codes are those of `Codec.encode`; a frame's are its pair indices, pair 0 first. Clips of a batch are encoded each
    alone, so that padding changes nothing.

    Args:
        config: of the model.
    """

    config_class = Q2D2Config
    base_model_prefix = "q2d2"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True

    def __init__(self, config: Q2D2Config) -> None:
        super().__init__(config)
        # On the CPU even where weights come later: grids and windows are in no file.
        with torch.device("cpu"):
            self.codec = CodecModel(config.model).eval()
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: the networks have made their own weights."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load a model.

        Args:
            pretrained_model_name_or_path: what `save_pretrained` wrote, or anything that `Codec.from_pretrained`
                takes.
            *args: as `PreTrainedModel.from_pretrained` takes them.
            **kwargs: as `PreTrainedModel.from_pretrained` takes them.
        """
        name, revision = os.fspath(pretrained_model_name_or_path), kwargs.get("revision")
        try:
            found = checkpoints.find(f"{name}@{revision}" if revision and hub.is_id(name) else name)
        except Q2D2Error:  # no model of this package: what `save_pretrained` wrote, or nothing
            loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            restore_constants((loaded[0] if isinstance(loaded, tuple) else loaded).codec)
            return loaded
        model = cls(Q2D2Config(found.config.model_dump(mode="json")))
        model.codec = checkpoints.load(found)
        return model

    def encode(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> Q2D2EncoderOutput | tuple[Tensor | None, ...]:
        """Encode audio.

        Args:
            input_values: `(batch, 1, samples)` floating point at `config.sampling_rate`, full scale is +-1.
            padding_mask: `(batch, samples)` or `(batch, 1, samples)`, 1 for audio, 0 after a clip's end; all audio if
                None.
            return_dict: whether to return a `Q2D2EncoderOutput`, not a tuple; as the configuration says if None.

        Returns:
            Codes, 0 after a clip's end, and their mask.

        Raises:
            ValueError: if there is more than one channel, a shape does not fit, or a clip is empty.
            TypeError: if the model was converted to half precision: its codes would silently be others.
        """
        self._check_precision()
        if input_values.ndim != 3 or input_values.shape[1] != 1:
            raise ValueError(f"input_values have shape {tuple(input_values.shape)}: expected (batch, 1, samples)")
        batch, _, samples = input_values.shape
        if padding_mask is None:
            lengths = [samples] * batch
        else:
            mask = padding_mask.reshape(batch, -1).bool()
            if mask.shape[1] != samples:
                raise ValueError(f"padding_mask has shape {tuple(padding_mask.shape)}: expected ({batch}, {samples})")
            lengths = mask.sum(-1).tolist()
            if not all(bool(row[:length].all()) for row, length in zip(mask, lengths, strict=True)):
                raise ValueError("padding_mask has zeros before a clip's end: pad clips on the right")
        if not all(lengths):
            raise ValueError("a clip of the batch is empty")
        clips = [self.codec.encode(clip[:, :n].float())[0] for clip, n in zip(input_values, lengths, strict=True)]
        codes = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).transpose(1, 2)
        frames = math.ceil(samples / self.config.hop_length)
        codes = torch.nn.functional.pad(codes, (0, frames - codes.shape[-1]))
        held = None
        if padding_mask is not None:
            counts = torch.tensor([len(clip) for clip in clips], device=codes.device)
            held = (torch.arange(frames, device=codes.device) < counts[:, None]).to(padding_mask.dtype)
        return self._give(Q2D2EncoderOutput(codes, held), return_dict)

    def decode(
        self, audio_codes: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> Q2D2DecoderOutput | tuple[Tensor | None, ...]:
        """Decode codes.

        Args:
            audio_codes: `(batch, num_quantizers, frames)` integers.
            padding_mask: that of the audio they come from; cuts to its length, and gives zeros after a clip's end.
            return_dict: as `encode` takes it.

        Returns:
            Audio; `frames * hop_length` samples of it without a mask.

        Raises:
            ValueError: if the shape does not fit or a code is out of range; names it.
            TypeError: as `encode`.
        """
        self._check_precision()
        if audio_codes.ndim != 3:
            raise ValueError(
                f"audio_codes have shape {tuple(audio_codes.shape)}: expected (batch, num_quantizers, frames)"
            )
        codes, hop = audio_codes.transpose(1, 2), self.config.hop_length
        if padding_mask is None:
            return self._give(Q2D2DecoderOutput(self.codec.decode(codes).clone().unsqueeze(1)), return_dict)
        lengths = padding_mask.reshape(len(codes), -1).sum(-1).tolist()
        audio = codes.new_zeros(len(codes), 1, padding_mask.shape[-1], dtype=torch.float32)
        for row, clip, length in zip(audio, codes, lengths, strict=True):
            row[:, :length] = self.codec.decode(clip[None, : math.ceil(length / hop)])[:, :length]
        return self._give(Q2D2DecoderOutput(audio), return_dict)

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> Q2D2Output | tuple[Tensor | None, ...]:
        """Encode and decode; arguments as `encode` takes them.

        Returns:
            Codes, and audio as long as the input.
        """
        codes = self.encode(input_values, padding_mask, return_dict=True).audio_codes  # type: ignore[union-attr]
        assert codes is not None
        audio = self.decode(codes, padding_mask, return_dict=True).audio_values  # type: ignore[union-attr]
        assert audio is not None
        return self._give(Q2D2Output(codes, audio[..., : input_values.shape[-1]]), return_dict)

    def _check_precision(self) -> None:
        if self.dtype != torch.float32:
            kind = str(self.dtype).removeprefix("torch.")
            raise TypeError(f"the model is {kind}: keep it in float32, audio of any precision goes in")

    def _give(self, output: Any, return_dict: bool | None) -> Any:
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


def restore_constants(model: CodecModel) -> None:
    """Put grids and windows back, which `transformers` leaves empty because they are in no file."""
    with torch.device("cpu"):
        fresh = dict(CodecModel(model.config).named_buffers())
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name not in model.state_dict():
                buffer.copy_(fresh[name])
