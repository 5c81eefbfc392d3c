"""Captioner: an image in, its caption out; for people who do not train."""

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

SAMPLING = ("temperature", "top_k", "top_p", "seed")  # settings without effect on a search
SEARCHING = ("beam_size",)  # settings without effect on sampling


@dataclass(frozen=True)
class Caption:
    """One caption of one image."""

    text: str
    words: tuple[str, ...]
    score: float  # log-probability / length ** length_norm; higher is better
    attention: npt.NDArray[np.float32] | None  # (words, rows, columns); each word's sums to 1

    def __str__(self) -> str:
        return self.text


class Captioner:
    """A decoder with its encoder, or an ensemble of them; `load` makes one.

    Members of an ensemble with the same encoder share it; `checkpoint` is the first member.
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
        """The checkpoint's own search settings, the default of every call."""
        return self.checkpoint.decode

    def caption(self, image: ImageSource, **settings: Any) -> Caption:
        """Return the best caption of an image.

        The image is a path, encoded bytes, a binary file object, a PIL image, an array or a tensor.
        The settings are fields of DecodeConfig, such as beam_size=3, or sample=True and top_p=0.9.
        Raises DataError if the image cannot be read, and ConfigError for a wrong setting or one
        without effect: beam_size with sample; temperature, top_k, top_p or seed without.
        """
        return self.captions(image, **{"captions": 1, **settings})[0]

    def captions(self, image: ImageSource, **settings: Any) -> list[Caption]:
        """Return several captions, best first: as many as `captions` (default: the beam size).

        No two are equal. A sample that repeats an earlier one is replaced by a new one; where none
        is found, as at a low temperature, there are fewer.
        """
        decode = changed(self.decode, settings)
        if "captions" not in settings and not decode.sample:
            decode = replace(decode, captions=decode.beam_size)
        return self.search([image], decode)[0]

    def caption_many(
        self, images: Iterable[ImageSource], *, batch_images: int = 16, **settings: Any
    ) -> Iterator[Caption | DataError]:
        """Yield the best caption of each image, in order, computed a batch at a time.

        For an image that cannot be read, its DataError is yielded, not raised. So one bad image
        does not cost the others, and `zip(paths, model.caption_many(paths))` stays in step.
        Raises ConfigError for wrong settings at the call, before the first image.
        """
        if _is_one_image(images) or not isinstance(images, Iterable):
            raise ConfigError(
                f"images is one {type(images).__name__}; caption_many takes a list of images"
            )
        batch_size = _whole("batch_images", batch_images)
        if batch_size < 1:
            raise ConfigError(f"batch_images is {batch_size}; it must be >= 1")
        decode = changed(self.decode, {**settings, "captions": 1})
        return self._caption_batches(iter(images), batch_size, decode)

    def _caption_batches(
        self, sources: Iterator[ImageSource], batch_size: int, decode: DecodeConfig
    ) -> Iterator[Caption | DataError]:
        while batch := list(islice(sources, batch_size)):
            opened = [_opened(source) for source in batch]
            images = [image for image in opened if isinstance(image, Image.Image)]
            captions = iter(self.search(images, decode) if images else ())
            for image in opened:
                yield image if isinstance(image, DataError) else next(captions)[0]

    def seen(self, image: ImageSource) -> Image.Image:
        """Return the upright RGB part of an image that the encoder sees and attends to."""
        return seen(open_image(image), self.encoder.config)

    @torch.inference_mode()
    def search(self, images: Sequence[ImageSource], decode: DecodeConfig) -> list[list[Caption]]:
        """Return the captions of each image of one batch, best first."""
        opened = [open_image(image) for image in images]
        # A search compares log-probabilities, so it is in float32 whatever surrounds the call.
        with torch.autocast(self.device.type, enabled=False):
            found = self._search(opened, decode)
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

    `device` "auto" uses a GPU if there is one.
    Raises CheckpointError for a checkpoint that is missing, damaged or of another version, and for
    an ensemble whose members differ in vocabulary; ConfigError if the device cannot be used.
    """
    paths = [path] if isinstance(path, str | PathLike) else path
    if not isinstance(paths, Sequence) or not all(isinstance(p, str | PathLike) for p in paths):
        raise CheckpointError(f"checkpoint is {path!r:.60}; give a folder or a Hub id")
    device = choose_device(device)  # before the slow part
    return Captioner(load_members(paths), device)


def changed(decode: DecodeConfig, settings: Mapping[str, Any]) -> DecodeConfig:
    """Return `decode` with other settings; numbers may be those of numpy.

    Raises ConfigError for a setting that is unknown, of the wrong type, impossible or without
    effect.
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


def _is_one_image(images: object) -> bool:
    kinds = (str, PathLike, bytes, bytearray, memoryview, Image.Image)
    dimensions = getattr(images, "ndim", 4)  # a batch of arrays has four
    return isinstance(images, kinds) or hasattr(images, "read") or dimensions < 4


def _opened(source: ImageSource) -> Image.Image | DataError:
    try:
        return open_image(source)
    except DataError as error:
        return error
