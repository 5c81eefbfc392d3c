"""The losses that training minimises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from captioner.config import TrainConfig
from captioner.data.vocabulary import EOS, UNWRITTEN
from captioner.model.decoder import Prediction
from captioner.model.fused.buffers import reused

_PIECE = 5_000_000  # logits in memory at once, 20 MB of float32


def caption_loss(
    prediction: Prediction, targets: Tensor, batch_sizes: list[int], settings: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Return the loss of written captions, and the plain cross-entropy per token (nats) in it.

    The loss is the smoothed cross-entropy, plus the attention penalty of `attention_penalty`, plus
    `attribute_weight` times the binary cross-entropy of the attribute detector, summed over the
    attributes and averaged over images.
    """
    loss, plain = cross_entropy(prediction, targets, settings.label_smoothing)
    loss = loss + attention_penalty(prediction, batch_sizes, settings.attention_penalty)
    if prediction.attributes is not None:
        logits, present = prediction.attributes
        detection = F.binary_cross_entropy_with_logits(logits.float(), present, reduction="sum")
        loss = loss + settings.attribute_weight * detection / len(logits)
    return loss, plain


def attention_penalty(
    prediction: Prediction, batch_sizes: list[int], weight: float
) -> Tensor | float:
    """Return `weight` times the doubly stochastic penalty; 0 without attention.

    The penalty is the mean over captions and cells of (1 - sum_t alpha)^2 (Xu et al. 2015,
    equation 14).
    """
    if prediction.attention is None or not weight:
        return 0.0
    attention = prediction.attention.float()  # (tokens, L)
    row = torch.cat([torch.arange(size) for size in batch_sizes]).to(attention.device)
    total = attention.new_zeros(batch_sizes[0], attention.shape[1]).index_add(0, row, attention)
    return weight * ((1 - total) ** 2).mean()


def cross_entropy(
    prediction: Prediction,
    targets: Tensor,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    begins: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the mean cross-entropy per token (nats), smoothed or weighted, and the plain one.

    Only the first has a gradient. With `weights` (tokens,) the targets are samples: words that
    sampling never writes have no probability, nor has EOS among the first `begins` tokens.
    Otherwise the probability that a bad sample loses would go to words that are never sampled.
    """
    out = prediction.out
    result: tuple[Tensor, Tensor] = _PiecewiseCrossEntropy.apply(
        prediction.hidden, out.weight, out.bias, targets, label_smoothing, weights, begins
    )
    return result


class _PiecewiseCrossEntropy(torch.autograd.Function):
    """Output layer, softmax and cross-entropy in pieces of tokens, without a (tokens, V) tensor.

    The forward pass computes the gradients, too, while a piece is in the cache. A second backward
    pass through the same loss is therefore refused.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        smoothing: float,
        weights: Tensor | None,
        begins: int,
    ) -> tuple[Tensor, Tensor]:
        (tokens, V), learns = (len(hidden), len(weight)), any(ctx.needs_input_grad)
        low, low_bias = weight.to(hidden.dtype), bias.to(hidden.dtype)  # bfloat16 under autocast
        size = min(tokens, max(1, _PIECE // V))
        buffer = reused(V * size, like=hidden)
        d_hidden = reused(*hidden.shape, like=hidden)
        d_weight = reused(*low.shape, like=low)
        d_bias = torch.zeros_like(bias)
        smoothed = plain = bias.new_zeros(())
        for start in range(0, tokens, size):
            piece, wanted = hidden[start : start + size], targets[None, start : start + size]
            out = buffer[: V * len(piece)].view(V, -1)  # this way round the product is faster
            torch.addmm(low_bias[:, None], low, piece.t(), out=out)
            logits = out.to(torch.promote_types(out.dtype, torch.float32))  # (V, n)
            if weights is not None:
                logits[UNWRITTEN] = -torch.inf
                logits[EOS, : max(begins - start, 0)] = -torch.inf
            logits -= logits.amax(0)
            chosen = smooth = logits.gather(0, wanted)
            if smoothing:
                smooth = chosen.lerp(logits.mean(0, keepdim=True), smoothing)
            total = logits.exp_().sum(0, keepdim=True)
            plain = plain + (total.log() - chosen).sum()
            times = (
                torch.ones_like(total) if weights is None else weights[None, start : start + size]
            )
            smoothed = smoothed + ((total.log() - smooth) * times).sum()
            if not learns:
                continue
            share = times / tokens
            grad = logits.mul_(share / total)  # softmax, weighted
            grad.scatter_add_(0, wanted, (smoothing - 1) * share)
            if smoothing:
                grad -= smoothing / V * share
            d_bias += grad.sum(1)
            grad = grad.to(low.dtype)
            torch.mm(grad.t(), low, out=d_hidden[start : start + size])
            d_weight.addmm_(grad, piece, beta=1 if start else 0)
        ctx.grads = (d_hidden, d_weight.to(weight.dtype), d_bias) if learns else None
        plain = plain / tokens
        ctx.mark_non_differentiable(plain)
        return smoothed / tokens, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _plain: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the loss was differentiated twice; compute it again")
        grads, ctx.grads = ctx.grads, None
        if grad.device.type != "cpu" or grad != 1:
            grads = tuple(part * grad for part in grads)
        return *grads, None, None, None, None
