"""Gradients over lags as tables, CSV files and plots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from benchmarks.gradients.lags import ALL, CELL, HIDDEN, SHARE, Row
from benchmarks.reporting import plot, table, write_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Groups: TypeAlias = Mapping[tuple[str, ...], Sequence[Row]]  # by the values of their names

_COLOURS = {ALL: "black", CELL: "tab:green", HIDDEN: "tab:red"}
_PALETTE = ("tab:blue", "tab:orange", "tab:purple", "tab:brown", "tab:pink", "tab:gray")


def parts_table(groups: Groups, names: Sequence[str], lags: Iterable[int]) -> str:
    """Write a line for each group and lag: median norms, median share of h, mean cosines."""
    lines = []
    for cells, found in _lines(groups, names, lags):
        everything, hidden, share = found[ALL], found[HIDDEN], found[SHARE]
        cells["n"] = str(everything.count)
        cells |= {path: f"{found[path].median:.3g}" for path in (ALL, CELL, HIDDEN)}
        cells[SHARE] = f"{100 * share.median:.0f} %"
        cells["cos(c, h)"] = f"{hidden.cosine:.2f}"
        cells["cos(c, all)"] = f"{everything.cosine:.2f}"
        lines.append(cells)
    return table(lines, names)


def detached_table(groups: Groups, names: Sequence[str], lags: Iterable[int]) -> str:
    """Write median norms over that of all paths and mean cosines with c, by setting of h-detach.

    Samples also have their 10 and 90 % quantiles.
    """
    paths = dict.fromkeys(row.path for rows in groups.values() for row in rows)
    detached = [path for path in paths if path not in (ALL, CELL, HIDDEN, SHARE)]
    lines = [
        cells | {path: _detached(found[path]) for path in detached}
        for cells, found in _lines(groups, names, [lag for lag in lags if lag])
    ]
    return table(lines, names)


def _lines(
    groups: Groups, names: Sequence[str], lags: Iterable[int]
) -> Iterator[tuple[dict[str, str], dict[str, Row]]]:
    """Yield the first cells and the rows by path, for each group and lag."""
    wanted = list(lags)
    for group, rows in groups.items():
        for lag in wanted:
            found = {row.path: row for row in rows if row.lag == lag}
            if found:
                yield {**dict(zip(names, group, strict=True)), "lag": str(lag)}, found


def _detached(row: Row) -> str:
    spread = f" ({row.ratio_low:.2g}..{row.ratio_high:.2g})" if row.path.endswith("drawn") else ""
    return f"{row.ratio:.2g}{spread} cos {row.cosine:.2f}"


def write_rows(groups: Groups, names: Sequence[str], path: Path) -> None:
    """Write every row of every group; raise ConfigError if the file cannot be written."""
    lines = [
        {**dict(zip(names, group, strict=True)), **asdict(row)}
        for group, rows in groups.items()
        for row in rows
    ]
    write_csv(lines, path, [*names, *(field.name for field in fields(Row))])


def plot_random(groups: Groups, note: str, path: Path) -> None:
    """Plot the gain of every path over the lags, a panel for each forget bias and scale."""
    down = list(dict.fromkeys(bias for bias, _ in groups))
    across = list(dict.fromkeys(scale for _, scale in groups))
    shape, size = (len(down), len(across)), (0.8 + 2.7 * len(across), 1 + 2.6 * len(down))
    with plot(path, note, size, shape, sharex=True, sharey="row") as grid:
        for (bias, scale), rows in groups.items():
            axes = grid[down.index(bias)][across.index(scale)]
            for name in (ALL, CELL):
                _line(axes, rows, name, color=_COLOURS[name], label=name)
            for name, colour in _detach_colours(rows):
                if name.endswith("drawn"):
                    _band(axes, rows, name, ("low", "high"), color=colour, label=name)
                else:
                    _line(axes, rows, name, color=colour, label=name)
            axes.set(yscale="log", xlabel="steps back", ylabel="gain of the Jacobian of (c, h)")
            axes.set_title(f"W_hh x {scale}, forget bias {bias}", fontsize=9)
            axes.label_outer()
        grid[0][0].legend(fontsize=7)


def plot_captions(groups: Groups, note: str, path: Path) -> None:
    """Plot norms, share of h and the effect of h-detach over the lags; group 1 is solid."""
    with plot(path, note, (13, 4), (1, 3)) as ((norms, shares, detached),):
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
        shares.set(ylim=(0, 100), ylabel="%", title="Share through h (median, 10..90 %)")
        detached.set(title=f"Norm over that of all paths, {next(iter(groups))[0]}", yscale="log")
        for axes in (norms, shares, detached):
            axes.set(xlabel="words back")
            axes.legend(fontsize=7)
            axes.xaxis.get_major_locator().set_params(integer=True)


def _detach_colours(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return every setting of h-detach with a colour, the same for the same p."""
    names = dict.fromkeys(row.path for row in rows if row.path.startswith("p = "))
    probs = list(dict.fromkeys(name.split(",")[0] for name in names))
    return [(name, _PALETTE[probs.index(name.split(",")[0]) % len(_PALETTE)]) for name in names]


def _line(
    axes: Axes, rows: Sequence[Row], path: str, value: str = "median", factor: float = 1,
    **style: Any,
) -> list[Any]:  # fmt: skip
    chosen = [row for row in rows if row.path == path and (row.lag or path != HIDDEN)]
    heights = [factor * getattr(row, value) for row in chosen]
    return axes.plot([row.lag for row in chosen], heights, **style)


def _band(
    axes: Axes, rows: Sequence[Row], path: str, bounds: tuple[str, str], factor: float = 1,
    **style: Any,
) -> None:  # fmt: skip
    chosen = [row for row in rows if row.path == path]
    low, high = ([factor * getattr(row, bound) for row in chosen] for bound in bounds)
    axes.fill_between([row.lag for row in chosen], low, high, alpha=0.2, linewidth=0, **style)
