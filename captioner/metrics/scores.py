"""Scores of captions: the metrics, and what a metric returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
SPICE = "SPICE"  # only on request: it needs files that do not come with pycocoevalcap

ImageId: TypeAlias = Any  # anything hashable: COCO's number, a file name
Tokens: TypeAlias = dict[ImageId, list[str]]  # image -> its captions, tokens joined by a space
Array: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores as fractions (a perfect BLEU is 1; CIDEr goes to 10), metrics in METRICS' order."""

    values: dict[str, float]  # metric -> corpus score
    per_image: dict[str, dict[ImageId, float]]  # metric -> image id -> score
    # metric -> (images, k): what adds up to the corpus score, see `significance.corpus_score`
    sums: dict[str, Array] = field(compare=False, repr=False)
    notes: tuple[str, ...] = ()  # why a score can only be 0


class MetricResult(NamedTuple):
    """The scores of one metric."""

    value: float  # of the corpus
    images: Sequence[float]
    sums: Array  # (images, k)

    @classmethod
    def mean(cls, value: float, images: Sequence[float]) -> MetricResult:
        """Return the result of a metric whose corpus score is the mean over the images."""
        return cls(value, images, np.array(images, np.float64)[:, None])


Results: TypeAlias = dict[str, MetricResult]  # by metric
