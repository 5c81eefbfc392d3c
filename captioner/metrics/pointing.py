"""Measure whether attention lies on the object that a word names.

Source: the pointing game of Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV
2016, with the words of a written caption in place of given categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from captioner.errors import MetricError
from captioner.files import read_json

Box: TypeAlias = tuple[
    float, float, float, float
]  # left, top, right, bottom as shares of the image
Boxes: TypeAlias = Mapping[int, Mapping[str, Sequence[Box]]]  # image id -> category -> boxes
Attention: TypeAlias = npt.NDArray[np.floating[Any]]

# Words that name an object of one of COCO's categories, besides the category's own name and its
# plural. A word that may name two of them (bat, mouse, glass) is left out unless COCO's captions
# nearly always mean the one.
_WORDS = {
    "person": "man men woman women boy boys girl girls child children kid kids baby people player "
    "players skier skiers surfer surfers snowboarder skateboarder rider riders lady guy",
    "bicycle": "bike bikes",
    "car": "cars taxi",
    "motorcycle": "motorbike motorcycles",
    "airplane": "plane planes airplanes jet jetliner",
    "bus": "buses",
    "boat": "boats ship",
    "traffic light": "stoplight",
    "fire hydrant": "hydrant",
    "bird": "birds duck ducks pigeon seagull",
    "cat": "kitten",
    "dog": "puppy",
    "sheep": "lamb",
    "cow": "cows bull cattle",
    "suitcase": "luggage",
    "sports ball": "ball",
    "skis": "ski",
    "baseball bat": "bat",
    "tennis racket": "racket racquet",
    "couch": "sofa",
    "potted plant": "plant plants",
    "dining table": "table",
    "tv": "television",
    "cell phone": "phone cellphone",
    "teddy bear": "teddy",
    "donut": "doughnut doughnuts",
    "hot dog": "hotdog",
    "refrigerator": "fridge",
    "broccoli": "broccoli",
    "scissors": "scissors",
}


@dataclass(frozen=True)
class Pointing:
    """How well attention lies on named objects: shares of the words that name one, or of weight."""

    words: int  # words that name an object with a known place
    images: int  # images with such a word
    peak: float  # words whose cell of highest attention has its centre in a box of the object
    inside: float  # mean share of a word's attention inside the boxes
    centre: float  # baseline of `peak`: the image's centre lies in a box
    uniform: float  # baseline of `inside`: the boxes' share of the image

    def lines(self) -> list[str]:
        """Return the result as text."""
        return [
            f"attention's peak in the named object's box: {self.peak:.3f} (the image's centre: "
            f"{self.centre:.3f})",
            f"share of attention in the box: {self.inside:.3f} (evenly spread: {self.uniform:.3f})",
            f"{self.words:,} words of {self.images:,} images name an object with a box",
        ]


def read_boxes(path: Path) -> Boxes:
    """Read the boxes of a COCO instances file; raises MetricError if it is not one."""
    content = read_json(path)
    try:
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        sizes = {entry["id"]: (entry["width"], entry["height"]) for entry in content["images"]}
        found: dict[int, dict[str, list[Box]]] = {}
        for entry in content["annotations"]:
            (width, height), (x, y, w, h) = sizes[entry["image_id"]], entry["bbox"]
            box = (x / width, y / height, (x + w) / width, (y + h) / height)
            own = found.setdefault(entry["image_id"], {})
            own.setdefault(names[entry["category_id"]], []).append(box)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise MetricError(
            f"{path}: it is not a COCO instances file ({type(error).__name__}: {error}); give one "
            "such as annotations/instances_val2017.json"
        ) from None
    return found


def category_of(word: str, categories: Sequence[str]) -> str | None:
    """Return the category that a word names, of those given; None if it names none."""
    for category in categories:
        own = [category, f"{category}s", *_WORDS.get(category, "").split()]
        if word in own:
            return category
    return None


def pointing(
    captions: Mapping[int, str], attention: Mapping[int, Attention | None], boxes: Boxes
) -> Pointing:
    """Compare attention (words, L) of captions with the boxes of the objects their words name.

    The cells are those of a square grid over the whole image. A word counts where its image has a
    box of the category it names. Raises MetricError if no word of any caption does.
    """
    peaks: list[bool] = []
    inside: list[float] = []
    centres: list[bool] = []
    uniform: list[float] = []
    images = 0
    for image_id, caption in captions.items():
        weights, own = attention[image_id], boxes.get(image_id, {})
        counted = len(peaks)
        for word, row in zip(caption.split(), () if weights is None else weights, strict=False):
            category = category_of(word, list(own))
            if category is None:
                continue
            side = round(len(row) ** 0.5)
            grid = np.asarray(row, np.float64).reshape(side, side)
            covered = _covered(own[category], side)
            y, x = np.unravel_index(grid.argmax(), grid.shape)
            peaks.append(_holds(own[category], (x + 0.5) / side, (y + 0.5) / side))
            centres.append(_holds(own[category], 0.5, 0.5))
            inside.append(float((grid * covered).sum() / grid.sum()))
            uniform.append(float(covered.mean()))
        images += len(peaks) > counted
    if not peaks:
        raise MetricError(
            "no word of the captions names an object that has a box; give the instances file of "
            "the same images, and a decoder with attention"
        )
    return Pointing(
        len(peaks), images, *(float(np.mean(v)) for v in (peaks, inside, centres, uniform))
    )


def _holds(boxes: Sequence[Box], x: float, y: float) -> bool:
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def _covered(boxes: Sequence[Box], side: int, fine: int = 8) -> npt.NDArray[np.float64]:
    """Return the share of each cell (side, side) in any box, by `fine` x `fine` points a cell."""
    points = (np.arange(side * fine) + 0.5) / (side * fine)
    mask = np.zeros((side * fine, side * fine), bool)
    for left, top, right, bottom in boxes:
        rows = (points >= top) & (points <= bottom)
        columns = (points >= left) & (points <= right)
        mask |= rows[:, None] & columns[None, :]
    shares: npt.NDArray[np.float64] = mask.reshape(side, fine, side, fine).mean((1, 3))
    return shares
