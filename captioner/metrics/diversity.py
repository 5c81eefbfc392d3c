"""Measure how diverse the captions of a decoder are, for each image and over all images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np

from captioner.errors import MetricError
from captioner.metrics.cider import CiderD, Frequencies
from captioner.metrics.scores import ImageId


def diversity(
    captions: Mapping[ImageId, Sequence[str]], *, frequencies: Frequencies | None = None
) -> dict[str, float]:
    """Measure how diverse several captions of each image are: samples, or the beams of a search.

    Captions are tokens, or plain lower-case words, joined by a space.

    - "distinct captions": different captions / captions, over all images.
    - "distinct-1", "distinct-2": different n-grams / words over the captions of an image, then the
      mean over the images (Li et al. 2016, arXiv:1510.03055; Div-1 and Div-2 of Shetty et al. 2017,
      arXiv:1703.10476).
    - "mBLEU-4": corpus BLEU-4 of every image's first caption against its other captions, likewise
      of every second caption and so on, then the mean (Shetty et al. 2017). Lower is more diverse.
    - "self-CIDEr": -log_m(r), then the mean over the images (Wang and Chan 2019, arXiv:1903.12020,
      with the square roots of their code). r is the largest square root of an eigenvalue over the
      sum of all, for the matrix of CIDEr-D between the m captions of an image. It is 0 for m equal
      captions, 1 for captions with nothing in common. Words are weighted by their rarity in
      `frequencies`, in the paper those of the training set, else in these captions. An image whose
      captions have no weight at all counts as 0.
    - "words": different words over all captions.

    Raises MetricError for an image with fewer than two captions, and for a single image without
    `frequencies`.
    """
    _check(captions, frequencies)
    everything = list(chain.from_iterable(captions.values()))
    return {
        "distinct captions": len(set(everything)) / len(everything),
        "distinct-1": float(np.mean([_distinct(own, 1) for own in captions.values()])),
        "distinct-2": float(np.mean([_distinct(own, 2) for own in captions.values()])),
        "mBLEU-4": _mutual_bleu(captions),
        "self-CIDEr": _self_cider(captions, frequencies or CiderD(captions).frequencies),
        "words": float(len({word for caption in everything for word in caption.split()})),
    }


def _check(captions: Mapping[ImageId, Sequence[str]], frequencies: Frequencies | None) -> None:
    if not captions:
        raise MetricError("no captions to compare; give two or more per image")
    for image, own in captions.items():
        if isinstance(own, str):
            raise MetricError(f"image {image!r} has a string for captions; give a list of strings")
        if len(own) < 2:
            raise MetricError(f"image {image!r} has {len(own)} captions; diversity needs two")
    if len(captions) == 1 and frequencies is None:
        raise MetricError(
            "self-CIDEr weights words by their rarity, but there is one image; "
            "give captions of two images or more, or the training set's frequencies"
        )


def _distinct(captions: Sequence[str], n: int) -> float:
    several = [caption.split() for caption in captions]
    ngrams = {tuple(words[i : i + n]) for words in several for i in range(len(words) - n + 1)}
    return len(ngrams) / max(sum(map(len, several)), 1)


def _mutual_bleu(captions: Mapping[ImageId, Sequence[str]]) -> float:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scores, images = [], []
    for place in range(max(map(len, captions.values()))):
        scorer = BleuScorer(n=4)
        for own in captions.values():
            if place < len(own):
                scorer += (own[place], [*own[:place], *own[place + 1 :]])
        scores.append(scorer.compute_score(option="closest", verbose=0)[0][3])
        images.append(scorer.size())
    return float(np.average(scores, weights=images))


def _self_cider(captions: Mapping[ImageId, Sequence[str]], frequencies: Frequencies) -> float:
    alone = {
        (image, number): [caption]
        for image, own in captions.items()
        for number, caption in enumerate(own)
    }
    cider = CiderD(alone, frequencies=frequencies)
    ratios = []
    for image, own in captions.items():
        m = len(own)
        kernel = np.array([[cider.score((image, i), caption) for i in range(m)] for caption in own])
        kernel = (kernel + kernel.T) / 2  # clipped counts make it slightly asymmetric
        values = np.sqrt(np.linalg.eigvalsh(kernel).clip(min=0))
        ratios.append(np.log(values.sum() / values.max()) / np.log(m) if values.any() else 0.0)
    return float(np.mean(ratios))
