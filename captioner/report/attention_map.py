"""Draw where each word of a caption looked."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from captioner.errors import DataError
from captioner.files import replacing


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


def sheet(
    seen: Image.Image, words: Sequence[str], attention: npt.NDArray[np.float32]
) -> Image.Image:
    """The picture as the encoder sees it, and an overlay for each word; attention (words, r, c)."""
    from matplotlib.figure import Figure  # slow to import, used here only

    image = seen.copy()
    image.thumbnail((480, 480))
    panels = [("", image)]
    panels += [
        (word, overlay(image, weights)) for word, weights in zip(words, attention, strict=True)
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
    figure.suptitle(" ".join(words), fontsize=13)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100, format="png")
    return Image.open(drawn).convert("RGB")


def draw(
    seen: Image.Image, words: Sequence[str], attention: npt.NDArray[np.float32] | None, path: Path
) -> None:
    """Write `sheet` as a PNG.

    Raises DataError if the decoder has no attention, or the file cannot be written.
    """
    if attention is None:
        raise DataError("this checkpoint's decoder has no attention to draw")
    try:
        with replacing(path) as partial:
            sheet(seen, words, attention).save(partial, "PNG")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
