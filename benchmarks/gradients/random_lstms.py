"""Jacobians of an LSTM with random weights on random inputs, by path."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gradients.block_recursion import Blocks, block_matrices
from benchmarks.gradients.lags import Detach, Samples, add_detached, add_parts
from captioner.model.lstm import HDetachLSTM


@dataclass(frozen=True)
class RandomSettings:
    """Size and length of the random LSTMs.

    Args:
        hidden: units; as many inputs come from N(0, 1).
        forget_bias: added to the bias of the forget gate.
        lags: steps back.
        warm_up: steps before them, from the zero state.
    """

    hidden: int = 64
    forget_bias: float = 0.0
    lags: int = 50
    warm_up: int = 20


def random_lstm(settings: RandomSettings, scale: float, generator: torch.Generator) -> HDetachLSTM:
    """Return an LSTM in float64, weights from U(+-1/sqrt H), those of W_hh times `scale`."""
    H = settings.hidden
    lstm = HDetachLSTM(H, H, dtype=torch.float64)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.uniform_(-(H**-0.5), H**-0.5, generator=generator)
        lstm.weight_hh_l0 *= scale
        lstm.bias_ih_l0[H : 2 * H] += settings.forget_bias
    return lstm


def add_random(
    samples: Samples, settings: RandomSettings, scale: float, detached: list[Detach], seed: int
) -> float:
    """Add the Jacobians of one LSTM for every lag; return its mean forget gate.

    The norm is Frobenius' over sqrt(2H), the root mean square gain of the 2H directions: 1 at lag
    0. A seed fixes the weights, up to the scale, and the inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    lstm = random_lstm(settings, scale, generator)
    steps = settings.warm_up + settings.lags
    x = torch.randn(steps, settings.hidden, generator=generator, dtype=torch.float64)
    blocks = block_matrices(lstm, x)
    add_jacobians(samples, blocks, settings.lags, detached, generator)
    H = settings.hidden
    return torch.diagonal(blocks.cell[:, :H, :H], dim1=1, dim2=2).mean().item()


def add_jacobians(
    samples: Samples, blocks: Blocks, lags: int, detached: list[Detach], generator: torch.Generator
) -> None:
    """Add d(c, h)[T] / d(c, h)[T-k] for k = 1 .. lags, where T is the last step."""
    H = blocks.h.shape[1]
    draws = [max(detach.draws, 1) for detach in detached]
    products = torch.eye(2 * H, dtype=torch.float64).repeat(2 + sum(draws), 1, 1)
    for lag in range(1, lags + 1):
        cell, hidden = blocks.cell[-lag], blocks.hidden[-lag]
        keep = torch.cat(
            [torch.tensor([1.0, 0.0]).double(), *(_keep(one, generator) for one in detached)]
        )
        # The columns of c are A's alone, those of h are B's.
        through_c = products @ cell[: 2 * H, :H]
        through_h = products @ hidden[: 2 * H, H : 2 * H] * keep[:, None, None]
        products = torch.cat([through_c, through_h], 2)
        everything, alone, *rest = (products.flatten(1) / (2 * H) ** 0.5).split([1, 1, *draws])
        add_parts(samples, lag, everything, alone)
        for detach, part in zip(detached, rest, strict=True):
            add_detached(samples, lag, detach.name, part, everything, alone)


def _keep(detach: Detach, generator: torch.Generator) -> Tensor:
    """Return what passes through h at one step, for each sample."""
    if not detach.draws:
        return torch.tensor([1 - detach.prob]).double()
    return (torch.rand(detach.draws, generator=generator) >= detach.prob).double()
