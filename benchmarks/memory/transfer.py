"""Transfer copying: networks trained at one T, tested at others."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.memory.experiment import Trial
from benchmarks.memory.tasks import Copying
from benchmarks.memory.training import Training
from benchmarks.reporting import aligned
from captioner.errors import ConfigError

_SEED = 555  # of the test sequences, the same for all networks, as in the authors' code
_TESTED = 5_000

Accuracies = dict[str, dict[int, list[float]]]  # of a method, by length, one a seed


def transfer(trials: Sequence[Trial], lengths: Sequence[int]) -> Accuracies:
    """Test the best weights of each trial that has them, at each length; errors as of `trained`."""
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
    """Those that have weights; ConfigError if none has, or the task is not copying."""
    if trials[0].experiment.task != "copying":
        raise ConfigError(f"this is for `task: copying`, not {trials[0].experiment.task}")
    found = [trial for trial in trials if trial.best_weights.exists()]
    if not found:
        raise ConfigError(f"no trial in {trials[0].experiment.out} has weights yet; train it first")
    return found


def table(found: Accuracies) -> str:
    """One line a method, one column a length: accuracy, mean (lowest to highest) over the seeds."""
    lengths = sorted({length for by_length in found.values() for length in by_length})
    lines = [
        [method, str(len(by_length[lengths[0]]))]
        + [
            f"{100 * fmean(values):.0f} ({100 * min(values):.0f} to {100 * max(values):.0f})"
            for values in (by_length[n] for n in lengths)
        ]
        for method, by_length in found.items()
    ]
    return aligned(["method", "trials", *(f"T = {n}" for n in lengths)], lines, ["method"])
