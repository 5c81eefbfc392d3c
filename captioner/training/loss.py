"""What training minimises, and how its rates change over a run."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from captioner.config import TrainConfig
from captioner.model.decoder import Prediction
from captioner.model.fused.buffers import reused
from captioner.tokens import EOS, UNWRITTEN

_PIECE = 5_000_000  # logits at once, 20 MB of float32


def caption_loss(
    prediction: Prediction,
    targets: Tensor,
    batch_sizes: list[int],
    settings: TrainConfig,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the plain cross-entropy a token (nats) in it.

    With `weights` (tokens,), the captions are drawn ones and the loss of each token counts so
    often: the gradient of REINFORCE where they are advantages (Williams 1992; Rennie et al. 2017,
    equation 7).

    With attention, adds `attention_penalty` times the mean over captions and cells of
    (1 - sum_t alpha)^2, the doubly stochastic penalty (Xu et al. 2015, equation 14). With
    attributes, and captions that were written, adds `attribute_weight` times the mean over images
    of the detector's binary cross-entropy, summed over the attributes.
    """
    loss, plain = cross_entropy(
        prediction, targets, settings.label_smoothing, weights, batch_sizes[0]
    )
    if prediction.attention is not None and settings.attention_penalty:
        attention = prediction.attention.float()
        row = torch.cat([torch.arange(size) for size in batch_sizes]).to(attention.device)
        seen = attention.new_zeros(batch_sizes[0], attention.shape[1]).index_add(0, row, attention)
        loss = loss + settings.attention_penalty * ((1 - seen) ** 2).mean()
    if prediction.attributes is not None and weights is None:
        logits, present = prediction.attributes
        detection = F.binary_cross_entropy_with_logits(logits.float(), present, reduction="sum")
        loss = loss + settings.attribute_weight * detection / len(logits)
    return loss, plain


def cross_entropy(
    prediction: Prediction,
    targets: Tensor,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    begins: int = 0,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy a token (nats), smoothed or weighted, and plain; the first one learns.

    With `weights` (tokens,) the targets were drawn: what a search never draws has no probability,
    EOS among the first `begins` tokens included. Otherwise the probability that a bad draw loses
    would go to words that are never drawn.
    """
    out = prediction.out
    result: tuple[Tensor, Tensor] = _CrossEntropy.apply(
        prediction.hidden, out.weight, out.bias, targets, label_smoothing, weights, begins
    )
    return result


class _CrossEntropy(torch.autograd.Function):
    """Output layer, softmax and cross-entropy in pieces of tokens: no (tokens, V) tensor lives.

    The gradients are made with the loss, while a piece is in the cache, so a second backward pass
    through the same loss is refused.
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
