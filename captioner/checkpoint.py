"""Save and load one self-sufficient checkpoint folder: weights, settings, words, model card."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from captioner.config import DecodeConfig, EncoderConfig, ModelConfig, from_dict
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.files import read_json, replacing, write_json, write_tensors, write_text
from captioner.model.decoder import Decoder, make_decoder

FORMAT = 1
_SETTINGS = "config.json"
_ENCODER = "encoder."  # begins the names of a trained CNN's weights
_OWN_FOLDERS = ("checkpoints", "runs", "data", "out", "output", "models", "configs", "images")
_NEAR = 0.75  # of 1: so alike are names with a slip of the pen
_FILES = (".safetensors", ".json", ".yaml", ".pt", ".pth", ".ckpt", ".bin", ".zip", ".jpg", ".png")


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
    weights = {name: value.half() if half else value for name, value in stored.items()}
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
        write_tensors(partial / "model.safetensors", weights)
        write_json(partial / _SETTINGS, settings)
        checkpoint.vocabulary.save(partial / "vocabulary.json")
        if card:
            write_text(partial / "README.md", card)
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
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", error)
        raise CheckpointError(f"cannot write the checkpoint {folder}: {reason}") from None


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder, or a Hugging Face Hub id such as `name/model`, given as text.

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
    try:
        (folder / _SETTINGS).stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"the checkpoint {folder} cannot be read: {reason}") from None
    if (folder / _SETTINGS).is_file():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the checkpoint's folder")
    if not folder.exists() and (_replaced(folder) / _SETTINGS).is_file():
        return _replaced(folder)  # a save was killed between its two renames
    if folder.exists():
        raise CheckpointError(f"{folder} is not a checkpoint folder: it has no config.json")
    missing = f"no checkpoint at {path}"
    near = _nearest_folder(folder)
    if near:
        raise CheckpointError(f"{missing}; did you mean {near}?")
    if not _may_be_hub_id(path):
        raise CheckpointError(f"{missing}; train one or see checkpoints/README.md")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(path)))
    except Exception as error:  # the Hub's client raises many kinds, all meaning "not there"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{missing}: there is no such folder, and read as a Hugging Face Hub id it gave "
            f"none: {reason}; check the path, or the id and the connection"
        ) from None


def _may_be_hub_id(path: Path | str) -> bool:
    """Whether it has the form of a Hub id, `name/model`, and is no path with a slip in it.

    Nothing of a person's folders is asked of the Hub: `name` is not (nearly) a folder here or one
    that our own commands make, and `model` has no file's suffix.
    """
    text = str(path)
    if isinstance(path, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII):
        return False
    name = text.split("/")[0]
    folders = [*_OWN_FOLDERS, *(entry.name for entry in Path().iterdir() if entry.is_dir())]
    near = difflib.get_close_matches(name.lower(), map(str.lower, folders), 1, _NEAR)
    return not near and not Path(name).exists() and Path(text).suffix.lower() not in _FILES


def _nearest_folder(folder: Path) -> str | None:
    """A checkpoint folder whose path is nearly this one, from here."""
    at = Path(folder.anchor)
    for part in folder.parts[len(at.parts) :]:
        if not (at / part).is_dir():
            try:
                names = [entry.name for entry in at.iterdir() if entry.is_dir()]
            except OSError:
                return None
            near = difflib.get_close_matches(part, names, 1, _NEAR)
            if not near:
                return None
            part = near[0]
        at = at / part
    return str(at) if (at / "config.json").is_file() else None


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / _SETTINGS
    settings = read_json(path, error=CheckpointError)
    if not isinstance(settings, dict) or "format" not in settings:
        raise CheckpointError(f"{path} is not a captioner checkpoint's settings")
    if settings["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {settings['format']}; this version of captioner reads {FORMAT}"
        )
    return settings


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write training state atomically: an interruption leaves the one before."""
    try:
        with replacing(path) as partial:
            torch.save(dict(state), partial)
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
