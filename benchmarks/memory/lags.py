"""How far back the gradient of trained copying networks reaches, along c and through h."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.gradients.lags import Row, Samples, add_lags, singular_values, token_losses
from benchmarks.gradients.lags import unrolled as unroll
from benchmarks.gradients.report import Groups
from benchmarks.memory.experiment import Trial
from benchmarks.memory.tasks import Copying
from benchmarks.memory.training import Training
from benchmarks.memory.transfer import trained
from benchmarks.reporting import table
from captioner.errors import ConfigError
from captioner.model.lstm import HDetachLSTM

NAMES = ("method", "rate", "trials")


def copying_lags(trials: Sequence[Trial], sequences: int) -> tuple[Groups, str]:
    """Return the rows of the LSTMs' best weights, and a table of the singular values of W_hh.

    The losses of the copied symbols in each trial's first validation sequences are followed back;
    the seeds of a method are pooled. The first group has the initial weights. Raises ConfigError as
    `transfer.trained` does, and without an LSTM.
    """
    lstms = [trial for trial in trained(trials) if trial.method.cell in ("lstm", "h-detach")]
    if not lstms:
        out = trials[0].experiment.out
        raise ConfigError(f"{out}: no trained lstm or h-detach; add one to methods and train it")
    members = {("untrained", ""): list({trial.seed: trial for trial in lstms}.values())}
    for trial in lstms:
        members.setdefault((str(trial.method), f"{trial.rate:g}"), []).append(trial)
    groups: dict[tuple[str, ...], Sequence[Row]] = {}
    singular = []
    for name, group in members.items():
        samples, values = Samples(), []
        for trial in group:
            training = Training(trial)
            if name[0] != "untrained":
                training.load_best()
            values.append(_add_trial(samples, training, sequences))
        key = (*name, str(len(group)))
        largest, middle = (f"{median(column):.2f}" for column in zip(*values, strict=True))
        groups[key] = samples.rows()
        cells = {"largest": largest, "median": middle}
        singular.append({**dict(zip(NAMES, key, strict=True)), **cells})
    return groups, table(singular, ["method"])


def _add_trial(samples: Samples, training: Training, sequences: int) -> tuple[float, float]:
    """Add the gradients of one network; return its largest and median singular value of W_hh."""
    network, task = training.network.eval(), training.task
    assert isinstance(network.core, HDetachLSTM)
    assert isinstance(task, Copying)
    inputs, targets = task.validation.inputs, task.validation.targets
    loss = token_losses(network.answer, targets[:, :sequences])
    run = unroll(network.core, inputs[:, :sequences], loss)
    add_lags(samples, run, at=range(task.steps - task.copied, task.steps))
    values = singular_values(network.core.weight_hh_l0)["W_hh"]
    return values.max().item(), values.median().item()
