"""The bars: the figures that the items must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.throughput.measure import OURS, Result


@dataclass(frozen=True)
class Bar:
    """The lowest ratio, share or speed, or the highest memory (MB) or time (ms per unit).

    Speed and time hold for a core of CORE_GFLOPS and are compared with the scaled figures.
    """

    what: Literal["ratio", "share", "speed", "memory", "time"]
    limit: float
    baseline: str | None = None  # of the ratio; None: the best one


@dataclass(frozen=True)
class Verdict:
    """A bar and the figure; None if it was not measured."""

    bar: Bar
    figure: float | None

    @property
    def reached(self) -> bool:
        if self.figure is None:
            return False
        at_most = self.bar.what in ("memory", "time")
        return self.figure <= self.bar.limit if at_most else self.figure >= self.bar.limit


BARS: dict[str, tuple[Bar, ...]] = {
    "core-copying": (Bar("ratio", 1.4),),
    "core-mnist": (Bar("ratio", 1.4),),
    "core-captioning": (Bar("ratio", 1.15, "nn.LSTM"), Bar("share", 0.80)),
    "train-attend-7x7": (Bar("speed", 45), Bar("share", 0.55)),
    "train-attend-14x14": (Bar("speed", 25), Bar("memory", 600)),
    "train-showtell": (Bar("speed", 100),),
    "beam-5": (Bar("speed", 15), Bar("memory", 300)),
    "greedy": (Bar("speed", 50),),
    "encoder-lite2": (Bar("ratio", 1.35),),
    "encoder-resnet50": (Bar("ratio", 1.35),),
    "photo": (Bar("time", 300),),
}


def verdicts(result: Result) -> list[Verdict]:
    """Compare every bar of an item with its figure."""
    found = []
    for bar in BARS.get(result.name, ()):
        figures = {
            "ratio": result.ratio(bar.baseline or result.best_baseline),
            "share": result.share,
            "speed": result.scaled,
            "memory": result.memory_mb.get(OURS),
            "time": 1000 / result.scaled,
        }
        found.append(Verdict(bar, figures[bar.what]))
    return found
