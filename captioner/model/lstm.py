"""HDetachLSTM: an LSTM whose backward pass stochastically blocks the gradient through h.

Source: Arpit et al., "h-detach: Modifying the LSTM Gradient Towards Better Optimization",
ICLR 2019, arXiv 1810.03023, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from captioner.errors import ConfigError
from captioner.model.fused.buffers import reused
from captioner.model.fused.linear import linear

State: TypeAlias = tuple[Tensor, Tensor]  # h and c
Engine: TypeAlias = Literal["auto", "fused", "segments", "definition"]
_CANNOT = (
    "an HDetachLSTM cannot be traced; use torch.export, or load its state dict into "
    "torch.nn.LSTM, which is the same in evaluation"
)
Layer: TypeAlias = tuple[Tensor, "Tensor | None", Tensor, Tensor]  # hidden, cells, last h and c


def draw_blocked(
    steps: int, detach_prob: float, generator: torch.Generator | None = None
) -> Tensor:
    """One Bernoulli(detach_prob) draw a time step for the whole mini-batch: bool (steps,).

    True blocks the gradient through h[t-1]. Drawn on the CPU in float32 whatever torch's defaults,
    so that a seed gives the same pattern everywhere; on another device if the generator is there.
    """
    _check_prob(detach_prob)
    device = "cpu" if generator is None else generator.device
    drawn = torch.rand(steps, generator=generator, device=device, dtype=torch.float32)
    return drawn < detach_prob


def _check_prob(detach_prob: float) -> None:
    if not isinstance(detach_prob, Real) or not 0 <= detach_prob <= 1:
        raise ConfigError(f"detach_prob is {detach_prob!r}; it must be in [0, 1]")


def lstm_cell(gates: Tensor, cell: Tensor) -> State:
    """Next (h, c), each (n, H), from gate pre-activations (n, 4H) in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def lstm_cell_(
    gates: Tensor, cell: Tensor, next_cell: Tensor, squashed: Tensor, hidden: Tensor
) -> None:
    """`lstm_cell` in place: fills next_cell, squashed = sigmoid(-2 next_cell) and hidden, (n, H).

    tanh(x) = 1 - 2 sigmoid(-2x), and sigmoid is several times faster than tanh on a CPU, so one
    sigmoid serves all four gates (n, 4H), which keep it for `lstm_cell_backward_`.
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
    """Fills `grad` (n, 4H), that of the gates, from dh and dc (n, H); dc becomes that of `cell`.

    `slope` (n, H) is scratch, in the type of dc.
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


class _Sequence(torch.autograd.Function):
    """One layer over packed rows, forward and backward, without a graph per step.

    The same function as `HDetachLSTM._define_layer`. Input products are one product for all steps,
    weight gradients one a block of steps, and the product W_hh^T delta of a blocked step is never
    computed.
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
        """hidden (rows, H), cells (rows, H) if asked for, and the last h and c (B, H)."""
        H = weight_hh.shape[1]
        precise = torch.promote_types(x.dtype, torch.float32)  # of c, under bfloat16
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
            if size < len(h):  # sequences that ended leave their state behind
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
                if ctx.blocked[t] and ctx.detach == "h":
                    dh_t.zero_()
                else:
                    torch.mm(delta, weight_hh, out=dh_t)
                if ctx.blocked[t] and ctx.detach == "c":
                    dc_t.zero_()
            start = end - len(deltas)
            beta = 0 if steps is blocks[-1] else 1  # 0 fills the gradient, 1 adds to it
            dw_hh.addmm_(deltas.t(), before, beta=beta)
            dw_ih.addmm_(deltas.t(), x[start:end], beta=beta)
            db += deltas.sum(0)
            if dx is not None:
                torch.mm(deltas, weight_ih, out=dx[start:end])
            end = start
        stopped = ctx.detach if ctx.blocked[0] else ""
        return (
            dx,
            None if stopped == "h" else dh,
            None if stopped == "c" else dc.to(c0.dtype),
            dw_ih,
            dw_hh,
            None if bias is None else db,
            *(None,) * 4,
        )


def _differentiable_backward(
    ctx: Any, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The gradients of `_Sequence`, by the definition, with a graph for second derivatives."""
    # Views, so that a gradient stops here where one input was computed from another.
    x, h0, c0, weight_ih, weight_hh = (part.view_as(part) for part in ctx.saved_tensors[:5])
    bias = None if ctx.saved_tensors[5] is None else ctx.saved_tensors[5].view(-1)
    inputs = (x, h0, c0, weight_ih, weight_hh, bias)
    precise = ctx.saved_tensors[-1].dtype

    def step(gates: Tensor, state: State, blocked: bool) -> State:
        h, c = _hold(state, blocked, ctx.detach)
        h, c = lstm_cell(gates + F.linear(h, weight_hh), c)
        return h.to(x.dtype), c

    with torch.autocast(x.device.type, enabled=False):
        gates, state = F.linear(x, weight_ih, bias), (h0, c0.to(precise))
        hidden, cells, h, c = _unroll(gates, state, ctx.batch_sizes, ctx.blocked, step)
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


def _unroll(
    gates: Tensor,
    state: State,
    batch_sizes: list[int],
    blocked: list[bool],
    step: Callable[[Tensor, State, bool], State],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden and cells (rows, H), last h and c (B, H); rows whose sequence has ended leave."""
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


def _hold(state: State, blocked: bool, detach: str) -> State:
    """The state that enters a step: at a blocked one, h (or c for c-detach) is a constant."""
    h, c = state
    if not blocked:
        return h, c
    return (h.detach(), c) if detach == "h" else (h, c.detach())


def _blocks(batch_sizes: list[int]) -> list[range]:
    """Runs of steps with some 1,600 rows each: their gradients stay in the cache."""
    blocks, first, rows = [], 0, 0
    for t, size in enumerate(batch_sizes):
        rows += size
        if rows >= 1600 or t + 1 == len(batch_sizes):
            blocks.append(range(first, t + 1))
            first, rows = t + 1, 0
    return blocks


def _torch_lstm(
    x: Tensor, batch_sizes: list[int], h: Tensor, c: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden (rows, H) of packed rows x and the last h and c (B, H), by torch's own LSTM."""
    states, bias = [h.unsqueeze(0), c.unsqueeze(0)], len(weights) == 4
    # With training=False cuDNN would keep nothing for the backward pass; there is no dropout here.
    settings = (bias, 1, 0.0, torch.is_grad_enabled(), False)
    if batch_sizes[0] == batch_sizes[-1]:
        x = x.unflatten(0, (len(batch_sizes), batch_sizes[0]))
        output, h, c = torch.lstm(x, states, weights, *settings, False)
        output = output.flatten(0, 1)
    else:
        sizes = torch.tensor(batch_sizes, device="cpu")
        output, h, c = torch.lstm(x, sizes, states, weights, *settings)
    return output, h.squeeze(0), c.squeeze(0)


class HDetachLSTM(nn.LSTM):
    """A drop-in for `torch.nn.LSTM` with h-detach.

    While training, at each time step and with probability `detach_prob`, h[t-1] enters the gates as
    a constant:

        h~   = stop_gradient(h[t-1]) if blocked else h[t-1]
        i, f, g, o = W_ih x[t] + b_ih + W_hh h~ + b_hh
        c[t] = sigmoid(f) c[t-1] + sigmoid(i) tanh(g)
        h[t] = sigmoid(o) tanh(c[t])

    Forward values never change, c is never detached, the output h[t] keeps its gradient and W_hh
    its own; nothing is rescaled. In `eval()` it is a plain LSTM. The initial h is subject to the
    draw of the first step.

    Args: those of `torch.nn.LSTM`, whose state dict and errors it shares (bidirectional and
        proj_size are refused), and
        detach_prob: probability of BLOCKING, in [0, 1].
        share_detach: one draw for all layers, as the authors' code, or one per layer.
        detach: "h", or "c" for the paper's ablation that blocks the cell state instead.
        generator: of the draws; torch's default one if None.
        engine: how a sequence is computed, always with the same values and gradients.
            "fused": one forward and one backward pass without a graph of steps.
            "segments": torch's own LSTM from each blocked step to the next, on a GPU cuDNN's.
            "definition": step by step, as above.
            "auto": fused on a CPU, segments elsewhere. Where torch transforms the code
                (torch.func, torch.export, forward-mode derivatives) all are the definition.

    Shapes: input (T, B, I), (B, T, I) with batch_first, (T, I) or a PackedSequence; h and c
        (num_layers, B, H); output like the input with H in place of I.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    bias_ih_l0: Tensor
    bias_hh_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        detach_prob: float = 0.0,
        share_detach: bool = True,
        detach: Literal["h", "c"] = "h",
        generator: torch.Generator | None = None,
        engine: Engine = "auto",
    ):
        if bidirectional or proj_size:
            raise ConfigError(
                "HDetachLSTM has neither bidirectional nor proj_size: h-detach is "
                "defined for the one-way LSTM with full hidden state"
            )
        _check_prob(detach_prob)
        if detach not in ("h", "c"):
            raise ConfigError(f"detach is {detach!r}; it must be 'h' or 'c'")
        if engine not in get_args(Engine):
            raise ConfigError(f"engine is {engine!r}; it must be one of {get_args(Engine)}")
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.detach_prob, self.share_detach, self.detach = detach_prob, share_detach, detach
        self.generator, self.engine = generator, engine

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, detach_prob={self.detach_prob}, detach={self.detach!r}"

    def __prepare_scriptable__(self) -> None:
        raise ConfigError(f"torch.jit.script: {_CANNOT}")

    def draw(self, steps: int) -> Tensor:
        """The blocked steps of one forward pass: bool (num_layers, steps); none in eval mode."""
        if not self._draws():
            return torch.zeros(self.num_layers, steps, dtype=torch.bool, device="cpu")
        if self.generator is not None and torch._C._current_graph_task_id() != -1:
            raise ConfigError(
                "generator: torch.utils.checkpoint cannot repeat draws of a generator other than "
                "torch's default one; leave it out or give `blocked`"
            )
        layers = 1 if self.share_detach else self.num_layers
        drawn = draw_blocked(layers * steps, self.detach_prob, self.generator)
        return drawn.view(layers, steps).expand(self.num_layers, steps)

    def _draws(self) -> bool:
        return self.training and self.detach_prob > 0

    @overload
    def forward(
        self, input: Tensor, hx: State | None = None, blocked: Tensor | None = None
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: State | None = None, blocked: Tensor | None = None
    ) -> tuple[PackedSequence, State]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: State | None = None,
        blocked: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run over a sequence; `blocked` (num_layers, T) or (T,) replaces the module's own draw."""
        if isinstance(input, fx.Proxy):
            raise ConfigError(f"torch.fx: {_CANNOT}")
        if torch._C._is_tracing():
            raise ConfigError(f"torch.jit.trace: {_CANNOT}")
        if isinstance(input, PackedSequence):
            batch_sizes = input.batch_sizes.tolist()
            self._check(input.data, batch_sizes, hx)  # sorting would leave surplus states out
            if hx is not None and input.sorted_indices is not None:
                hx = (hx[0][:, input.sorted_indices], hx[1][:, input.sorted_indices])
            output, _, (h, c) = self.run(input.data, batch_sizes, hx, blocked)
            if input.unsorted_indices is not None:
                h, c = h[:, input.unsorted_indices], c[:, input.unsorted_indices]
            packed = PackedSequence(
                output, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, (h, c)

        if input.dim() not in (2, 3):
            raise ValueError(f"input: {input.dim()} dimensions; give 2 or 3")
        if hx is not None and any(part.dim() != input.dim() for part in hx):
            raise RuntimeError(
                f"hx: states of {hx[0].dim()} and {hx[1].dim()} dimensions; "
                f"give {input.dim()}, as many as the input has"
            )
        single = input.dim() == 2
        x = input.unsqueeze(1) if single else input
        x = x.transpose(0, 1) if self.batch_first and not single else x  # (T, B, I)
        if single and hx is not None:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        steps, batch = x.shape[:2]
        flat, _, (h, c) = self.run(x.flatten(0, 1), [batch] * steps, hx, blocked)
        output = flat.view(steps, batch, self.hidden_size)
        if single:
            return output.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return (output.transpose(0, 1) if self.batch_first else output), (h, c)

    def run(
        self,
        x: Tensor,
        batch_sizes: list[int],
        hx: State | None = None,
        blocked: Tensor | None = None,
        with_cells: bool = False,
    ) -> tuple[Tensor, Tensor | None, State]:
        """`forward` on packed rows x (sum of batch_sizes, I), longest sequences first.

        Returns hidden (rows, H) and, if asked for, c of every step (rows, H) of the last layer, and
        the last (h, c) of all layers.
        """
        if "parametrizations" in self._modules:
            with parametrize.cached():  # one value of each weight for all steps
                return self._run(x, batch_sizes, hx, blocked, with_cells)
        return self._run(x, batch_sizes, hx, blocked, with_cells)

    def _run(
        self,
        x: Tensor,
        batch_sizes: list[int],
        hx: State | None,
        blocked: Tensor | None,
        with_cells: bool,
    ) -> tuple[Tensor, Tensor | None, State]:
        self._check(x, batch_sizes, hx)
        pattern = self._pattern(len(batch_sizes), blocked)
        if hx is None:
            zeros = x.new_zeros(self.num_layers, batch_sizes[0], self.hidden_size)
            hx = (zeros, zeros)
        layer_of = self._layer_of(x.device.type, with_cells)
        last_h, last_c = [], []
        for layer in range(self.num_layers):
            x, cells, h, c = layer_of(
                layer, x, hx[0][layer], hx[1][layer], batch_sizes, pattern[layer], with_cells
            )
            last_h.append(h)
            last_c.append(c)
            if layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        return x, cells, (torch.stack(last_h), torch.stack(last_c))

    def _check(self, x: Tensor, batch_sizes: list[int], hx: State | None) -> None:
        """Raise where `torch.nn.LSTM` does, and the same kinds of errors."""
        if not batch_sizes:
            raise RuntimeError("input: 0 time steps; give at least one")
        if x.shape[-1] != self.input_size:
            raise RuntimeError(
                f"input: size {x.shape[-1]} of the last dimension; give {self.input_size}, "
                f"the input_size"
            )
        dtype = self.weight_ih_l0.dtype
        if x.dtype != dtype and not torch._C._is_any_autocast_enabled():
            raise ValueError(
                f"input: {x.dtype} for weights of {dtype}; use input.to({dtype}) or "
                f"lstm.to({x.dtype})"
            )
        wanted = (self.num_layers, batch_sizes[0], self.hidden_size)
        for name, part in zip(("h", "c"), hx or (), strict=False):
            if tuple(part.shape) != wanted:
                raise RuntimeError(f"{name}: shape {tuple(part.shape)}; give {wanted}")

    def _pattern(self, steps: int, blocked: Tensor | None) -> list[list[bool]]:
        """The blocked steps of every layer: those given, or a draw."""
        if blocked is None:
            if not self._draws():
                return [[False] * steps] * self.num_layers
            blocked = self.draw(steps)
        shapes = ((steps,), (1, steps), (self.num_layers, steps))
        if tuple(blocked.shape) not in shapes or blocked.dtype != torch.bool:
            raise ConfigError(
                f"blocked: {blocked.dtype} of shape {tuple(blocked.shape)}; "
                f"give torch.bool of shape {shapes[0]} or {shapes[-1]}"
            )
        pattern: list[list[bool]] = blocked.expand(self.num_layers, steps).tolist()
        return pattern

    def _layer_of(self, device: str, with_cells: bool) -> Callable[..., Layer]:
        """The method that computes a layer; the definition where torch transforms the code."""
        engine = self.engine
        if engine == "auto":  # torch's LSTM does not return c of every step
            engine = "fused" if device == "cpu" or with_cells else "segments"
        elif engine == "segments" and with_cells:
            engine = "definition"
        transformed = (
            device == "meta"
            or torch.compiler.is_compiling()
            or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
        )
        if engine == "definition" or transformed:
            return self._define_layer
        return self._fuse_layer if engine == "fused" else self._segment_layer

    def _fuse_layer(
        self,
        layer: int,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        batch_sizes: list[int],
        blocked: list[bool],
        with_cells: bool,
    ) -> Layer:
        weights, bias = self._weights(layer)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            low = torch.get_autocast_dtype(kind)
            x, h, bias = x.to(low), h.to(low), bias if bias is None else bias.to(low)
            weights = (weights[0].to(low), weights[1].to(low))
        with torch.autocast(kind, enabled=False):
            out: Layer = _Sequence.apply(
                x, h, c, *weights, bias, batch_sizes, blocked, self.detach, with_cells
            )
        return out

    def _segment_layer(
        self,
        layer: int,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        batch_sizes: list[int],
        blocked: list[bool],
        with_cells: bool,
    ) -> Layer:
        """Torch's LSTM from each blocked step to the next, which starts at (h.detach(), c).

        No gradient but that through the states passes from one segment to another, so this is exact
        for c-detach as well. Gives no c of the steps in between.
        """
        kind, cell_type = x.device.type, c.dtype
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        weights = self._chunk(layer, low)
        x, h, c = x.to(low), h.to(low).contiguous(), c.to(low).contiguous()
        outputs, ended_h, ended_c, row = [], [], [], 0
        starts = [0, *(t for t in range(1, len(blocked)) if blocked[t])]
        with torch.autocast(kind, enabled=False):
            for start, stop in zip(starts, [*starts[1:], len(blocked)], strict=True):
                sizes = batch_sizes[start:stop]
                if sizes[0] < len(h):
                    ended_h.append(h[sizes[0] :])
                    ended_c.append(c[sizes[0] :])
                    h, c = h[: sizes[0]], c[: sizes[0]]
                h, c = _hold((h, c), blocked[start], self.detach)
                output, h, c = _torch_lstm(x[row : row + sum(sizes)], sizes, h, c, weights)
                outputs.append(output)
                row += sum(sizes)
        last_h, last_c = torch.cat([h, *ended_h[::-1]]), torch.cat([c, *ended_c[::-1]])
        return torch.cat(outputs), None, last_h, last_c.to(cell_type)

    def _chunk(self, layer: int, dtype: torch.dtype) -> list[Tensor]:
        """The weights of a layer in torch's order; on a GPU in one piece, as cuDNN wants them.

        Otherwise cuDNN would put them together for every segment anew.
        """
        weights = [weight.to(dtype) for weight in self._parts(layer)]
        if weights[0].device.type != "cuda":
            return weights
        parts = torch.cat([w.flatten() for w in weights]).split([w.numel() for w in weights])
        return [part.view_as(w) for part, w in zip(parts, weights, strict=True)]

    def _define_layer(
        self,
        layer: int,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        batch_sizes: list[int],
        blocked: list[bool],
        with_cells: bool,
    ) -> Layer:
        """The definition, one step after another."""
        gates = self.input_gates(x, layer)  # (rows, 4H): one product for all steps
        step = partial(self.step, layer=layer)
        hidden, cells, h, c = _unroll(gates, (h, c), batch_sizes, blocked, step)
        return hidden, cells if with_cells else None, h, c

    def input_gates(self, x: Tensor, layer: int = 0) -> Tensor:
        """The part of the gates that the input alone gives, with both biases: (..., 4H)."""
        (weight_ih, _), bias = self._weights(layer)
        return linear(x, weight_ih, bias)

    def step(self, input_gates: Tensor, state: State, blocked: bool, layer: int = 0) -> State:
        """One time step from `input_gates` (n, 4H): the next (h, c), each (n, H)."""
        h, c = _hold(state, blocked, self.detach)
        return lstm_cell(input_gates + linear(h, getattr(self, f"weight_hh_l{layer}")), c)

    def _weights(self, layer: int) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """W_ih and W_hh of a layer, and the sum of its two biases."""
        weight_ih, weight_hh, *biases = self._parts(layer)
        return (weight_ih, weight_hh), biases[0] + biases[1] if biases else None

    def _parts(self, layer: int) -> list[Tensor]:
        """The weights of a layer in torch's order: Parameters, or what stands in their place."""
        return [getattr(self, name) for name in self._all_weights[layer]]
