"""Decoders by the names of `model.decoder`; encoder and LSTM have files of their own."""

from __future__ import annotations

from typing import TypeAlias

from captioner.config import ModelConfig
from captioner.model.adaptive import Adaptive
from captioner.model.show_attend_tell import ShowAttendTell
from captioner.model.show_tell import ShowTell
from captioner.model.up_down import UpDown

__all__ = [
    "DECODERS",
    "Adaptive",
    "Decoder",
    "ShowAttendTell",
    "ShowTell",
    "UpDown",
    "make_decoder",
]

Decoder: TypeAlias = ShowTell | ShowAttendTell | Adaptive | UpDown
DECODERS: dict[str, type[ShowTell] | type[ShowAttendTell] | type[Adaptive] | type[UpDown]] = {
    "show_tell": ShowTell,
    "show_attend_tell": ShowAttendTell,
    "adaptive": Adaptive,
    "up_down": UpDown,
}


def make_decoder(config: ModelConfig, vocabulary_size: int, dim: int) -> Decoder:
    """Return the decoder that `config.decoder` names, for features of size `dim`."""
    return DECODERS[config.decoder](config, vocabulary_size, dim)
