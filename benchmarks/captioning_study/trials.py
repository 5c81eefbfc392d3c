"""The trainings of the captioning study: what is varied, each run once and remembered."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.captioning_study.variants import known_variants
from benchmarks.locks import locked
from benchmarks.reporting import machine
from captioner.config import Config, DecodeConfig, ModelConfig, TrainConfig
from captioner.errors import ConfigError
from captioner.files import read_json, write_text
from captioner.training.log import read_log
from captioner.training.loop import train

PLAIN, BASE = "p = 0", "recipe"
LATE = "show_tell"  # looks at the picture late: half as many epochs again, at half the cost each


@dataclass(frozen=True)
class Trial:
    """One training of the study: where it stands in the tables, and its settings."""

    family: str  # trials whose plain curves set the score that is to be reached
    panel: str  # trials that differ in `setting` and seed only
    setting: str
    against: str  # the setting of the same panel and seed it is compared with
    config: Config

    @property
    def seed(self) -> int:
        """Of weights, order, dropout and detach draws."""
        return self.config.train.seed

    @property
    def folder(self) -> Path:
        """An ordinary run, and `trial.json` once it is over."""
        return Path(self.config.out)


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: entries of its log, an epoch each, and how it ended."""

    trial: Trial
    epochs: Sequence[dict[str, float]]
    diverged: str  # why it is counted as diverged, empty if it is not
    cpu_seconds: float  # an epoch, of the process that finished it; Java is not in it
    machine: dict[str, str]


def detach_plan(
    base: Config,
    *,
    decoders: Sequence[str],
    rates: Sequence[float],
    probs: Sequence[float],
    seeds: Sequence[int],
    detach_attention: bool = False,
) -> list[Trial]:
    """Every combination once, seed by seed, so that a study cut short is a smaller whole one.

    LATE trains for half as many epochs again. With `detach_attention` the trials are compared with
    those of the same p without.
    """
    trials = []
    for seed, decoder, rate, prob in product(seeds, decoders, rates, probs):
        plain = f"p = {prob:g}"
        folder = f"{decoder}-rate{rate:g}-p{prob:g}{'-attention' * detach_attention}-seed{seed}"
        changes = {
            "learning_rate": rate, "detach_prob": prob, "detach_attention": detach_attention,
            "seed": seed, "epochs": base.train.epochs * (3 if decoder == LATE else 2) // 2,
        }  # fmt: skip
        trials.append(
            Trial(
                family=decoder,
                panel=f"{decoder}, rate {rate:g}",
                setting=plain + (", attention too" if detach_attention else ""),
                against=plain if detach_attention else PLAIN,
                config=_changed(base, folder, {"decoder": decoder}, changes),
            )
        )
    return trials


# Name, changes of the model, changes of the training.
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
    """The recipe, and the recipe with one thing changed, seed by seed.

    Names of `other_data` are settings, too: the recipe on that data.
    """
    changes = {name: (model, train) for name, model, train in INGREDIENTS}
    trials = []
    for seed in seeds:
        for name in names:
            model, train = changes.get(name, ({}, {}))
            folder = f"{name.replace(' ', '-')}-seed{seed}"
            config = _changed(base, folder, model, {**train, "seed": seed})
            config = replace(config, data=str(other_data.get(name, config.data)))
            trials.append(Trial("recipe", "recipe", name, BASE, config))
    return trials


def run_trial(trial: Trial) -> None:
    """Train it, or go on with it, and note how it ended; nothing if that is done or being done.

    Raises ConfigError if the folder holds a trial of other settings.
    """
    trial.folder.mkdir(parents=True, exist_ok=True)
    with locked(trial.folder / "lock", wait=False) as mine, known_variants():
        if not mine or read_outcome(trial) is not None:
            return
        epochs, start, diverged = len(_epochs(trial.folder)), time.process_time(), ""
        resume = (trial.folder / "state.pt").exists()
        try:
            train(trial.config, resume=resume, show_progress=False)
        except ConfigError as error:
            if "training diverged" not in str(error):
                raise
            diverged = str(error)
        done = len(_epochs(trial.folder)) - epochs
        note = {
            "settings": settings_of(trial.config),
            "diverged": diverged,
            "cpu_seconds": (time.process_time() - start) / done if done > 0 else None,
            "machine": machine(trial.folder.name, torch.device("cpu")),
        }
        write_text(trial.folder / "trial.json", json.dumps(note, indent=1) + "\n")


def read_outcome(trial: Trial) -> Outcome | None:
    """What the trial gave, None while it is not over.

    A loss that ends higher than after the first epoch is a divergence, too. Raises ConfigError if
    the folder holds a trial of other settings.
    """
    path = trial.folder / "trial.json"
    if not path.exists():
        return None
    note = read_json(path)
    if _with_defaults(note["settings"]) != settings_of(trial.config):
        raise ConfigError(f"{trial.folder} holds a trial of other settings; give another --out")
    epochs = _epochs(trial.folder)
    diverged = note["diverged"]
    if not diverged and not epochs[-1]["train_loss"] <= epochs[0]["train_loss"]:
        diverged = "the training loss ended higher than it began"
    return Outcome(trial, epochs, diverged, note["cpu_seconds"] or math.nan, note["machine"])


def base_config(
    data: Path, out: Path, *, size: int, epochs: int, captions: int, rate: float, recipe: bool
) -> Config:
    """What all trials of a study share: configs/own_data.yaml made smaller and faster to learn.

    Without `recipe` little but h-detach helps the decoder: less dropout, no label smoothing, no
    running average, no mirrored pictures.
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


def settings_of(config: Config) -> dict[str, Any]:
    """What makes a trial what it is, wherever its folder and its data lie."""
    return {**asdict(config), "out": "", "data": Path(config.folders[0]).name}


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """A setting that came after the trial was run stood at its default then."""
    parts: dict[str, ModelConfig | TrainConfig | DecodeConfig] = {
        "model": ModelConfig(), "train": TrainConfig(), "decode": DecodeConfig(),
    }  # fmt: skip
    filled = {name: {**asdict(part), **settings[name]} for name, part in parts.items()}
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
