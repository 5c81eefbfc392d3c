"""What the trials of an experiment gave, as tables and CSV files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from benchmarks.memory.training import Check, Outcome
from benchmarks.report import aligned, mean, mean_deviation, write_csv

SOLVED = 0.99
COLUMNS = (
    "method", "rate", "trials", "solved", "steps to 99 %", "accuracy", "test", "val loss",
    "largest norm", "diverged", "CPU ms/step",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """All seeds of one method at one learning rate; NaN where there is nothing to tell."""

    method: str
    rate: float
    trials: int
    solved: int  # reached SOLVED in validation
    steps: float  # until then: the median over all seeds, infinite if most never did
    accuracy: tuple[float, float]  # best of a trial: mean and deviation over seeds
    test: tuple[float, float]  # at the best validation
    val_loss: float  # lowest of a trial, mean
    largest_norm: float  # of any gradient, before clipping
    diverged: int
    milliseconds: float  # of CPU time, a step of the optimizer


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """A row for each method and rate, in order of appearance."""
    keys = dict.fromkeys((str(o.trial.method), o.trial.rate) for o in outcomes)
    return [
        _row(method, rate, [o for o in outcomes if _key(o) == (method, rate)])
        for method, rate in keys
    ]


def table(found: Sequence[Row]) -> str:
    """One line a row."""
    lines = [
        (
            row.method,
            f"{row.rate:g}",
            str(row.trials),
            f"{row.solved} of {row.trials}",
            f"{row.steps:.0f}" if math.isfinite(row.steps) else "-",
            _spread(row.accuracy),
            _spread(row.test),
            f"{row.val_loss:.4f}",
            f"{row.largest_norm:.3g}",
            str(row.diverged),
            f"{row.milliseconds:.0f}",
        )
        for row in found
    ]
    return aligned(COLUMNS, lines, ("method",))


def write_trials(outcomes: Sequence[Outcome], path: Path) -> None:
    """A line a trial, as CSV: its settings, its best check, and how it ended."""
    lines = [
        {
            **outcome.trial.settings,
            "steps_to_99": outcome.steps_to(SOLVED) or "",
            "diverged": outcome.diverged,
            "largest_norm_ever": _largest_norm(outcome),
            **(asdict(outcome.best) if outcome.checks else {}),
            "date": outcome.machine["date"],
        }
        for outcome in outcomes
    ]
    write_csv(lines, path)


def write_checks(outcomes: Sequence[Outcome], path: Path) -> None:
    """A line a validation, as CSV."""
    lines = [
        {"method": o.trial.method, "rate": o.trial.rate, "seed": o.trial.seed, **asdict(check)}
        for o in outcomes
        for check in o.checks
    ]
    write_csv(lines, path, ["method", "rate", "seed", *(field.name for field in fields(Check))])


def _row(method: str, rate: float, group: Sequence[Outcome]) -> Row:
    told = [outcome for outcome in group if outcome.checks]
    steps = [outcome.steps_to(SOLVED) or math.inf for outcome in group]
    cpu = [outcome.checks[-1] for outcome in told]
    return Row(
        method=method,
        rate=rate,
        trials=len(group),
        solved=sum(map(math.isfinite, steps)),
        steps=median(steps),
        accuracy=mean_deviation([outcome.best.accuracy for outcome in told]),
        test=mean_deviation([t for o in told if (t := o.checks[-1].test_accuracy) == t]),
        val_loss=mean([min(check.val_loss for check in outcome.checks) for outcome in told]),
        largest_norm=max((_largest_norm(outcome) for outcome in told), default=math.nan),
        diverged=sum(bool(outcome.diverged) for outcome in group),
        milliseconds=mean([1000 * check.cpu_seconds / check.step for check in cpu]),
    )


def _key(outcome: Outcome) -> tuple[str, float]:
    return str(outcome.trial.method), outcome.trial.rate


def _largest_norm(outcome: Outcome) -> float:
    return max((check.largest_norm for check in outcome.checks), default=math.nan)


def _spread(value: tuple[float, float]) -> str:
    middle, deviation = value
    if math.isnan(middle):
        return "-"
    return f"{100 * middle:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")
