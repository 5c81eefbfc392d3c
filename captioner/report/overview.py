"""Write the report of an evaluation or of a result file."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
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
from captioner.report.html import OpenImage, write_report


def report_evaluation(
    path: Path,
    result: Evaluation,
    intervals: Mapping[str, Interval],
    members: Sequence[Checkpoint],
    data: Path | str,
    settings: Mapping[str, str],
    images: Path | None,
) -> None:
    """Write the report of `evaluate`, with the images found in the folder `images`.

    `members` are the checkpoints that were evaluated, one or an ensemble.
    """
    grid, encoder = members[0].grid, members[0].encoder  # the same for every member
    examples = result.dataset.examples

    def attention(image_id: ImageId, image: Image.Image) -> Image.Image | None:
        weights = result.attention[image_id]
        if weights is None or not len(weights):
            return None
        maps = np.asarray(weights.float()).reshape(-1, grid, grid)
        return sheet(seen(image, encoder), result.captions[image_id].split(), maps)

    write_report(
        path,
        title=f"Captions of {result.dataset.split}",
        scores=result.scores,
        intervals=intervals,
        captions=result.captions,
        references=references(result.dataset),
        images=_opener({example.image_id: example.image for example in examples}, images),
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
    """Write the report of a result file, with the images found in the folder `images`."""
    write_report(
        path,
        title=f"Captions of {Path(settings['results']).name}",
        scores=scores,
        intervals=intervals,
        captions=captions,
        references=references.captions,
        images=_opener(references.files, images),
        settings={**settings, "date": _today()},
    )


def _opener(files: Mapping[Any, str], folder: Path | None) -> OpenImage:
    """Return a function that opens an image by its id, and returns None if it is not there."""

    def open_by_id(image_id: ImageId) -> Image.Image | None:
        name = files.get(image_id)
        if folder is None or name is None:
            return None
        try:
            return open_image(folder / name)
        except DataError:
            return None

    return open_by_id


def _training_captions(data: Path | str) -> set[str] | None:
    return {
        " ".join(tokenize(caption))
        for example in read_examples(Path(data))
        if example.split == "train"
        for caption in example.captions
    } or None


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
