"""Scores as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from captioner.metrics.scores import Scores
from captioner.metrics.significance import Comparison, Interval


def score_table(scores: Scores, intervals: Mapping[str, Interval]) -> str:
    """A line a metric: value and 95 % interval."""
    rows = [
        (name, f"{value:.3f}", _range(intervals[name], "")) for name, value in scores.values.items()
    ]
    return _aligned([("", "score", "95 % interval"), *rows])


def comparison_table(
    names: Sequence[str], scores: Sequence[Scores], comparisons: Mapping[str, Comparison]
) -> str:
    """A line a metric: both values, their difference with its 95 % interval, p and a verdict."""
    first, second = scores
    rows = [
        (
            name,
            f"{first.values[name]:.3f}",
            f"{second.values[name]:.3f}",
            f"{found.difference:+.3f}",
            _range(found.interval, "+"),
            f"{found.p_value:.3f}" if found.p_value >= 0.001 else "< 0.001",
            _verdict(found, names),
        )
        for name, found in comparisons.items()
    ]
    return _aligned([("", *names, "difference", "95 % interval", "p", ""), *rows])


def _verdict(found: Comparison, names: Sequence[str]) -> str:
    if found.p_value >= 0.05:
        return "no real difference"
    return f"{names[0] if found.difference > 0 else names[1]} is better"


def _range(interval: Interval, sign: str) -> str:
    return f"{interval.low:{sign}.3f} .. {interval.high:{sign}.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns to the right, but the first and the last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k in (0, last) else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
