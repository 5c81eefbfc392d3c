"""The trials of the captioning study: what is varied, and each training, run once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import trials
from benchmarks.captioning_study.variants import known_variants
from benchmarks.reporting import CPU
from captioner.cli.signals import stop_requested
from captioner.config import Config, DecodeConfig, ModelConfig, TrainConfig
from captioner.errors import DivergenceError
from captioner.training.log import read_log
from captioner.training.loop import train

PLAIN, BASE = "p = 0", "recipe"
LATE = "show_tell"  # learns later: 1.5 times the epochs, at half the cost per epoch


@dataclass(frozen=True)
class Trial:
    """One training of the study: its place in the tables, and its settings."""

    family: str  # trials with one target score, set by their plain curves
    panel: str  # trials that differ in `setting` and seed only
    setting: str
    against: str  # setting to compare with, at the same panel and seed
    config: Config

    @property
    def seed(self) -> int:
        """The seed of weights, order, dropout and blocked steps."""
        return self.config.train.seed

    @property
    def folder(self) -> Path:
        """The folder of an ordinary run, with `trial.json` once it is over."""
        return Path(self.config.out)

    @property
    def settings(self) -> dict[str, Any]:
        """What its figures depend on, wherever its folder and its data lie."""
        return {**asdict(self.config), "out": "", "data": Path(self.config.folders[0]).name}


Outcome: TypeAlias = trials.Outcome[Trial, dict[str, float]]  # an entry of the log per epoch


def detach_plan(
    base: Config,
    *,
    decoders: Sequence[str],
    rates: Sequence[float],
    probs: Sequence[float],
    seeds: Sequence[int],
    detach_attention: bool = False,
) -> list[Trial]:
    """Plan every combination, seed by seed, so that an interrupted study can be reported.

    LATE trains for 1.5 times the epochs. Trials with `detach_attention` are compared with those of
    the same p without it.
    """
    planned = []
    for seed, decoder, rate, prob in product(seeds, decoders, rates, probs):
        plain = f"p = {prob:g}"
        folder = f"{decoder}-rate{rate:g}-p{prob:g}{'-attention' * detach_attention}-seed{seed}"
        changes = {
            "learning_rate": rate, "detach_prob": prob, "detach_attention": detach_attention,
            "seed": seed, "epochs": base.train.epochs * (3 if decoder == LATE else 2) // 2,
        }  # fmt: skip
        config = _changed(base, folder, {"decoder": decoder}, changes)
        setting = plain + (", attention too" if detach_attention else "")
        against = plain if detach_attention else PLAIN
        planned.append(Trial(decoder, f"{decoder}, rate {rate:g}", setting, against, config))
    return planned


# Name, changes to the model settings, changes to the training settings.
INGREDIENTS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (BASE, {}, {}),
    ("no label smoothing", {}, {"label_smoothing": 0.0}),
    ("no running average", {}, {"average": 0.0}),
    ("scheduled sampling 0.25", {}, {"scheduled_sampling": 0.25}),
    ("no attention penalty", {}, {"attention_penalty": 0.0}),
    ("dropout 0.2", {"dropout": 0.2}, {}),
    ("dropout 0.5", {"dropout": 0.5}, {}),
    ("no mirrored pictures", {}, {"mirror": False}),
    ("no h-detach", {}, {"detach_prob": 0.0}),
    ("show_tell", {"decoder": "show_tell"}, {}),
    ("adaptive", {"decoder": "adaptive"}, {}),
    ("tied embeddings", {"decoder": "tied"}, {}),
    ("variational dropout", {"decoder": "variational"}, {}),
    ("zoneout", {"decoder": "zoneout"}, {}),
    ("layer normalisation", {"decoder": "layer_norm"}, {}),
)
FINE_GRID = "finer grid"  # has data of its own, as another encoder has


def ingredients_plan(
    base: Config, names: Sequence[str], seeds: Sequence[int], other_data: Mapping[str, Path]
) -> list[Trial]:
    """Plan the recipe, and the recipe with one change, seed by seed.

    A name of `other_data` is the recipe on that data.
    """
    changes = {name: (model, train) for name, model, train in INGREDIENTS}
    planned = []
    for seed in seeds:
        for name in names:
            model, train = changes.get(name, ({}, {}))
            folder = f"{name.replace(' ', '-')}-seed{seed}"
            config = _changed(base, folder, model, {**train, "seed": seed})
            config = replace(config, data=str(other_data.get(name, config.data)))
            planned.append(Trial("recipe", "recipe", name, BASE, config))
    return planned


def run_trial(trial: Trial) -> None:
    """Train or resume a trial and record how it ended; skip it if it is over or under way.

    Raises ConfigError if the folder holds a trial of other settings.
    """
    with trials.locked(trial.folder / "lock", wait=False) as mine, known_variants():
        if not mine or read_outcome(trial) is not None:
            return
        epochs, start, diverged = len(_epochs(trial.folder)), time.process_time(), ""
        resume = (trial.folder / "state.pt").exists()
        try:
            with stop_requested() as stop:
                train(trial.config, resume=resume, show_progress=False, stop=stop)
        except DivergenceError as error:
            diverged = str(error)
        done = len(_epochs(trial.folder)) - epochs
        cpu_seconds = (time.process_time() - start) / done if done > 0 else None
        trials.write_record(trial, diverged, CPU, cpu_seconds=cpu_seconds)


def read_outcome(trial: Trial) -> Outcome | None:
    """Read a trial's epochs, None while it is not over.

    A loss that ends higher than after the first epoch is a divergence, too. Raises ConfigError if
    the folder holds a trial of other settings.
    """
    record = trials.read_record(trial, _with_defaults)
    if record is None:
        return None
    epochs, diverged = _epochs(trial.folder), record["diverged"]
    if not diverged and not epochs[-1]["train_loss"] <= epochs[0]["train_loss"]:
        diverged = "the training loss ended higher than it began"
    cpu_seconds = record["cpu_seconds"] or math.nan
    return Outcome(trial, epochs, diverged, record["machine"], cpu_seconds)


def base_config(
    data: Path, out: Path, *, size: int, epochs: int, captions: int, rate: float, recipe: bool
) -> Config:
    """Return the shared settings: configs/own_data.yaml, smaller and with a higher learning rate.

    Without `recipe` there is less dropout and no label smoothing, running average or mirrored
    images, so that the effect of h-detach stands out.
    """
    return Config(
        data=str(data),
        out=str(out),
        model=ModelConfig(
            embed_dim=size,
            hidden_dim=size,
            attention_dim=size,
            feature_dim=size,
            dropout=0.4 if recipe else 0.2,
        ),
        train=TrainConfig(
            epochs=epochs,
            batch_images=16,
            captions_per_image=captions,
            learning_rate=rate,
            warmup_steps=100,
            schedule="cosine",
            detach_prob=0.25,
            label_smoothing=0.1 if recipe else 0.0,
            average=0.99 if recipe else 0.0,
            mirror=recipe,
            save_steps=10_000,  # at the end of each epoch only
            device="cpu",
            threads=1,
        ),
    )


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Add the settings that are newer than the trial, at their defaults; drop removed ones."""
    parts: dict[str, ModelConfig | TrainConfig | DecodeConfig] = {
        "model": ModelConfig(), "train": TrainConfig(), "decode": DecodeConfig(),
    }  # fmt: skip
    filled = {
        name: {key: settings[name].get(key, default) for key, default in asdict(part).items()}
        for name, part in parts.items()
    }
    return {**settings, **filled}


def _changed(base: Config, name: str, model: dict[str, Any], train: dict[str, Any]) -> Config:
    return replace(
        base,
        out=str(Path(base.out) / name),
        model=replace(base.model, **model),
        train=replace(base.train, **train),
    )


def _epochs(folder: Path) -> list[dict[str, float]]:
    if not (folder / "log.jsonl").exists():
        return []
    return [entry for entry in read_log(folder) if "epoch" in entry]
