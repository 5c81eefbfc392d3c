"""The API endpoint `/caption`."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context
from gradio.events import api

from app.service import Answer, Request, Service
from captioner import CaptionerError


def add_endpoint(service: Service) -> None:
    """Add the endpoint `/caption` to the page that is being built."""
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
        try:
            request = Request(
                beam_size=beam_size,
                max_words=max_words,
                length_norm=length_norm,
                sample=sample,
                temperature=temperature,
                top_p=top_p,
                captions=captions,
                seed=seed,
            )
            return _as_json(service.answer(picture, request, overlays=False))
        except CaptionerError as error:
            message = html.escape(str(error), quote=False)  # gradio may show it as HTML
            raise gr.Error(message, print_exception=False) from None

    api(caption, api_name="caption", concurrency_id="model")
    page = Context.root_block
    for function in page.fns.values() if page else ():
        if function.api_name == "caption":
            _explain_failed_download(function.inputs[0])


def _explain_failed_download(picture: gr.blocks.Block) -> None:
    """Raise an error that names the URL when an image cannot be fetched from it.

    gradio fetches it before the endpoint runs, from public addresses only.
    """
    fetch = picture.async_move_resource_to_block_cache

    async def fetched(url_or_file_path: str | Path | None) -> str | None:
        try:
            return await fetch(url_or_file_path)
        except Exception as error:  # from several libraries: no address, no answer, status 404 ...
            place = str(url_or_file_path)
            if not place.startswith(("http://", "https://")):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            message = html.escape(
                f"{place} cannot be downloaded: {reason:.200}; upload the picture instead",
                quote=False,
            )
            raise gr.Error(message, print_exception=False) from None

    picture.async_move_resource_to_block_cache = fetched  # type: ignore[method-assign]


def _as_json(answer: Answer) -> dict[str, Any]:
    others = [{"caption": other.text, "score": other.score} for other in answer.captions[1:]]
    return {
        "caption": answer.best.text,
        "words": list(answer.best.words),
        "score": answer.best.score,
        "alternatives": others,
    }
