"""Answer one request: check it, caption the picture, draw where each word looked."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from captioner import Caption, Captioner, ConfigError, DataError
from captioner.report.attention_map import overlay

LIMITS: dict[str, tuple[float, float]] = {
    "beam_size": (1, 10),
    "max_words": (1, 40),
    "length_norm": (0, 2),
    "temperature": (0.1, 2),
    "top_p": (0.05, 1),
    "captions": (1, 10),
    "seed": (0, 2**32 - 1),
}
WHOLE = ("beam_size", "max_words", "captions", "seed")
SAMPLING, SEARCHING = ("temperature", "top_p", "seed"), ("beam_size",)
OVERLAY_SIDE = 480  # pixels


@dataclass(frozen=True)
class Request:
    """How to caption, in the words of captioner's DecodeConfig but within a server's bounds.

    Raises ConfigError for anything outside LIMITS, whatever its type: it comes from the network.
    """

    beam_size: int
    max_words: int
    length_norm: float
    sample: bool
    temperature: float
    top_p: float
    captions: int
    seed: int

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            is_whole = is_number and value == value // 1
            if not is_number or not least <= value <= most or (name in WHOLE and not is_whole):
                kind = "a whole number" if name in WHOLE else "a number"
                raise ConfigError(
                    f"{name} is {value!r:.40}; it must be {kind} from {least} to {most}"
                )
            if name in WHOLE:
                object.__setattr__(self, name, int(value))  # JSON may say 3.0
        if not isinstance(self.sample, bool):
            raise ConfigError(f"sample is {self.sample!r:.40}; it must be true or false")

    def settings(self) -> dict[str, Any]:
        """The settings that matter: a search has no temperature, sampling no beam."""
        idle = SEARCHING if self.sample else SAMPLING
        return {name: value for name, value in asdict(self).items() if name not in idle}


@dataclass(frozen=True)
class Answer:
    """The captions of a picture, best first, and the best one's words with their overlays."""

    captions: list[Caption]
    overlays: list[tuple[Image.Image, str]]  # empty if the decoder has no attention

    @property
    def best(self) -> Caption:
        return self.captions[0]


class Service:
    """One model shared by all visitors; it works on one picture at a time.

    `default` is the checkpoint's own way to caption, as far as LIMITS allow.
    """

    def __init__(self, model: Captioner):
        self._model = model
        self.default = _default(model)
        self._lock = threading.Lock()

        self.known_words = len(model.vocabulary) - 4  # without padding, start, end and unknown

    def answer(self, picture: object, request: Request, overlays: bool = True) -> Answer:
        """Caption a picture, given as gradio hands an uploaded file on.

        Raises DataError, naming the file without its folder, if it is not a readable picture.
        """
        path = _uploaded(picture)
        if not request.sample:  # a search finds at most one caption for each of its beams
            request = replace(request, captions=min(request.captions, request.beam_size))
        with self._lock:  # also bounds the memory: a large picture takes hundreds of megabytes
            try:
                image = self._model.seen(path)
            except DataError as error:
                message = " ".join(str(error).replace(str(path), path.name).split())
                raise DataError(message) from None
            captions = self._model.captions(image, **request.settings())
            image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
        return Answer(captions, _overlays(image, captions[0]) if overlays else [])


def _uploaded(picture: object) -> Path:
    """The file of a picture that gradio received.

    Gradio has made sure that the path of a dict with this mark, and of no other, is an upload's.
    Without the mark a visitor could name any file of the server.
    """
    if picture is None:
        raise DataError("there is no picture yet: choose one first")
    if isinstance(picture, str):
        raise DataError(
            "the picture is text; upload it, in Python with gradio_client.handle_file(PATH or URL)"
        )
    meta = picture.get("meta") if isinstance(picture, dict) else None
    path = picture.get("path") if isinstance(picture, dict) else None
    if not isinstance(meta, dict) or meta.get("_type") != "gradio.FileData" or not path:
        raise DataError("the picture was not uploaded: send it to /gradio_api/upload first")
    return Path(str(path))


def _overlays(image: Image.Image, caption: Caption) -> list[tuple[Image.Image, str]]:
    if caption.attention is None:
        return []
    return [
        (overlay(image, weights), word)
        for word, weights in zip(caption.words, caption.attention, strict=True)
    ]


def _default(model: Captioner) -> Request:
    own = asdict(model.decode)
    if not own["sample"]:  # it says nothing about drawing, and drawing from all words is wild
        own |= {"temperature": 0.7, "top_p": 0.9}
    values = {name: min(max(own[name], least), most) for name, (least, most) in LIMITS.items()}
    return Request(**{**values, "sample": own["sample"], "captions": values["beam_size"]})
