"""Save a run at any step, and restore it exactly on the same data with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from captioner.checkpoint import save_state
from captioner.config import DecodeConfig, ModelConfig, TrainConfig
from captioner.data.fingerprint import differences
from captioner.errors import CheckpointError, ConfigError
from captioner.training.progress import Progress

if TYPE_CHECKING:
    from captioner.training.run import Run

# Settings of training that may change on resume: these do not change what is computed,
UNSEEN = {"device", "threads", "save_steps"}
# and a change of these is logged.
LOGGED = {"learning_rate", "encoder_rate", "clip", "clip_by", "epochs", "patience"}


def save_run(run: Run, log_bytes: int) -> None:
    """Save everything that `restore` needs to go on exactly from here."""
    progress = replace(run.progress, seconds=run.seconds(), log_bytes=log_bytes)
    state = {
        "settings": _settings(run),
        "data": run.data.fingerprints,
        "progress": asdict(progress),
        "network": run.network.state_dict(),
        "average": run.kept.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state() if run.device.type == "cuda" else None,
    }
    save_state(state, run.out / "state.pt")


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring a new run to where a saved one stood, and list its changes of settings.

    Raises ConfigError if data or settings are not the saved ones, CheckpointError if the state is
    not that of such a run.
    """
    try:
        _check_data(run, state.get("data", []))
        _check_settings(run, state["settings"])
        _load(run, state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{run.out}/state.pt: it does not hold this run ({reason}); give another --out, and "
            f"{run.out}/last as train.start to go on from its weights"
        ) from None


def _load(run: Run, state: Mapping[str, Any]) -> None:
    shares = [group["share"] for group in run.optimizer.param_groups]
    run.network.load_state_dict(state["network"])
    run.kept.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    for group, share in zip(run.optimizer.param_groups, shares, strict=True):
        group["share"] = share  # from the rates as they are set now
    run.progress = Progress(**state["progress"])
    torch.set_rng_state(state["random"])
    if run.device.type == "cuda" and state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"])


def _check_data(run: Run, known: list[dict[str, str]]) -> None:
    """Raise ConfigError if the data is not that of the saved run; older states lack it."""
    now = run.data.fingerprints
    if known and len(known) != len(now):
        raise ConfigError(
            f"{run.out}: it was begun with {len(known)} data folders, now there are {len(now)}; "
            "resume with the same ones, or give another --out"
        )
    for folder, ours, theirs in zip(run.config.folders, now, known, strict=False):
        parts = differences(ours, theirs)
        if parts:
            raise ConfigError(
                f"{run.out}: it was begun with other data, the {' and '.join(parts)} of {folder} "
                "changed; prepare the folder as it was, or give another --out"
            )


def _check_settings(run: Run, saved: Mapping[str, Any]) -> None:
    """Raise ConfigError if a setting changed that may not; list the changes that may.

    A setting that an older state lacks counts as unchanged, or as its default.
    """
    now, defaults = _settings(run), _flat(ModelConfig(), TrainConfig())
    then = {**{key: defaults.get(key, value) for key, value in now.items()}, **saved}
    free = {f"train.{name}" for name in LOGGED}
    changed = sorted(key for key in now if now[key] != then[key])
    wrong = [f"{key} = {then[key]}, now it is {now[key]}" for key in changed if key not in free]
    if wrong:
        raise ConfigError(
            f"{run.out}: it was begun with {'; '.join(wrong)}; resume with the same settings, or "
            "give another --out"
        )
    run.changes = {key: [then[key], now[key]] for key in changed if key in saved}


def _settings(run: Run) -> dict[str, Any]:
    """Return what makes a run what it is, flat: its settings and the size of its data."""
    tree = _flat(run.config.model, run.config.train, run.config.decode)
    return tree | {
        "data.images": len(run.data.train),
        "data.words": len(run.data.train.vocabulary),
        "data.encoder": asdict(run.data.train.store.encoder),
    }


def _flat(*parts: ModelConfig | TrainConfig | DecodeConfig) -> dict[str, Any]:
    names = {ModelConfig: "model", TrainConfig: "train", DecodeConfig: "decode"}
    return {
        f"{names[type(part)]}.{name}": value
        for part in parts
        for name, value in asdict(part).items()
        if not (isinstance(part, TrainConfig) and name in UNSEEN)
    }
