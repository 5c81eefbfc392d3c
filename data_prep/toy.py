"""Draw a toy data set of coloured shapes, to try everything out in a minute."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from captioner.errors import DataError
from data_prep.records import Record

SIDE = 224
RADIUS = {"small": 20, "big": 44}
COLOURS = {
    "red": (214, 40, 40),
    "green": (44, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (245, 210, 45),
    "purple": (135, 50, 165),
}
# Corners, angle of the first one in turns from the top, and relative radius of every second one.
KINDS = {
    "circle": (48, 0.0, 1.0),
    "square": (4, 1 / 8, 1.0),
    "triangle": (3, 0.0, 1.0),
    "star": (10, 0.0, 0.4),
}
BACKGROUNDS = ((240, 238, 232), (205, 220, 235), (222, 205, 195), (165, 170, 175), (60, 62, 70))

# The direction from shape {b} to shape {a}, and the captions of the two.
RELATIONS = {
    (0, -1): (
        "{a} above {b}",
        "{b} below {a}",
        "there is {a} over {b}",
        "{a} is above {b}",
        "{b} with {a} above it",
    ),
    (-1, 0): (
        "{a} left of {b}",
        "{b} right of {a}",
        "there is {a} to the left of {b}",
        "{a} is left of {b}",
        "{b} with {a} to its left",
    ),
    (0, 0): (
        "{a} inside {b}",
        "{b} around {a}",
        "there is {a} in the middle of {b}",
        "{a} is inside {b}",
        "{b} with {a} inside it",
    ),
}


@dataclass(frozen=True)
class Shape:
    """One shape as captions describe it."""

    size: str
    colour: str
    kind: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.kind}"


def draw(folder: Path, count: int, seed: int) -> list[Record]:
    """Draw `count` images into `folder`; returns their records, all in train.

    The same seed draws the same images. It is part of their names, so images of different seeds
    are never confused. Raises DataError if the folder cannot be written.
    """
    records = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            rng = np.random.default_rng((seed, number))
            image, captions = scene(rng)
            path = folder / f"toy{seed}_{number:05d}.jpg"
            image.save(path, quality=92)
            records.append(Record(path.name, path, "train", captions, number))
    except OSError as error:
        raise DataError(f"cannot write images to {folder}: {error.strerror}") from None
    return records


def scene(rng: np.random.Generator) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image of two shapes, and its captions."""
    way = list(RELATIONS)[rng.integers(len(RELATIONS))]
    inside = way == (0, 0)
    a, b = _shape(rng), _shape(rng)
    while (
        a.colour == b.colour
        or (inside and (a.size, b.size) != ("small", "big"))
        or (inside and b.kind == "star")  # too slim to hold another shape
    ):
        a, b = _shape(rng), _shape(rng)
    middle = SIDE / 2 + rng.uniform(-12, 12, 2)
    apart = np.array(way) * rng.uniform(88, 108) + np.array(way[::-1]) * rng.uniform(-30, 30)
    image = _background(rng)
    pen = ImageDraw.Draw(image)
    for shape, centre in ((b, middle - apart / 2), (a, middle + apart / 2)):
        colour = COLOURS[shape.colour] + rng.integers(-12, 13, 3)
        pen.polygon(_outline(shape, centre), fill=tuple(int(c) for c in colour.clip(0, 255)))
    return image, tuple(wording.format(a=a, b=b) for wording in RELATIONS[way])


def _shape(rng: np.random.Generator) -> Shape:
    size, colour, kind = (
        list(names)[rng.integers(len(names))] for names in (RADIUS, COLOURS, KINDS)
    )
    return Shape(size, colour, kind)


def _outline(shape: Shape, centre: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    corners, first, inner = KINDS[shape.kind]
    points = []
    for corner in range(corners):
        angle = 2 * math.pi * (first + corner / corners)
        radius = RADIUS[shape.size] * (inner if corner % 2 else 1)
        points.append((centre[0] + radius * math.sin(angle), centre[1] - radius * math.cos(angle)))
    return points


def _background(rng: np.random.Generator) -> Image.Image:
    """Return a plain colour, a brightness gradient or stripes, with some noise."""
    pixels = np.full((SIDE, SIDE, 3), BACKGROUNDS[rng.integers(len(BACKGROUNDS))], np.float32)
    along = np.linspace(-1, 1, SIDE, dtype=np.float32)
    pattern = rng.integers(3)
    if pattern == 1:
        pixels += rng.uniform(-25, 25) * along[:, None, None]
    elif pattern == 2:
        pixels += 10 * np.sign(np.sin(along * rng.uniform(10, 40)))[None, :, None]
    pixels += rng.normal(0, rng.uniform(0, 8), (SIDE, SIDE, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
