"""Run trials to their end, one by one or several together; nothing is trained twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import groupby

import torch

from benchmarks.memory.experiment import Trial
from benchmarks.memory.stacked import stackable, train_together
from benchmarks.memory.training import Check, Training, over, read_outcome
from benchmarks.reporting import CPU
from benchmarks.trials import locked, write_record

Report = Callable[[Trial, Check], object]


def run_trials(
    trials: Sequence[Trial],
    report: Report = lambda trial, check: None,
    *,
    device: torch.device = CPU,
) -> None:
    """Train the trials together or resume them, and record how each ended.

    Skips those that are over or under way elsewhere. `report` gets each check. Raises ConfigError
    if a folder holds a trial of other settings.
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
                for training, diverged in _advance(group, going, report):
                    checks = [asdict(check) for check in going.pop(training)]
                    write_record(training.trial, diverged, device, checks=checks)


def _next_groups(trainings: Sequence[Training]) -> list[list[Training]]:
    """Group the trainings that are furthest behind: networks alike at one rate can be stacked."""
    step = min(training.step for training in trainings)
    behind = [training for training in trainings if training.step == step]
    alone = [[training] for training in behind if not stackable(training)]
    together = [training for training in behind if stackable(training)]
    by_rate = groupby(sorted(together, key=_rate), _rate)
    return alone + [list(group) for _, group in by_rate]


def _rate(training: Training) -> float:
    return training.trial.rate


def _advance(
    group: Sequence[Training], going: dict[Training, list[Check]], report: Report
) -> list[tuple[Training, str]]:
    """Train a group until its next check; return the trainings that ended, and why if diverged."""
    experiment, step = group[0].trial.experiment, group[0].step
    steps = min(experiment.check_steps, experiment.steps - step)
    together = stackable(group[0]) and (len(group) > 1 or group[0].device.type == "cuda")
    stretches = train_together(group, steps) if together else [group[0].train(steps)]
    ended = []
    for training, stretch in zip(group, stretches, strict=True):
        norm, checks = stretch.largest_norm, going[training]
        if not math.isfinite(norm):
            reason = f"a gradient is {norm} between {step} and {step + steps} steps"
            ended.append((training, reason))
            continue
        checks.append(training.check(stretch))
        training.save(checks)
        report(training.trial, checks[-1])
        if over(training.trial, checks):
            ended.append((training, ""))
    return ended
