"""q2d2: a neural audio codec with two-dimensional quantization.

>>> import torch
>>> from q2d2cli import Codec
>>> codec = Codec.from_pretrained("speech-3k")
>>> tokens = codec.encode(torch.zeros(16_000), sample_rate=16_000)
>>> tokens.tokens.shape  # one channel, 167 frames
torch.Size([1, 167])
>>> codec.decode(tokens).shape
torch.Size([1, 16000])
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "DEFAULT_MODEL",
    "Codec",
    "Picture",
    "Q2D2Error",
    "StreamDecoder",
    "StreamEncoder",
    "Tags",
    "Tokens",
    "UsageError",
    "__version__",
    "info",
    "load",
    "save",
]

if TYPE_CHECKING:
    from q2d2cli.checkpoints import DEFAULT_MODEL
    from q2d2cli.codec import Codec, Tokens
    from q2d2cli.container.tags import Picture, Tags
    from q2d2cli.errors import Q2D2Error, UsageError
    from q2d2cli.streaming import StreamDecoder, StreamEncoder
    from q2d2cli.waveforms import info, load, save

HOMES = {
    "DEFAULT_MODEL": "checkpoints",
    "Codec": "codec",
    "Picture": "container.tags",
    "Q2D2Error": "errors",
    "StreamDecoder": "streaming",
    "StreamEncoder": "streaming",
    "Tags": "container.tags",
    "Tokens": "codec",
    "UsageError": "errors",
    "info": "waveforms",
    "load": "waveforms",
    "save": "waveforms",
}
"""The module of each name."""


def __getattr__(name: str) -> Any:
    # Lazy, so that commands which need no model start without importing torch.
    if name in HOMES:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
