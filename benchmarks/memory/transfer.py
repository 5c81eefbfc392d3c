"""Transfer copying: networks trained at one length T, tested at others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.memory.experiment import Trial
from benchmarks.memory.tasks import Copying
from benchmarks.memory.training import Training
from benchmarks.reporting import table
from captioner.errors import ConfigError

_SEED = 555  # of the test sequences, the same for all networks, as in the authors' code
_TESTED = 5_000

Accuracies = dict[str, dict[int, list[float]]]  # method -> length -> one value per seed


def transfer(trials: Sequence[Trial], lengths: Sequence[int]) -> Accuracies:
    """Test the best weights of each trial at each length; raise ConfigError as `trained` does."""
    tasks = {length: Copying(length, _SEED, train=1, validation=_TESTED) for length in lengths}
    found: Accuracies = {}
    for trial in trained(trials):
        by_length = found.setdefault(f"{trial.method}, rate {trial.rate:g}", {})
        for length, task in tasks.items():
            training = Training(trial, task)
            training.load_best()
            by_length.setdefault(length, []).append(training.judge(task.validation)[1])
    return found


def trained(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials with weights; raise ConfigError if none has, or the task is another."""
    experiment = trials[0].experiment
    if experiment.task != "copying":
        raise ConfigError(f"task is {experiment.task}; this command needs `task: copying`")
    found = [trial for trial in trials if trial.best_weights.exists()]
    if not found:
        raise ConfigError(f"{experiment.out}: no trial has weights yet; run `train` first")
    return found


def transfer_table(found: Accuracies) -> str:
    """Write a line for each method: mean accuracy (lowest to highest) over the seeds."""
    rows = []
    for method, by_length in found.items():
        rows.append({"method": method, "trials": str(len(next(iter(by_length.values()))))})
        for length, values in sorted(by_length.items()):
            low, middle, high = (100 * f(values) for f in (min, fmean, max))
            rows[-1][f"T = {length}"] = f"{middle:.0f} ({low:.0f} to {high:.0f})"
    return table(rows, ["method"])
