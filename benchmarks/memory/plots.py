"""What the trials of an experiment gave, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from benchmarks.memory.training import Outcome


def draw_curves(outcomes: Sequence[Outcome], title: str, note: str, path: Path) -> None:
    """Validation accuracy over the steps, a panel a learning rate.

    A thin line a trial, a thick one the median of a method's seeds; a trial that was stopped early
    keeps its last accuracy.
    """
    from matplotlib.figure import Figure  # no global state, works without a display

    rates = sorted({outcome.trial.rate for outcome in outcomes})
    methods = list(dict.fromkeys(str(outcome.trial.method) for outcome in outcomes))
    figure = Figure(figsize=(1.5 + 4.2 * len(rates), 4), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for axes, rate in zip(panels, rates, strict=True):
        for number, method in enumerate(methods):
            color = f"C{number}"
            group = [o for o in outcomes if o.trial.rate == rate and str(o.trial.method) == method]
            for outcome in group:
                steps = [check.step for check in outcome.checks]
                accuracies = [check.accuracy for check in outcome.checks]
                axes.plot(steps, accuracies, color=color, alpha=0.3, linewidth=0.8)
            steps = sorted({check.step for outcome in group for check in outcome.checks})
            middle = [median(accuracy_at(outcome, step) for outcome in group) for step in steps]
            axes.plot(steps, middle, color=color, linewidth=2, label=f"{method} ({len(group)})")
        axes.set(title=f"learning rate {rate:g}", xlabel="steps", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation accuracy")
    panels[-1].legend(fontsize=8)
    figure.suptitle(f"{title}\n{note}", fontsize=9)
    figure.savefig(path, dpi=100)


def accuracy_at(outcome: Outcome, step: int) -> float:
    """Of the last validation until then; 0 before the first."""
    return next((c.accuracy for c in reversed(outcome.checks) if c.step <= step), 0.0)


def draw_transfer(
    accuracies: Mapping[str, Mapping[int, Sequence[float]]], trained: int, note: str, path: Path
) -> None:
    """Accuracy of the networks of each method over the length T they are tested at."""
    from matplotlib.figure import Figure  # no global state, works without a display

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for number, (method, by_length) in enumerate(accuracies.items()):
        lengths = sorted(by_length)
        axes.plot(
            lengths, [fmean(by_length[length]) for length in lengths], "o-", color=f"C{number}",
            label=f"{method} ({len(by_length[lengths[0]])})",
        )  # fmt: skip
        for length in lengths:
            values = by_length[length]
            axes.plot([length] * len(values), values, ".", color=f"C{number}", alpha=0.4)
    axes.axvline(trained, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", xlabel="T of the test", ylabel="accuracy", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(f"Copying, trained at T = {trained}\n{note}", fontsize=9)
    figure.savefig(path, dpi=100)
