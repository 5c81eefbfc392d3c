"""How far back the gradient of trained copying networks reaches, along c and through h."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gradients.lags import Row, lstm_lags, singular_values, token_losses
from benchmarks.gradients.report import Groups
from benchmarks.memory.experiment import Trial
from benchmarks.memory.tasks import Copying
from benchmarks.memory.training import Training
from benchmarks.memory.transfer import trained
from benchmarks.reporting import aligned
from captioner.errors import ConfigError
from captioner.lstm import HDetachLSTM

NAMES = ("method", "rate", "seed")


def copying_lags(trials: Sequence[Trial], sequences: int) -> tuple[Groups, str]:
    """Rows of each LSTM's best weights, and a table of its W_hh's singular values.

    The losses of the answers to the symbols are followed back, those of the first validation
    sequences; first come the weights one of them began with. Raises ConfigError as
    `transfer.trained` does, and without an LSTM.
    """
    groups: dict[tuple[str, ...], Sequence[Row]] = {}
    values = []
    lstms = [trial for trial in trained(trials) if trial.method.cell in ("lstm", "h-detach")]
    if not lstms:
        raise ConfigError("none of these trials is an lstm or h-detach with weights")
    for trial in [None, *lstms]:
        training = Training(trial or lstms[0])
        name = ("untrained", "", str(lstms[0].seed))
        if trial is not None:
            training.load_best()
            name = (str(trial.method), f"{trial.rate:g}", str(trial.seed))
        network, task = training.network.eval(), training.task
        assert isinstance(network.core, HDetachLSTM)
        assert isinstance(task, Copying)
        groups[name] = lstm_lags(
            network.core,
            task.validation.inputs[:, :sequences],
            token_losses(network.answer, task.validation.targets[:, :sequences]),
            at=range(task.steps - task.copied, task.steps),
            detached=(),
        )
        found = singular_values(network.core.weight_hh_l0)["W_hh"]
        values.append([*name, f"{found.max():.2f}", f"{found.median():.2f}"])
    head = [*NAMES, "largest", "median"]
    return groups, aligned(head, values, ["method"])
