"""What listeners can be asked. Imports nothing heavy, so that the command line can list it."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Kinds of listening tests."""

    MUSHRA = "mushra"
    """How close to the reference, 0 to 100 (ITU-R BS.1534-3)."""
    CMOS_Q = "cmos-q"
    """Which of two has the better quality, -3 to 3 (ITU-T P.800 Annex E)."""
    CMOS_P = "cmos-p"
    """Which of two has the better prosody, -3 to 3."""
