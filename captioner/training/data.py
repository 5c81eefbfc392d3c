"""The data of a run: stored features, or images read and augmented at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from captioner.config import Config
from captioner.data.dataset import Batch, CaptionDataset, joint_vocabulary
from captioner.data.fingerprint import fingerprints
from captioner.model.encoder import Encoder
from captioner.training.augmentation import AugmentedImages, ahead
from captioner.training.checks import leave_out_missing


class TrainingData:
    """The training split of all data folders together, and the validation split of each."""

    def __init__(self, config: Config, device: torch.device):
        self._settings, self._device = config.train, device
        vocabulary = joint_vocabulary(config.folders, config.train.min_count)
        self.train = CaptionDataset(config.folders, "train", vocabulary)
        self.validation = [CaptionDataset(folder, "val", vocabulary) for folder in config.folders]
        self.names = [Path(folder).name for folder in config.folders]
        self.fingerprints = fingerprints(config.folders)
        self._images: AugmentedImages | None = None
        self._validation_images: list[AugmentedImages] = []
        self._validation_encoded = False

    def read_images(self, folders: Sequence[Path], encoder: Encoder) -> None:
        """Make the features from images, one folder for each data folder, not from the stores.

        Missing images are left out. Raises DataError if all images of a folder are missing.
        """
        leave_out_missing(self.train, folders)
        for split, folder in zip(self.validation, folders, strict=True):
            leave_out_missing(split, [folder])
        self._images = AugmentedImages(folders, self.train, encoder)
        self._validation_images = [
            AugmentedImages([folder], split, encoder)
            for folder, split in zip(folders, self.validation, strict=True)
        ]

    def epoch(self, seed: int, skip: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, shuffled by `seed`, without the first `skip`."""
        settings = self._settings
        if self._images is not None:
            self.train.reader = self._images.augmented(seed)
        batches = self.train.batches(
            settings.batch_images,
            max_words=settings.max_words,
            captions_per_image=settings.captions_per_image,
            equal_images=settings.equal_images,
            weights=settings.data_weights,
            mirror=settings.mirror,
            seed=seed,
            skip=skip,
        )
        return self._on_device(batches if self._images is None else ahead(batches))

    def validation_batches(self) -> Iterator[Batch]:
        """Yield all validation images with all their captions, in order."""
        settings = self._settings
        for split in self.validation:
            yield from self._on_device(
                split.batches(settings.batch_images, max_words=settings.max_words)
            )

    def encode_validation(self, encoder: Encoder | None) -> None:
        """Compute the features of the validation images, if they are not the stored ones.

        `encoder` replaces the one they are read with; None keeps that, which is frozen, so its
        features are computed once.
        """
        if encoder is None and self._validation_encoded:
            return
        self._validation_encoded = True
        for split, images in zip(self.validation, self._validation_images, strict=False):
            split.reader = images.encoded(encoder, progress=True)

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            yield batch.to(self._device)
