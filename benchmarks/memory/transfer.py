"""Transfer copying: networks trained at one T, tested at others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from benchmarks.memory.experiment import Trial
from benchmarks.memory.tasks import Copying
from benchmarks.memory.training import Training
from benchmarks.report import aligned
from captioner.errors import ConfigError

_SEED = 555  # of the test sequences, the same for all networks, as in the authors' code
_TESTED = 5_000

Accuracies = dict[str, dict[int, list[float]]]  # of a method, by length, one a seed


def transfer(trials: Sequence[Trial], lengths: Sequence[int]) -> Accuracies:
    """Test the best weights of each trial that has them, at each length.

    Raises ConfigError if the trials are not of the copying task, or none has weights.
    """
    if trials[0].experiment.task != "copying":
        raise ConfigError("transfer is defined for `task: copying`")
    trials = [trial for trial in trials if (trial.folder / "best.safetensors").exists()]
    if not trials:
        raise ConfigError("no trial of this experiment has weights yet; train it first")
    tasks = {length: Copying(length, _SEED, train=1, validation=_TESTED) for length in lengths}
    found: Accuracies = {}
    for trial in trials:
        by_length = found.setdefault(f"{trial.method}, rate {trial.rate:g}", {})
        for length, task in tasks.items():
            training = Training(trial, task)
            training.network.load_state_dict(load_file(trial.folder / "best.safetensors"))
            by_length.setdefault(length, []).append(training.judge(task.validation)[1])
    return found


def table(found: Accuracies) -> str:
    """One line a method, one column a length: mean and lowest accuracy over the seeds."""
    lengths = sorted({length for by_length in found.values() for length in by_length})
    lines = [
        [method, str(len(by_length[lengths[0]]))]
        + [
            f"{100 * torch.tensor(by_length[n]).mean():.1f} ({100 * min(by_length[n]):.1f})"
            for n in lengths
        ]
        for method, by_length in found.items()
    ]
    return aligned(["method", "trials", *(f"T = {n}" for n in lengths)], lines, ["method"])
