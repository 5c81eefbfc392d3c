"""Results as lines of a table, as JSON and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import plot, short_note, table_line
from benchmarks.throughput.bars import Verdict, verdicts
from benchmarks.throughput.measure import CORE_GFLOPS, OURS, Figure, Result

_SCALED = f"at {CORE_GFLOPS:.0f}"
_WIDTHS = {
    "item": 18, "captioner": 9, "min..max": 12, "per s": 11, "x best": 6, "sgemm": 14, "bound": 6,
    "share": 5, _SCALED: 6, "+MB": 4, "bars": 40, "baselines": 0,
}  # fmt: skip
_LEFT = ("item", "min..max", "per s", "bars", "baselines")


def head() -> str:
    """Return the names of the columns."""
    return table_line({name: name for name in _WIDTHS}, _WIDTHS, _LEFT)


def row(result: Result, *, judged: bool) -> str:
    """Return an item's line; `judged` compares it with the bars."""
    ratio, memory = result.ratio(result.best_baseline), result.memory_mb
    baselines = [
        f"{side} {_number(figure.median)} ({_spread(figure)})"
        + (f" {memory[side]:.0f} MB" if side in memory else "")
        for side, figure in result.baselines.items()
    ]
    bars = [_verdict(verdict) for verdict in verdicts(result)] if judged else []
    cells = {
        "item": result.name,
        "captioner": _number(result.ours.median),
        "min..max": _spread(result.ours),
        "per s": result.unit,
        "x best": f"{ratio:.2f}" if ratio else "-",
        "sgemm": f"{result.gemm.median:.0f} ({_spread(result.gemm)})",
        "bound": _number(result.bound) if result.bound else "-",
        "share": f"{100 * result.share:.0f} %" if result.share else "-",
        _SCALED: _number(result.scaled),
        "+MB": f"{memory[OURS]:.0f}" if OURS in memory else "-",
        "bars": ", ".join(bars) or "-",
        "baselines": "; ".join(baselines) or "-",
    }
    return table_line(cells, _WIDTHS, _LEFT)


def notes(results: Sequence[Result], device: torch.device) -> list[str]:
    """Return the lines that explain the table."""
    of_time = "second" if device.type == "cuda" else "CPU second"
    lines = [
        f"Units per {of_time}; median (min..max) of the rounds, all sides in turn in each round.",
        "sgemm: GFLOP/s of one large product, measured between the rounds. bound: units per second "
        "if only the required products ran, at that speed.",
        f"Bars of speed and time hold for a core of {CORE_GFLOPS:.0f} GFLOP/s and are compared "
        f"with '{_SCALED}': the speed scaled as if all work went with sgemm.",
        "+MB: peak growth of memory in the first two runs of a side, in a process of its own, "
        "with gradients and optimizer state.",
    ]
    for result in results:
        if result.stages_ms:
            split = ", ".join(f"{name} {ms.median:.1f}" for name, ms in result.stages_ms.items())
            total = 1000 / result.ours.median
            lines.append(f"{result.name}: {total:.0f} ms of CPU time per unit; by stage {split}.")
    return lines


def as_json(results: Sequence[Result], header: dict[str, str], *, judged: bool) -> dict[str, Any]:
    """Return all figures, in units per second, MB, ms and GFLOP/s."""
    return {"machine": header, "items": [_entry(result, judged) for result in results]}


def plot_results(results: Sequence[Result], header: dict[str, str], path: Path) -> None:
    """Plot our speed over that of the best baseline, and our share of the bound."""
    names = [result.name for result in results]
    ratios = [result.ratio(result.best_baseline) for result in results]
    shares = [100 * result.share if result.share else None for result in results]
    note = f"{short_note(header)}, {header['threads']} thread(s)"
    size = (11, 1.4 + 0.42 * len(results))
    with plot(path, note, size, (1, 2), sharey=True) as ((left, right),):
        for axes, values, form in ((left, ratios, "{:.2f}"), (right, shares, "{:.0f} %")):
            bars = axes.barh(names, [value or 0 for value in values], color="tab:blue")
            axes.bar_label(bars, [form.format(v) if v else "-" for v in values], padding=3)
            axes.margins(x=0.15)
        left.axvline(1, color="black", linewidth=1)
        left.set(title="Speed over that of the best baseline", xlabel="times")
        left.invert_yaxis()
        right.set(title="Share of the bound by products alone", xlabel="%")


def _verdict(verdict: Verdict) -> str:
    bar = verdict.bar
    name = f"{bar.what} {bar.limit:g}" + (f" to {bar.baseline}" if bar.baseline else "")
    if verdict.reached:
        return f"{name} reached"
    if verdict.figure is None:
        return f"{name} not measured"
    return f"{name} MISSED ({_number(verdict.figure)})"


def _entry(result: Result, judged: bool) -> dict[str, Any]:
    return {
        "name": result.name,
        "unit": result.unit,
        "speed": {side: asdict(figure) for side, figure in result.speeds.items()},
        "best_baseline": result.best_baseline,
        "ratio": result.ratio(result.best_baseline),
        "sgemm_gflops": asdict(result.gemm),
        "bound": result.bound,
        "share": result.share,
        "speed_scaled": result.scaled,
        "memory_mb": result.memory_mb,
        "stages_ms": {stage: asdict(figure) for stage, figure in result.stages_ms.items()},
        "bars": [
            {**asdict(verdict), "reached": verdict.reached}
            for verdict in (verdicts(result) if judged else [])
        ],
    }


def _number(value: float) -> str:
    """Write three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(figure: Figure) -> str:
    return f"{_number(figure.low)}..{_number(figure.high)}"
