"""Run trials to their end, one by one or several together; nothing is trained twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import groupby

import torch

from benchmarks.locks import locked
from benchmarks.memory.experiment import Trial
from benchmarks.memory.stacked import stackable, train_together
from benchmarks.memory.training import CPU, Check, Training, note_outcome, over, read_outcome


def run_trials(
    trials: Sequence[Trial],
    tell: Callable[[Trial, Check], object] = lambda trial, check: None,
    *,
    device: torch.device = CPU,
) -> None:
    """Train them together, or go on with them, and note how each ended.

    Those that are over or under way elsewhere are left alone. `tell` hears each check. Raises
    ConfigError if a folder holds a trial of other settings.
    """
    with ExitStack() as locks:
        going: dict[Training, list[Check]] = {}
        for trial in trials:
            mine = locks.enter_context(locked(trial.folder / "lock", wait=False))
            if mine and read_outcome(trial) is None:
                training = Training(trial, device=device)
                going[training] = training.resume()
        while going:
            for group in _next_groups(list(going)):
                for training, diverged in _advance(group, going, tell):
                    note_outcome(training, going.pop(training), diverged)


def _next_groups(trainings: Sequence[Training]) -> list[list[Training]]:
    """Those furthest behind, split into what can be stacked: networks alike, at one rate."""
    step = min(training.step for training in trainings)
    behind = [training for training in trainings if training.step == step]
    alone = [[training] for training in behind if not stackable(training)]
    together = [training for training in behind if stackable(training)]
    by_rate = groupby(sorted(together, key=_rate), _rate)
    return alone + [list(group) for _, group in by_rate]


def _rate(training: Training) -> float:
    return training.trial.rate


def _advance(
    group: Sequence[Training],
    going: dict[Training, list[Check]],
    tell: Callable[[Trial, Check], object],
) -> list[tuple[Training, str]]:
    """Train a group until its next check; those that are over, and why if they diverged."""
    experiment, step = group[0].trial.experiment, group[0].step
    steps = min(experiment.check_steps, experiment.steps - step)
    together = stackable(group[0]) and (len(group) > 1 or group[0].device.type == "cuda")
    stretches = train_together(group, steps) if together else [group[0].train(steps)]
    ended = []
    for training, stretch in zip(group, stretches, strict=True):
        if not stretch.finite:
            norm = stretch.largest_norm
            ended.append(
                (training, f"a gradient is {norm} between {step} and {step + steps} steps")
            )
            continue
        checks = going[training]
        checks.append(training.check(stretch))
        training.save(checks)
        tell(training.trial, checks[-1])
        if over(training.trial, checks):
            ended.append((training, ""))
    return ended
