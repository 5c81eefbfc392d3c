"""An experiment: one task, and the trainings compared on it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from benchmarks.memory.networks import Method
from benchmarks.memory.tasks import Adding, Copying, Task, digits, mnist
from captioner.errors import ConfigError

_SHARED = ("task", "length", "permuted", "hidden", "batch", "check_steps", "clip")


@dataclass(frozen=True)
class Experiment:
    """Every method at every learning rate with every seed; by default the paper's copying task.

    Args:
        task: copying, adding, digits (scikit-learn's, 64 pixels) or mnist (784 pixels).
        length: T of copying and adding.
        permuted: read the pixels of digits and mnist in one random order.
        methods: lstm, "h-detach P", "c-detach P", gru, irnn, zoneout, indrnn; append "unclipped"
            to train without gradient clipping.
        rates: learning rates of Adam.
        seeds: random seeds of weights, data and blocked steps.
        hidden: units H.
        batch: sequences per optimizer step.
        steps: most optimizer steps; finished trials go on when it is raised.
        check_steps: steps between validations.
        clip: largest norm of the whole gradient.
        plain_steps: final steps trained with p = 0 (the authors' "annealing").
        stop_at: validation accuracy that ends a trial; 0 never does.
        data: folder of MNIST.
        out: folder of the trials.
    """

    task: Literal["copying", "adding", "digits", "mnist"] = "copying"
    length: int = 100
    permuted: bool = False
    methods: tuple[str, ...] = ("lstm", "h-detach 0.25", "h-detach 0.5")
    rates: tuple[float, ...] = (1e-3,)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    hidden: int = 128
    batch: int = 100
    steps: int = 600_000
    check_steps: int = 1000
    clip: float = 1.0
    plain_steps: int = 0
    stop_at: float = 0.0
    data: str = "data/mnist"
    out: str = "runs/memory"

    def __post_init__(self) -> None:
        for method in self.methods:
            Method.parse(method)
        for name in ("methods", "rates", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give at least one")
        for name in ("hidden", "batch", "steps", "check_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be >= 1")
        if not all(rate > 0 for rate in (*self.rates, self.clip)):
            raise ConfigError(f"rates are {self.rates}, clip is {self.clip}; they must be above 0")
        for name, most in (("plain_steps", self.steps), ("stop_at", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, {most}]")

    def trials(self) -> list[Trial]:
        """Return all trials seed by seed, so that an interrupted experiment can be reported."""
        return [
            Trial(self, Method.parse(method), rate, seed)
            for seed, rate, method in product(self.seeds, self.rates, self.methods)
        ]


@dataclass(frozen=True)
class Trial:
    """One training of an experiment."""

    experiment: Experiment
    method: Method
    rate: float
    seed: int

    @property
    def folder(self) -> Path:
        """The folder of its progress, its best weights, and `trial.json` once it is over."""
        name = f"{self.method}-rate{self.rate:g}-seed{self.seed}".replace(" ", "-")
        return Path(self.experiment.out) / name

    @property
    def best_weights(self) -> Path:
        """The file of the weights of its best validation, once there was one."""
        return self.folder / "best.safetensors"

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        """What its figures depend on: not where its folder lies, nor how many steps it has."""
        shared = {name: getattr(self.experiment, name) for name in _SHARED}
        plain = self.experiment.plain_steps
        plain_from = self.experiment.steps - plain if plain else 0
        own = {"method": str(self.method), "rate": self.rate, "seed": self.seed}
        return {**shared, **own, "plain_from": plain_from}

    def task(self) -> Task:
        """Return its task; the seeds of a pixel task share the images and differ in their order."""
        experiment = self.experiment
        if experiment.task == "copying":
            return Copying(experiment.length, self.seed)
        if experiment.task == "adding":
            return Adding(experiment.length, self.seed)
        if experiment.task == "digits":
            return digits(permuted=experiment.permuted, seed=self.seed)
        folder = Path(experiment.data)
        return mnist(folder, permuted=experiment.permuted, seed=self.seed)
