"""What the trials of the captioning study gave, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.captioning_study.report import Row, ciders
from benchmarks.captioning_study.trials import PLAIN, Outcome
from benchmarks.reporting import mean_deviation


def draw_curves(outcomes: Sequence[Outcome], note: str, path: Path) -> None:
    """CIDEr over the epochs, a panel each: mean line, and band of the deviation over seeds."""
    from matplotlib.figure import Figure  # no global state, works without a display

    scored = [outcome for outcome in outcomes if not outcome.diverged]
    panels = list(dict.fromkeys(outcome.trial.panel for outcome in scored))
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(5 * columns, 0.6 + 3.4 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, panel in zip(grid.flat, panels, strict=False):
        of_panel = [outcome for outcome in scored if outcome.trial.panel == panel]
        for setting in dict.fromkeys(outcome.trial.setting for outcome in of_panel):
            curves = [ciders(o) for o in of_panel if o.trial.setting == setting]
            spread = [mean_deviation(epoch) for epoch in zip(*curves, strict=False)]
            numbers = list(range(1, len(spread) + 1))
            style = "k-" if setting == PLAIN else "--" if "," in setting else "-"
            (line,) = axes.plot(numbers, [m for m, _ in spread], style, marker=".", label=setting)
            low, high = ([m + sign * (d if d == d else 0) for m, d in spread] for sign in (-1, 1))
            axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axes.set(title=panel)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)
    figure.supxlabel("epoch")
    figure.supylabel("CIDEr of greedy validation captions")
    figure.suptitle(note, fontsize=8)
    figure.savefig(path, dpi=100)


def draw_differences(found: Sequence[Row], note: str, path: Path) -> None:
    """Each setting's paired differences: a dot a seed, and their mean."""
    from matplotlib.figure import Figure  # no global state, works without a display

    compared = [row for row in found if row.differences]
    figure = Figure(figsize=(8, 1 + 0.35 * max(len(compared), 2)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(compared):
        axes.plot(row.differences, [place] * len(row.differences), "o", color="tab:blue", alpha=0.5)
        axes.plot([fmean(row.differences)], [place], "k|", markersize=14)
    axes.set_yticks(range(len(compared)), [row.setting for row in compared])
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.set(xlabel="difference of the best CIDEr to the recipe of the same seed")
    figure.suptitle(note, fontsize=8)
    figure.savefig(path, dpi=100)
