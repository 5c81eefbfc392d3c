"""Save and load self-sufficient checkpoint folders: weights, settings, words, model card."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Mapping, Sequence
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
from captioner.model import Decoder, ShowTell, make_decoder
from captioner.model.ensemble import Ensemble

FORMAT = 1
_SETTINGS = "config.json"
_ENCODER = "encoder."  # prefix of a trained CNN's weights
_OWN_FOLDERS = ("checkpoints", "runs", "data", "out", "output", "models", "configs", "images")
_NEAR = 0.75  # similarity of names that differ by a typing error; 1 is equal
_FILES = (".safetensors", ".json", ".yaml", ".pt", ".pth", ".ckpt", ".bin", ".zip", ".jpg", ".png")


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to caption an image; a frozen CNN is named, a trained one stored."""

    decoder: Decoder
    model: ModelConfig
    encoder: EncoderConfig
    decode: DecodeConfig
    vocabulary: Vocabulary
    feature_dim: int  # D of the encoder's grid
    grid: int  # cells along each side of the encoder's grid
    trained: Mapping[str, Any] = field(default_factory=dict)  # settings and scores, for the record
    encoder_state: Mapping[str, Tensor] | None = None  # weights of a trained CNN


def save(checkpoint: Checkpoint, folder: Path, *, half: bool = False, card: str = "") -> None:
    """Write the folder completely or not at all; `half` stores the weights in float16.

    At every moment `load` finds a complete checkpoint, the old or the new one, even if the process
    is killed. Raises CheckpointError if the folder cannot be written.
    """
    partial, replaced = folder.with_name(folder.name + ".part"), _replaced(folder)
    try:
        if not folder.exists() and (replaced / _SETTINGS).is_file():  # a save was killed here
            replaced.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(checkpoint, partial, half)
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


def _write(checkpoint: Checkpoint, folder: Path, half: bool) -> None:
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
    write_tensors(folder / "model.safetensors", weights)
    write_json(folder / _SETTINGS, settings)
    checkpoint.vocabulary.save(folder / "vocabulary.json")


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint folder, or a str that is a Hugging Face Hub id such as "name/model".

    Raises CheckpointError if it is missing, incomplete, damaged or of another format.
    """
    folder = _find(path)
    settings = _read_settings(folder)
    for name in ("model.safetensors", "vocabulary.json"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is incomplete: {name} is missing; copy it again")
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
        raise CheckpointError(
            f"{folder}/model.safetensors is damaged: {error}; copy it again"
        ) from None
    except (RuntimeError, KeyError, TypeError, ValueError, ConfigError, DataError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{folder}: its files do not fit together: {reason}; copy it again, or install the "
            "version of captioner that wrote it"
        ) from None
    decoder.requires_grad_(False).eval()
    trained = settings.get("trained", {})
    return Checkpoint(
        decoder, model, encoder, decode, vocabulary, feature_dim, grid, trained,
        encoder_state or None,
    )  # fmt: skip


def load_members(paths: Sequence[Path | str]) -> list[Checkpoint]:
    """Read the checkpoints of an ensemble; raises CheckpointError if their vocabularies differ."""
    return members([load(path) for path in paths], paths)


def members(
    checkpoint: Checkpoint | Sequence[Checkpoint], names: Sequence[object] = ()
) -> list[Checkpoint]:
    """Return the members of an ensemble, which may be one checkpoint alone.

    Raises CheckpointError, with their `names` if given, if their vocabularies differ.
    """
    found = [checkpoint] if isinstance(checkpoint, Checkpoint) else list(checkpoint)
    if not found:
        raise CheckpointError("no checkpoint is given; an ensemble takes one or more")
    names = names or [f"checkpoint {number}" for number in range(1, len(found) + 1)]
    for name, member in zip(names, found, strict=True):
        ours, theirs = found[0].vocabulary.words, member.vocabulary.words
        if ours != theirs:
            same = "in another order" if set(ours) == set(theirs) else "other words"
            raise CheckpointError(
                f"{name} has another vocabulary than {names[0]} ({len(theirs):,} words, "
                f"{len(ours):,}; {same}); the members of an ensemble must share one"
            )
    return found


def joint_decoder(members: Sequence[Checkpoint]) -> Decoder | Ensemble:
    """Return the decoder of one checkpoint, or the ensemble of several."""
    if len(members) == 1:
        return members[0].decoder
    return Ensemble([member.decoder for member in members], attention=have_attention(members))


def have_attention(members: Sequence[Checkpoint]) -> bool:
    """Whether captions have attention: some members do, all over the same grid and crop."""
    views = {(member.encoder.resize, member.grid) for member in members if _attends(member)}
    return len(views) == 1


def attention_member(members: Sequence[Checkpoint]) -> Checkpoint:
    """Return the member whose view of an image the attention covers."""
    return next((member for member in members if _attends(member)), members[0])


def _attends(member: Checkpoint) -> bool:
    return not isinstance(member.decoder, ShowTell)


def _replaced(folder: Path) -> Path:
    """Return where a folder is kept while another replaces it."""
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
        raise CheckpointError(
            f"{folder} is not a checkpoint folder: it has no config.json; give one that has"
        )
    missing = f"no checkpoint at {path}"
    near = _nearest_folder(folder)
    if near:
        raise CheckpointError(f"{missing}; did you mean {near}?")
    if not _may_be_hub_id(path):
        raise CheckpointError(f"{missing}; train one or see checkpoints/README.md")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(str(path)))
    except Exception as error:  # the Hub's client raises many kinds for what it does not find
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{missing}: it is not a folder here, and not found on the Hugging Face Hub: {reason}; "
            "check the path, or the id and the connection"
        ) from None


def _may_be_hub_id(path: Path | str) -> bool:
    """Whether `path` has the form of a Hub id, name/model, and is not a mistyped path.

    Names of local folders are never sent to the Hub: `name` is not close to a folder here or to one
    that our own commands make, and `model` has no suffix of a file.
    """
    text = str(path)
    if isinstance(path, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text, re.ASCII):
        return False
    name = text.split("/")[0]
    folders = [*_OWN_FOLDERS, *(entry.name for entry in Path().iterdir() if entry.is_dir())]
    near = difflib.get_close_matches(name.lower(), map(str.lower, folders), 1, _NEAR)
    return not near and not Path(name).exists() and Path(text).suffix.lower() not in _FILES


def _nearest_folder(folder: Path) -> str | None:
    """Return a checkpoint folder whose path is close to this one, if there is one."""
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
        raise CheckpointError(
            f"{path} does not hold the settings of a captioner checkpoint; give another folder"
        )
    if settings["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {settings['format']}; this version of captioner reads {FORMAT}; "
            "install the version that wrote it"
        )
    return settings


def save_state(state: Mapping[str, Any], path: Path) -> None:
    """Write training state atomically: if interrupted, the old file stays."""
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
    except Exception as error:  # torch raises many kinds for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the training state {path} is damaged: {reason}; give another --out, and "
            f"{path.parent / 'last'} as train.start to continue from its weights"
        ) from None
    return state
