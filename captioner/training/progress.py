"""Where a training run stands: its place, its best score, and whether it goes on."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

from captioner.config import TrainConfig

logger = logging.getLogger(__name__)

LEAST_GAIN = 1e-4  # share by which a validation loss must fall to count as better


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # optimizer steps so far
    best: float = -math.inf  # validation CIDEr
    best_loss: float = math.inf  # validation loss; decides while CIDEr is 0
    best_epoch: int = -1
    since_best: int = 0  # epochs
    plateau: int = 0  # epochs without a better CIDEr since the rate last fell
    rate_factor: float = 1.0
    loss_sum: float = 0.0  # of this epoch, over tokens
    tokens: int = 0
    seconds: float = 0.0  # spent so far, over all resumes
    log_bytes: int = 0

    def count(self, tokens: int, loss: float) -> None:
        """Count one step with its tokens and their mean loss."""
        self.step += 1
        self.batch += 1
        self.tokens += tokens
        self.loss_sum += loss * tokens

    @property
    def mean_loss(self) -> float:
        """Training loss per token in this epoch so far."""
        return self.loss_sum / self.tokens

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.tokens = 0.0, 0

    def is_over(self, settings: TrainConfig) -> bool:
        """Return whether all epochs are done, or patience has run out."""
        return self.epoch >= settings.epochs or 0 < settings.patience <= self.since_best

    def score(self, cider: float, loss: float, settings: TrainConfig) -> None:
        """Record a validation: better by CIDEr or, while that is 0, by loss."""
        by_loss = cider == 0 and self.best <= 0
        if by_loss and math.isinf(self.best):
            logger.warning(
                "validation CIDEr is 0: the best epoch is chosen by validation loss until it is "
                "not (CIDEr is always 0 with one image, or if no caption shares an n-gram with its "
                "references)"
            )
        if cider > self.best or (by_loss and loss < self.best_loss * (1 - LEAST_GAIN)):
            self.best, self.best_epoch, self.best_loss = cider, self.epoch, loss
            self.since_best = self.plateau = 0
            return
        self.since_best += 1
        self.plateau += 1
        if settings.schedule == "plateau" and self.plateau > settings.plateau_patience:
            self.rate_factor *= settings.plateau_factor
            self.plateau = 0
