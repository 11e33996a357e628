"""A small language model over pair ids, a frame a step; with text, it is a text-to-speech."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from alignment import BEGIN, spell, takes_time
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LONGEST = 32
"""Frames on one symbol that the model can tell from fewer."""


@dataclass(frozen=True)
class LanguageConfig:
    """What the model is of.

    Attributes:
        audio: description of the ids, from the tokens' metadata.
        symbols: of text; only the one for the beginning without text.
        phonemes: whether they are those of espeak-ng, and not letters.
        voices: known ones; no other is meant by number 0.
        dim: width.
        layers: blocks; each sees twice as far back as the one before.
        dropout: share of values that are left out in training.
    """

    audio: dict[str, Any]
    symbols: str = BEGIN
    phonemes: bool = False
    voices: list[str] = field(default_factory=list)
    dim: int = 192
    layers: int = 5
    dropout: float = 0.0

    @property
    def text(self) -> bool:
        """Whether the model says a text."""
        return self.symbols != BEGIN

    @property
    def none(self) -> int:
        """Id that stands for no id: before the first frame."""
        return int(self.audio["vocabulary_size"])

    def read(self, texts: list[str]) -> list[list[int]]:
        """Texts as numbers of symbols; those that are not known are left out."""
        spelled = spell(texts, self.phonemes) if self.text else [BEGIN] * len(texts)
        return [[number for symbol in text if (number := self.symbols.find(symbol)) >= 0] for text in spelled]

    def timed(self, text: list[int]) -> list[int]:
        """Places of a text at which frames can be."""
        return [place for place, number in enumerate(text) if takes_time(self.symbols[number])]

    def voice(self, name: str | None) -> int:
        """Number of a voice; 0 if it is not known."""
        return 1 + self.voices.index(name) if name in self.voices else 0


class Block(nn.Module):
    """A causal convolution over three frames, `dilation` apart, and a layer after it, with a residual around both."""

    def __init__(self, config: LanguageConfig, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(config.dim)
        self.wide = nn.Linear(3 * config.dim, 2 * config.dim)
        self.narrow = nn.Linear(2 * config.dim, config.dim)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, past: list[Tensor] | None = None) -> Tensor:
        """`(batch, length, dim)` to the same; `past` holds what is needed of the frames before, and is kept up."""
        before = past[0] if past else x.new_zeros(len(x), 2 * self.dilation, x.shape[2])
        y = torch.cat([before, self.norm(x)], 1)
        if past is not None:
            past[:] = [y[:, -2 * self.dilation :]]
        taps = [y[:, place * self.dilation : place * self.dilation + x.shape[1]] for place in range(3)]
        return x + self.drop(self.narrow(F.gelu(self.wide(torch.cat(taps, 2)))))


class Reader(nn.Module):
    """Symbols to what they mean among their neighbours."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(config.symbols), config.dim)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv1d(config.dim, config.dim, 5, padding=2) for _ in range(3))
        self.drop = nn.Dropout(config.dropout)

    def forward(self, symbols: Tensor) -> Tensor:
        """`(batch, symbols)` to `(batch, symbols, dim)`; negative ones are no symbols."""
        there = (symbols >= 0)[:, :, None]
        x = self.embed(symbols.clamp(min=0)) * there
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = (x + self.drop(F.gelu(convolution((norm(x) * there).transpose(1, 2)).transpose(1, 2)))) * there
        return x


class LanguageModel(nn.Module):
    """Predicts the ids of a frame one after the other, and whether its symbol (without text: all) is over with it.

    `usual` is what the alignment has found out (see `learn_alignment`): the network learns what is different from it.
    """

    usual: Tensor

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.audio["pair_sizes"]
        self.reader = Reader(config)
        self.before = nn.Embedding(config.none + 1, config.dim)
        self.since = nn.Embedding(LONGEST, config.dim)
        self.voice = nn.Embedding(1 + len(config.voices), config.dim)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, 2**number) for number in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        self.here = nn.Embedding(config.none, config.dim)
        self.mix = nn.ModuleList(nn.Linear(config.dim, config.dim) for _ in sizes)
        self.pairs = nn.ModuleList(nn.Linear(config.dim, size) for size in sizes)
        self.over = nn.Linear(config.dim, 1)
        self.register_buffer("usual", torch.zeros(len(config.symbols), len(sizes), max(sizes)))
        for embedding in (self.reader.embed, self.before, self.since, self.voice, self.here):
            nn.init.normal_(embedding.weight, std=0.3)
        for head in (*self.pairs, self.over):
            nn.init.normal_(head.weight, std=0.02)

    def hear(
        self, before: Tensor, said: Tensor, since: Tensor, voice: Tensor, past: list[list[Tensor]] | None = None
    ) -> Tensor:
        """What the model knows before each frame.

        Args:
            before: `(batch, frames, pairs)` ids of the frame before each.
            said: `(batch, frames, dim)`, what the reader makes of the symbol that each frame says.
            since: `(batch, frames)` frames before each that say the same symbol.
            voice: `(batch,)` numbers.
            past: what each block needs of the frames before; is kept up.

        Returns:
            `(batch, frames, dim)`.
        """
        x = self.before(before).sum(2) + said + self.since(since.clamp(max=LONGEST - 1)) + self.voice(voice)[:, None]
        x = self.drop(x)
        for number, block in enumerate(self.blocks):
            x = block(x, None if past is None else past[number])
        return self.norm(x)

    def forward(
        self, before: Tensor, after: Tensor, symbols: Tensor, place: Tensor, since: Tensor, voice: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Logits of each pair's ids, and of the symbol being over, where the frames are known.

        Args:
            before: see `hear`.
            after: `(batch, frames, pairs)` ids.
            symbols: `(batch, symbols)` numbers, filled up with negative ones.
            place: `(batch, frames)` of each frame in them.
            since: see `hear`.
            voice: see `hear`.
        """
        said = self.reader(symbols)
        said = said.gather(1, place[:, :, None].expand(-1, -1, said.shape[2]))
        spoken = symbols.gather(1, place)
        x = self.hear(before, said, since, voice)
        logits = []
        for pair in range(len(self.pairs)):
            logits.append(self.logits(x, spoken, pair))
            x = x + self.here(after[:, :, pair])
        return logits, self.over(x)[:, :, 0]

    def logits(self, x: Tensor, symbol: Tensor, pair: int) -> Tensor:
        """Of a pair's indices, `(..., size)`, by what is known before it, `(..., dim)`, and the symbol, `(...)`."""
        head = self.pairs[pair]
        return head(F.gelu(self.mix[pair](x))) + self.usual[symbol, pair, : head.out_features]

    @torch.inference_mode()
    def sample(self, text: str, frames: int, temperature: float, seed: int, voice: str | None = None) -> list[int]:
        """Draw audio ids until the text is said or there are so many frames.

        A symbol ends where it is likelier than not that it has. Without text, so does the whole.
        """
        config, rng = self.config, torch.Generator().manual_seed(seed)
        (symbols,) = config.read([text])
        known = torch.tensor(symbols)
        said = self.reader(known[None])
        who = torch.tensor([config.voice(voice)])
        past: list[list[Tensor]] = [[] for _ in self.blocks]
        offsets = config.audio["offsets"]
        drawn: list[int] = []
        before = [config.none] * len(offsets)
        for place in config.timed(symbols):
            since, going_on = 0, 1.0
            while going_on > 0.5 and len(drawn) < frames * len(offsets):
                x = self.hear(torch.tensor([[before]]), said[:, place, None], torch.tensor([[since]]), who, past)[0, 0]
                before = []
                for pair, offset in enumerate(offsets):
                    chances = torch.softmax(self.logits(x, known[place], pair) / temperature, dim=0)
                    before.append(offset + int(torch.multinomial(chances, 1, generator=rng)))
                    x = x + self.here.weight[before[-1]]
                drawn.extend(before)
                since, going_on = since + 1, going_on * (1 - float(torch.sigmoid(self.over(x))))
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
