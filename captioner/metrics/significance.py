"""Confidence intervals of corpus scores, and significance tests of their differences.

The corpus score of every metric is a function of sums over the images (`Scores.sums`), so the score
of any resample of the images takes a matrix product and a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from captioner.errors import MetricError
from captioner.metrics.scores import Array, ImageId, Scores

CHUNK = 2**22  # numbers in a matrix of weights: 32 MB


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """The difference of two corpus scores, ours - theirs, with its interval and p-value."""

    difference: float
    interval: Interval
    p_value: float  # two-sided


def intervals(
    scores: Scores, *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Return the confidence interval of every metric's corpus score.

    These are percentiles over `samples` resamples of the images with replacement (Koehn 2004,
    Statistical Significance Tests for Machine Translation Evaluation). They cover the choice of the
    images, not that of the references or of the training seed. Raises MetricError for a level or
    number of samples out of range.
    """
    _check(level, samples)
    images = len(_images(scores))

    def resampled(name: str, counts: Array) -> Array:
        return corpus_score(name, counts @ scores.sums[name], images)

    resamples = _collected(scores.sums, resampled, _resamples(images, samples, seed))
    return {name: _interval(values, level) for name, values in resamples.items()}


def compare(
    ours: Scores, theirs: Scores, *, level: float = 0.95, samples: int = 1000, seed: int = 0
) -> dict[str, Comparison]:
    """Compare two systems in every metric that both have, image by image.

    Both must have been scored on the same images against the same references, in any order. The
    interval of the difference is from resamples of the images with replacement, the same for both
    systems (Koehn 2004). The p-value is by approximate randomisation: how often swapping the two
    captions of random images gives a difference at least as large (Noreen 1989, Computer-Intensive
    Methods for Testing Hypotheses; Riezler & Maxwell 2005, On Some Pitfalls in Automatic Evaluation
    and Significance Testing for MT). It is at least 1 / (samples + 1). Raises MetricError when the
    images differ, and for a level or number of samples out of range.
    """
    _check(level, samples)
    place = _places(ours, theirs)
    own = {name: sums for name, sums in ours.sums.items() if name in theirs.sums}
    other = {name: theirs.sums[name][place] for name in own}

    def difference(name: str, mine: Array, yours: Array) -> Array:
        images = len(place)
        return corpus_score(name, mine, images) - corpus_score(name, yours, images)

    def resampled(name: str, counts: Array) -> Array:
        return difference(name, counts @ own[name], counts @ other[name])

    def swapped(name: str, swaps: Array) -> Array:
        moved = swaps @ (other[name] - own[name])
        return difference(name, own[name].sum(0) + moved, other[name].sum(0) - moved)

    resamples = _collected(own, resampled, _resamples(len(place), samples, seed))
    chance = _collected(own, swapped, _swaps(len(place), samples, seed))
    found = {}
    for name in own:
        observed = float(difference(name, own[name].sum(0), other[name].sum(0)))
        # Sums are rounded: a difference smaller in its last digits alone counts as large.
        as_large = int(np.count_nonzero(np.abs(chance[name]) >= abs(observed) - 1e-12))
        p_value = (1 + as_large) / (1 + samples)
        found[name] = Comparison(observed, _interval(resamples[name], level), p_value)
    return found


def corpus_score(metric: str, sums: Array, images: int) -> Array:
    """Return the corpus score of statistics (..., k) summed over a number of images -> (...).

    Over all images of a `Scores` it is the corpus score in `values`. Over some of the images, CIDEr
    and SPICE are the mean of the scores as they were: the document frequencies of CIDEr stay those
    of the whole set. The columns are, for BLEU: matches and guesses of 1- to 4-grams, length,
    closest reference length; for METEOR: the 23 numbers of its program's SCORE; else: the image's
    score.
    """
    if metric.startswith("BLEU-"):
        return _bleu(sums, int(metric.removeprefix("BLEU-")))
    if metric == "METEOR":
        return _meteor(sums)
    mean: Array = sums[..., 0] / images
    return mean


def _bleu(sums: Array, n: int) -> Array:
    """Return BLEU-n as pycocoevalcap's BleuScorer does, with its small constants."""
    matches, guesses = sums[..., :n], sums[..., 4 : 4 + n]
    length, closest = sums[..., 8], sums[..., 9]  # of the captions, and of the closest references
    precision = np.prod((matches + 1e-15) / (guesses + 1e-9), axis=-1) ** (1 / n)
    ratio = (length + 1e-15) / (closest + 1e-9)
    score: Array = precision * np.exp(np.minimum(0, 1 - 1 / ratio))
    return score


def _meteor(sums: Array) -> Array:
    """Return METEOR 1.5 with its parameters for ranking English.

    Denkowski & Lavie 2014, Meteor Universal: Language Specific Translation Evaluation for Any
    Target Language, section 2; the columns are those of the program's MeteorStats.
    """
    alpha, beta, gamma, delta = 0.85, 0.2, 0.6, 0.75
    stage = np.array([1, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
    lengths, function_words = sums[..., 0:2], sums[..., 2:4]  # of test and reference
    matches = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # stage, word class, side
    chunks, words = sums[..., 20], sums[..., 21:23].mean(-1)
    classes = np.array([delta, 1 - delta])  # content and function words

    weighted = np.einsum("...scd,s,c->...d", matches, stage, classes)
    total = delta * (lengths - function_words) + (1 - delta) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):  # without matches or words it is 0
        precision, recall = np.moveaxis(weighted / total, -1, 0)
        mean = 1 / ((1 - alpha) / precision + alpha / recall)
        score: Array = mean * (1 - gamma * (chunks / words) ** beta)
    return np.nan_to_num(score, nan=0.0)


def _check(level: float, samples: int) -> None:
    if not 0 < level < 1:
        raise MetricError(f"confidence level is {level}; give one between 0 and 1")
    if samples < 1:
        raise MetricError(f"samples is {samples}; give at least 1, usually 1000")


def _images(scores: Scores) -> list[ImageId]:
    """Return the images in the order of the rows of `sums`."""
    return list(next(iter(scores.per_image.values()), {}))


def _places(ours: Scores, theirs: Scores) -> list[int]:
    """Return the place of each of our images among theirs."""
    own, other = _images(ours), _images(theirs)
    place = {image: number for number, image in enumerate(other)}
    if own == other:
        return list(range(len(own)))
    alone = [image for image in own if image not in place] or [*(place.keys() - set(own))]
    if alone:
        raise MetricError(
            f"the systems were scored on different images ({len(own)} and {len(other)}): "
            f"{alone[0]!r} is in one alone; score both on the same images"
        )
    return [place[image] for image in own]


def _collected(
    metrics: Iterable[str], score: Callable[[str, Array], Array], weights: Iterable[Array]
) -> dict[str, Array]:
    """Return every metric's scores under each row of the weights, which come in chunks."""
    found: dict[str, list[Array]] = {name: [] for name in metrics}
    for rows in weights:
        for name, scores in found.items():
            scores.append(score(name, rows))
    return {name: np.concatenate(scores) for name, scores in found.items()}


def _chunks(images: int, samples: int) -> Iterator[tuple[int, int]]:
    """Yield shapes (rows, images) of weight matrices of bounded size, `samples` rows in all."""
    rows = max(1, CHUNK // images)
    for start in range(0, samples, rows):
        yield min(rows, samples - start), images


def _resamples(images: int, samples: int, seed: int) -> Iterator[Array]:
    """Yield how often each image is in a resample with replacement: (rows, images)."""
    rng = np.random.default_rng(seed)
    for rows, _ in _chunks(images, samples):
        chosen = (rng.integers(images, size=images) for _ in range(rows))
        yield np.stack([np.bincount(own, minlength=images) for own in chosen]).astype(np.float64)


def _swaps(images: int, samples: int, seed: int) -> Iterator[Array]:
    """Yield 1 for each swapped image, with probability 1/2, else 0: (rows, images)."""
    rng = np.random.default_rng(seed)
    for shape in _chunks(images, samples):
        yield rng.integers(2, size=shape, dtype=np.uint8).astype(np.float64)


def _interval(values: Array, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
