"""Floating-point operations of the matrix products that a job cannot do without.

Backward, a product costs two more of its size: one for its input, where that needs a gradient, and
one for its weight. Element-wise work counts nothing, so the bound is above what can be reached.
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
    """Pictures, captions of each, cells and size of their features; hidden is E, H and A alike."""

    pictures: int
    captions: int
    cells: int
    dim: int
    vocabulary: int
    hidden: int


def core(sizes: CoreSizes, detach_prob: float) -> float:
    """Forward and backward of an LSTM: W_hh^T delta is needed at unblocked steps only."""
    I, H = sizes.input_size, sizes.hidden
    forward, weights = I + H, I + H
    inputs = I * sizes.input_grad + H * (1 - detach_prob)
    return 2.0 * sizes.steps * sizes.batch * 4 * H * (forward + weights + inputs)


def train_show_attend_tell(sizes: DecoderSizes, tokens: int, detach_prob: float) -> float:
    """One step on `tokens` words; the features themselves need no gradient."""
    D, H, cells = sizes.dim, sizes.hidden, sizes.cells * sizes.pictures
    per_token = 3 * _attend_step(sizes) - sizes.cells * D - detach_prob * 4 * H * H
    return 2.0 * (tokens * per_token + 2 * cells * D * H + sizes.pictures * 4 * D * H)


def search_show_attend_tell(sizes: DecoderSizes, beams: int, words: int) -> float:
    """A search of `words` steps with `beams` hypotheses a picture."""
    start = sizes.cells * sizes.dim * sizes.hidden + 2 * sizes.dim * sizes.hidden
    return 2.0 * sizes.pictures * (start + beams * words * _attend_step(sizes))


def train_show_tell(sizes: DecoderSizes, tokens: int, detach_prob: float) -> float:
    """One step on `tokens` words; the picture is one more LSTM step of each caption."""
    D, H, V = sizes.dim, sizes.hidden, sizes.vocabulary
    steps = tokens + sizes.pictures * sizes.captions
    recurrent = steps * 4 * H * H * (6 - detach_prob)
    return 2.0 * (recurrent + 3 * tokens * H * V + 2 * sizes.pictures * D * H)


def train_adaptive(sizes: DecoderSizes, tokens: int, detach_prob: float) -> float:
    """One step of Lu et al. 2017 on `tokens` words; what the picture adds is done once for each."""
    D, H, cells = sizes.dim, sizes.hidden, sizes.cells
    gates, sentinel, attention = 8 * H * H, 2 * H * H, 2 * H * H + 2 * cells * H
    per_token = 3 * (gates + sentinel + attention + H * sizes.vocabulary)
    per_picture = 2 * (cells * D * H + D * H) + 3 * (cells * H * H + 5 * H * H)
    blocked = detach_prob * 4 * H * H
    return 2.0 * (tokens * (per_token - blocked) + sizes.pictures * per_picture)


def _attend_step(sizes: DecoderSizes) -> int:
    """Multiplications for one word of one hypothesis: all of them forward."""
    D, H, cells = sizes.dim, sizes.hidden, sizes.cells
    attention = H * H + cells * H + cells * D + H * D  # query, scores, context, its gate
    gates = 4 * H * (H + D + H)
    output = H * H + D * H + H * sizes.vocabulary
    return attention + gates + output
