"""The API endpoint `/caption`, and gradio's form of our errors."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import api

from app.service import Answer, Request, Service
from captioner import CaptionerError, DataError


def add_endpoint(service: Service) -> None:
    """Add `/caption` to the page that is being built; its defaults are the checkpoint's own."""
    default = service.default

    def caption(
        picture: gr.FileData,
        beam_size: int = default.beam_size,
        max_words: int = default.max_words,
        length_norm: float = default.length_norm,
        sample: bool = default.sample,
        temperature: float = default.temperature,
        top_p: float = default.top_p,
        captions: int = default.captions,
        seed: int = default.seed,
    ) -> dict[str, Any]:
        """Caption an uploaded picture: the best caption, its words and score, the alternatives."""
        settings = (beam_size, max_words, length_norm, sample, temperature, top_p, captions, seed)
        return _as_json(answer(service, picture, *settings, overlays=False))

    api(caption, api_name="caption", concurrency_id="model")


def answer(service: Service, picture: object, *settings: Any, overlays: bool = True) -> Answer:
    """What the service answers to a picture as gradio hands it on and the fields of a Request.

    Raises gr.Error with the same one line for what captioner finds wrong.
    """
    try:
        return service.answer(_uploaded(picture), Request(*settings), overlays)
    except CaptionerError as error:
        message = html.escape(str(error), quote=False)  # gradio shows a message as HTML
        raise gr.Error(message, print_exception=False) from None


def _uploaded(picture: object) -> Path:
    """The file of a picture that gradio received.

    Gradio has made sure that the path of a dict with this mark, and of no other, is an upload's.
    Without the mark a visitor could name any file of the server.
    """
    if picture is None:
        raise DataError("there is no picture yet: choose one first")
    meta = picture.get("meta") if isinstance(picture, dict) else None
    path = picture.get("path") if isinstance(picture, dict) else None
    if not isinstance(meta, dict) or meta.get("_type") != "gradio.FileData" or not path:
        raise DataError("the picture was not uploaded: send it to /gradio_api/upload first")
    return Path(str(path))


def _as_json(answer: Answer) -> dict[str, Any]:
    others = [{"caption": other.text, "score": other.score} for other in answer.captions[1:]]
    return {
        "caption": answer.best.text,
        "words": list(answer.best.words),
        "score": answer.best.score,
        "alternatives": others,
    }
