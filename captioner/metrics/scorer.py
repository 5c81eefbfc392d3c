"""Score captions on plain strings with the COCO metrics.

The scorers are pycocoevalcap's. Added here: the statistics that sum to a corpus score, and an error
wherever captions and scores could be paired wrongly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from captioner.errors import MetricError
from captioner.metrics.java import check_corenlp, ptb_tokenize, spice, start_meteor
from captioner.metrics.scores import METRICS, SPICE, ImageId, MetricResult, Results, Scores, Tokens

Scorer: TypeAlias = Callable[[Tokens, Tokens], Results]  # (references, candidates)

_ZERO = 1e-6  # a BLEU of 0 is slightly above 0
# Scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{4}")


def score(
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    metrics: Sequence[str] = METRICS,
    corenlp: Path | None = None,
) -> Scores:
    """Score one caption per image against its references; see `ReferenceScorer.score`."""
    check_metrics(metrics, corenlp)
    _check_images(candidates, references)
    with _scorers(metrics, corenlp) as scorers:
        return _score(
            candidates, ptb_tokenize({key: references[key] for key in candidates}), scorers
        )


class ReferenceScorer:
    """Score captions against references that are tokenized once.

    The references may hold more images than are scored later.
    """

    def __init__(self, references: Mapping[ImageId, Sequence[str]]) -> None:
        self._references = ptb_tokenize(references)

    def score(
        self,
        candidates: Mapping[ImageId, str],
        metrics: Sequence[str] = METRICS,
        corenlp: Path | None = None,
    ) -> Scores:
        """Score one caption per image.

        CIDEr weights words by their rarity in the references of the scored images, so the CIDEr of
        a single image is 0. SPICE reads the jars of Stanford CoreNLP 3.6.0 and of Nashorn from the
        folder `corenlp`. Raises MetricError for an unknown metric, for no captions, for an image
        without references, for missing jars, and when a scorer fails.
        """
        check_metrics(metrics, corenlp)
        _check_images(candidates, self._references)
        with _scorers(metrics, corenlp) as scorers:
            return _score(candidates, {key: self._references[key] for key in candidates}, scorers)


def check_metrics(metrics: Sequence[str], corenlp: Path | None) -> None:
    """Raise MetricError for an unknown metric, and for SPICE without its jars."""
    choices = (*METRICS, SPICE)
    for name in metrics:
        if name not in choices:
            raise MetricError(f"no metric {name!r}; choose from {', '.join(choices)}")
    if SPICE in metrics:
        check_corenlp(corenlp)


def _check_images(
    candidates: Mapping[ImageId, str], references: Mapping[ImageId, Sequence[str]]
) -> None:
    if not candidates:
        raise MetricError("no captions to score; give one per image")
    for key in candidates:
        if not references.get(key):
            raise MetricError(f"image {key!r} has no references; give at least one")


@contextmanager
def _scorers(metrics: Sequence[str], corenlp: Path | None) -> Iterator[dict[str, Scorer]]:
    """Yield the scorer of each metric, in METRICS' order; METEOR's starts early, as it is slow."""
    known: dict[str, Scorer] = {
        **dict.fromkeys(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), _bleu),
        "ROUGE-L": _rouge,
        "CIDEr": _cider,
    }
    if corenlp is not None:
        known[SPICE] = partial(spice, corenlp)
    ordered = [name for name in (*METRICS, SPICE) if name in metrics]
    if "METEOR" not in ordered:
        yield {name: known[name] for name in ordered}
        return
    with start_meteor() as meteor:
        known["METEOR"] = meteor.score
        yield {name: known[name] for name in ordered}


def _score(
    candidates: Mapping[ImageId, str], references: Tokens, scorers: Mapping[str, Scorer]
) -> Scores:
    if not any(any(captions) for captions in references.values()):
        raise MetricError("the references hold no words; give captions with words")
    found = ptb_tokenize({key: [caption] for key, caption in candidates.items()})
    results: Results = {}
    with ThreadPoolExecutor() as pool:  # the Java programs run while the others do
        distinct = dict.fromkeys(scorers.values())
        for result in pool.map(lambda scorer: scorer(references, found), distinct):
            results |= result
    results = {name: results[name] for name in scorers}
    values = {name: float(result.value) for name, result in results.items()}
    return Scores(
        values,
        {
            name: dict(zip(found, map(float, result.images), strict=True))
            for name, result in results.items()
        },
        {name: result.sums for name, result in results.items()},
        _notes(values, references, found),
    )


def _notes(values: Mapping[str, float], references: Tokens, found: Tokens) -> tuple[str, ...]:
    """Return why n-gram scores are 0."""
    zero = [n for n in values if n.startswith(("BLEU", "CIDEr")) and values[n] < _ZERO]
    if not zero:
        return ()
    texts = [text for group in (found, references) for own in group.values() for text in own]
    if sum(bool(_UNSPACED.search(text)) for text in texts) > len(texts) / 2:
        return (
            f"{', '.join(zero)}: 0, because text without spaces counts as one word; put spaces "
            "between the words of the captions and of the references",
        )
    notes = []
    if "CIDEr" in zero and len(found) == 1:
        notes.append(
            "CIDEr: 0, as for any single image, because it weights an n-gram by how few of the "
            "scored images have it; score several images together"
        )
        zero.remove("CIDEr")
    if zero:
        notes.append(
            f"{', '.join(zero)}: 0, because no caption shares a long enough n-gram with its "
            "references"
        )
    return tuple(notes)


def _bleu(references: Tokens, found: Tokens) -> Results:
    """Return BLEU; its sums are described at `significance.corpus_score`."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=4)
    for key, (caption,) in found.items():
        scorer += (caption, references[key])
    corpus, images = scorer.compute_score(option="closest", verbose=0)
    rows = []
    for own in scorer.ctest:
        closest = min((abs(length - own["testlen"]), length) for length in own["reflen"])[1]
        rows.append([*own["correct"], *own["guess"], own["testlen"], closest])
    sums = np.array(rows, np.float64)
    return {f"BLEU-{n + 1}": MetricResult(corpus[n], images[n], sums) for n in range(4)}


def _rouge(references: Tokens, found: Tokens) -> Results:
    from pycocoevalcap.rouge.rouge import Rouge

    return {"ROUGE-L": MetricResult.mean(*Rouge().compute_score(references, found))}


def _cider(references: Tokens, found: Tokens) -> Results:
    from pycocoevalcap.cider.cider import Cider

    return {"CIDEr": MetricResult.mean(*Cider().compute_score(references, found))}
