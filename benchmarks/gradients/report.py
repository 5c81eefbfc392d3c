"""The rows of gradients over lags as a table and as a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TypeAlias

from benchmarks.gradients.lags import ALL, CELL, HIDDEN, SHARE, Row
from benchmarks.reporting import aligned, write_csv

Groups: TypeAlias = Mapping[tuple[str, ...], Sequence[Row]]  # by what they are of


def parts_table(groups: Groups, names: Sequence[str], lags: Iterable[int]) -> str:
    """Medians of norms and of the share of h, mean cosines: a line a group and lag."""
    parts = (ALL, CELL, HIDDEN, SHARE)
    lines = []
    for group, lag, found in _lines(groups, lags):
        everything, cell, hidden, share = (found[path] for path in parts)
        lines.append(
            [
                *group,
                str(lag),
                str(everything.count),
                *(f"{row.median:.3g}" for row in (everything, cell, hidden)),
                f"{100 * share.median:.0f} %",
                f"{hidden.cosine:.2f}",
                f"{everything.cosine:.2f}",
            ]
        )
    head = [*names, "lag", "n", *parts, "cos(c, h)", "cos(c, all)"]
    return aligned(head, lines, names)


def detached_table(groups: Groups, names: Sequence[str], lags: Iterable[int]) -> str:
    """Norm over that of all paths, median, and mean cosine with c alone, by setting of h-detach.

    Of draws also the 10 and 90 % quantiles.
    """
    paths = dict.fromkeys(row.path for rows in groups.values() for row in rows)
    detached = [path for path in paths if path not in (ALL, CELL, HIDDEN, SHARE)]
    lines = [
        [*group, str(lag), *(_detached(found[path]) for path in detached)]
        for group, lag, found in _lines(groups, lags)
        if lag
    ]
    return aligned([*names, "lag", *detached], lines, names)


def _lines(
    groups: Groups, lags: Iterable[int]
) -> Iterator[tuple[tuple[str, ...], int, dict[str, Row]]]:
    """Group, lag and rows by path, of every lag that the group has."""
    wanted = list(lags)
    for group, rows in groups.items():
        for lag in wanted:
            found = {row.path: row for row in rows if row.lag == lag}
            if found:
                yield group, lag, found


def _detached(row: Row) -> str:
    spread = f" ({row.ratio_low:.2g}..{row.ratio_high:.2g})" if row.path.endswith("drawn") else ""
    return f"{row.ratio:.2g}{spread} cos {row.cosine:.2f}"


def write_rows(groups: Groups, names: Sequence[str], path: Path) -> None:
    """Every row of every group as CSV; raises ConfigError where the file cannot be written."""
    lines = [
        {**dict(zip(names, group, strict=True)), **asdict(row)}
        for group, rows in groups.items()
        for row in rows
    ]
    write_csv(lines, path, [*names, *(field.name for field in fields(Row))])
