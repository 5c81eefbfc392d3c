"""How far back the gradient of trained copying networks reaches, along c and through h."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from benchmarks.gradients.lags import (
    Row,
    Samples,
    add_lags,
    singular_values,
    token_losses,
    unrolled,
)
from benchmarks.gradients.report import Groups
from benchmarks.memory.experiment import Trial
from benchmarks.memory.tasks import Copying
from benchmarks.memory.training import Training
from benchmarks.memory.transfer import trained
from benchmarks.reporting import aligned
from captioner.errors import ConfigError
from captioner.model.lstm import HDetachLSTM

NAMES = ("method", "rate", "trials")


def copying_lags(trials: Sequence[Trial], sequences: int) -> tuple[Groups, str]:
    """Rows of the LSTMs' best weights, seeds together, and a table of W_hh's singular values.

    The losses of the answers to the symbols are followed back, those of each trial's first
    validation sequences; first come the weights that the trials began with. Raises ConfigError as
    `transfer.trained` does, and without an LSTM.
    """
    lstms = [trial for trial in trained(trials) if trial.method.cell in ("lstm", "h-detach")]
    if not lstms:
        raise ConfigError("none of these trials is an lstm or h-detach with weights")
    begun = list({trial.seed: trial for trial in lstms}.values())
    together = {("untrained", ""): begun}
    for trial in lstms:
        together.setdefault((str(trial.method), f"{trial.rate:g}"), []).append(trial)
    groups: dict[tuple[str, ...], Sequence[Row]] = {}
    singular = []
    for name, group in together.items():
        samples, values = Samples(), []
        for trial in group:
            training = Training(trial)
            if name[0] != "untrained":
                training.load_best()
            network, task = training.network.eval(), training.task
            assert isinstance(network.core, HDetachLSTM)
            assert isinstance(task, Copying)
            inputs, targets = task.validation.inputs, task.validation.targets
            loss = token_losses(network.answer, targets[:, :sequences])
            run = unrolled(network.core, inputs[:, :sequences], loss)
            add_lags(samples, run, at=range(task.steps - task.copied, task.steps))
            found = singular_values(network.core.weight_hh_l0)["W_hh"]
            values.append((found.max().item(), found.median().item()))
        told = (*name, str(len(group)))
        groups[told] = samples.rows()
        singular.append([*told, *(f"{median(of_all):.2f}" for of_all in zip(*values, strict=True))])
    return groups, aligned([*NAMES, "largest", "median"], singular, ["method"])
