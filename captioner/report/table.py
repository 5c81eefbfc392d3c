"""Write scores as a table in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from captioner.metrics.scores import Scores
from captioner.metrics.significance import Comparison, Interval


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return aligned columns: the first and the last to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def score_table(scores: Scores, intervals: Mapping[str, Interval]) -> str:
    """Return a row per metric: its value and 95% interval."""
    rows = [
        (name, f"{value:.3f}", _range(intervals[name], "")) for name, value in scores.values.items()
    ]
    return table([("", "score", "95% interval"), *rows])


def comparison_table(
    names: Sequence[str], scores: Sequence[Scores], comparisons: Mapping[str, Comparison]
) -> str:
    """Return a row per metric: both values, their difference with its 95% interval, p, verdict."""
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
    return table([("", *names, "difference", "95% interval", "p", ""), *rows])


def diversity_table(diversity: Mapping[str, float]) -> str:
    """Return a row per measure of diversity; "words" is a count."""
    return table(
        [
            (name, f"{value:g}" if name == "words" else f"{value:.3f}")
            for name, value in diversity.items()
        ]
    )


def _verdict(found: Comparison, names: Sequence[str]) -> str:
    if found.p_value >= 0.05:
        return "no real difference"
    return f"{names[0] if found.difference > 0 else names[1]} is better"


def _range(interval: Interval, sign: str) -> str:
    return f"{interval.low:{sign}.3f} .. {interval.high:{sign}.3f}"
