"""Captioner: a picture in, its caption out; for people who do not train."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from captioner.checkpoint import (
    Checkpoint,
    attention_member,
    have_attention,
    joint_decoder,
    load_members,
    members,
)
from captioner.config import DecodeConfig
from captioner.data.images import ImageSource, open_image
from captioner.data.vocabulary import joined
from captioner.device import choose_device
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.model.encoder import Encoder, seen
from captioner.model.fused.linear import PackedWeights, packed
from captioner.search import Hypothesis, search

SAMPLING = ("temperature", "top_k", "top_p", "seed")  # settings that a search does not have
SEARCHING = ("beam_size",)  # settings that sampling does not have


@dataclass(frozen=True)
class Caption:
    """One caption of one picture."""

    text: str
    words: tuple[str, ...]
    score: float  # log-probability / length ** length_norm; higher is better
    attention: npt.NDArray[np.float32] | None  # (words, rows, columns); each word's sums to 1

    def __str__(self) -> str:
        return self.text


class Captioner:
    """A decoder with its encoder, or an ensemble of them, made by `load`.

    Members of an ensemble with the same encoder share it; `checkpoint` is the first of them.
    Raises ConfigError if the device cannot be used.
    """

    def __init__(
        self, checkpoint: Checkpoint | Sequence[Checkpoint], device: torch.device | str = "cpu"
    ):
        given = [checkpoint] if isinstance(checkpoint, Checkpoint) else checkpoint
        if not isinstance(given, Sequence) or not all(isinstance(c, Checkpoint) for c in given):
            raise CheckpointError(
                f"checkpoint is {checkpoint!r:.60}; Captioner takes a loaded Checkpoint, "
                "captioner.load the path of one"
            )
        self._members = members(given)
        self.checkpoint = self._members[0]
        self.device = choose_device(device)
        self._encoders = {
            member.encoder: Encoder(member.encoder, member.encoder_state).to(self.device)
            for member in {member.encoder: member for member in self._members}.values()
        }
        looks = attention_member(self._members)
        self._grid = looks.grid
        self.encoder = self._encoders[looks.encoder]
        self.decoder = joint_decoder(self._members).to(self.device)
        self._packed = PackedWeights(self.decoder)
        self.vocabulary = self.checkpoint.vocabulary

    @property
    def attends(self) -> bool:
        """Whether captions come with attention."""
        return have_attention(self._members)

    @property
    def decode(self) -> DecodeConfig:
        """The search settings used when nothing else is asked for."""
        return self.checkpoint.decode

    def caption(self, picture: ImageSource, **settings: Any) -> Caption:
        """Return the best caption of a picture, given as anything that `open_image` reads.

        A picture is a path, encoded bytes, a binary file object, a PIL image, an array or a tensor.
        settings are fields of DecodeConfig, such as beam_size=3 or sample=True, top_p=0.9.
        Raises DataError if it is not a readable picture, ConfigError for a wrong setting and for
        one without effect: beam_size with sample, temperature, top_k, top_p or seed without.
        """
        return self.captions(picture, **{"captions": 1, **settings})[0]

    def captions(self, picture: ImageSource, **settings: Any) -> list[Caption]:
        """Return several captions, best first: as many as `captions` (default: the beam size).

        No two are equal: samples that repeat an earlier one are drawn again, and if no new one
        comes, as at a low temperature, there are fewer.
        """
        decode = changed(self.decode, settings)
        if "captions" not in settings and not decode.sample:
            decode = replace(decode, captions=decode.beam_size)
        return self.search([picture], decode)[0]

    def caption_many(
        self, pictures: Iterable[ImageSource], *, batch_images: int = 16, **settings: Any
    ) -> Iterator[Caption | DataError]:
        """Yield the best caption of each picture, in order, computed a batch at a time.

        In the place of a picture that cannot be read its DataError is yielded, not raised: one bad
        picture costs itself, and `zip(paths, model.caption_many(paths))` stays in step.
        Raises ConfigError, when called, for wrong settings.
        """
        if _is_one_picture(pictures) or not isinstance(pictures, Iterable):
            raise ConfigError(
                f"pictures is one {type(pictures).__name__}; caption_many takes a list of pictures"
            )
        batch_size = _whole("batch_images", batch_images)
        if batch_size < 1:
            raise ConfigError(f"batch_images is {batch_size}; it must be >= 1")
        decode = changed(self.decode, {**settings, "captions": 1})
        return self._caption_batches(iter(pictures), batch_size, decode)

    def _caption_batches(
        self, source: Iterator[ImageSource], batch_size: int, decode: DecodeConfig
    ) -> Iterator[Caption | DataError]:
        while batch := list(islice(source, batch_size)):
            opened = [_opened(picture) for picture in batch]
            images = [image for image in opened if isinstance(image, Image.Image)]
            captions = iter(self.search(images, decode) if images else ())
            for image in opened:
                yield image if isinstance(image, DataError) else next(captions)[0]

    def seen(self, picture: ImageSource) -> Image.Image:
        """The upright RGB part of a picture that the encoder sees; attention lies over this."""
        return seen(open_image(picture), self.encoder.config)

    @torch.inference_mode()
    def search(self, pictures: Sequence[ImageSource], decode: DecodeConfig) -> list[list[Caption]]:
        """Return captions of each picture of one batch, best first."""
        images = [open_image(picture) for picture in pictures]
        # In float32 whatever surrounds the call: searches compare log-probabilities.
        with torch.autocast(self.device.type, enabled=False):
            found = self._search(images, decode)
        return [[self._caption(hypothesis) for hypothesis in group] for group in found]

    def _search(
        self, images: Sequence[Image.Image], decode: DecodeConfig
    ) -> list[list[Hypothesis]]:
        features = {
            config: encoder(torch.stack([encoder.preprocess(i) for i in images]).to(self.device))
            for config, encoder in self._encoders.items()
        }
        own = [features[member.encoder] for member in self._members]  # (B, L, D) each
        with packed(self._packed):
            memory, state = self.decoder.start(*own)
            step = partial(self.decoder.step, memory)
            return search(step, state, decode, self.vocabulary.bad_endings(), distinct=True)

    def _caption(self, hypothesis: Hypothesis) -> Caption:
        words = tuple(self.vocabulary.decode(hypothesis.tokens))
        attention = None
        if hypothesis.attention is not None:
            side = self._grid
            attention = hypothesis.attention.float().numpy().reshape(len(words), side, side)
        return Caption(joined(words), words, hypothesis.score, attention)


def load(path: Path | str | Sequence[Path | str], device: torch.device | str = "cpu") -> Captioner:
    """Return a Captioner of a checkpoint folder or Hugging Face Hub id; of several, their ensemble.

    `device` "auto" takes a GPU if there is one.
    Raises CheckpointError when there is none, it is damaged or of another version, or the members
    of an ensemble do not have the same vocabulary; ConfigError if the device cannot be used.
    """
    paths = [path] if isinstance(path, str | PathLike) else path
    if not isinstance(paths, Sequence) or not all(isinstance(p, str | PathLike) for p in paths):
        raise CheckpointError(f"checkpoint is {path!r:.60}; give a folder or a Hub id")
    device = choose_device(device)  # before the slow part
    return Captioner(load_members(paths), device)


def changed(decode: DecodeConfig, settings: Mapping[str, Any]) -> DecodeConfig:
    """Return `decode` with other settings, whose numbers may be numpy's.

    Raises ConfigError for one that does not exist, of the wrong type, impossible or without effect.
    """
    default = DecodeConfig()
    known = {field.name: type(getattr(default, field.name)) for field in fields(DecodeConfig)}
    given = {}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"no setting {name!r}; known are {', '.join(known)}")
        given[name] = _READ[known[name]](name, value)
    sample = given.get("sample", decode.sample)
    idle = [name for name in (SEARCHING if sample else SAMPLING) if name in given]
    if idle:
        name, value = idle[0], given[idle[0]]
        found, remedy = (
            ("sampled, not searched", "set sample to false (--no-sample)")
            if sample
            else ("searched, not sampled", "set sample (--sample)")
        )
        raise ConfigError(
            f"{name} is {value!r}, but the captions are {found}; {remedy} or leave {name} out"
        )
    if not -(2**63) <= given.get("seed", 0) < 2**64:
        raise ConfigError(f"seed is {given['seed']}; it must have at most 64 bits")
    return replace(decode, **given)


def _whole(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool | np.bool_):
            return operator.index(value)
    except TypeError:
        pass
    raise ConfigError(f"{name} is {value!r:.40}; it must be a whole number")


def _number(name: str, value: Any) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{name} is {value!r:.40}; it must be a number")


def _truth(name: str, value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise ConfigError(f"{name} is {value!r:.40}; it must be True or False")


_READ: dict[type, Callable[[str, Any], Any]] = {int: _whole, float: _number, bool: _truth}


def _is_one_picture(pictures: object) -> bool:
    kinds = (str, PathLike, bytes, bytearray, memoryview, Image.Image)
    dimensions = getattr(pictures, "ndim", 4)  # a batch of arrays has four
    return isinstance(pictures, kinds) or hasattr(pictures, "read") or dimensions < 4


def _opened(picture: ImageSource) -> Image.Image | DataError:
    try:
        return open_image(picture)
    except DataError as error:
        return error
