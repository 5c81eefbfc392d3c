"""The backward pass split into the cell-state path and the paths through h.

A forward pass by the definition keeps every state and has a valve on each path from h to the next
step. A valve multiplies the gradient by `keep`: 0 leaves the cell-state path alone, 1 everything,
and 1 - p is exactly the expectation of h-detach's gradient, since every path takes each step once
and the steps are blocked independently.

Source: Arpit et al., "h-detach", ICLR 2019, section 3 (A: cell-state path, B: through h).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.errors import ConfigError
from captioner.model.decoder import (
    Adaptive,
    Decoder,
    PackedCaptions,
    ShowAttendTell,
    ShowTell,
    UpDown,
)  # fmt: skip
from captioner.model.lstm import HDetachLSTM, State

Layers: TypeAlias = tuple[Tensor, ...]  # a tensor (n, H) for each layer of the LSTM
Keep: TypeAlias = float | Tensor  # one number, or one per caption (n, 1)


@dataclass
class Valve:
    """Passes the share `keep` of a gradient; set it before each backward pass."""

    keep: Keep = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the same values."""
        out: Tensor = _Throttle.apply(x, self)
        return out


class _Throttle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, valve: Valve) -> Tensor:
        ctx.valve = valve
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        keep = ctx.valve.keep
        return grad * (keep[: len(grad)] if isinstance(keep, Tensor) else keep), None


@dataclass(frozen=True)
class Step:
    """One step of the LSTM: the state before it (n, H) and the state after it."""

    from_h: Layers
    from_c: Layers
    h: Layers
    c: Layers
    recurrent: Valve  # on h[t-1] -> gates
    attention: Valve  # on h[t-1] -> attention -> context, in ShowAttendTell


@dataclass
class Unrolled:
    """A forward pass over packed captions, with a loss for each step that has one."""

    batch_sizes: list[int]
    steps: list[Step] = field(default_factory=list)
    losses: list[Tensor | None] = field(default_factory=list)  # (n,) for each step

    def set_valves(self, recurrent: Sequence[Keep], attention: Sequence[Keep]) -> None:
        """Set what each step keeps on its path into the gates and into the attention."""
        for step, keep, keep_attention in zip(self.steps, recurrent, attention, strict=True):
            step.recurrent.keep, step.attention.keep = keep, keep_attention

    def expect(self, detach_prob: float, detach_attention: bool = False) -> None:
        """Set the valves to the expectation of h-detach; detach_prob 0 opens them."""
        keep, steps = 1 - detach_prob, len(self.steps)
        self.set_valves([keep] * steps, [keep if detach_attention else 1.0] * steps)


@torch.enable_grad()
def unroll_lstm(
    lstm: HDetachLSTM, x: Tensor, batch_sizes: list[int], state: tuple[Layers, Layers] | None = None
) -> Unrolled:
    """Run an LSTM over packed rows x (sum of batch_sizes, I), longest sequences first.

    `state` is h and c before the first step, zero if None. There is no dropout between layers and
    no h-detach. The caller adds the losses.
    """
    if state is None:
        zeros = (x.new_zeros(batch_sizes[0], lstm.hidden_size),) * lstm.num_layers
        state = (zeros, zeros)
    h, c = _leaves(state[0]), _leaves(state[1])
    run = Unrolled(batch_sizes)
    for size, gates in zip(batch_sizes, lstm.input_gates(x).split(batch_sizes), strict=True):
        from_h, from_c = _first(h, size), _first(c, size)
        valve = Valve()
        made: list[State] = []
        for layer in range(lstm.num_layers):
            if layer:
                gates = lstm.input_gates(made[-1][0], layer)
            before = (valve(from_h[layer]), from_c[layer])
            made.append(lstm.step(gates, before, False, layer))
        h, c = tuple(h for h, _ in made), tuple(c for _, c in made)
        run.steps.append(Step(from_h, from_c, h, c, valve, Valve()))
        run.losses.append(None)
    return run


def unroll(
    decoder: Decoder, features: Tensor, captions: PackedCaptions, targets: Tensor
) -> Unrolled:
    """Run a decoder with teacher forcing; the losses are the cross-entropies of the words.

    Takes features (B, L, D) and targets (tokens,). In ShowTell the image is step 0, without a loss.
    Runs as in `eval()`, without dropout; the decoder's mode and the random state stay as they were.
    Raises ConfigError for up_down, whose two LSTMs feed each other.
    """
    if isinstance(decoder, UpDown):
        raise ConfigError("up_down: has two LSTMs; gradients are split in decoders with one")
    training = decoder.training
    decoder.eval()
    try:
        return _unroll(decoder, features, captions, targets)
    finally:
        decoder.train(training)


@torch.enable_grad()
def _unroll(
    decoder: ShowTell | ShowAttendTell | Adaptive, features: Tensor, captions: PackedCaptions,
    targets: Tensor,
) -> Unrolled:  # fmt: skip
    sizes, image = captions.batch_sizes, captions.image
    wanted = targets.split(sizes)
    with torch.no_grad():
        memory, (h, c) = decoder.start(features)
    if isinstance(decoder, ShowTell):
        x = torch.cat([memory.values[image], decoder.embed(captions.inputs)])
        run = unroll_lstm(decoder.core, x, [len(image), *sizes])
        for t, words in enumerate(wanted, 1):
            logits = decoder.out(run.steps[t].h[-1])
            run.losses[t] = F.cross_entropy(logits, words, reduction="none")
        return run
    run = Unrolled(sizes)
    (h,), (c,) = _leaves((h[image],)), _leaves((c[image],))
    for tokens, words in zip(captions.inputs.split(sizes), wanted, strict=True):
        n, recurrent, attention = len(tokens), Valve(), Valve()
        from_h, from_c = h[:n], c[:n]
        # Adaptive's attention is not part of the recurrence: it reads h as the output layer does.
        query = attention(from_h) if isinstance(decoder, ShowAttendTell) else h[:n]
        logits, (h, c), _ = decoder.step(
            memory, tokens, (recurrent(from_h), from_c), image[:n], query
        )
        run.steps.append(Step((from_h,), (from_c,), (h,), (c,), recurrent, attention))
        run.losses.append(F.cross_entropy(logits, words, reduction="none"))
    return run


@dataclass(frozen=True)
class Flow:
    """Mean norms of the gradient from step t in c[t-1], directly and through h[t-1]."""

    cell: float
    hidden: float

    @property
    def share(self) -> float:
        """The share of h, from 0 to 1; 0 without any gradient."""
        both = self.cell + self.hidden
        return self.hidden / both if both else 0.0


def gradient_flow(run: Unrolled) -> Flow:
    """Split the gradient of all losses between step t and step t-1, with the valves as set.

    With L the sum of a caption's losses and dc[t] = dL/dc[t] in the backward pass, c[t-1] receives
    f[t] dc[t] along the cell-state path, and through h[t-1]

        o[t-1] (1 - tanh^2 c[t-1]) (keep W_hh^T delta[t] + the same of the attention's query)

    without the part of the word predicted from h[t-1]. Returns the means, over captions and steps
    from the second on, of the norms over the units of all layers.
    """
    losses = [loss.sum() for loss in run.losses if loss is not None]
    edges = [part for step in run.steps[1:] for part in (*step.from_h, *step.from_c)]
    if not edges:
        return Flow(0.0, 0.0)
    grads = iter(gradients(torch.stack(losses).sum(), edges))
    cell, hidden = [], []
    for before, step in zip(run.steps, run.steps[1:], strict=False):
        d_h, d_c = [next(grads) for _ in step.from_h], [next(grads) for _ in step.from_c]
        # From c[t-1] to h[t-1] there is one factor: o (1 - tanh^2 c).
        through = [
            torch.autograd.grad(h, c, grad, retain_graph=True)[0]
            for h, c, grad in zip(step.from_h, before.c, d_h, strict=True)
        ]
        hidden.append(norms(part[: len(d_c[0])] for part in through))
        cell.append(norms(d_c))
    return Flow(torch.cat(cell).mean().item(), torch.cat(hidden).mean().item())


def gradients(loss: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return gradients of a scalar, zero where none arrives; keep the graph for other valves."""
    return torch.autograd.grad(
        loss, states, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def norms(layers: Any) -> Tensor:
    """Return the norm (n,) of each row over the units of all layers, each (n, H)."""
    norm: Tensor = torch.cat(list(layers), 1).norm(dim=1)
    return norm


def _leaves(layers: Layers) -> Layers:
    """Return the states as leaves, where the graph begins."""
    return tuple(part.detach().requires_grad_() for part in layers)


def _first(layers: Layers, size: int) -> Layers:
    """Return the rows that go on as new nodes, whose gradient comes through one step only."""
    return tuple(part[:size] for part in layers)
