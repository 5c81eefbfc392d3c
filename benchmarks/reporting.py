"""What all reports share: the machine, tables, CSV files, means and deviations."""

from __future__ import annotations

import csv
import math
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, stdev

import torch

from captioner.errors import ConfigError


def machine(command: str, device: torch.device) -> dict[str, str]:
    """What a figure depends on besides the code."""
    allocator = [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("MALLOC_") or name in ("LD_PRELOAD", "GLIBC_TUNABLES")
    ]
    on_gpu = device.type == "cuda"
    return {
        "processor": torch.cuda.get_device_name(device) if on_gpu else _cpu_model(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "allocator": " ".join(allocator) or "default (no MALLOC_* set)",
        "command": command,
    }


def short_note(header: dict[str, str]) -> str:
    """What stands on a picture of the machine: processor, torch, date."""
    return f"{header['processor']}, torch {header['torch']}, {header['date']}"


def aligned(head: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[str]) -> str:
    """Columns under their names, those of `left` to the left, the others to the right."""
    everything = [head, *lines]
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width)
            for cell, width, name in zip(line, widths, head, strict=True)
        ).rstrip()
        for line in everything
    )


def write_csv(lines: Sequence[Mapping[str, object]], path: Path, names: Sequence[str] = ()) -> None:
    """A line each, under `names` or else the names that occur; ConfigError if it cannot be."""
    columns = names or list(dict.fromkeys(name for line in lines for name in line))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(lines)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return fmean(values) if values else math.nan


def mean_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation of the sample; NaN of nothing and of one value."""
    return mean(values), stdev(values) if len(values) > 1 else math.nan


def difference(values: Sequence[float], digits: int) -> str:
    """Of pairs: their mean and its standard error."""
    middle, deviation = mean_deviation(values)
    error = "" if math.isnan(deviation) else f" ± {deviation / math.sqrt(len(values)):.{digits}f}"
    return f"{middle:+.{digits}f}{error}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
