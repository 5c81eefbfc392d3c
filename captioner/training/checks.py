"""Checks before training: the checkpoint it starts from, the weights of the CNN, the images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from captioner.checkpoint import Checkpoint
from captioner.config import Config, EncoderConfig, TrainConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.fingerprint import Fingerprint, split_otherwise
from captioner.errors import ConfigError, DataError
from captioner.model.encoder import TRAINED, Encoder, names_a_file

logger = logging.getLogger(__name__)


def reads_images(settings: TrainConfig) -> bool:
    """Return whether features are made from images at every step."""
    return settings.augment or settings.encoder_blocks > 0


def encoder_config(data: CaptionDataset, start: Checkpoint | None) -> EncoderConfig:
    """Return the encoder of the data, with the weights of the checkpoint training starts from."""
    if start is None or start.encoder_state is None:
        return data.store.encoder
    return replace(data.store.encoder, weights=start.encoder.weights)


def check_start(start: Checkpoint, config: Config, data: CaptionDataset) -> None:
    """Raise ConfigError unless a checkpoint has the shape, words and encoder of this run."""
    encoder = data.store.encoder
    if reads_images(config.train):  # the features of the data are not used
        encoder = replace(encoder_config(data, start), image_size=start.encoder.image_size)
    dropout = config.model.dropout  # does not change the shape
    for name, ours, theirs in (
        ("model", config.model, replace(start.model, dropout=dropout)),
        ("encoder", encoder, start.encoder),
        ("vocabulary", data.vocabulary, start.vocabulary),
    ):
        if ours != theirs:
            wanted = "data" if name == "vocabulary" else f"config ({theirs} instead of {ours})"
            raise ConfigError(
                f"train.start: the {name} of {config.train.start} is not that of the {wanted}; "
                "give a checkpoint that fits, or change the config"
            )


def check_splits(start: Checkpoint, known: Sequence[Fingerprint], problem: str) -> None:
    """Raise ConfigError if a checkpoint was trained on the same captions, split differently.

    It may have learnt images that now validate. Other captions are no problem.
    """
    for now in known:
        for then in start.trained.get("data", ()):
            if split_otherwise(then, now):
                raise ConfigError(
                    f"{problem}: it was trained on another split of the same captions, and may "
                    "have learnt those that validate now; prepare the data with the same splits"
                )


def stored_encoder(
    config: EncoderConfig, folders: Sequence[str], start: Checkpoint | None
) -> Mapping[str, Tensor] | None:
    """Return the weights of a CNN whose name does not lead to them; None if it does.

    They come from the checkpoint that training starts from, from a data folder or from a file.
    Raises ConfigError if none of these holds them: a checkpoint without them cannot caption.
    """
    if start is not None and start.encoder_state is not None:
        return start.encoder_state
    for folder in folders:
        path = Path(folder) / "encoder.safetensors"
        try:
            with safe_open(path, "pt") as file:
                named = (file.metadata() or {}).get("weights", config.weights)
                if named == config.weights:
                    return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            continue
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: it is damaged ({error}); run data_prep again") from None
    if config.weights.startswith(TRAINED):
        raise ConfigError(
            f"{folders[0]}: its features are of a trained {config.name}, {config.weights}, whose "
            "weights the folder does not hold; run data_prep on it again with --encoder-of "
            "CHECKPOINT, or give a checkpoint that holds them as train.start"
        )
    if names_a_file(config):
        return Encoder(config).state_dict()
    return None


def leave_out_missing(dataset: CaptionDataset, folders: Sequence[Path]) -> None:
    """Leave out the examples whose image is missing, and warn with their number and names.

    Raises DataError if all images of a folder are missing: then it is the wrong folder.
    """
    paths = [
        folders[number] / example.image
        for example, number in zip(dataset.examples, dataset.folder_of, strict=True)
    ]
    exists = [path.is_file() for path in paths]
    for number in range(len(folders)):
        own = [k for k, folder in enumerate(dataset.folder_of) if folder == number]
        if not any(exists[k] for k in own):
            raise DataError(
                f"{folders[number]}: none of the {len(own):,} {dataset.split} images is there, the "
                f"first would be {paths[own[0]]}; give the folder that holds the images as --images"
            )
    missing = [str(path) for path, found in zip(paths, exists, strict=True) if not found]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        logger.warning(
            "left out: %s of %s %s images are missing (%s)",
            f"{len(missing):,}", f"{len(exists):,}", dataset.split, some,
        )  # fmt: skip
        for name in ("examples", "folder_of", "tokens"):
            kept = [v for v, found in zip(getattr(dataset, name), exists, strict=True) if found]
            setattr(dataset, name, kept)
