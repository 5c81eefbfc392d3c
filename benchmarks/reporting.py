"""Reports: the machine, tables, CSV files, plots, means and deviations."""

from __future__ import annotations

import csv
import math
import os
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

import torch

from captioner.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CPU = torch.device("cpu")


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Return the command as it was typed."""
    return shlex.join(["python", "-m", module, *arguments])


def machine(command: str, device: torch.device = CPU) -> dict[str, str]:
    """Return what a figure depends on besides the code."""
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


def print_machine(command: str, device: torch.device = CPU) -> dict[str, str]:
    """Print what the figures depend on, and return it."""
    header = machine(command, device)
    print_lines(header)
    return header


def print_lines(header: Mapping[str, str]) -> None:
    """Print a line for each key."""
    print(*(f"{key}: {value}" for key, value in header.items()), sep="\n", flush=True)


def short_note(header: Mapping[str, str]) -> str:
    """Return the line about the machine that stands above a plot."""
    return f"{header['processor']}, torch {header['torch']}, {header['date']}"


def table(rows: Sequence[Mapping[str, str]], left: Sequence[str] = ()) -> str:
    """Align cells under the names of their columns, those of `left` to the left."""
    if not rows:
        return "(no rows)"
    widths = {name: max(len(row[name]) for row in [{name: name}, *rows]) for name in rows[0]}
    lines = [{name: name for name in rows[0]}, *rows]
    return "\n".join(table_line(line, widths, left) for line in lines)


def table_line(row: Mapping[str, str], widths: Mapping[str, int], left: Sequence[str]) -> str:
    """Return one line of a table, in columns of these widths at least."""
    return "  ".join(
        row[name].ljust(width) if name in left else row[name].rjust(width)
        for name, width in widths.items()
    ).rstrip()


def write_csv(rows: Sequence[Mapping[str, object]], path: Path, names: Sequence[str] = ()) -> None:
    """Write a line for each row under `names`, or else the names that occur; raise ConfigError."""
    columns = names or list(dict.fromkeys(name for row in rows for name in row))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def plot(
    path: Path, note: str, size: tuple[float, float], shape: tuple[int, int] = (1, 1), **share: Any
) -> Iterator[list[list[Axes]]]:
    """Yield rows of axes to draw on, and write them to `path` under a title."""
    from matplotlib.figure import Figure  # no global state, works without a display

    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(*shape, squeeze=False, **share)
    yield panels.tolist()
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    figure.suptitle(note, fontsize=8)
    figure.savefig(path, dpi=100)


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN without values."""
    return fmean(values) if values else math.nan


def mean_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and sample deviation; NaN where there are too few values."""
    return mean(values), stdev(values) if len(values) > 1 else math.nan


def difference(values: Sequence[float], digits: int) -> str:
    """Write the mean of paired differences and its standard error."""
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
