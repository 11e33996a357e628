"""q2d2: a neural audio codec with two-dimensional quantization.

>>> from q2d2cli import Codec
>>> codec = Codec.from_pretrained("speech-3k")
>>> tokens = codec.encode(waveform, sample_rate)
>>> waveform = codec.decode(tokens)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
DEFAULT_MODEL = "speech-3k"
"""The model used where none is named."""
__all__ = ["DEFAULT_MODEL", "Codec", "Q2D2Error", "Tokens", "UsageError", "__version__"]

if TYPE_CHECKING:
    from q2d2cli.codec import Codec, Tokens
    from q2d2cli.errors import Q2D2Error, UsageError


def __getattr__(name: str) -> Any:
    # Lazy, so that commands which need no model start without importing torch.
    if name in {"Codec", "Tokens"}:
        from q2d2cli import codec

        return getattr(codec, name)
    if name in {"Q2D2Error", "UsageError"}:
        from q2d2cli import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
