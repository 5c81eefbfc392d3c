"""The errors a person can act on; the command line prints one as a single line and exits with 1.

CaptionerError
├── ConfigError       a setting that does not exist, has the wrong type or an impossible value
├── DataError         a picture, captions file or prepared data folder that cannot be used
├── CheckpointError   a checkpoint that is missing, damaged or made by another version
├── DivergenceError   a training whose gradient is not finite
└── MetricError       captions that cannot be scored, or a scorer that did not run
"""

from __future__ import annotations

import re
import unicodedata


class CaptionerError(Exception):
    """Base of every error this package raises for its user's input."""

    def __str__(self) -> str:
        return printable(re.sub(r"\s*\n\s*", " ", super().__str__().strip()))


class ConfigError(CaptionerError):
    """A setting is unknown, of the wrong type, or impossible."""


class DataError(CaptionerError):
    """A picture, a captions file or a prepared data folder cannot be used."""


class CheckpointError(CaptionerError):
    """A checkpoint is missing, damaged or of another version."""


class DivergenceError(CaptionerError):
    """The gradient of a training step is not finite."""


class MetricError(CaptionerError):
    """Captions cannot be scored, or a scorer did not run."""


def printable(text: str) -> str:
    """Write the characters that would steer a terminal, or have no encoding, as escapes.

    They come from file names. Joiners stay, because emoji and some scripts need them.
    """

    def shown(char: str) -> str:
        steers = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        joins = char in "\u200c\u200d"
        return char.encode("unicode_escape").decode("ascii") if steers and not joins else char

    return text if text.isprintable() else "".join(map(shown, text))
