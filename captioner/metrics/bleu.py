"""BLEU-4 of a single caption, as a reward in training."""

from __future__ import annotations

from collections.abc import Sequence


def bleu_4(caption: str, references: Sequence[str]) -> float:
    """Return BLEU-4 of one caption, unsmoothed, as pycocoevalcap computes it for each image."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    _, by_caption = BleuScorer(caption, references, 4).compute_score("closest")
    return float(by_caption[3][0])
