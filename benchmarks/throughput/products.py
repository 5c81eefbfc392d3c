"""Floating-point operations of the matrix products that a job requires.

Backward, a product costs two more of its size: one for its input, if that needs a gradient, and one
for its weight. Element-wise work is not counted, so the bound cannot be reached.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CoreSizes:
    """One LSTM over x (steps, batch, input_size)."""

    steps: int
    batch: int
    input_size: int
    hidden: int
    input_grad: bool  # whether x needs a gradient


@dataclass(frozen=True)
class DecoderSizes:
    """Images, captions per image, cells and size of their features; hidden is E, H and A."""

    images: int
    captions: int
    cells: int
    dim: int
    vocabulary: int
    hidden: int


def core(sizes: CoreSizes, detach_prob: float) -> float:
    """Count an LSTM, forward and backward: W_hh^T delta is needed at unblocked steps only."""
    I, H = sizes.input_size, sizes.hidden
    forward, weights = I + H, I + H
    inputs = I * sizes.input_grad + H * (1 - detach_prob)
    return 2.0 * sizes.steps * sizes.batch * 4 * H * (forward + weights + inputs)


def train_show_attend_tell(sizes: DecoderSizes, tokens: int, detach_prob: float) -> float:
    """Count one training step on `tokens` words; the features need no gradient."""
    D, H, cells = sizes.dim, sizes.hidden, sizes.cells * sizes.images
    per_token = 3 * _attend_step(sizes) - sizes.cells * D - detach_prob * 4 * H * H
    return 2.0 * (tokens * per_token + 2 * cells * D * H + sizes.images * 4 * D * H)


def search_show_attend_tell(sizes: DecoderSizes, beams: int, words: int) -> float:
    """Count a search of `words` steps with `beams` hypotheses per image."""
    start = sizes.cells * sizes.dim * sizes.hidden + 2 * sizes.dim * sizes.hidden
    return 2.0 * sizes.images * (start + beams * words * _attend_step(sizes))


def train_show_tell(sizes: DecoderSizes, tokens: int, detach_prob: float) -> float:
    """Count one training step on `tokens` words; the image is one more step per caption."""
    D, H, V = sizes.dim, sizes.hidden, sizes.vocabulary
    steps = tokens + sizes.images * sizes.captions
    recurrent = steps * 4 * H * H * (6 - detach_prob)
    return 2.0 * (recurrent + 3 * tokens * H * V + 2 * sizes.images * D * H)


def train_adaptive(sizes: DecoderSizes, tokens: int, detach_prob: float) -> float:
    """Count one training step of Lu et al. 2017 on `tokens` words."""
    D, H, cells = sizes.dim, sizes.hidden, sizes.cells
    gates, sentinel, attention = 8 * H * H, 2 * H * H, 2 * H * H + 2 * cells * H
    per_token = 3 * (gates + sentinel + attention + H * sizes.vocabulary)
    per_image = 2 * (cells * D * H + D * H) + 3 * (cells * H * H + 5 * H * H)
    blocked = detach_prob * 4 * H * H
    return 2.0 * (tokens * (per_token - blocked) + sizes.images * per_image)


def _attend_step(sizes: DecoderSizes) -> int:
    """Count the multiplications for one word of one hypothesis, forward."""
    D, H, cells = sizes.dim, sizes.hidden, sizes.cells
    attention = H * H + cells * H + cells * D + H * D  # query, scores, context, its gate
    gates = 4 * H * (H + D + H)
    output = H * H + D * H + H * sizes.vocabulary
    return attention + gates + output
