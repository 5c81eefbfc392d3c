"""Results as a table, as JSON and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.reporting import aligned
from benchmarks.throughput.bars import Verdict, verdicts
from benchmarks.throughput.measure import CORE_GFLOPS, OURS, Figure, Result

COLUMNS = (
    "item", "captioner", "min..max", "per s", "x best", "sgemm", "bound", "share",
    f"at {CORE_GFLOPS:.0f}", "+MB", "bars", "baselines",
)  # fmt: skip
_LEFT = ("item", "min..max", "per s", "bars", "baselines")


def table(results: Sequence[Result], *, judged: bool) -> str:
    """One line an item; `judged` compares with the bars."""
    return aligned(COLUMNS, [_cells(result, judged) for result in results], _LEFT)


def notes(results: Sequence[Result], device: torch.device) -> list[str]:
    """How the table is to be read."""
    of_time = "second" if device.type == "cuda" else "CPU-second"
    lines = [
        f"Units a {of_time}; median (min..max) of the rounds, all sides in turn in each round.",
        "sgemm: GFLOP/s of one large product, measured between the rounds. bound: units a second "
        "if only the products that must be done ran, at that speed.",
        f"Bars of speed and time hold for a core of {CORE_GFLOPS:.0f} GFLOP/s and are held against "
        f"'at {CORE_GFLOPS:.0f}': the figure scaled as if all work went with sgemm.",
        "+MB: peak growth of memory in the first two runs of a side, in a process of its own, "
        "with gradients and the optimizer's state.",
    ]
    for result in results:
        if result.stages_ms:
            split = ", ".join(f"{name} {ms.median:.1f}" for name, ms in result.stages_ms.items())
            total = 1000 / result.ours.median
            lines.append(f"{result.name}: {total:.0f} ms of CPU time a unit; by stage {split}.")
    return lines


def as_json(results: Sequence[Result], header: dict[str, str], *, judged: bool) -> dict[str, Any]:
    """Everything that was measured, in units a second, MB, ms and GFLOP/s."""
    return {"machine": header, "items": [_entry(result, judged) for result in results]}


def draw(results: Sequence[Result], header: dict[str, str], path: Path) -> None:
    """A bar chart: our speed over the best baseline's, and our share of the bound."""
    from matplotlib.figure import Figure as Canvas  # no global state, works without a display

    figure = Canvas(figsize=(11, 1.4 + 0.42 * len(results)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [result.name for result in results]
    ratios = [result.ratio(result.best_baseline) for result in results]
    shares = [100 * result.share if result.share else None for result in results]
    for axes, values, form in ((left, ratios, "{:.2f}"), (right, shares, "{:.0f} %")):
        bars = axes.barh(names, [value or 0 for value in values], color="tab:blue")
        axes.bar_label(bars, [form.format(v) if v else "-" for v in values], padding=3)
        axes.margins(x=0.15)
    left.axvline(1, color="black", linewidth=1)
    left.set(title="Speed over the best baseline's", xlabel="times")
    left.invert_yaxis()
    right.set(title="Share of the bound by products alone", xlabel="%")
    figure.suptitle(
        f"{header['processor']}, torch {header['torch']}, {header['threads']} thread(s), "
        f"{header['date']}",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def _cells(result: Result, judged: bool) -> tuple[str, ...]:
    ratio = result.ratio(result.best_baseline)
    memory = result.memory_mb
    baselines = [
        f"{side} {_number(figure.median)} ({_spread(figure)})"
        + (f" {memory[side]:.0f} MB" if side in memory else "")
        for side, figure in result.baselines.items()
    ]
    bars = [_verdict(verdict) for verdict in verdicts(result)] if judged else []
    return (
        result.name,
        _number(result.ours.median),
        _spread(result.ours),
        result.unit,
        f"{ratio:.2f}" if ratio else "-",
        f"{result.gemm.median:.0f} ({_spread(result.gemm)})",
        _number(result.bound) if result.bound else "-",
        f"{100 * result.share:.0f} %" if result.share else "-",
        _number(result.scaled),
        f"{memory[OURS]:.0f}" if OURS in memory else "-",
        ", ".join(bars) or "-",
        "; ".join(baselines) or "-",
    )


def _verdict(verdict: Verdict) -> str:
    bar = verdict.bar
    asked = f"{bar.what} {bar.limit:g}" + (f" to {bar.baseline}" if bar.baseline else "")
    if verdict.reached:
        return f"{asked} reached"
    if verdict.figure is None:
        return f"{asked} not measured"
    return f"{asked} MISSED ({_number(verdict.figure)})"


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
    """Three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(figure: Figure) -> str:
    return f"{_number(figure.low)}..{_number(figure.high)}"
