"""HDetachLSTM: an LSTM whose backward pass stochastically blocks the gradient through h.

Source: Arpit et al., "h-detach: Modifying the LSTM Gradient Towards Better Optimization",
ICLR 2019, arXiv 1810.03023, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from captioner.errors import ConfigError
from captioner.model.cell import State, hold, lstm_cell, unroll
from captioner.model.fused.linear import linear
from captioner.model.fused.lstm import LSTMRecurrence

__all__ = ["Engine", "HDetachLSTM", "State", "draw_blocked"]

Engine: TypeAlias = Literal["auto", "fused", "segments", "definition"]
Layer: TypeAlias = tuple[Tensor, "Tensor | None", Tensor, Tensor]  # hidden, cells, last h and c
_NOT_TRACED = (
    "an HDetachLSTM cannot be traced; use torch.export, or load its state dict into "
    "torch.nn.LSTM, which is the same in evaluation"
)


def draw_blocked(
    steps: int, detach_prob: float, generator: torch.Generator | None = None
) -> Tensor:
    """Return the blocked steps, True with probability detach_prob each: bool (steps,).

    A blocked step is blocked for the whole mini-batch. The random numbers are float32 on the CPU,
    or the generator's device, whatever torch's defaults, so a seed has the same pattern everywhere.
    """
    _check_prob(detach_prob)
    device = "cpu" if generator is None else generator.device
    uniform = torch.rand(steps, generator=generator, device=device, dtype=torch.float32)
    return uniform < detach_prob


def _check_prob(detach_prob: float) -> None:
    if not isinstance(detach_prob, Real) or not 0 <= detach_prob <= 1:
        raise ConfigError(f"detach_prob is {detach_prob!r}; it must be in [0, 1]")


def _torch_lstm(
    x: Tensor, batch_sizes: list[int], h: Tensor, c: Tensor, weights: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run torch's LSTM over packed rows x; return hidden (rows, H) and the last h and c (B, H)."""
    states, bias = [h.unsqueeze(0), c.unsqueeze(0)], len(weights) == 4
    # With training=False cuDNN would keep nothing for the backward pass. There is no dropout here.
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
    """A drop-in replacement of `torch.nn.LSTM` with h-detach.

    While training, at each time step and with probability `detach_prob`, h[t-1] enters the gates as
    a constant:

        h~   = stop_gradient(h[t-1]) if blocked else h[t-1]
        i, f, g, o = W_ih x[t] + b_ih + W_hh h~ + b_hh
        c[t] = sigmoid(f) c[t-1] + sigmoid(i) tanh(g)
        h[t] = sigmoid(o) tanh(c[t])

    Forward values never change. c is never detached, the output h[t] and W_hh keep their gradients,
    and nothing is rescaled. In `eval()` it is a plain LSTM. The initial h is blocked if the first
    step is.

    Args: those of `torch.nn.LSTM`, whose state dict and errors it shares (bidirectional and
        proj_size are refused), and
        detach_prob: probability of BLOCKING, in [0, 1].
        share_detach: block the same steps in all layers, as the authors' code, or each its own.
        detach: "h", or "c" for the paper's ablation that blocks the cell state instead.
        generator: source of the blocked steps; torch's default one if None.
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
        raise ConfigError(f"torch.jit.script: {_NOT_TRACED}")

    def draw(self, steps: int) -> Tensor:
        """Return the blocked steps of a forward pass: bool (num_layers, steps); none in eval."""
        if not self._draws():
            return torch.zeros(self.num_layers, steps, dtype=torch.bool, device="cpu")
        if self.generator is not None and torch._C._current_graph_task_id() != -1:
            raise ConfigError(
                "generator: torch.utils.checkpoint repeats torch's default one alone; leave it out "
                "or give `blocked`"
            )
        layers = 1 if self.share_detach else self.num_layers
        blocked = draw_blocked(layers * steps, self.detach_prob, self.generator)
        return blocked.view(layers, steps).expand(self.num_layers, steps)

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
        """Run over a sequence; `blocked` (num_layers, T) or (T,) replaces a draw of the steps."""
        if isinstance(input, fx.Proxy):
            raise ConfigError(f"torch.fx: {_NOT_TRACED}")
        if torch._C._is_tracing():
            raise ConfigError(f"torch.jit.trace: {_NOT_TRACED}")
        if isinstance(input, PackedSequence):
            batch_sizes = input.batch_sizes.tolist()
            self._check(input.data, batch_sizes, hx)  # before sorting drops surplus states
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
        """Run over packed rows x (sum of batch_sizes, I), longest sequences first.

        Returns hidden (rows, H) of the last layer, its c of every step (rows, H) if `with_cells`,
        and the last (h, c) of all layers.
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
        """Raise the errors of `torch.nn.LSTM` for wrong shapes and types."""
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
        """Return the blocked steps of every layer: those given, or a draw."""
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
        """Return the method that computes a layer: the definition where torch transforms it."""
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
            out: Layer = LSTMRecurrence.apply(
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
        """Run torch's LSTM from each blocked step to the next, which starts at (h.detach(), c).

        Between segments a gradient passes through the states alone, so this is exact, also for
        c-detach. Torch does not return c of every step.
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
                h, c = hold((h, c), blocked[start], self.detach)
                output, h, c = _torch_lstm(x[row : row + sum(sizes)], sizes, h, c, weights)
                outputs.append(output)
                row += sum(sizes)
        last_h, last_c = torch.cat([h, *ended_h[::-1]]), torch.cat([c, *ended_c[::-1]])
        return torch.cat(outputs), None, last_h, last_c.to(cell_type)

    def _chunk(self, layer: int, dtype: torch.dtype) -> list[Tensor]:
        """Return the weights of a layer in torch's order; on a GPU in one block of memory.

        Otherwise cuDNN would copy them into one for every segment.
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
        """Compute the definition, step by step."""
        gates = self.input_gates(x, layer)  # (rows, 4H): one product for all steps
        step = partial(self.step, layer=layer)
        hidden, cells, h, c = unroll(gates, (h, c), batch_sizes, blocked, step)
        return hidden, cells if with_cells else None, h, c

    def input_gates(self, x: Tensor, layer: int = 0) -> Tensor:
        """Return W_ih x + b_ih + b_hh: (..., 4H)."""
        (weight_ih, _), bias = self._weights(layer)
        return linear(x, weight_ih, bias)

    def step(self, input_gates: Tensor, state: State, blocked: bool, layer: int = 0) -> State:
        """Return the next (h, c), each (n, H), of one time step from `input_gates` (n, 4H)."""
        h, c = hold(state, blocked, self.detach)
        return lstm_cell(input_gates + linear(h, getattr(self, f"weight_hh_l{layer}")), c)

    def _weights(self, layer: int) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Return W_ih and W_hh of a layer, and the sum of its two biases."""
        weight_ih, weight_hh, *biases = self._parts(layer)
        return (weight_ih, weight_hh), biases[0] + biases[1] if biases else None

    def _parts(self, layer: int) -> list[Tensor]:
        """Return the weights of a layer in torch's order: Parameters, or what replaces them."""
        return [getattr(self, name) for name in self._all_weights[layer]]
