"""Reports of an evaluation or of a result file: what the page needs, put together."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captioner.checkpoint import Checkpoint
from captioner.data.coco import References
from captioner.data.dataset import read_examples
from captioner.data.images import open_image
from captioner.data.vocabulary import tokenize
from captioner.errors import DataError
from captioner.evaluate import Evaluation, references
from captioner.metrics.scores import ImageId, Scores
from captioner.metrics.significance import Interval
from captioner.model.encoder import seen
from captioner.report.attention_map import sheet
from captioner.report.html import write_report


def report_evaluation(
    path: Path,
    result: Evaluation,
    intervals: Mapping[str, Interval],
    members: Sequence[Checkpoint],
    data: Path | str,
    settings: Mapping[str, str],
    images: Path | None,
) -> None:
    """Write the report of `evaluate`; photographs and attention are shown if `images` has them.

    `members` are the checkpoints that were evaluated, one or an ensemble.
    """
    grid, encoder = members[0].grid, members[0].encoder  # those of the data, of all of them
    examples = result.dataset.examples
    photograph = _photographs({example.image_id: example.image for example in examples}, images)
    words = {key: caption.split() for key, caption in result.captions.items()}

    def attention(image: ImageId) -> Image.Image | None:
        picture, weights = photograph(image), result.attention[image]
        if picture is None or weights is None or not len(weights):
            return None
        looks = np.asarray(weights.float()).reshape(-1, grid, grid)
        return sheet(seen(picture, encoder), words[image], looks)

    write_report(
        path,
        title=f"Captions of {result.dataset.split}",
        scores=result.scores,
        intervals=intervals,
        captions=result.captions,
        references=references(result.dataset),
        pictures=photograph,
        attention=attention,
        training_captions=_training_captions(data),
        settings={
            **settings,
            "decoder": f"{' + '.join(m.model.decoder for m in members)} on {encoder.name}",
            "date": _today(),
        },
    )


def report_results(
    path: Path,
    captions: Mapping[ImageId, str],
    references: References,
    scores: Scores,
    intervals: Mapping[str, Interval],
    settings: Mapping[str, str],
    images: Path | None,
) -> None:
    """Write the report of a result file."""
    write_report(
        path,
        title=f"Captions of {Path(settings['results']).name}",
        scores=scores,
        intervals=intervals,
        captions=captions,
        references=references.captions,
        pictures=_photographs(references.files, images),
        settings={**settings, "date": _today()},
    )


def _photographs(
    files: Mapping[Any, str], folder: Path | None
) -> Callable[[ImageId], Image.Image | None]:
    """The photograph of an image, if the folder has it."""

    def photograph(image: ImageId) -> Image.Image | None:
        name = files.get(image)
        if folder is None or name is None:
            return None
        try:
            return open_image(folder / name)
        except DataError:
            return None

    return photograph


def _training_captions(data: Path | str) -> set[str] | None:
    return {
        " ".join(tokenize(caption))
        for example in read_examples(Path(data))
        if example.split == "train"
        for caption in example.captions
    } or None


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
