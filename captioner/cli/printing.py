"""What `evaluate`, `score` and `train` print: scores as a table or JSON, files, durations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captioner.metrics.pointing import Pointing
    from captioner.metrics.scores import Scores
    from captioner.metrics.significance import Interval


def print_scores(
    scores: Scores,
    found: Mapping[str, Interval],
    as_json: bool,
    diversity: Mapping[str, float] | None = None,
    points: Pointing | None = None,
) -> None:
    """Print scores with their confidence intervals, and what else was measured."""
    from captioner.report.table import diversity_table, score_table

    diversity = diversity or {}
    if not as_json:
        print(score_table(scores, found))
        if diversity:
            print(diversity_table(diversity))
        if points:
            print(*points.lines(), sep="\n")
        for note in scores.notes:
            print(note)
        return
    document: dict[str, Any] = {
        "images": len(next(iter(scores.per_image.values()))),
        "scores": scores.values,
        "intervals": {name: [interval.low, interval.high] for name, interval in found.items()},
    }
    if scores.notes:
        document["notes"] = list(scores.notes)
    if diversity:
        document["diversity"] = dict(diversity)
    if points:
        document["pointing"] = dataclasses.asdict(points)
    print(json.dumps(document))


def print_files(**files: Path | None) -> None:
    """Print where each file was written; None was not asked for."""
    for name, path in files.items():
        if path:
            print(f"{name}: {path}")


def duration(seconds: float) -> str:
    """Return a duration as "3 min 5 s", from an hour on as "2 h 7 min"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
