"""A small next-token model over pair ids, with text in front if wanted: a plain causal transformer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

TEXT_IDS = 256
"""Text is UTF-8 bytes: their ids follow those of the audio."""


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of the model.

    Attributes:
        audio: description of the ids, from the tokens' metadata.
        text: whether text stands in front.
        context: ids that the model sees.
        dim: width.
        layers: blocks.
        heads: of attention.
    """

    audio: dict[str, Any]
    text: bool
    context: int = 1536
    dim: int = 192
    layers: int = 4
    heads: int = 4

    @property
    def first_text(self) -> int:
        """Id of byte 0."""
        return int(self.audio["vocabulary_size"])

    @property
    def begin(self) -> int:
        """Id that comes before the audio."""
        return self.first_text + TEXT_IDS

    @property
    def end(self) -> int:
        """Id that comes after the audio."""
        return self.begin + 1

    def prompt(self, text: str | None) -> list[int]:
        """Ids before the first of the audio."""
        known = [self.first_text + byte for byte in (text or "").encode()] if self.text else []
        return [*known, self.begin]


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each with a norm before it and a residual around it."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.wide = nn.Linear(config.dim, 4 * config.dim)
        self.narrow = nn.Linear(4 * config.dim, config.dim)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """`(batch, length, dim)` to the same; `past` holds keys and values of what came before, and grows."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        if past is not None:
            if past:
                k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
            past[:] = [k, v]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] == k.shape[2])
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class LanguageModel(nn.Module):
    """Ids to the logits of the next."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.end + 1, config.dim)
        self.place = nn.Embedding(config.context, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        nn.init.normal_(self.embed.weight, std=config.dim**-0.5)  # logits of about 1, since it is the last layer, too
        nn.init.normal_(self.place.weight, std=0.02)

    def forward(self, ids: Tensor, past: list[list[Tensor]] | None = None) -> Tensor:
        """`(batch, length)` ids to `(batch, length, ids there are)` logits."""
        start = past[0][0].shape[2] if past and past[0] else 0
        x = self.embed(ids) + self.place.weight[start : start + ids.shape[1]]
        for number, block in enumerate(self.blocks):
            x = block(x, None if past is None else past[number])
        return self.norm(x) @ self.embed.weight.T

    @torch.inference_mode()
    def sample(self, prompt: list[int], frames: int, temperature: float, seed: int) -> list[int]:
        """Draw audio ids after a prompt until the model ends or there are so many frames (or no more room)."""
        config, rng = self.config, torch.Generator().manual_seed(seed)
        offsets, each = config.audio["offsets"], config.audio["ids_per_frame"]
        ends = [*offsets[1:], config.first_text]
        frames = min(frames, (config.context - len(prompt)) // each)
        past: list[list[Tensor]] = [[] for _ in self.blocks]
        logits = self(torch.tensor([prompt]), past)[0, -1]
        drawn: list[int] = []
        while len(drawn) < frames * each:
            pair = len(drawn) % each
            # Only what belongs at this place of a frame, so that all that is drawn can be decoded.
            allowed = torch.arange(offsets[pair], ends[pair])
            if pair == 0 and drawn:
                allowed = torch.cat([allowed, torch.tensor([config.end])])
            chances = torch.softmax(logits[allowed] / temperature, dim=0)
            found = int(allowed[torch.multinomial(chances, 1, generator=rng)])
            if found == config.end:
                break
            drawn.append(found)
            if len(prompt) + len(drawn) < config.context:
                logits = self(torch.tensor([[found]]), past)[0, -1]
        return drawn


def save(folder: Path, model: LanguageModel) -> None:
    """Write configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(asdict(model.config), indent=1))
    save_file(model.state_dict(), folder / "model.safetensors")


def load(folder: Path) -> LanguageModel:
    """Read what `save` has written."""
    model = LanguageModel(LanguageConfig(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()
