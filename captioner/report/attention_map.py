"""Draw the attention of each word of a caption over its image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.errors import DataError
from captioner.files import replacing

SIDE = 480  # pixels at most of an image in a sheet
COLUMNS = 5  # panels in a row of a sheet at most
WARM = np.array([255, 190, 40], np.float32)


def overlay(image: Image.Image, weights: npt.NDArray[np.float32]) -> Image.Image:
    """Return an image lit by one word's attention (rows, columns), brightest at its maximum."""
    top = float(weights.max()) or 1.0
    light = Image.fromarray((weights / top * 255).clip(0, 255).astype(np.uint8))
    mask = np.asarray(light.resize(image.size, Image.Resampling.BICUBIC), np.float32)[..., None]
    mask = mask / np.float32(255)
    pixels = np.asarray(image, np.float32)
    mixed = pixels * (0.30 + 0.70 * mask) + WARM * (0.28 * mask)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def sheet(
    seen: Image.Image, words: Sequence[str], attention: npt.NDArray[np.float32]
) -> Image.Image:
    """Return the image that the encoder sees and an overlay per word; attention (words, r, c)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, used here only
    from matplotlib.figure import Figure

    image = seen.copy()
    image.thumbnail((SIDE, SIDE))
    panels = [("", image)]
    panels += [
        (word, overlay(image, weights)) for word, weights in zip(words, attention, strict=True)
    ]
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    height = 2.3 * image.height / image.width + 0.35
    figure = Figure(figsize=(2.3 * columns, height * rows + 0.4), dpi=100, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, (word, panel) in zip(axes, panels, strict=False):
        axis.imshow(panel)
        axis.set_title(word, fontsize=12)
    figure.suptitle(" ".join(words), fontsize=13)
    canvas: Any = FigureCanvasAgg(figure)  # untyped
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def draw(
    seen: Image.Image, words: Sequence[str], attention: npt.NDArray[np.float32] | None, path: Path
) -> None:
    """Write `sheet` as a PNG.

    Raises DataError if the caption has no attention, or the file cannot be written.
    """
    if attention is None:
        raise DataError("the checkpoint's decoder has no attention; leave the drawing out")
    try:
        with replacing(path) as partial:
            sheet(seen, words, attention).save(partial, "PNG")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
