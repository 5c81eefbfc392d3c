"""The page: an image and the settings on one side, the captions on the other."""

from __future__ import annotations

import html
import random
import time
from pathlib import Path
from typing import Any

import gradio as gr

from app import texts
from app.api import add_endpoint
from app.service import LIMITS, Answer, Request, Service
from app.theme import CSS, theme
from captioner import Captioner, CaptionerError, ConfigError

SAMPLES = Path(__file__).resolve().parents[1] / "checkpoints" / "samples"
WAITING = 16  # requests in the queue; a further one is refused
KEEP_SECONDS = 3600  # uploaded images and overlays are deleted at this age
NUMBERS = tuple(texts.NUMBERS)  # in the order of the controls


def launch(model: Captioner, host: str, port: int, share: bool = False) -> gr.Blocks:
    """Open the page and return while it runs; its `close()` ends it.

    Raises ConfigError if the page cannot be opened at that address.
    """
    page = build(Service(model))
    page.queue(max_size=WAITING, api_open=False)  # closed: every request waits in the queue
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            quiet=True,
            theme=theme(),
            css=CSS,
            max_file_size="20mb",
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
        )
    except Exception as error:  # gradio raises OSError, ValueError and bare Exception here
        raise ConfigError(f"the page cannot open on {host} port {port}: {error}") from error
    return page


def build(service: Service) -> gr.Blocks:
    """Return the page with its endpoint, not yet open."""
    page = gr.Blocks(
        title=texts.NAME,
        analytics_enabled=False,
        delete_cache=(KEEP_SECONDS, KEEP_SECONDS),
        fill_width=True,  # up to the width in the CSS
    )
    with page:
        gr.Markdown(texts.TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                image = _image()
                button = gr.Button(texts.CAPTION_IT, variant="primary", size="lg", elem_id="go")
                examples = _examples(image)
                settings = _settings(service)
            with gr.Column(scale=6, min_width=320):
                results = _results()
        for title, text in (
            (texts.HOW_TITLE, texts.HOW),
            (texts.LIMITS_TITLE, texts.LIMITS.format(words=service.known_words)),
            (texts.API_TITLE, texts.API),
        ):
            with gr.Accordion(title, open=False):
                gr.Markdown(text)
        _connect(service, image, button, examples, settings, results)
        add_endpoint(service)
    return page


def _connect(
    service: Service,
    image: gr.Image,
    button: gr.Button,
    examples: Any,
    settings: list[gr.components.Component],
    results: list[gr.components.Component],
) -> None:
    """Caption the image when the button or an example is pressed."""

    def show(upload: object, method: str, *numbers: Any) -> tuple[Any, ...]:
        started = time.monotonic()
        chosen = dict(zip(NUMBERS, numbers, strict=True))
        seed = random.randrange(2**32)  # each press samples anew
        try:
            request = Request(**chosen, sample=method == "sample", seed=seed)
            return _shown(service.answer(upload, request), time.monotonic() - started)
        except CaptionerError as error:
            return _cleared(f'<div role="alert">{html.escape(str(error))}</div>')

    # With preprocess=False captioner, not gradio, opens the image: its messages are clear. Gradio
    # still checks that the file was uploaded.
    run: dict[str, Any] = {
        "fn": show,
        "inputs": [image, *settings],
        "outputs": results,
        "preprocess": False,
        "show_progress_on": results[0],
        "scroll_to_output": True,
        "concurrency_id": "model",
        "api_visibility": "private",
    }
    button.click(**run)
    if examples:
        examples.load_input_event.then(**run)
    # A new image clears the caption of the one before.
    _at_once(image.input, _cleared, None, results)


def _at_once(event: Any, reaction: Any, inputs: Any, outputs: Any) -> None:
    """React to an event without waiting for captions that are being computed."""
    event(reaction, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private")


def _image() -> gr.Image:
    return gr.Image(
        label=texts.PICTURE,
        type="filepath",
        image_mode=None,
        sources=["upload", "webcam", "clipboard"],
        height=340,
        elem_id="picture",
    )


def _examples(image: gr.Image) -> Any:
    samples = [[str(path)] for path in sorted(SAMPLES.glob("*.jpg"))]
    if not samples:
        return None
    return gr.Examples(
        samples,
        image,
        label=texts.EXAMPLES,
        examples_per_page=12,
        elem_id="examples",
        cache_examples=False,
        api_visibility="private",
    )


def _settings(service: Service) -> list[gr.components.Component]:
    """Return the controls: the method, then NUMBERS in their order."""
    default = service.default

    def slider(name: str, step: float = 1) -> gr.Slider:
        (least, most), (label, info) = LIMITS[name], texts.NUMBERS[name]
        return gr.Slider(least, most, getattr(default, name), step=step, label=label, info=info)

    with gr.Accordion(texts.SETTINGS, open=False):
        method = gr.Radio(
            [(label, value) for value, label in texts.METHODS.items()],
            value="sample" if default.sample else "search",
            label=texts.METHOD,
        )
        with gr.Group(visible=not default.sample) as search:
            beam_size, length_norm = slider("beam_size"), slider("length_norm", step=0.05)
        with gr.Group(visible=default.sample) as sampling:
            temperature, top_p = slider("temperature", step=0.05), slider("top_p", step=0.05)
        with gr.Group():
            max_words, captions = slider("max_words"), slider("captions")

    def switch(method: str) -> tuple[Any, Any]:
        return gr.update(visible=method == "search"), gr.update(visible=method == "sample")

    _at_once(method.change, switch, method, [search, sampling])
    return [method, beam_size, length_norm, temperature, top_p, max_words, captions]


def _results() -> list[gr.components.Component]:
    """Return where the answer goes, in the order of `_shown` and `_cleared`."""
    caption = gr.Textbox(
        label=texts.CAPTION,
        lines=2,
        placeholder=texts.PLACEHOLDER,
        buttons=["copy"],
        interactive=False,
        elem_id="caption",
    )
    note = gr.HTML(padding=False, elem_id="note")
    looks = gr.Gallery(
        label=texts.LOOKS,
        height="auto",
        format="jpeg",
        buttons=["fullscreen"],
        interactive=False,
        visible=False,
        elem_id="looks",
    )
    table = gr.HTML(padding=False, elem_id="table")
    return [caption, note, looks, table]


def _shown(answer: Answer, seconds: float) -> tuple[Any, ...]:
    note = texts.FOUND.format(score=answer.best.score, seconds=seconds)
    if not answer.overlays:
        note += texts.NO_ATTENTION
    looks = gr.update(value=answer.overlays, visible=bool(answer.overlays), selected_index=None)
    return answer.best.text, note, looks, _table(answer)


def _table(answer: Answer) -> str:
    if len(answer.captions) == 1:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(caption.text)}</td><td>{caption.score:.3f}</td></tr>"
        for caption in answer.captions
    )
    head = f"<tr><th>{texts.CAPTIONS_HEAD}</th><th>{texts.SCORE_HEAD}</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _cleared(note: str = "") -> tuple[Any, ...]:
    return "", note, gr.update(value=None, visible=False), ""
