"""Trials: trainings that are run once, each in a folder of its own; resumable and shareable.

A trial that is over has a file `trial.json` with its settings and how it ended. Processes that work
on the same trials keep apart by a lock in each folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from filelock import FileLock, Timeout

from benchmarks.reporting import machine, print_lines, short_note
from captioner.errors import ConfigError
from captioner.files import read_json, write_text


class AnyTrial(Protocol):
    """What every trial has."""

    @property
    def folder(self) -> Path:
        """Where its files lie."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its figures depend on; the same wherever its folder lies."""


Trial = TypeVar("Trial", bound=AnyTrial)
Entry = TypeVar("Entry")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Outcome(Generic[Trial, Entry]):
    """The figures of a finished trial."""

    trial: Trial
    entries: Sequence[Entry]  # one a validation
    diverged: str  # the reason to count it as diverged, empty if it is not
    machine: Mapping[str, str]
    cpu_seconds: float = math.nan  # per epoch, of the process that finished it, without Java


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Yield whether this process holds the lock; the lock of a process that died is free."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        pass
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; give another --out") from None
    try:
        yield lock.is_locked
    finally:
        lock.release()


def write_record(trial: AnyTrial, diverged: str, device: torch.device, **figures: Any) -> None:
    """Write `trial.json`: the trial is over."""
    record = {"settings": trial.settings, "diverged": diverged, **figures}
    record["machine"] = machine(trial.folder.name, device)
    write_text(trial.folder / "trial.json", json.dumps(record, indent=1) + "\n")


def read_record(
    trial: AnyTrial, complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found
) -> dict[str, Any] | None:
    """Read `trial.json`; None while the trial is not over.

    `complete` adds settings that are newer than the file. Raises ConfigError if the folder holds a
    trial of other settings.
    """
    path = trial.folder / "trial.json"
    if not path.exists():
        return None
    record: dict[str, Any] = read_json(path)
    check_settings(trial, complete(record["settings"]))
    return record


def check_settings(trial: AnyTrial, found: Mapping[str, Any]) -> None:
    """Raise ConfigError unless the settings found in the folder are the trial's."""
    wanted = trial.settings
    other = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if other:
        raise ConfigError(
            f"{trial.folder}: a trial with other settings ({', '.join(other)}); give another --out"
        )


def matched(
    items: Iterable[Item], others: Iterable[Item], key: Callable[[Item], Hashable]
) -> list[tuple[Item, Item]]:
    """Pair items with those of `others` that have the same key; items without a partner drop."""
    known = {key(other): other for other in others}
    return [(item, known[key(item)]) for item in items if key(item) in known]


def print_machines(
    outcomes: Sequence[Outcome[Trial, Entry]], command: str, total: int | None = None
) -> str:
    """Print on what machines and when the trials ran; return the note for their plots."""
    header = {
        name: "; ".join(dict.fromkeys(outcome.machine[name] for outcome in outcomes))
        for name in ("processor", "torch", "threads", "allocator")
    }
    dates = sorted(outcome.machine["date"] for outcome in outcomes)
    print_lines({**header, "command": command})
    of_all = f" of {total}" if total else ""
    print(f"trials finished: {len(outcomes)}{of_all}, {dates[0]} to {dates[-1]}")
    return short_note({**header, "date": dates[-1]})
