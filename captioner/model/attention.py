"""Additive attention of words over the grid cells of their images, without copies of the grids.

Source: Bahdanau et al., "Neural Machine Translation by Jointly Learning to Align and Translate",
ICLR 2015, section 3.1; for images Xu et al., ICML 2015, equations 4-6 and 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# From this size on, one row at a time is faster on a CPU: its (L, A) scratch fits the cache.
_LARGE = 1 << 12
_FEW = 1 << 9  # rows of a search on a GPU whose grids are copied


class AdditiveScores(torch.autograd.Function):
    """Compute score . tanh(keys[image] + query) + constant (n, L) without a large graph.

    score . tanh(x) equals 2 score . sigmoid(2x) less a constant, which the softmax cancels, and
    sigmoid is several times faster than tanh. So keys (B, L, A), query (n, A) and score (A,) are
    given doubled. The backward pass recomputes the (L, A) activations of a row.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, score: Tensor, image: Tensor) -> Tensor:
        ctx.save_for_backward(keys, query, score, image)
        return additive_scores(keys, query, score, image)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        keys, query, score, image = ctx.saved_tensors
        grad_keys, grad_score = torch.zeros_like(keys), torch.zeros_like(score)
        grad_query = additive_scores_backward(
            grad, keys, query, score, image, grad_keys, grad_score
        )
        return grad_keys.mul_(score), grad_query, grad_score, None


def additive_scores(keys: Tensor, query: Tensor, score: Tensor, image: Tensor) -> Tensor:
    """Return the scores (n, L) of `AdditiveScores`."""
    if not _by_row(keys):
        return keys[image].add_(query.unsqueeze(1)).sigmoid_() @ score
    scores = query.new_empty(len(query), keys.shape[1])
    mixed = torch.empty_like(keys[0])
    for b, q, found in zip(image.tolist(), query, scores, strict=True):
        torch.add(keys[b], q, out=mixed)
        torch.mv(mixed.sigmoid_(), score, out=found)
    return scores


def additive_scores_backward(
    grad: Tensor,
    keys: Tensor,
    query: Tensor,
    score: Tensor,
    image: Tensor,
    grad_keys: Tensor,
    grad_score: Tensor,
) -> Tensor:
    """Return the gradient of query (n, A); add those of keys and score to the given tensors.

    `grad_keys` (B, L, A) lacks the factor `score`, which is cheaper to apply to the sum.
    """
    if not _by_row(keys):
        mixed = keys[image].add_(query.unsqueeze(1)).sigmoid_()
        grad_score += grad.flatten() @ mixed.flatten(0, 1)
        slope = torch.addcmul(mixed, mixed, mixed, value=-1).mul_(grad.unsqueeze(-1))
        grad_keys.index_add_(0, image, slope)
        return slope.sum(1) * score
    grad_query = torch.empty_like(query)
    mixed = torch.empty_like(keys[0])
    for b, q, g, found in zip(image.tolist(), query, grad, grad_query, strict=True):
        torch.add(keys[b], q, out=mixed)
        mixed.sigmoid_()
        grad_score.addmv_(mixed.t(), g)
        torch.addcmul(mixed, mixed, mixed, value=-1, out=mixed)  # sigmoid' = s - s^2
        torch.mv(mixed.t(), g, out=found)
        grad_keys[b].addcmul_(mixed, g.unsqueeze(1))
    return grad_query.mul_(score)


@dataclass(frozen=True)
class Places:
    """Places of n rows in a (B, K) table with a line for each image; K is the most rows of one."""

    place: Tensor  # (n,) in 0 .. B K - 1; without a shape, the image of each row
    shape: tuple[int, int] | None  # B, K

    @classmethod
    def of(cls, image: Tensor, images: int) -> Places:
        """Return the places of rows that belong to the images `image` (n,).

        For few rows on a GPU, a search copies the grid of each row instead: otherwise the host
        waits for K at every step, and many small kernels cost more than the copies.
        """
        if image.device.type != "cpu" and not torch.is_grad_enabled() and len(image) <= _FEW:
            return cls(image, None)
        counts = torch.bincount(image, minlength=images)
        order = image.argsort(stable=True)
        ordered = image[order]
        rank = torch.arange(len(image), device=image.device) - (counts.cumsum(0) - counts)[ordered]
        most = int(counts.max())
        place = torch.empty_like(image)
        place[order] = ordered * most + rank
        return cls(place, (images, most))

    def first(self, rows: int) -> Places:
        """Return the places of the first rows alone."""
        return Places(self.place[:rows], self.shape)

    def spread(self, rows: Tensor) -> Tensor:
        """Return rows (n, X) in their places (B, K, X), and zeros in the others."""
        assert self.shape is not None
        empty = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[1])
        return empty.index_copy(0, self.place, rows).view(*self.shape, -1)

    def weighted_sum(self, weights: Tensor, values: Tensor) -> Tensor:
        """Sum the cells of each row's image: weights (n, L), values (B, L, D) to (n, D)."""
        if self.shape is None:
            return torch.bmm(weights.unsqueeze(1), values[self.place]).squeeze(1)
        return torch.bmm(self.spread(weights), values).flatten(0, 1)[self.place]


def _by_row(keys: Tensor) -> bool:
    return keys.device.type == "cpu" and keys[0].numel() >= _LARGE
