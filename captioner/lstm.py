"""HDetachLSTM: an LSTM whose backward pass stochastically blocks the gradient through h.

Source: Arpit et al., "h-detach: Modifying the LSTM Gradient Towards Better Optimization",
ICLR 2019, arXiv 1810.03023, Algorithm 1.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from captioner.errors import ConfigError

State: TypeAlias = tuple[Tensor, Tensor]  # h and c


def draw_blocked(
    steps: int, detach_prob: float, generator: torch.Generator | None = None
) -> Tensor:
    """One Bernoulli(detach_prob) draw a time step for the whole mini-batch: bool (steps,).

    True blocks the gradient through h[t-1]. Drawn on the CPU, so that a seed gives the same pattern
    on every device.
    """
    if not 0 <= detach_prob <= 1:
        raise ConfigError(f"detach_prob is {detach_prob}; it must be in [0, 1]")
    return torch.rand(steps, generator=generator) < detach_prob


def lstm_cell(gates: Tensor, cell: Tensor) -> State:
    """Next (h, c), each (n, H), from gate pre-activations (n, 4H) in torch's order i, f, g, o."""
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


class HDetachLSTM(nn.Module):
    """A drop-in for `torch.nn.LSTM` with h-detach.

    While training, at each time step and with probability `detach_prob`, h[t-1] enters the gates as
    a constant:

        h~   = stop_gradient(h[t-1]) if blocked else h[t-1]
        i, f, g, o = W_ih x[t] + b_ih + W_hh h~ + b_hh
        c[t] = sigmoid(f) c[t-1] + sigmoid(i) tanh(g)
        h[t] = sigmoid(o) tanh(c[t])

    Forward values never change, c is never detached, the output h[t] keeps its gradient and W_hh
    its own; nothing is rescaled. In `eval()` and under `no_grad` it is a plain LSTM. The initial h
    is subject to the draw of the first step.

    Args: those of `torch.nn.LSTM`, whose state dict it shares (bidirectional and proj_size are
        refused), and
        detach_prob: probability of BLOCKING, in [0, 1].
        share_detach: one draw for all layers, as the authors' code, or one per layer.
        detach: "h", or "c" for the paper's ablation that blocks the cell state instead.
        generator: of the draws; torch's default one if None.

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
        *,
        detach_prob: float = 0.0,
        share_detach: bool = True,
        detach: Literal["h", "c"] = "h",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if bidirectional or proj_size:
            raise ConfigError(
                "HDetachLSTM has neither bidirectional nor proj_size: h-detach is "
                "defined for the one-way LSTM with full hidden state"
            )
        if not 0 <= detach_prob <= 1:
            raise ConfigError(f"detach_prob is {detach_prob}; it must be in [0, 1]")
        if detach not in ("h", "c"):
            raise ConfigError(f"detach is {detach!r}; it must be 'h' or 'c'")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        self.detach_prob, self.share_detach, self.detach = detach_prob, share_detach, detach
        self.generator = generator
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size
            for name, shape in (
                (f"weight_ih_l{layer}", (4 * hidden_size, width)),
                (f"weight_hh_l{layer}", (4 * hidden_size, hidden_size)),
                (f"bias_ih_l{layer}", (4 * hidden_size,) if bias else None),
                (f"bias_hh_l{layer}", (4 * hidden_size,) if bias else None),
            ):
                if shape:
                    empty = torch.empty(shape, device=device, dtype=dtype)
                    self.register_parameter(name, nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight from U(-1/sqrt(H), 1/sqrt(H)), as `torch.nn.LSTM` does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"detach_prob={self.detach_prob}, detach={self.detach!r}"
        )

    def draw(self, steps: int) -> Tensor:
        """The blocked steps of one forward pass: bool (num_layers, steps); none in eval mode."""
        if not (self.training and torch.is_grad_enabled() and self.detach_prob > 0):
            return torch.zeros(self.num_layers, steps, dtype=torch.bool)
        layers = 1 if self.share_detach else self.num_layers
        drawn = draw_blocked(layers * steps, self.detach_prob, self.generator)
        return drawn.view(layers, steps).expand(self.num_layers, steps)

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
        if isinstance(input, PackedSequence):
            batch_sizes = input.batch_sizes.tolist()
            if hx is not None and input.sorted_indices is not None:
                hx = (hx[0][:, input.sorted_indices], hx[1][:, input.sorted_indices])
            output, (h, c) = self._layers(input.data, batch_sizes, hx, blocked)
            if input.unsorted_indices is not None:
                h, c = h[:, input.unsorted_indices], c[:, input.unsorted_indices]
            packed = PackedSequence(
                output, input.batch_sizes, input.sorted_indices, input.unsorted_indices
            )
            return packed, (h, c)

        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input has shape {tuple(input.shape)}; expected 2 or 3 dimensions "
                f"with {self.input_size} as the last"
            )
        single = input.dim() == 2
        x = input.unsqueeze(1) if single else input
        x = x.transpose(0, 1) if self.batch_first and not single else x  # (T, B, I)
        if single and hx is not None:
            hx = (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        steps, batch = x.shape[:2]
        flat, (h, c) = self._layers(x.flatten(0, 1), [batch] * steps, hx, blocked)
        output = flat.view(steps, batch, self.hidden_size)
        if single:
            return output.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return (output.transpose(0, 1) if self.batch_first else output), (h, c)

    def _layers(
        self, x: Tensor, batch_sizes: list[int], hx: State | None, blocked: Tensor | None
    ) -> tuple[Tensor, State]:
        """All layers over packed rows x (sum of batch_sizes, I), longest sequences first."""
        steps = len(batch_sizes)
        if blocked is None:
            blocked = self.draw(steps)
        pattern = blocked.expand(self.num_layers, steps).tolist()
        if hx is None:
            zeros = x.new_zeros(self.num_layers, batch_sizes[0], self.hidden_size)
            hx = (zeros, zeros)
        last_h, last_c = [], []
        for layer in range(self.num_layers):
            x, (h, c) = self._layer(
                layer, x, batch_sizes, (hx[0][layer], hx[1][layer]), pattern[layer]
            )
            last_h.append(h)
            last_c.append(c)
            if layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        return x, (torch.stack(last_h), torch.stack(last_c))

    def _layer(
        self, layer: int, x: Tensor, batch_sizes: list[int], state: State, blocked: list[bool]
    ) -> tuple[Tensor, State]:
        """The definition, one step after another; rows whose sequence has ended leave."""
        gates = self.input_gates(x, layer)  # (rows, 4H): one product for all steps
        h, c = state
        outputs, ended_h, ended_c = [], [], []
        for size, gate, block in zip(batch_sizes, gates.split(batch_sizes), blocked, strict=True):
            if size < len(h):
                ended_h.append(h[size:])
                ended_c.append(c[size:])
                h, c = h[:size], c[:size]
            h, c = self.step(gate, (h, c), block, layer)
            outputs.append(h)
        ended_h.append(h)
        ended_c.append(c)
        return torch.cat(outputs), (torch.cat(ended_h[::-1]), torch.cat(ended_c[::-1]))

    def input_gates(self, x: Tensor, layer: int = 0) -> Tensor:
        """The part of the gates that the input alone gives, with both biases: (..., 4H)."""
        bias = None
        if self.bias:
            bias = self.get_parameter(f"bias_ih_l{layer}") + self.get_parameter(f"bias_hh_l{layer}")
        return F.linear(x, self.get_parameter(f"weight_ih_l{layer}"), bias)

    def step(self, input_gates: Tensor, state: State, blocked: bool, layer: int = 0) -> State:
        """One time step from `input_gates` (n, 4H): the next (h, c), each (n, H)."""
        h, c = state
        if blocked:
            if self.detach == "h":
                h = h.detach()
            else:
                c = c.detach()
        weight = self.get_parameter(f"weight_hh_l{layer}")
        return lstm_cell(input_gates + F.linear(h, weight), c)
