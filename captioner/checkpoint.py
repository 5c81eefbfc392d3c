"""Save and load one self-sufficient checkpoint folder: weights, settings, words, model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from captioner.config import DecodeConfig, EncoderConfig, ModelConfig, from_dict
from captioner.decoder import Decoder, make_decoder
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.vocabulary import Vocabulary

FORMAT = 1
_SETTINGS = "config.json"
_ENCODER = "encoder."  # begins the names of a trained CNN's weights


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to caption a picture; a frozen CNN is named, a trained one stored."""

    decoder: Decoder
    model: ModelConfig
    encoder: EncoderConfig
    decode: DecodeConfig
    vocabulary: Vocabulary
    feature_dim: int  # D of the encoder's grid
    grid: int  # cells along each side of the encoder's grid
    trained: Mapping[str, Any] = field(default_factory=dict)  # settings and scores, for reading
    encoder_state: Mapping[str, Tensor] | None = None  # weights of a trained CNN


def save(checkpoint: Checkpoint, folder: Path, *, half: bool = False, card: str = "") -> None:
    """Write the folder whole or not at all; `half` stores the weights in float16.

    At every moment `load` finds a whole checkpoint, the one before or the new one, even if the
    process is killed. Raises CheckpointError when the folder cannot be written.
    """
    partial, replaced = folder.with_name(folder.name + ".part"), _replaced(folder)
    stored = dict(checkpoint.decoder.state_dict())
    for name, value in (checkpoint.encoder_state or {}).items():
        stored[_ENCODER + name] = value
    weights = {
        name: (value.half() if half else value).cpu().contiguous() for name, value in stored.items()
    }
    settings = {
        "format": FORMAT,
        "encoder": asdict(checkpoint.encoder),
        "model": asdict(checkpoint.model),
        "decode": asdict(checkpoint.decode),
        "feature_dim": checkpoint.feature_dim,
        "grid": checkpoint.grid,
        "trained": dict(checkpoint.trained),
    }
    try:
        if not folder.exists() and (replaced / _SETTINGS).is_file():  # a save was killed here
            replaced.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(weights, partial / "model.safetensors", {"format": "pt"})
        (partial / "model.safetensors").chmod(0o644)  # the library makes it its owner's alone
        (partial / _SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
        checkpoint.vocabulary.save(partial / "vocabulary.json")
        if card:
            (partial / "README.md").write_text(card, "utf-8")
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            folder.rename(replaced)
        try:
            partial.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"cannot write the checkpoint {folder}: {error.strerror}") from None


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder, or a Hugging Face Hub id such as `name/model`.

    Raises CheckpointError when it is missing, incomplete, damaged or of another format.
    """
    folder = _find(path)
    settings = _read_settings(folder)
    for name in ("model.safetensors", "vocabulary.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing")
    try:
        model = from_dict(ModelConfig, settings["model"], "model")
        encoder = from_dict(EncoderConfig, settings["encoder"], "encoder")
        decode = from_dict(DecodeConfig, settings["decode"], "decode")
        vocabulary = Vocabulary.load(folder / "vocabulary.json")
        decoder = make_decoder(model, len(vocabulary), int(settings["feature_dim"]))
        weights = {n: w.float() for n, w in load_file(folder / "model.safetensors").items()}
        encoder_state = {
            name.removeprefix(_ENCODER): weights.pop(name)
            for name in list(weights)
            if name.startswith(_ENCODER)
        }
        decoder.load_state_dict(weights)
        grid, feature_dim = int(settings["grid"]), int(settings["feature_dim"])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder}/model.safetensors is damaged: {error}") from None
    except (RuntimeError, KeyError, TypeError, ValueError, ConfigError, DataError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder} does not fit together: {reason}") from None
    decoder.requires_grad_(False).eval()
    trained = settings.get("trained", {})
    return Checkpoint(
        decoder, model, encoder, decode, vocabulary, feature_dim, grid, trained,
        encoder_state or None,
    )  # fmt: skip


def _replaced(folder: Path) -> Path:
    """Where a folder stands while another takes its place."""
    return folder.with_name(folder.name + ".old")


def _find(path: Path | str) -> Path:
    folder = Path(path)
    if (folder / _SETTINGS).is_file():
        return folder
    if not folder.exists() and (_replaced(folder) / _SETTINGS).is_file():
        return _replaced(folder)  # a save was killed between its two renames
    if folder.exists():
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json")
    parts = str(path).split("/")
    if (
        len(parts) == 2
        and all(parts)
        and not parts[0].startswith((".", "~", "checkpoints", "runs"))
    ):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(path)))
        except Exception as error:  # the Hub's client raises many kinds, all meaning "not there"
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"no checkpoint at {path}, and the Hub did not give one: {reason}"
            ) from None
    raise CheckpointError(f"no checkpoint at {path}; train one or see checkpoints/README.md")


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(settings, dict) or "format" not in settings:
        raise CheckpointError(f"{path} is not a captioner checkpoint's settings")
    if settings["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {settings['format']}; this version of captioner reads {FORMAT}"
        )
    return settings


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write training state atomically: an interruption leaves the one before."""
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state), partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write the training state {path}: {error}") from None


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, without running any code from it."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"nothing to resume: no training state at {path}; start the run without --resume"
        ) from None
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError ... for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the training state {path} is damaged: {reason}; give another --out, and "
            f"{path.parent / 'last'} as train.start to go on from its weights"
        ) from None
    return state
