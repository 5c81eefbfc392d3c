"""Outcomes of an experiment as tables, CSV files and plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median

from benchmarks.memory.training import Check, Outcome, best_check, steps_to
from benchmarks.reporting import difference, mean, mean_deviation, plot, table, write_csv
from benchmarks.trials import matched

SOLVED = 0.99


@dataclass(frozen=True)
class Row:
    """All seeds of one method at one learning rate; NaN where there are no figures."""

    method: str
    rate: float | None  # None: all rates together
    trials: int
    solved: int  # trials that reached the validation accuracy
    steps: float  # until then: the median over all seeds, infinite if most never did
    accuracy: tuple[float, float]  # best of a trial: mean and deviation over seeds
    test: tuple[float, float]  # at the best validation
    val_loss: float  # mean over trials of the lowest
    largest_norm: float  # of any gradient, before clipping
    diverged: int
    milliseconds: float  # CPU time per optimizer step


@dataclass(frozen=True)
class Pairs:
    """A method compared with another one at the same seeds and rates."""

    method: str
    against: str
    rate: float | None  # None: all rates together
    differences: Sequence[float]  # of the test accuracy, or of the best validation without a test
    sooner: int  # pairs in which it was solved in fewer steps
    later: int  # in more, or never while the other was


def rows(outcomes: Sequence[Outcome], solved: float = SOLVED) -> list[Row]:
    """Return a row for each method and rate, and then for several rates together."""
    return [
        _row(method, rate, group, solved)
        for rate in _rates(outcomes)
        for method in _methods(outcomes)
        if (group := _of(outcomes, method, rate))
    ]


def pairs(outcomes: Sequence[Outcome], solved: float = SOLVED) -> list[Pairs]:
    """Compare each method with the first one, seed by seed."""
    first, *others = _methods(outcomes)
    result = []
    for rate in _rates(outcomes):
        against = _of(outcomes, first, rate)
        for method in others:
            both = matched(
                _of(outcomes, method, rate), against, lambda o: (o.trial.rate, o.trial.seed)
            )
            if both:
                steps = [(steps_to(one, solved), steps_to(other, solved)) for one, other in both]
                differences = [_accuracy(one) - _accuracy(other) for one, other in both]
                sooner = sum(one < other for one, other in steps)
                later = sum(one > other for one, other in steps)
                result.append(Pairs(method, first, rate, differences, sooner, later))
    return result


def rows_table(found: Sequence[Row]) -> str:
    """Write a line for each row."""
    lines = [
        {
            "method": row.method,
            "rate": _rate(row.rate),
            "trials": str(row.trials),
            "solved": f"{row.solved} of {row.trials}",
            "steps to it": f"{row.steps:.0f}" if math.isfinite(row.steps) else "-",
            "accuracy": _percent(row.accuracy),
            "test": _percent(row.test),
            "val loss": f"{row.val_loss:.4f}",
            "largest norm": f"{row.largest_norm:.3g}",
            "diverged": str(row.diverged),
            "CPU ms/step": f"{row.milliseconds:.0f}",
        }
        for row in found
    ]
    return table(lines, ["method"])


def pairs_table(found: Sequence[Pairs]) -> str:
    """Write a line for each comparison; differences in points, mean and standard error."""
    lines = [
        {
            "method": pair.method,
            "against": pair.against,
            "rate": _rate(pair.rate),
            "pairs": str(len(pair.differences)),
            "difference": difference([100 * value for value in pair.differences], 1),
            "higher": str(sum(value > 0 for value in pair.differences)),
            "sooner": str(pair.sooner),
            "later": str(pair.later),
        }
        for pair in found
    ]
    return table(lines, ["method", "against"])


def write_trials(outcomes: Sequence[Outcome], path: Path, solved: float = SOLVED) -> None:
    """Write a line for each trial: its settings, its best check, and how it ended."""
    lines = [
        {
            **outcome.trial.settings,
            f"steps_to_{solved:g}": steps if math.isfinite(steps) else "",
            "diverged": outcome.diverged,
            "largest_norm_ever": _largest_norm(outcome),
            **(asdict(best_check(outcome)) if outcome.entries else {}),
            "date": outcome.machine["date"],
        }
        for outcome in outcomes
        for steps in [steps_to(outcome, solved)]
    ]
    write_csv(lines, path)


def write_checks(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a line for each validation."""
    lines = [
        {"method": o.trial.method, "rate": o.trial.rate, "seed": o.trial.seed, **asdict(check)}
        for o in outcomes
        for check in o.entries
    ]
    write_csv(lines, path, ["method", "rate", "seed", *(field.name for field in fields(Check))])


def plot_curves(outcomes: Sequence[Outcome], title: str, note: str, path: Path) -> None:
    """Plot validation accuracy over the steps, a panel for each learning rate.

    A thin line for each trial, a thick one for the median of a method's seeds; a trial that stopped
    early keeps its last accuracy.
    """
    rates = sorted({outcome.trial.rate for outcome in outcomes})
    size = (1.5 + 4.2 * len(rates), 4)
    with plot(path, f"{title}\n{note}", size, (1, len(rates)), sharey=True) as (panels,):
        for axes, rate in zip(panels, rates, strict=True):
            for number, method in enumerate(_methods(outcomes)):
                color, group = f"C{number}", _of(outcomes, method, rate)
                for outcome in group:
                    steps = [check.step for check in outcome.entries]
                    accuracies = [check.accuracy for check in outcome.entries]
                    axes.plot(steps, accuracies, color=color, alpha=0.3, linewidth=0.8)
                steps = sorted({check.step for outcome in group for check in outcome.entries})
                middle = [median(accuracy_at(outcome, step) for outcome in group) for step in steps]
                axes.plot(steps, middle, color=color, linewidth=2, label=f"{method} ({len(group)})")
            axes.set(title=f"learning rate {rate:g}", xlabel="steps", ylim=(0, 1.02))
        panels[0].set_ylabel("validation accuracy")
        panels[-1].legend(fontsize=8)


def accuracy_at(outcome: Outcome, step: int) -> float:
    """Return the accuracy of the last validation up to a step; 0 before the first."""
    return next((c.accuracy for c in reversed(outcome.entries) if c.step <= step), 0.0)


def plot_transfer(
    accuracies: Mapping[str, Mapping[int, Sequence[float]]], trained: int, note: str, path: Path
) -> None:
    """Plot the accuracy of each method's networks over the length T of the test."""
    title = f"Copying, trained at T = {trained}\n{note}"
    with plot(path, title, (6, 4)) as ((axes,),):
        for number, (method, by_length) in enumerate(accuracies.items()):
            lengths, color = sorted(by_length), f"C{number}"
            label = f"{method} ({len(by_length[lengths[0]])})"
            means = [fmean(by_length[length]) for length in lengths]
            axes.plot(lengths, means, "o-", color=color, label=label)
            points = [(length, value) for length in lengths for value in by_length[length]]
            axes.plot(*zip(*points, strict=True), ".", color=color, alpha=0.4)
        axes.axvline(trained, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", xlabel="T of the test", ylabel="accuracy", ylim=(0, 1.02))
        axes.legend(fontsize=8)


def _row(method: str, rate: float | None, group: Sequence[Outcome], solved: float) -> Row:
    checked = [outcome for outcome in group if outcome.entries]
    last = [outcome.entries[-1] for outcome in checked]
    steps = [steps_to(outcome, solved) for outcome in group]
    return Row(
        method=method,
        rate=rate,
        trials=len(group),
        solved=sum(map(math.isfinite, steps)),
        steps=median(steps),
        accuracy=mean_deviation([best_check(outcome).accuracy for outcome in checked]),
        test=mean_deviation([c.test_accuracy for c in last if not math.isnan(c.test_accuracy)]),
        val_loss=mean([min(check.val_loss for check in outcome.entries) for outcome in checked]),
        largest_norm=max(map(_largest_norm, checked), default=math.nan),
        diverged=sum(bool(outcome.diverged) for outcome in group),
        milliseconds=mean([1000 * check.cpu_seconds / check.step for check in last]),
    )


def _methods(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(str(outcome.trial.method) for outcome in outcomes))


def _rates(outcomes: Sequence[Outcome]) -> list[float | None]:
    """Return the rates that occur, and None for all of several."""
    rates = list(dict.fromkeys(outcome.trial.rate for outcome in outcomes))
    return [*rates, None] if len(rates) > 1 else [*rates]


def _of(outcomes: Sequence[Outcome], method: str, rate: float | None) -> list[Outcome]:
    return [o for o in outcomes if str(o.trial.method) == method and rate in (None, o.trial.rate)]


def _accuracy(outcome: Outcome) -> float:
    """Return the accuracy to compare; 0 if the trial diverged before its first validation."""
    if not outcome.entries:
        return 0.0
    test = outcome.entries[-1].test_accuracy
    return best_check(outcome).accuracy if math.isnan(test) else test


def _rate(rate: float | None) -> str:
    return "all" if rate is None else f"{rate:g}"


def _largest_norm(outcome: Outcome) -> float:
    return max((check.largest_norm for check in outcome.entries), default=math.nan)


def _percent(value: tuple[float, float]) -> str:
    middle, deviation = value
    if math.isnan(middle):
        return "-"
    return f"{100 * middle:.1f}" + ("" if math.isnan(deviation) else f" ± {100 * deviation:.1f}")
