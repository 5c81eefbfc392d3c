"""Draw where each word of a caption looked."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.errors import DataError
from captioner.pipeline import Caption


def overlay(
    image: Image.Image, weights: npt.NDArray[np.float32], peak: float | None = None
) -> Image.Image:
    """Lay one word's attention (rows, columns) over a picture: bright where it looked.

    `peak` is the weight shown brightest; the word's own highest by default.
    """
    top = float(weights.max() if peak is None else peak) or 1.0
    light = Image.fromarray((weights / top * 255).clip(0, 255).astype(np.uint8))
    mask = np.asarray(light.resize(image.size, Image.Resampling.BICUBIC), np.float32)[..., None]
    mask = mask / np.float32(255)
    pixels = np.asarray(image, np.float32)
    warm = np.array([255, 190, 40], np.float32)
    mixed = pixels * (0.30 + 0.70 * mask) + warm * (0.28 * mask)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def draw(seen: Image.Image, caption: Caption, path: Path) -> None:
    """Write a PNG with the picture, as `Captioner.seen` gives it, and an overlay for each word.

    Raises DataError if the decoder has no attention, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # slow to import, used here only

    if caption.attention is None:
        raise DataError("this checkpoint's decoder has no attention to draw")
    image = seen.copy()
    image.thumbnail((480, 480))
    panels = [("", image)]
    panels += [
        (word, overlay(image, weights))
        for word, weights in zip(caption.words, caption.attention, strict=True)
    ]
    columns = min(len(panels), 5)
    rows = math.ceil(len(panels) / columns)
    height = 2.3 * image.height / image.width + 0.35
    figure = Figure(figsize=(2.3 * columns, height * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, (word, panel) in zip(axes, panels, strict=False):
        axis.imshow(panel)
        axis.set_title(word, fontsize=12)
    figure.suptitle(caption.text, fontsize=13)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100, format="png")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
