"""CIDEr-D of many captions against references that are prepared once.

The score equals pycocoevalcap's. A caption costs one lookup per n-gram, fast enough for the reward
of every sampled caption in self-critical training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import exp, log, sqrt
from typing import TypeAlias

from captioner.errors import MetricError
from captioner.metrics.scores import ImageId

Ngram: TypeAlias = tuple[str, ...]

N = 4  # n-grams of 1 to 4 words
SIGMA = 6.0  # of the penalty for a length that differs from the reference's


@dataclass(frozen=True)
class Frequencies:
    """The document frequency of each n-gram: in how many images' references it occurs."""

    images: int
    counts: Mapping[Ngram, int]


@dataclass(frozen=True, slots=True)
class _References:
    """The references of one image, by number."""

    # n-gram -> references with it: (0, 0, 3) is the first reference twice and the fourth once
    owners: dict[Ngram, tuple[int, ...]]
    words: list[int]
    scales: list[list[float]]  # (N, references): 1 / length of the tf-idf vector; 0 if that is 0


class CiderD:
    """CIDEr-D (Vedantam et al. 2015, arXiv:1411.5726) as pycocoevalcap 1.2 computes it.

    It is the cosine of the tf-idf vectors of n-grams, with counts clipped to the reference's, times
    exp(-d^2 / (2 * 6^2)) for a difference of d bigrams, times 10; the mean over n = 1..4 and over
    the references. Captions are tokens joined by a space (`java.ptb_tokenize`). The document
    frequencies are those of these references unless others are given, such as the `frequencies` of
    the training set's CiderD. Memory: 90 MB for Flickr8k's 30,000 captions, about 1.5 GB for COCO's
    590,000. Raises MetricError for an image without references.
    """

    frequencies: Frequencies

    def __init__(
        self,
        references: Mapping[ImageId, Sequence[str]],
        *,
        frequencies: Frequencies | None = None,
    ) -> None:
        if not references:
            raise MetricError("no references to score captions against; give some for each image")
        for image, captions in references.items():
            if isinstance(captions, str):
                raise MetricError(f"image {image!r} has a string for references; give a list")
            if not captions:
                raise MetricError(f"image {image!r} has no references; give at least one")
        found = _owners(references)
        self.frequencies = frequencies or Frequencies(
            len(references), Counter(chain.from_iterable(found.values()))
        )
        self._counts = self.frequencies.counts
        images, most = self.frequencies.images, max(self._counts.values(), default=0)
        # By document frequency: idf squared. An unknown n-gram counts as found once.
        self._weights = [log(images / max(count, 1)) ** 2 for count in range(most + 1)]
        self._images = {
            image: _References(
                found[image],
                [len(caption.split()) for caption in captions],
                self._scales(found[image], len(captions)),
            )
            for image, captions in references.items()
        }

    def score(self, image: ImageId, caption: str | Sequence[str]) -> float:
        """Return the CIDEr-D of one caption, 0 to 10; a caption is a string or its words.

        Raises MetricError for an image without references.
        """
        if image not in self._images:
            raise MetricError(f"image {image!r} has no references; give at least one")
        references = self._images[image]
        owners, counts, weights = references.owners, self._counts, self._weights
        words = caption.split() if isinstance(caption, str) else caption
        penalties = [_penalty(len(words), length) for length in references.words]
        total = 0.0
        for ngrams, scales in zip(_ngrams(words), references.scales, strict=True):
            tally: dict[Ngram, int] = {}
            for ngram in ngrams:
                tally[ngram] = tally.get(ngram, 0) + 1
            square = 0.0  # of the length of the caption's vector
            products = [0.0] * len(scales)
            for ngram, count in tally.items():
                weight = weights[counts.get(ngram, 0)]
                square += count * count * weight
                several = owners.get(ngram)
                if several is None:
                    continue
                if count == 1:
                    for number in several:
                        products[number] += weight
                else:
                    for number in several:
                        products[number] += weight * min(count, several.count(number))
            if square:
                parts = zip(products, scales, penalties, strict=True)
                total += sum([x * scale * penalty for x, scale, penalty in parts]) / sqrt(square)
        return 10 * total / (N * len(penalties))

    def scores(self, images: Sequence[ImageId], captions: Sequence[str]) -> list[float]:
        """Return the CIDEr-D of every caption; `captions[i]` belongs to image `images[i]`.

        Raises MetricError for an image without references and for lists of different lengths.
        """
        if len(images) != len(captions):
            raise MetricError(f"{len(captions)} captions for {len(images)} image ids; give as many")
        return list(map(self.score, images, captions))

    def _scales(self, owners: dict[Ngram, tuple[int, ...]], references: int) -> list[list[float]]:
        squares = [[0.0] * references for _ in range(N)]
        for ngram, several in owners.items():
            weight = self._weights[self._counts.get(ngram, 0)]
            row = squares[len(ngram) - 1]
            for number in several:
                row[number] += weight * several.count(number)
        return [[1 / sqrt(square) if square else 0.0 for square in row] for row in squares]


def _owners(
    references: Mapping[ImageId, Sequence[str]],
) -> dict[ImageId, dict[Ngram, tuple[int, ...]]]:
    """Return for each image the references that have each n-gram, as in `_References.owners`."""
    # Equal words, n-grams and owners are one object across all images: they fill the memory.
    same_word: dict[str, str] = {}
    same_ngram: dict[Ngram, Ngram] = {}
    same_owners: dict[tuple[int, ...], tuple[int, ...]] = {}
    found = {}
    for image, captions in references.items():
        owners: dict[Ngram, tuple[int, ...]] = {}
        for number, caption in enumerate(captions):
            own = (number,)
            words = [same_word.setdefault(word, word) for word in caption.split()]
            for ngram in chain.from_iterable(_ngrams(words)):
                owners[ngram] = owners.get(ngram, ()) + own
        found[image] = {
            same_ngram.setdefault(ngram, ngram): same_owners.setdefault(several, several)
            for ngram, several in owners.items()
        }
    return found


def _ngrams(words: Sequence[str]) -> Iterator[Iterator[Ngram]]:
    """Yield the n-grams of a caption, for n = 1, 2, .. N in turn."""
    shifted = [words[n:] for n in range(N)]
    for n in range(N):
        yield zip(*shifted[: n + 1], strict=False)


def _penalty(words: int, others: int) -> float:
    """Return the factor for a difference in length, in words: that in bigrams is the same."""
    return exp(-((words - others) ** 2) / (2 * SIGMA**2))
