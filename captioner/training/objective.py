"""What a training step learns: its captions, their loss and the figures of the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from captioner.config import TrainConfig
from captioner.data.dataset import Batch, CaptionDataset
from captioner.model.decoder import Decoder, Prediction
from captioner.training.loss import caption_loss


@dataclass(frozen=True)
class Target:
    """The captions that one step learns."""

    batch: Batch
    weights: Tensor | None = None  # (tokens,) advantage of each token's caption, of samples
    figures: Mapping[str, float] = field(default_factory=dict)  # for the log


class Objective(Protocol):
    """Chooses the captions of a step and computes their loss."""

    dropout: bool  # whether the decoder learns with dropout

    def target(self, decoder: Decoder, batch: Batch, step: int) -> Target:
        """Return the captions to learn of a batch that holds features (B, L, D)."""

    def loss(self, prediction: Prediction, target: Target) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and the plain cross-entropy per token (nats)."""


class CrossEntropy:
    """Learns the captions that people wrote."""

    dropout = True

    def __init__(self, _data: CaptionDataset, settings: TrainConfig):
        self._settings = settings

    def target(self, _decoder: Decoder, batch: Batch, _step: int) -> Target:
        """Return the captions of the batch."""
        return Target(batch)

    def loss(self, prediction: Prediction, target: Target) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise, and the plain cross-entropy per token (nats)."""
        batch = target.batch
        return caption_loss(prediction, batch.targets, batch.captions.batch_sizes, self._settings)
