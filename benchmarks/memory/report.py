"""What the trials of an experiment gave, as tables and CSV files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from benchmarks.memory.training import Check, Outcome
from benchmarks.reporting import aligned, difference, mean, mean_deviation, write_csv

SOLVED = 0.99
COLUMNS = (
    "method", "rate", "trials", "solved", "steps to it", "accuracy", "test", "val loss",
    "largest norm", "diverged", "CPU ms/step",
)  # fmt: skip
PAIRED = ("method", "against", "rate", "pairs", "difference", "higher", "sooner", "later")


@dataclass(frozen=True)
class Row:
    """All seeds of one method at one learning rate; NaN where there is nothing to tell."""

    method: str
    rate: float | None  # None: all rates together
    trials: int
    solved: int  # reached the accuracy asked for in validation
    steps: float  # until then: the median over all seeds, infinite if most never did
    accuracy: tuple[float, float]  # best of a trial: mean and deviation over seeds
    test: tuple[float, float]  # at the best validation
    val_loss: float  # lowest of a trial, mean
    largest_norm: float  # of any gradient, before clipping
    diverged: int
    milliseconds: float  # of CPU time, a step of the optimizer


@dataclass(frozen=True)
class Pairs:
    """A method against another one, which began from the same seeds, at the same rates."""

    method: str
    against: str
    rate: float | None  # None: all rates together
    differences: Sequence[float]  # of what counts: test accuracy, or else validation's best
    sooner: int  # pairs in which it was solved in fewer steps
    later: int  # in more, or not while the other was


def rows(outcomes: Sequence[Outcome], solved: float = SOLVED) -> list[Row]:
    """A row for each method and rate, in order of appearance; then, of several rates, for all."""
    return [
        _row(method, rate, group, solved)
        for rate in _rates(outcomes)
        for method in _methods(outcomes)
        if (group := _of(outcomes, method, rate))
    ]


def pairs(outcomes: Sequence[Outcome], solved: float = SOLVED) -> list[Pairs]:
    """Each method against the first one, seed by seed."""
    first, *others = _methods(outcomes)
    result = []
    for rate in _rates(outcomes):
        known = {(o.trial.rate, o.trial.seed): o for o in _of(outcomes, first, rate)}
        for method in others:
            both = [
                (outcome, known[key])
                for outcome in _of(outcomes, method, rate)
                if (key := (outcome.trial.rate, outcome.trial.seed)) in known
            ]
            if not both:
                continue
            steps = [
                tuple(outcome.steps_to(solved) or math.inf for outcome in pair) for pair in both
            ]
            result.append(
                Pairs(
                    method,
                    first,
                    rate,
                    differences=[_figure(one) - _figure(other) for one, other in both],
                    sooner=sum(one < other for one, other in steps),
                    later=sum(one > other for one, other in steps),
                )
            )
    return result


def table(found: Sequence[Row]) -> str:
    """One line a row."""
    lines = [
        (
            row.method,
            _rate(row.rate),
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


def pairs_table(found: Sequence[Pairs]) -> str:
    """One line a comparison; differences in points, mean and its standard error."""
    lines = [
        (
            pair.method,
            pair.against,
            _rate(pair.rate),
            str(len(pair.differences)),
            difference([100 * value for value in pair.differences], 1),
            str(sum(value > 0 for value in pair.differences)),
            str(pair.sooner),
            str(pair.later),
        )
        for pair in found
    ]
    return aligned(PAIRED, lines, ("method", "against"))


def write_trials(outcomes: Sequence[Outcome], path: Path, solved: float = SOLVED) -> None:
    """A line a trial, as CSV: its settings, its best check, and how it ended."""
    lines = [
        {
            **outcome.trial.settings,
            f"steps_to_{solved:g}": outcome.steps_to(solved) or "",
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


def _row(method: str, rate: float | None, group: Sequence[Outcome], solved: float) -> Row:
    told = [outcome for outcome in group if outcome.checks]
    steps = [outcome.steps_to(solved) or math.inf for outcome in group]
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


def _methods(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(str(outcome.trial.method) for outcome in outcomes))


def _rates(outcomes: Sequence[Outcome]) -> list[float | None]:
    """Those that occur, and None for all of several."""
    rates = list(dict.fromkeys(outcome.trial.rate for outcome in outcomes))
    return [*rates, None] if len(rates) > 1 else [*rates]


def _of(outcomes: Sequence[Outcome], method: str, rate: float | None) -> list[Outcome]:
    return [o for o in outcomes if str(o.trial.method) == method and rate in (None, o.trial.rate)]


def _figure(outcome: Outcome) -> float:
    """What counts of a trial; nothing if it diverged before it was validated."""
    if not outcome.checks:
        return 0.0
    test = outcome.checks[-1].test_accuracy
    return outcome.best.accuracy if math.isnan(test) else test


def _rate(rate: float | None) -> str:
    return "all" if rate is None else f"{rate:g}"


def _largest_norm(outcome: Outcome) -> float:
    return max((check.largest_norm for check in outcome.checks), default=math.nan)


def _spread(value: tuple[float, float]) -> str:
    middle, deviation = value
    if math.isnan(middle):
        return "-"
    return f"{100 * middle:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")
