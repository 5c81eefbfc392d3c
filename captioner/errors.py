"""The errors that a user can act on; a command prints one as a single line and exits with 1.

CaptionerError
├── ConfigError       a setting that is unknown, of the wrong type or impossible
├── DataError         an image, captions file or prepared data folder that cannot be used
├── CheckpointError   a checkpoint that is missing, damaged or of another version
├── DivergenceError   a training whose gradient is not finite
└── MetricError       captions that cannot be scored, or a scorer that did not run
"""

from __future__ import annotations

import re
import unicodedata


class CaptionerError(Exception):
    """Base of every error that this package raises for wrong input."""

    def __str__(self) -> str:
        return printable(re.sub(r"\s*\n\s*", " ", super().__str__().strip()))


class ConfigError(CaptionerError):
    """A setting is unknown, of the wrong type, or impossible."""


class DataError(CaptionerError):
    """An image, a captions file or a prepared data folder cannot be used."""


class CheckpointError(CaptionerError):
    """A checkpoint is missing, damaged or of another version."""


class DivergenceError(CaptionerError):
    """The gradient of a training step is not finite."""


class MetricError(CaptionerError):
    """Captions cannot be scored, or a scorer did not run."""


def printable(text: str) -> str:
    """Return a text with escapes for control characters and for those without an encoding.

    They come from file names. Joiners stay, because emoji and some scripts need them.
    """

    def shown(char: str) -> str:
        steers = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        joins = char in "\u200c\u200d"
        return char.encode("unicode_escape").decode("ascii") if steers and not joins else char

    return text if text.isprintable() else "".join(map(shown, text))
