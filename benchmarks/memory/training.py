"""One training on a long-memory task, step by step and resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks import trials
from benchmarks.memory.experiment import Trial
from benchmarks.memory.networks import Network
from benchmarks.memory.tasks import Batch, Task
from benchmarks.reporting import CPU
from captioner.model.lstm import HDetachLSTM

_VALIDATED = 500  # sequences at once


@dataclass(frozen=True)
class Check:
    """The validation after `step` steps; norms are those before clipping."""

    step: int
    train_loss: float  # mean since the check before
    val_loss: float
    accuracy: float  # of validation
    test_accuracy: float  # at the best validation so far; NaN without a test split
    largest_norm: float  # of the gradient since the check before
    cpu_seconds: float


Outcome: TypeAlias = trials.Outcome[Trial, Check]


@dataclass(frozen=True)
class Stretch:
    """Some steps of training: their mean loss, and the largest gradient norm before clipping."""

    loss: float
    largest_norm: float


class Training:
    """A trial under way: its network, its data and its progress, all of which `state.pt` holds."""

    def __init__(self, trial: Trial, task: Task | None = None, device: torch.device = CPU):
        self.trial, self.device = trial, device
        self.task = (task or trial.task()).to(device)
        experiment = trial.experiment
        torch.manual_seed(trial.seed)
        self.network = Network(
            trial.method, self.task.inputs, experiment.hidden, self.task.outputs, self.task.steps
        ).to(device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), trial.rate)
        self.clip = experiment.clip if trial.method.clipped else math.inf
        self.order = torch.Generator().manual_seed(1_000_003 * trial.seed)  # of the data
        self.draws = torch.Generator().manual_seed(trial.seed)  # of blocked steps
        if isinstance(self.network.core, HDetachLSTM):
            self.network.core.generator = self.draws
        self.step, self.cpu_seconds = 0, 0.0
        self.best, self.test_accuracy = -1.0, math.nan

    def train(self, steps: int) -> Stretch:
        """Train for some steps, or until the first gradient that is not finite."""
        start, total, largest = time.process_time(), 0.0, 0.0
        self.network.train()
        for _ in range(steps):
            batch = self.next_batch()
            answers = self.network(batch.inputs, self.task.answered)
            loss = self.task.loss(answers, batch.targets)
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip).item()
            if not math.isfinite(norm):
                return Stretch(math.nan, norm)
            self.optimizer.step()
            total, largest = total + loss.item(), max(largest, norm)
        self.cpu_seconds += time.process_time() - start
        return Stretch(total / steps, largest)

    def next_batch(self) -> Batch:
        """Begin a step and return its data; the last `plain_steps` have no h-detach."""
        experiment, core = self.trial.experiment, self.network.core
        if isinstance(core, HDetachLSTM) and self.step >= experiment.steps - experiment.plain_steps:
            core.detach_prob = 0.0
        batch = self.task.batch(experiment.batch, self.step, self.order)
        self.step += 1
        return batch

    @torch.inference_mode()
    def judge(self, batch: Batch) -> tuple[float, float]:
        """Return loss and accuracy on a split."""
        self.network.eval()
        size = batch.inputs.shape[1]
        loss = accuracy = 0.0
        for start in range(0, size, _VALIDATED):
            inputs = batch.inputs[:, start : start + _VALIDATED]
            targets = batch.targets[..., start : start + _VALIDATED]
            answers = self.network(inputs, self.task.answered)
            share = inputs.shape[1] / size
            loss += share * self.task.loss(answers, targets).item()
            accuracy += share * self.task.accuracy(answers, targets)
        return loss, accuracy

    def check(self, stretch: Stretch) -> Check:
        """Validate, and keep the weights if they are the best so far."""
        val_loss, accuracy = self.judge(self.task.validation)
        if accuracy > self.best:
            self.best = accuracy
            if self.task.test is not None:
                self.test_accuracy = self.judge(self.task.test)[1]
            save_file(self.network.state_dict(), self.trial.best_weights)
        return Check(
            self.step, stretch.loss, val_loss, accuracy, self.test_accuracy,
            stretch.largest_norm, round(self.cpu_seconds, 2),
        )  # fmt: skip

    def load_best(self) -> None:
        """Load the weights of the best check so far."""
        self.network.load_state_dict(load_file(self.trial.best_weights))

    def save(self, checks: Sequence[Check]) -> None:
        """Write the progress and the checks so far, whole or not at all."""
        state = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "draws": self.draws.get_state(),
            "noise": torch.get_rng_state(),
            "step": self.step,
            "cpu_seconds": self.cpu_seconds,
            "best": self.best,
            "test_accuracy": self.test_accuracy,
            "checks": [asdict(check) for check in checks],
            "settings": self.trial.settings,
        }
        path = self.trial.folder / "state.pt"
        partial = path.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self) -> list[Check]:
        """Restore the saved progress, if there is any, and return the checks until there."""
        path = self.trial.folder / "state.pt"
        if not path.exists():
            return []
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        trials.check_settings(self.trial, state["settings"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"].cpu())
        self.draws.set_state(state["draws"].cpu())
        torch.set_rng_state(state["noise"].cpu())
        self.step, self.cpu_seconds = state["step"], state["cpu_seconds"]
        self.best, self.test_accuracy = state["best"], state["test_accuracy"]
        return [Check(**check) for check in state["checks"]]


def read_outcome(trial: Trial) -> Outcome | None:
    """Read a trial's checks, up to the steps asked for; None while it is not over.

    Raises ConfigError if the folder holds a trial of other settings.
    """
    record = trials.read_record(trial)
    if record is None:
        return None
    kept = [check for check in record["checks"] if check["step"] <= trial.experiment.steps]
    checks = [Check(**check) for check in kept]
    if not (record["diverged"] or over(trial, checks)):
        return None
    return Outcome(trial, checks, record["diverged"], record["machine"])


def over(trial: Trial, checks: Sequence[Check]) -> bool:
    """Return whether the training is long enough or accurate enough."""
    experiment, last = trial.experiment, checks[-1] if checks else None
    return last is not None and (
        last.step >= experiment.steps or 0 < experiment.stop_at <= last.accuracy
    )


def steps_to(outcome: Outcome, accuracy: float) -> float:
    """Return the steps until validation reached the accuracy, infinite if it never did."""
    reached = (check.step for check in outcome.entries if check.accuracy >= accuracy)
    return next(reached, math.inf)


def best_check(outcome: Outcome) -> Check:
    """Return the first check of the highest validation accuracy."""
    return max(outcome.entries, key=lambda check: check.accuracy)
