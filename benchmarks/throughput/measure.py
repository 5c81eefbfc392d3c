"""Measure one item: ours and the baselines in turn, round by round, and sgemm beside them.

The time is CPU time (one thread) on a CPU and wall time on a GPU.
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
CORE_GFLOPS = 65.0  # sgemm of the core for which the absolute bars were set
SEED = 0

Run: TypeAlias = Callable[[], object]


@dataclass(frozen=True)
class Item:
    """One job, and the implementations of it."""

    unit: str
    units: int  # per run
    sides: dict[str, Callable[[], Run]]  # makers of runs, ours first
    flops: float = 0.0  # of the products that a run requires; 0 if not counted
    memory: bool = False  # measure the growth of memory
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
    """The figures of one item."""

    name: str
    unit: str
    speeds: dict[str, Figure]  # units per second, ours first
    gemm: Figure  # GFLOP/s of one large matrix product
    flops_per_unit: float
    memory_mb: dict[str, float]  # peak growth of each side
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
        """Return our speed over that of a baseline."""
        return self.ours.median / self.speeds[baseline].median if baseline else None

    @property
    def bound(self) -> float | None:
        """Units per second if only the products took time, at the speed measured beside them."""
        return self.gemm.median * 1e9 / self.flops_per_unit if self.flops_per_unit else None

    @property
    def share(self) -> float | None:
        return self.ours.median / self.bound if self.bound else None

    @property
    def scaled(self) -> float:
        """Our speed on a core of CORE_GFLOPS, if all of it scaled with the products."""
        return self.ours.median * CORE_GFLOPS / self.gemm.median


def measure(
    name: str, make: ItemMaker, *, rounds: int, quick: bool, device: torch.device,
    after_round: Callable[[], object],
) -> Result:  # fmt: skip
    """Measure an item in `rounds` rounds after one to warm up, the sides in alternating order."""
    item = make(quick, device)
    runs = {side: _seeded(build) for side, build in item.sides.items()}
    split = item.stages() if item.stages else None
    gc.collect()
    gc.freeze()  # the collections between the rounds need not visit the libraries
    seconds: list[dict[str, float]] = []
    stages: list[dict[str, float]] = []
    gemm = []
    try:
        for number in range(rounds + 1):
            sides = list(runs) if number % 2 else list(runs)[::-1]
            seconds.append({side: _seconds(runs[side], device) for side in sides})
            stages.append(split() if split else {})
            gemm.append(matrix_product_gflops(device))
            after_round()
    finally:
        gc.unfreeze()
    del runs, split  # free their memory for the processes measured below
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
    """Return the speed of one large square product, the best of several."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    left, right = torch.rand(2, size, size, device=device, dtype=dtype)
    best = min(_seconds(lambda: torch.mm(left, right), device) for _ in range(5))
    return 2 * size**3 / best / 1e9


def _seconds(run: Run, device: torch.device) -> float:
    gc.collect()
    start = clock(device)
    run()
    return clock(device) - start


def clock(device: torch.device) -> float:
    """Return wall time after all work on a GPU, CPU time on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def _seeded(build: Callable[[], Run]) -> Run:
    torch.manual_seed(SEED)
    return build()


def growth(make: ItemMaker, quick: bool, side: str) -> float | None:
    """Return the peak growth of memory (MB) in the first two runs, in a process of its own.

    The model and its data exist before; gradients and optimizer state come with the runs. None if
    the system does not report it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_growth_here, make, quick, side).result()


def _growth_here(make: ItemMaker, quick: bool, side: str) -> float | None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    _seeded(make(True, cpu).sides[side])()  # loads the libraries
    run = _seeded(make(quick, cpu).sides[side])
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
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
