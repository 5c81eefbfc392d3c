"""The page: a picture and the settings on one side, what the model says on the other."""

from __future__ import annotations

import html
import random
import time
from pathlib import Path
from typing import Any

import gradio as gr

from app import words
from app.api import add_endpoint
from app.look import CSS, theme
from app.service import LIMITS, Answer, Request, Service
from captioner import Captioner, CaptionerError, ConfigError

SAMPLES = Path(__file__).resolve().parents[1] / "checkpoints" / "samples"
WAITING = 16  # requests in the queue; the next one is told to come back later
KEEP_SECONDS = 3600  # uploaded and drawn pictures are deleted when they are this old
NUMBERS = ("beam_size", "length_norm", "temperature", "top_p", "max_words", "captions")


def launch(model: Captioner, host: str, port: int, share: bool = False) -> gr.Blocks:
    """Open the page and return while it runs; its `close()` ends it.

    Raises ConfigError if it cannot be opened there.
    """
    page = build(Service(model))
    page.queue(max_size=WAITING, api_open=False)  # closed: no request goes past the queue
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
    """The page with its endpoint, not yet open."""
    page = gr.Blocks(
        title="Image captioner",
        analytics_enabled=False,
        delete_cache=(KEEP_SECONDS, KEEP_SECONDS),
        fill_width=True,  # up to the width in the CSS
    )
    with page:
        gr.Markdown(words.TITLE, elem_id="title")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "webcam", "clipboard"],
                    height=340,
                    elem_id="picture",
                )
                button = gr.Button("Caption it", variant="primary", size="lg", elem_id="go")
                examples = _examples(picture)
                settings = _settings(service)
            with gr.Column(scale=6, min_width=320):
                results = _results()
        with gr.Accordion("How it works", open=False):
            gr.Markdown(words.HOW)
        with gr.Accordion("What it cannot do", open=False):
            gr.Markdown(words.LIMITS.format(words=service.known_words))
        with gr.Accordion("Use it from a program", open=False):
            gr.Markdown(words.API)

        def show(picture: object, method: str, *numbers: Any) -> tuple[Any, ...]:
            started = time.monotonic()
            chosen = dict(zip(NUMBERS, numbers, strict=True))
            seed = random.randrange(2**32)  # each press draws anew
            try:
                request = Request(**chosen, sample=method == "sample", seed=seed)
                return _shown(service.answer(picture, request), time.monotonic() - started)
            except CaptionerError as error:
                return _nothing(f'<div role="alert">{html.escape(str(error))}</div>')

        # With preprocess=False gradio leaves the opening of the picture to captioner, whose
        # messages are clear; that the file was uploaded it makes sure all the same.
        run: dict[str, Any] = {
            "fn": show,
            "inputs": [picture, *settings],
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
        # The caption of the picture before does not stay beside the new one.
        _at_once(picture.input, _nothing, None, results)
        add_endpoint(service)
    return page


def _at_once(event: Any, reaction: Any, inputs: Any, outputs: Any) -> None:
    """React to an event without waiting for anybody's captions."""
    event(reaction, inputs, outputs, queue=False, show_progress="hidden", api_visibility="private")


def _examples(picture: gr.Image) -> Any:
    samples = [[str(path)] for path in sorted(SAMPLES.glob("*.jpg"))]
    if not samples:
        return None
    return gr.Examples(
        samples,
        picture,
        label="Or try one of these",
        elem_id="examples",
        cache_examples=False,
        api_visibility="private",
    )


def _settings(service: Service) -> list[gr.components.Component]:
    """How to choose the words, and the NUMBERS in their order."""
    default = service.default

    def slider(name: str, label: str, info: str, step: float = 1) -> gr.Slider:
        least, most = LIMITS[name]
        return gr.Slider(least, most, getattr(default, name), step=step, label=label, info=info)

    with gr.Accordion("Settings", open=False):
        method = gr.Radio(
            [("Search for the likeliest", "search"), ("Draw at random", "sample")],
            value="sample" if default.sample else "search",
            label="How to choose the words",
        )
        with gr.Group(visible=not default.sample) as search:
            beam_size = slider(
                "beam_size",
                "Beam size",
                "Beginnings of a sentence that are kept at each word; 1 is fastest.",
            )
            length_norm = slider(
                "length_norm",
                "Length normalisation",
                "Higher favours longer captions; at 0 short ones win.",
                step=0.05,
            )
        with gr.Group(visible=default.sample) as draw:
            temperature = slider(
                "temperature", "Temperature", "Below 1 is safer, above 1 bolder.", step=0.05
            )
            top_p = slider(
                "top_p",
                "Top-p",
                "Draw only from the likeliest words that together have this probability.",
                step=0.05,
            )
        with gr.Group():
            max_words = slider("max_words", "Most words", "A caption is cut here.")
            captions = slider(
                "captions", "Captions to find", "A search finds at most as many as its beam size."
            )

    def switch(method: str) -> tuple[Any, Any]:
        return gr.update(visible=method == "search"), gr.update(visible=method == "sample")

    _at_once(method.change, switch, method, [search, draw])
    return [method, beam_size, length_norm, temperature, top_p, max_words, captions]


def _results() -> list[gr.components.Component]:
    """Where the answer goes, in the order in which `_shown` and `_nothing` give it."""
    caption = gr.Textbox(
        label="Caption",
        lines=2,
        placeholder="Choose a picture and press the button.",
        buttons=["copy"],
        interactive=False,
        elem_id="caption",
    )
    note = gr.HTML(padding=False, elem_id="note")
    looks = gr.Gallery(
        label="Where it looked for each word",
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
    note = f"score {answer.best.score:.3f}, found in {seconds:.1f} s"
    if not answer.overlays:
        note += "; this model has no attention to show"
    looks = gr.update(value=answer.overlays, visible=bool(answer.overlays), selected_index=None)
    return answer.best.text, note, looks, _table(answer)


def _table(answer: Answer) -> str:
    if len(answer.captions) == 1:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(caption.text)}</td><td>{caption.score:.3f}</td></tr>"
        for caption in answer.captions
    )
    head = "<tr><th>All captions, best first</th><th>Score</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _nothing(note: str = "") -> tuple[Any, ...]:
    return "", note, gr.update(value=None, visible=False), ""
