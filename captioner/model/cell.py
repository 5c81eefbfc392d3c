"""The LSTM step by step: one step, and a loop of steps over packed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

State: TypeAlias = tuple[Tensor, Tensor]  # h and c


def lstm_cell(gates: Tensor, cell: Tensor) -> State:
    """Return the next (h, c), each (n, H), from gates (n, 4H) before their activation.

    The gates are in torch's order i, f, g, o.
    """
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def hold(state: State, blocked: bool, detach: str) -> State:
    """Return the state as input of a step; at a blocked one, h (c for c-detach) is a constant."""
    h, c = state
    if not blocked:
        return h, c
    return (h.detach(), c) if detach == "h" else (h, c.detach())


def unroll(
    gates: Tensor,
    state: State,
    batch_sizes: list[int],
    blocked: list[bool],
    step: Callable[[Tensor, State, bool], State],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run `step` over packed gates (rows, 4H), longest sequences first.

    Returns hidden and cells (rows, H), and the last h and c (B, H) of every sequence.
    """
    h, c = state
    outputs, cells, ended_h, ended_c = [], [], [], []
    for size, gate, block in zip(batch_sizes, gates.split(batch_sizes), blocked, strict=True):
        if size < h.shape[0]:
            ended_h.append(h[size:])
            ended_c.append(c[size:])
            h, c = h[:size], c[:size]
        h, c = step(gate, (h, c), block)
        outputs.append(h)
        cells.append(c)
    last_h, last_c = torch.cat([h, *ended_h[::-1]]), torch.cat([c, *ended_c[::-1]])
    return torch.cat(outputs), torch.cat(cells), last_h, last_c
