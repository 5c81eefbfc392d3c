"""Image captions from a pretrained CNN and an LSTM decoder trained with h-detach.

Example: `captioner.load("checkpoints/coco_flickr8k").caption("photo.jpg").text`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captioner.errors import (
    CaptionerError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergenceError,
    MetricError,
)

if TYPE_CHECKING:
    from captioner.model.lstm import HDetachLSTM
    from captioner.pipeline import Caption, Captioner, load

__version__ = "0.2.0"

__all__ = [
    "Caption",
    "Captioner",
    "CaptionerError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "HDetachLSTM",
    "MetricError",
    "__version__",
    "load",
]

_HOMES = {
    "Caption": "captioner.pipeline",
    "Captioner": "captioner.pipeline",
    "HDetachLSTM": "captioner.model.lstm",
    "load": "captioner.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that `captioner --help` is quick."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
