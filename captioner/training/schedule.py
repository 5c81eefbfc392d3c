"""How the learning rate and the probability of h-detach change over a run."""

from __future__ import annotations

import math

from captioner.config import TrainConfig


def learning_rate(settings: TrainConfig, step: int, total_steps: int) -> float:
    """Return the rate of one step: linear warm-up, then constant, or cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule != "cosine":
        return settings.learning_rate
    share = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def detach_probability(settings: TrainConfig, share_done: float) -> float:
    """Return `detach_prob`, or 0 in the last `detach_anneal` share of training."""
    return 0.0 if share_done >= 1 - settings.detach_anneal else settings.detach_prob
