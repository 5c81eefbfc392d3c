"""Measure one item: our side and the baselines in turn, every round, and the machine beside them.

On a CPU the time is that of the processor (one thread); on a GPU it is the wall's.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TypeAlias

import torch

OURS = "captioner"
CORE_GFLOPS = 65.0  # sgemm of the core that the absolute bars were set for
SEED = 0

Run: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Item:
    """One job, and the ways to do it."""

    unit: str
    units: int  # done by one run
    sides: dict[str, Callable[[], Run]]  # makers of runs, ours first
    flops: float = 0.0  # products that one run must do; 0 if not counted
    memory: bool = False  # whether the growth of memory is asked for
    stages: Callable[[], Callable[[], dict[str, float]]] | None = None  # seconds of each stage


ItemMaker: TypeAlias = Callable[[bool, torch.device], Item]  # of (quick, device)


@dataclass(frozen=True)
class Figure:
    """Median and spread over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Result:
    """What was measured of one item."""

    name: str
    unit: str
    speeds: dict[str, Figure]  # units a second, ours first
    gemm: Figure  # GFLOP/s of one large matrix product
    flops_per_unit: float
    memory_mb: dict[str, float]  # peak growth of each side, where asked
    stages_ms: dict[str, Figure]

    @property
    def ours(self) -> Figure:
        return self.speeds[OURS]

    @property
    def baselines(self) -> dict[str, Figure]:
        return {side: figure for side, figure in self.speeds.items() if side != OURS}

    @cached_property
    def best_baseline(self) -> str | None:
        return max(self.baselines, key=lambda side: self.speeds[side].median, default=None)

    def ratio(self, baseline: str | None) -> float | None:
        """Our speed over that of a baseline."""
        return self.ours.median / self.speeds[baseline].median if baseline else None

    @property
    def bound(self) -> float | None:
        """Units a second if only the products counted, at the speed measured beside them."""
        return self.gemm.median * 1e9 / self.flops_per_unit if self.flops_per_unit else None

    @property
    def share(self) -> float | None:
        return self.ours.median / self.bound if self.bound else None

    @property
    def scaled(self) -> float:
        """Our speed on a core of CORE_GFLOPS, as if all of it went with the products."""
        return self.ours.median * CORE_GFLOPS / self.gemm.median


def measure(
    name: str,
    make: ItemMaker,
    *,
    rounds: int,
    quick: bool,
    device: torch.device,
    after_round: Callable[[], object],
) -> Result:
    """Measure an item in `rounds` rounds after one to warm up, the sides in changing order."""
    item = make(quick, device)
    runs = {side: _seeded(build) for side, build in item.sides.items()}
    split = item.stages() if item.stages else None
    gc.collect()
    gc.freeze()  # the collections between the rounds need not visit the libraries
    seconds: list[dict[str, float]] = []
    stages: list[dict[str, float]] = []
    gemm = []
    for number in range(rounds + 1):
        sides = list(runs) if number % 2 else list(runs)[::-1]
        seconds.append({side: _seconds(runs[side], device) for side in sides})
        stages.append(split() if split else {})
        gemm.append(matrix_product_gflops(device))
        after_round()
    gc.unfreeze()
    del runs, split  # a side's memory must not be missing to the processes measured below
    sides_asked = item.sides if item.memory and device.type == "cpu" else {}
    growths = {side: growth(make, quick, side) for side in sides_asked}
    return Result(
        name=name,
        unit=item.unit,
        speeds={
            side: Figure.of([item.units / taken[side] for taken in seconds[1:]])
            for side in item.sides
        },
        gemm=Figure.of(gemm[1:]),
        flops_per_unit=item.flops / item.units,
        memory_mb={side: grown for side, grown in growths.items() if grown is not None},
        stages_ms={
            stage: Figure.of([1000 * taken[stage] for taken in stages[1:]]) for stage in stages[0]
        },
    )


def matrix_product_gflops(device: torch.device) -> float:
    """Speed of one large square product, the best of several."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    left, right = torch.rand(2, size, size, device=device, dtype=dtype)
    best = min(_seconds(lambda: torch.mm(left, right), device) for _ in range(5))
    return 2 * size**3 / best / 1e9


def _seconds(run: Run, device: torch.device) -> float:
    gc.collect()
    start = _clock(device)
    run()
    return _clock(device) - start


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _seeded(build: Callable[[], Run]) -> Run:
    torch.manual_seed(SEED)
    return build()


def growth(make: ItemMaker, quick: bool, side: str) -> float | None:
    """Peak growth of memory (MB) in the first two runs of a side, in a process of its own.

    The model and its data are there before; gradients and the optimizer's state come with the runs.
    None where the system does not tell.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_growth_here, make, quick, side).result()


def _growth_here(make: ItemMaker, quick: bool, side: str) -> float | None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    _seeded(make(True, cpu).sides[side])()  # loads the libraries' code
    run = _seeded(make(quick, cpu).sides[side])
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _memory_mb("VmRSS")
        run()
        run()
        return _memory_mb("VmHWM") - before
    except OSError:
        return None


def _memory_mb(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024 / 1e6
