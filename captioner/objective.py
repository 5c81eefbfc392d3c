"""What training minimises, and how its rates change over a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.config import TrainConfig
from captioner.decoder import Prediction


def caption_loss(
    prediction: Prediction, targets: Tensor, batch_sizes: list[int], settings: TrainConfig
) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the plain cross-entropy a token (nats) in it.

    With attention, adds `attention_penalty` times the mean over captions and cells of
    (1 - sum_t alpha)^2, the doubly stochastic penalty (Xu et al. 2015, equation 14).
    """
    logits = prediction.logits.float()
    cross_entropy = F.cross_entropy(logits, targets)
    loss = cross_entropy
    if settings.label_smoothing:
        loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
    if prediction.attention is not None and settings.attention_penalty:
        attention = prediction.attention.float()
        row = torch.cat([torch.arange(size) for size in batch_sizes]).to(attention.device)
        seen = attention.new_zeros(batch_sizes[0], attention.shape[1]).index_add(0, row, attention)
        loss = loss + settings.attention_penalty * ((1 - seen) ** 2).mean()
    return loss, cross_entropy.detach()


def learning_rate(settings: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of one step: linear warm-up, then constant or cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule != "cosine":
        return settings.learning_rate
    share = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def detach_probability(settings: TrainConfig, share_done: float) -> float:
    """`detach_prob`, and 0 in the last `detach_anneal` share of training."""
    return 0.0 if share_done >= 1 - settings.detach_anneal else settings.detach_prob
