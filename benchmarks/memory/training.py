"""One trial: trained step by step, resumably; what it gave stays in its folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.memory.experiment import Trial
from benchmarks.memory.networks import Network
from benchmarks.memory.tasks import Batch, Task
from benchmarks.reporting import machine
from captioner.errors import ConfigError
from captioner.files import read_json, write_text
from captioner.model.lstm import HDetachLSTM

_VALIDATED = 500  # sequences at once
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """How a training stood after `step` steps; norms are those before clipping."""

    step: int
    train_loss: float  # mean since the check before
    val_loss: float
    accuracy: float  # of validation
    test_accuracy: float  # at the best validation so far; NaN without a test split
    largest_norm: float  # of the gradient since the check before
    cpu_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a trial gave."""

    trial: Trial
    checks: Sequence[Check]
    diverged: str  # why it is counted as diverged, empty if it is not
    machine: dict[str, str]

    @property
    def best(self) -> Check:
        """The check of the highest validation accuracy, the first of several."""
        return max(self.checks, key=lambda check: check.accuracy)

    def steps_to(self, accuracy: float) -> int | None:
        """Steps until validation reached it; None: never."""
        return next((check.step for check in self.checks if check.accuracy >= accuracy), None)


@dataclass(frozen=True)
class Stretch:
    """Some steps of training: their mean loss, and the largest gradient norm before clipping."""

    loss: float
    largest_norm: float

    @property
    def finite(self) -> bool:
        """Whether all of its gradients were."""
        return math.isfinite(self.largest_norm)


class Training:
    """A trial under way: its network, its data and its place, all of which `state.pt` holds."""

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
        """Take so many steps; the first gradient that is not finite ends it."""
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
        """Begin a step: its data; from `plain_from` on nothing is blocked any more."""
        experiment, core = self.trial.experiment, self.network.core
        if isinstance(core, HDetachLSTM) and self.step >= experiment.steps - experiment.plain_steps:
            core.detach_prob = 0.0
        batch = self.task.batch(experiment.batch, self.step, self.order)
        self.step += 1
        return batch

    @torch.inference_mode()
    def judge(self, batch: Batch) -> tuple[float, float]:
        """Loss and accuracy on a split."""
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
        """Take the weights of the best check so far."""
        self.network.load_state_dict(load_file(self.trial.best_weights))

    def save(self, checks: Sequence[Check]) -> None:
        """Write the place and the checks so far, whole or not at all."""
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
        """Go back to the place that was saved, if there is one; the checks until there."""
        path = self.trial.folder / "state.pt"
        if not path.exists():
            return []
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        _same_settings(self.trial, state["settings"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"].cpu())
        self.draws.set_state(state["draws"].cpu())
        torch.set_rng_state(state["noise"].cpu())
        self.step, self.cpu_seconds = state["step"], state["cpu_seconds"]
        self.best, self.test_accuracy = state["best"], state["test_accuracy"]
        return [Check(**check) for check in state["checks"]]


def note_outcome(training: Training, checks: Sequence[Check], diverged: str) -> None:
    """Write `trial.json`: the trial is over."""
    note = {
        "settings": training.trial.settings,
        "diverged": diverged,
        "checks": [asdict(check) for check in checks],
        "machine": machine(training.trial.folder.name, training.device),
    }
    write_text(training.trial.folder / "trial.json", json.dumps(note, indent=1) + "\n")


def read_outcome(trial: Trial) -> Outcome | None:
    """What the trial gave, None while it is not over; no more than the steps asked for.

    Raises ConfigError if the folder holds a trial of other settings.
    """
    path = trial.folder / "trial.json"
    if not path.exists():
        return None
    note = read_json(path)
    _same_settings(trial, note["settings"])
    checks = [Check(**check) for check in note["checks"] if check["step"] <= trial.experiment.steps]
    if not (note["diverged"] or over(trial, checks)):
        return None
    return Outcome(trial, checks, note["diverged"], note["machine"])


def _same_settings(trial: Trial, found: dict[str, Any]) -> None:
    if found != trial.settings:
        other = [name for name, value in trial.settings.items() if found.get(name) != value]
        raise ConfigError(
            f"{trial.folder} holds a trial with another {', '.join(other)}; give another `out`"
        )


def over(trial: Trial, checks: Sequence[Check]) -> bool:
    """Whether it is long enough, or good enough."""
    if not checks:
        return False
    experiment, last = trial.experiment, checks[-1]
    return last.step >= experiment.steps or 0 < experiment.stop_at <= last.accuracy
