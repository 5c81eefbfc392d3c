"""Answer one request: check it, caption the image and draw the attention of each word."""

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
    """How to caption: fields of captioner's DecodeConfig within the bounds of a server.

    Raises ConfigError for a value of any type outside LIMITS: it comes from the network.
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
        """Return the settings with an effect: a search has no temperature, sampling no beam."""
        idle = SEARCHING if self.sample else SAMPLING
        return {name: value for name, value in asdict(self).items() if name not in idle}


@dataclass(frozen=True)
class Answer:
    """The captions of an image, best first, and an overlay for each word of the best one."""

    captions: list[Caption]
    overlays: list[tuple[Image.Image, str]]  # empty if the decoder has no attention

    @property
    def best(self) -> Caption:
        return self.captions[0]


class Service:
    """One model shared by all visitors; it captions one image at a time.

    `default` is the checkpoint's own request, brought within LIMITS.
    """

    def __init__(self, model: Captioner):
        self._model = model
        self.default = _default(model)
        self.known_words = len(model.vocabulary) - 4  # without padding, start, end and unknown
        self._lock = threading.Lock()

    def answer(self, upload: object, request: Request, overlays: bool = True) -> Answer:
        """Caption an uploaded file, given as gradio passes it on.

        Raises DataError, naming the file without its folder, if it is not a readable image.
        """
        path = _uploaded(upload)
        if not request.sample:  # a search finds at most one caption for each beam
            request = replace(request, captions=min(request.captions, request.beam_size))
        with self._lock:  # also bounds the memory: a large image takes hundreds of megabytes
            try:
                image = self._model.seen(path)
            except DataError as error:
                message = " ".join(str(error).replace(str(path), path.name).split())
                raise DataError(message) from None
            captions = self._model.captions(image, **request.settings())
            image.thumbnail((OVERLAY_SIDE, OVERLAY_SIDE))
        return Answer(captions, _overlays(image, captions[0]) if overlays else [])


def _uploaded(upload: object) -> Path:
    """Return the path of an uploaded file; raises DataError for anything else.

    Gradio checks that a path is an upload's only in a dict with this mark. Without the mark a
    visitor could name any file of the server.
    """
    if upload is None:
        raise DataError("there is no picture yet: choose one first")
    if isinstance(upload, str):
        raise DataError(
            "the picture is text; upload it, in Python with gradio_client.handle_file(PATH or URL)"
        )
    meta = upload.get("meta") if isinstance(upload, dict) else None
    path = upload.get("path") if isinstance(upload, dict) else None
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
    if not own["sample"]:  # the checkpoint sets no sampling; sampling from all words is wild
        own |= {"temperature": 0.7, "top_p": 0.9}
    values = {name: min(max(own[name], least), most) for name, (least, most) in LIMITS.items()}
    return Request(**{**values, "sample": own["sample"], "captions": values["beam_size"]})
