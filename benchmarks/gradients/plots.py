"""Gradients over lags as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gradients.lags import ALL, CELL, HIDDEN, SHARE, Row
from benchmarks.gradients.report import Groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {ALL: "black", CELL: "tab:green", HIDDEN: "tab:red"}


def draw_random(groups: Groups, note: str, path: Path) -> None:
    """A panel for each forget bias and scale: the gain of every way over the lags."""
    from matplotlib.figure import Figure  # no global state, works without a display

    down = list(dict.fromkeys(bias for bias, _ in groups))
    across = list(dict.fromkeys(scale for _, scale in groups))
    figure = Figure(figsize=(0.8 + 2.7 * len(across), 1 + 2.6 * len(down)), layout="constrained")
    grid = figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey="row")
    for (bias, scale), rows in groups.items():
        axes = grid[down.index(bias), across.index(scale)]
        for name in (ALL, CELL):
            _line(axes, rows, name, color=_COLOURS[name], label=name)
        for name, colour in _detach_colours(rows):
            if name.endswith("drawn"):
                _band(axes, rows, name, ("low", "high"), color=colour, label=name)
            else:
                _line(axes, rows, name, color=colour, label=name)
        axes.set(yscale="log", title=f"W_hh x {scale}, forget bias {bias}")
        axes.title.set_fontsize(9)
        if bias == down[-1]:
            axes.set_xlabel("steps back")
        axes.grid(alpha=0.3)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.supylabel("gain of the Jacobian of (c, h)")
    figure.suptitle(note, fontsize=8)
    figure.savefig(path, dpi=80)


def draw_captions(groups: Groups, note: str, path: Path) -> None:
    """Norms, the share of h, and what h-detach leaves, over the lags; the first group is solid."""
    from matplotlib.figure import Figure  # no global state, works without a display

    figure = Figure(figsize=(13, 4), layout="constrained")
    norms, shares, detached = figure.subplots(1, 3)
    for ((group,), rows), dashes in zip(groups.items(), ("-", "--", ":"), strict=False):
        for name in (ALL, CELL, HIDDEN):
            _line(norms, rows, name, color=_COLOURS[name], ls=dashes, label=f"{name}, {group}")
        (line,) = _line(shares, rows, SHARE, factor=100, ls=dashes, label=group)
        _band(shares, rows, SHARE, ("low", "high"), factor=100, color=line.get_color())
    rows = next(iter(groups.values()))
    _line(detached, rows, CELL, "ratio", color=_COLOURS[CELL], label=CELL)
    for name, colour in _detach_colours(rows):
        dashes = ":" if "attention" in name else "-"
        if not name.endswith("drawn"):
            _line(detached, rows, name, "ratio", color=colour, ls=dashes, label=name)
        elif "attention" not in name:
            _band(detached, rows, name, ("ratio_low", "ratio_high"), color=colour, label=name)
    norms.set(yscale="log", title="Gradient of a word's loss in c, norm (median)")
    shares.set(ylim=(0, 100), ylabel="%", title="Share that comes through h (median, 10..90 %)")
    detached.set(title=f"Norm over that of all paths, {next(iter(groups))[0]}", yscale="log")
    for axes in (norms, shares, detached):
        axes.set(xlabel="words back")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(note, fontsize=8)
    figure.savefig(path, dpi=80)


def _detach_colours(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Every setting of h-detach with a colour, the same one for the same p."""
    names = dict.fromkeys(row.path for row in rows if row.path.startswith("p = "))
    probs = list(dict.fromkeys(name.split(",")[0] for name in names))
    palette = ("tab:blue", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
    return [(name, palette[probs.index(name.split(",")[0]) % len(palette)]) for name in names]


def _line(
    axes: Axes,
    rows: Sequence[Row],
    path: str,
    value: str = "median",
    factor: float = 1,
    **style: Any,
) -> list[Any]:
    chosen = [row for row in rows if row.path == path and (row.lag or path != HIDDEN)]
    heights = [factor * getattr(row, value) for row in chosen]
    return axes.plot([row.lag for row in chosen], heights, **style)


def _band(
    axes: Axes,
    rows: Sequence[Row],
    path: str,
    bounds: tuple[str, str],
    factor: float = 1,
    **style: Any,
) -> None:
    chosen = [row for row in rows if row.path == path]
    low, high = ([factor * getattr(row, bound) for row in chosen] for bound in bounds)
    axes.fill_between([row.lag for row in chosen], low, high, alpha=0.2, linewidth=0, **style)
