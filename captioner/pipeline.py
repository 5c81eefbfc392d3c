"""Captioner: a picture in, its caption out; for people who do not train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from captioner.checkpoint import Checkpoint
from captioner.config import DecodeConfig
from captioner.encoder import Encoder
from captioner.ensemble import load_members, looking, members, writer
from captioner.errors import ConfigError
from captioner.images import ImageSource, open_image
from captioner.packed import PackedWeights, packed
from captioner.search import Hypothesis, search


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
    """

    def __init__(
        self, checkpoint: Checkpoint | Sequence[Checkpoint], device: torch.device | str = "cpu"
    ):
        self._members = members(checkpoint)
        self.checkpoint = self._members[0]
        self.device = torch.device(device)
        self._encoders = {
            member.encoder: Encoder(member.encoder, member.encoder_state).to(self.device)
            for member in {member.encoder: member for member in self._members}.values()
        }
        looks = looking(self._members)
        self._grid = looks.grid
        self.encoder = self._encoders[looks.encoder]
        self.decoder = writer(self._members).to(self.device)
        self._packed = PackedWeights(self.decoder)
        self.vocabulary = self.checkpoint.vocabulary

    @property
    def decode(self) -> DecodeConfig:
        """The search settings used when nothing else is asked for."""
        return self.checkpoint.decode

    def caption(self, picture: ImageSource, **settings: Any) -> Caption:
        """The best caption of a picture: a path, encoded bytes, a PIL image or an array.

        settings are fields of DecodeConfig, such as beam_size=3 or sample=True, top_p=0.9.
        Raises DataError if it is not a readable picture, ConfigError for a wrong setting.
        """
        return self.captions(picture, **{"captions": 1, **settings})[0]

    def captions(self, picture: ImageSource, **settings: Any) -> list[Caption]:
        """Several captions of a picture, best first: as many as `captions` (default: the beam).

        No two are equal: samples that repeat an earlier one are drawn again, and if no new one
        comes, as at a low temperature, there are fewer.
        """
        decode = self._decode(settings)
        if "captions" not in settings and not decode.sample:
            decode = replace(decode, captions=decode.beam_size)
        return self.search([picture], decode)[0]

    def caption_many(
        self, pictures: Iterable[ImageSource], *, batch_images: int = 16, **settings: Any
    ) -> Iterator[Caption]:
        """The best caption of each picture, in order, computed a batch at a time."""
        decode = replace(self._decode(settings), captions=1)
        source = iter(pictures)
        while batch := list(islice(source, batch_images)):
            for captions in self.search(batch, decode):
                yield captions[0]

    def seen(self, picture: ImageSource) -> Image.Image:
        """The upright RGB part of a picture that the encoder sees; attention lies over this."""
        return self.encoder.seen(open_image(picture))

    @torch.inference_mode()
    def search(self, pictures: list[ImageSource], decode: DecodeConfig) -> list[list[Caption]]:
        """Captions of each picture of one batch, best first."""
        images = [open_image(picture) for picture in pictures]
        features = {
            config: encoder(torch.stack([encoder.preprocess(i) for i in images]).to(self.device))
            for config, encoder in self._encoders.items()
        }
        own = [features[member.encoder] for member in self._members]  # (B, L, D) each
        with packed(self._packed):
            memory, state = self.decoder.start(*own)
            step = partial(self.decoder.step, memory)
            found = search(step, state, decode, self.vocabulary.bad_endings(), distinct=True)
        return [[self._caption(hypothesis) for hypothesis in group] for group in found]

    def _caption(self, hypothesis: Hypothesis) -> Caption:
        words = tuple(self.vocabulary.decode(hypothesis.tokens))
        attention = None
        if hypothesis.attention is not None:
            side = self._grid
            attention = hypothesis.attention.float().numpy().reshape(len(words), side, side)
        return Caption(" ".join(words), words, hypothesis.score, attention)

    def _decode(self, settings: dict[str, Any]) -> DecodeConfig:
        known = [field.name for field in fields(DecodeConfig)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigError(f"no setting {unknown[0]!r}; known are {', '.join(known)}")
        return replace(self.decode, **settings)


def load(path: Path | str | Sequence[Path | str], device: torch.device | str = "cpu") -> Captioner:
    """A Captioner from a checkpoint folder or a Hugging Face Hub id; of several, their ensemble.

    Raises CheckpointError when there is none, it is damaged or of another version, or the members
    of an ensemble do not have the same vocabulary.
    """
    paths = [path] if isinstance(path, Path | str) else path
    return Captioner(load_members(paths), device)
