"""One layer of `HDetachLSTM` as one function with its own backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.model.cell import State, hold, lstm_cell, unroll
from captioner.model.fused.buffers import reused


class LSTMRecurrence(torch.autograd.Function):
    """One layer over packed rows, forward and backward, without a graph of steps.

    Computes what `HDetachLSTM._define_layer` does, with one product of the inputs for all steps and
    one product for the weights' gradient of a block of steps. The product W_hh^T delta of a blocked
    step is never computed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias: Tensor | None,
        batch_sizes: list[int],
        blocked: list[bool],
        detach: str,
        with_cells: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return hidden (rows, H), cells (rows, H) if `with_cells`, and the last h and c (B, H)."""
        H = weight_hh.shape[1]
        precise = torch.promote_types(x.dtype, torch.float32)  # c is float32 under bfloat16
        gates = reused(len(x), 4 * H, like=x)
        squashed = reused(len(x), H, like=x, dtype=precise)
        hidden = reused(len(x), H, like=x)
        cells = reused(len(x), H, like=x, dtype=precise)
        if bias is None:
            torch.mm(x, weight_ih.t(), out=gates)
        else:
            torch.addmm(bias, x, weight_ih.t(), out=gates)
        last_h, last_c = h0.clone(), c0.to(precise, copy=True)
        h, c = last_h, last_c
        steps = zip(*(b.split(batch_sizes) for b in (gates, squashed, hidden, cells)), strict=True)
        for gate, squash, next_h, next_c in steps:
            size = len(gate)
            if size < len(h):  # the last state of sequences that have ended
                last_h[size : len(h)], last_c[size : len(h)] = h[size:], c[size:]
                h, c = h[:size], c[:size]
            lstm_cell_(gate.addmm_(h, weight_hh.t()), c, next_c, squash, next_h)
            h, c = next_h, next_c
        last_h[: len(h)], last_c[: len(h)] = h, c
        ctx.save_for_backward(x, h0, c0, weight_ih, weight_hh, bias, hidden, cells)
        ctx.gates, ctx.squashed = gates, squashed
        ctx.batch_sizes, ctx.blocked, ctx.detach = batch_sizes, blocked, detach
        ctx.set_materialize_grads(False)
        return hidden, cells if with_cells else None, last_h, last_c.to(c0.dtype)

    @staticmethod
    def backward(
        ctx: Any, d_hidden: Tensor | None, d_cells: Tensor | None, dh: Tensor | None, dc: Any
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            return _differentiable_backward(ctx, (d_hidden, d_cells, dh, dc))
        x, h0, c0, weight_ih, weight_hh, bias, hidden, cells = ctx.saved_tensors
        sizes = ctx.batch_sizes
        dh = torch.zeros_like(h0) if dh is None else dh.clone()
        dc = torch.zeros_like(c0) if dc is None else dc.clone()
        dc = dc.to(cells.dtype)
        dx = reused(*x.shape, like=x) if ctx.needs_input_grad[0] else None
        dw_ih, dw_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        db = weight_hh.new_zeros(len(weight_hh))
        gates, squashed = ctx.gates.split(sizes), ctx.squashed.split(sizes)
        h_before, c_before = [h0, *hidden.split(sizes)], [c0, *cells.split(sizes)]
        from_output = d_hidden.split(sizes) if d_hidden is not None else None
        from_cells = d_cells.split(sizes) if d_cells is not None else None
        stopped = [ctx.detach if blocked else "" for blocked in ctx.blocked]
        blocks, end = _blocks(sizes), len(x)
        most = max(sum(sizes[t] for t in steps) for steps in blocks)
        all_deltas = reused(most, weight_hh.shape[0], like=x)
        all_before = reused(most, weight_hh.shape[1], like=x)
        slope = torch.empty_like(dc)
        for steps in reversed(blocks):
            lengths = [sizes[t] for t in steps]
            deltas, before = all_deltas[: sum(lengths)], all_before[: sum(lengths)]
            torch.cat([h_before[t][: sizes[t]] for t in steps], out=before)
            for t, delta in zip(reversed(steps), reversed(deltas.split(lengths)), strict=True):
                size = sizes[t]
                dh_t, dc_t = dh[:size], dc[:size]
                if from_output is not None:
                    dh_t += from_output[t]
                if from_cells is not None:
                    dc_t += from_cells[t]
                lstm_cell_backward_(
                    gates[t], c_before[t][:size], squashed[t], dh_t, dc_t, delta, slope[:size]
                )
                if stopped[t] == "h":
                    dh_t.zero_()
                else:
                    torch.mm(delta, weight_hh, out=dh_t)
                if stopped[t] == "c":
                    dc_t.zero_()
            start = end - len(deltas)
            beta = 0 if steps is blocks[-1] else 1  # 0 fills the gradient, 1 adds to it
            dw_hh.addmm_(deltas.t(), before, beta=beta)
            dw_ih.addmm_(deltas.t(), x[start:end], beta=beta)
            db += deltas.sum(0)
            if dx is not None:
                torch.mm(deltas, weight_ih, out=dx[start:end])
            end = start
        return (
            dx,
            None if stopped[0] == "h" else dh,
            None if stopped[0] == "c" else dc.to(c0.dtype),
            dw_ih,
            dw_hh,
            None if bias is None else db,
            *(None,) * 4,
        )


def _differentiable_backward(
    ctx: Any, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `LSTMRecurrence` by the definition, with a graph of their own."""
    # Views stop a gradient here if one input was computed from another.
    x, h0, c0, weight_ih, weight_hh = (part.view_as(part) for part in ctx.saved_tensors[:5])
    bias = None if ctx.saved_tensors[5] is None else ctx.saved_tensors[5].view(-1)
    inputs = (x, h0, c0, weight_ih, weight_hh, bias)
    precise = ctx.saved_tensors[-1].dtype

    def step(gates: Tensor, state: State, blocked: bool) -> State:
        h, c = hold(state, blocked, ctx.detach)
        h, c = lstm_cell(gates + F.linear(h, weight_hh), c)
        return h.to(x.dtype), c

    with torch.autocast(x.device.type, enabled=False):
        gates, state = F.linear(x, weight_ih, bias), (h0, c0.to(precise))
        hidden, cells, h, c = unroll(gates, state, ctx.batch_sizes, ctx.blocked, step)
        pairs = [
            (output, grad)
            for output, grad in zip((hidden, cells, h, c.to(c0.dtype)), grads, strict=True)
            if grad is not None and output.requires_grad
        ]
        wanted = [part for part in inputs if part is not None and part.requires_grad]
        found = iter(
            torch.autograd.grad(
                [output for output, _ in pairs], wanted, [grad for _, grad in pairs],
                create_graph=True, allow_unused=True,
            ) if pairs else [None] * len(wanted)
        )  # fmt: skip
    return (
        *(next(found) if part is not None and part.requires_grad else None for part in inputs),
        *(None,) * 4,
    )


def _blocks(batch_sizes: list[int]) -> list[range]:
    """Split the steps into blocks of some 1,600 rows, whose gradients fit into the cache."""
    blocks, first, rows = [], 0, 0
    for t, size in enumerate(batch_sizes):
        rows += size
        if rows >= 1600 or t + 1 == len(batch_sizes):
            blocks.append(range(first, t + 1))
            first, rows = t + 1, 0
    return blocks


def lstm_cell_(
    gates: Tensor, cell: Tensor, next_cell: Tensor, squashed: Tensor, hidden: Tensor
) -> None:
    """Compute `lstm_cell` in place: fill next_cell, squashed = sigmoid(-2 next_cell) and hidden.

    tanh(x) = 1 - 2 sigmoid(-2x), and sigmoid is several times faster than tanh on a CPU. So one
    sigmoid serves all four gates (n, 4H), which then hold what `lstm_cell_backward_` needs.
    """
    i, f, g, o = gates.chunk(4, 1)
    g.mul_(-2)
    gates.sigmoid_()
    torch.addcmul(i, f, cell, out=next_cell).addcmul_(i, g, value=-2)
    torch.mul(next_cell, -2, out=squashed).sigmoid_()
    torch.addcmul(o, o, squashed, value=-2, out=hidden)


def lstm_cell_backward_(
    gates: Tensor,
    cell: Tensor,
    squashed: Tensor,
    dh: Tensor,
    dc: Tensor,
    grad: Tensor,
    slope: Tensor,
) -> None:
    """Fill `grad` (n, 4H), the gates' gradient, from dh and dc (n, H); dc becomes that of `cell`.

    `slope` (n, H) is scratch memory of the type of dc.
    """
    i, f, g, o = gates.chunk(4, 1)
    torch.addcmul(gates, gates, gates, value=-1, out=grad)  # sigmoid' = s - s^2
    di, df, dg, do = grad.chunk(4, 1)
    do.addcmul_(do, squashed, value=-2).mul_(dh)
    torch.addcmul(squashed, squashed, squashed, value=-1, out=slope).mul_(o)
    dc.addcmul_(slope, dh, value=4)
    di.addcmul_(di, g, value=-2)
    df.mul_(cell)
    dg.mul_(i).mul_(4)
    grad.unflatten(1, (4, -1))[:, :3].mul_(dc.unsqueeze(1))
    dc.mul_(f)
