"""The derivative of an LSTM's state as a product of block matrices, A of the cell and B of h.

Source: Arpit et al., "h-detach", ICLR 2019, section 3. For one scalar weight w,
z[t] = (dc[t]/dw, dh[t]/dw, 1) in R^3H follows z[t] = (A[t] + B[t]) z[t-1]:

        | F      0  diag k  |        | 0  psi   0 |
    A = | D^c F  0  diag k~ |    B = | 0  psi~  0 |
        | 0      0  I       |        | 0  0     0 |

F = diag f is the cell-state path, psi and psi~ are the paths through h[t-1], and k, k~ the effect
of w at step t itself. h-detach with samples xi[t] in {0, 1} has A[t] + xi[t] B[t].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from captioner.model.lstm import HDetachLSTM, State

Entry: TypeAlias = tuple[str, int] | tuple[str, int, int]  # parameter, row and column


@dataclass(frozen=True)
class Blocks:
    """A and B of every step in float64, and the states between them."""

    cell: Tensor  # A (T, 3H, 3H)
    hidden: Tensor  # B (T, 3H, 3H)
    h: Tensor  # (T, H)
    c: Tensor  # (T, H)

    def start(self) -> Tensor:
        """Return z (3H,) before the first step: no state depends on w yet."""
        z = self.cell.new_zeros(self.cell.shape[1])
        z[-self.h.shape[1] :] = 1
        return z

    def carry(self, z: Tensor, keep: Sequence[float] | float = 1.0) -> Tensor:
        """Return the product over all steps of (A + keep B), the last to the left, and z (3H, ...).

        `keep` is 1 for the derivative, 0 for the cell alone, 0 or 1 per step for a sample of
        h-detach, and 1 - p for its expectation: the steps are independent, each in one factor.
        """
        steps = len(self.cell)
        keeps = [keep] * steps if isinstance(keep, float | int) else keep
        for cell, hidden, open_ in zip(self.cell, self.hidden, keeps, strict=True):
            z = cell @ z + open_ * (hidden @ z)
        return z


@torch.no_grad()
def block_matrices(
    lstm: HDetachLSTM | nn.LSTM, x: Tensor, state: State | None = None, entry: Entry | None = None
) -> Blocks:
    """Return A and B along x (T, I) of a one-layer LSTM, from the state h, c (H,), zero if None.

    `entry` is the weight w, such as ("weight_hh_l0", row, column) or ("bias_ih_l0", row). Without
    it k and k~ are zero, and the upper left 2H x 2H is the Jacobian of (c, h) at each step.
    """
    H, steps = lstm.hidden_size, len(x)
    weights = {name: weight.double() for name, weight in lstm.named_parameters()}
    w_hh = weights["weight_hh_l0"]
    gates = x.double() @ weights["weight_ih_l0"].T
    if lstm.bias:
        gates = gates + weights["bias_ih_l0"] + weights["bias_hh_l0"]
    h, c = (part.double() for part in state) if state else (w_hh.new_zeros(H), w_hh.new_zeros(H))
    cell, hidden = (w_hh.new_zeros(steps, 3, H, 3, H) for _ in "AB")
    of_w = w_hh.new_zeros(4 * H)  # derivative of the gates' input in w, at this step alone
    states = []
    for t in range(steps):
        i, f, g, o = (gates[t] + w_hh @ h).chunk(4)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        before_h, before_c = h, c
        c = f * before_c + i * g
        h = o * c.tanh()
        states.append((h, c))
        d_i, d_f, d_g = g * i * (1 - i), before_c * f * (1 - f), i * (1 - g**2)
        d_o, d_c = c.tanh() * o * (1 - o), o * (1 - c.tanh() ** 2)
        if entry is not None:
            factor = {"weight_ih_l0": x[t], "weight_hh_l0": before_h}.get(entry[0])
            of_w[entry[1]] = 1 if factor is None else factor[entry[-1]]
        k = _through(torch.stack([d_i, d_f, d_g]), of_w[: 3 * H].view(3, H))
        psi = _through(torch.stack([d_i, d_f, d_g]), w_hh[: 3 * H].view(3, H, H))
        cell[t, 0, :, 0] = torch.diag(f)
        cell[t, 1, :, 0] = torch.diag(d_c * f)
        cell[t, 0, :, 2] = torch.diag(k)
        cell[t, 1, :, 2] = torch.diag(d_o * of_w[3 * H :] + d_c * k)
        cell[t, 2, :, 2] = torch.eye(H)
        hidden[t, 0, :, 1] = psi
        hidden[t, 1, :, 1] = d_o[:, None] * w_hh[3 * H :] + d_c[:, None] * psi
    all_h, all_c = (torch.stack(part) for part in zip(*states, strict=True))
    size = (steps, 3 * H, 3 * H)
    return Blocks(cell.view(size), hidden.view(size), all_h, all_c)


def _through(slopes: Tensor, of_gates: Tensor) -> Tensor:
    """Return the sum over i, f, g of diag(slopes) (3, H) times (3, H) or (3, H, H)."""
    return torch.einsum("kh,kh...->h...", slopes, of_gates)
