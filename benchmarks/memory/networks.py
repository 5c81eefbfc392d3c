"""The recurrent networks; each maps inputs (T, B, I) to hidden (T, B, H)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.model.lstm import HDetachLSTM, State

CELLS = ("lstm", "h-detach", "c-detach", "gru", "irnn", "zoneout", "indrnn")
_DETACHED = ("h-detach", "c-detach")
UNCLIPPED = "unclipped"


@dataclass(frozen=True)
class Method:
    """A network, its detach probability, and whether gradients are clipped."""

    cell: str
    detach_prob: float = 0.0
    clipped: bool = True

    @classmethod
    def parse(cls, text: str) -> Method:
        """Parse "lstm", "h-detach 0.25" or "h-detach 0.25 unclipped"; raise ConfigError."""
        words = text.split()
        clipped = words[-1:] != [UNCLIPPED]
        cell, *rest = (words if clipped else words[:-1]) or [""]
        try:
            prob = float(rest.pop()) if cell in _DETACHED and rest else 0.0
        except ValueError:
            prob = math.nan
        if cell not in CELLS or rest or not 0 <= prob <= 1 or (cell in _DETACHED and not prob):
            raise ConfigError(
                f"no method {text!r}; choose from {', '.join(CELLS)}; h-detach and c-detach need a "
                f'probability, as in "h-detach 0.25"; "{UNCLIPPED}" may follow'
            )
        return cls(cell, prob, clipped)

    def __str__(self) -> str:
        prob = f" {self.detach_prob:g}" if self.cell in _DETACHED else ""
        return f"{self.cell}{prob}{'' if self.clipped else ' ' + UNCLIPPED}"


class Network(nn.Module):
    """A recurrent core and a linear output layer."""

    def __init__(self, method: Method, inputs: int, hidden: int, outputs: int, steps: int):
        super().__init__()
        self.core = make_core(method, inputs, hidden, steps)
        self.answer = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor, answered: int) -> Tensor:
        """Return the answers (answered, B, outputs) at the last steps of inputs (T, B, I)."""
        hidden: Tensor = self.core(inputs)[0]
        answers: Tensor = self.answer(hidden[-answered:])
        return answers


def make_core(method: Method, inputs: int, hidden: int, steps: int) -> nn.Module:
    """Return a new recurrent network; it returns hidden (T, B, H) and a state.

    Weights of the LSTMs and the GRU are from U(-1/sqrt(H), 1/sqrt(H)), as in the authors' code.
    """
    if method.cell in ("lstm", "h-detach", "c-detach"):
        detach: Literal["h", "c"] = "c" if method.cell == "c-detach" else "h"
        return HDetachLSTM(inputs, hidden, detach_prob=method.detach_prob, detach=detach)
    if method.cell == "zoneout":
        return ZoneoutLSTM(inputs, hidden)
    if method.cell == "gru":
        return nn.GRU(inputs, hidden)
    if method.cell == "irnn":
        return irnn(inputs, hidden)
    return IndRNN(inputs, hidden, steps)


def irnn(inputs: int, hidden: int) -> nn.RNN:
    """Return rectified units that start as the identity (Le et al. 2015)."""
    network = nn.RNN(inputs, hidden, nonlinearity="relu")
    nn.init.normal_(network.get_parameter("weight_ih_l0"), std=0.001)
    nn.init.eye_(network.get_parameter("weight_hh_l0"))
    for name in ("bias_ih_l0", "bias_hh_l0"):
        nn.init.zeros_(network.get_parameter(name))
    return network


class ZoneoutLSTM(HDetachLSTM):
    """An LSTM whose units keep their old value at random (Krueger et al. 2016).

    In training each entry of c and of h keeps its previous value with some probability; in
    evaluation both are the expectation. The defaults are those of the paper's permuted MNIST.
    """

    def __init__(self, inputs: int, hidden: int, *, cell: float = 0.15, output: float = 0.15):
        super().__init__(inputs, hidden, engine="definition")
        self.cell_rate, self.output_rate = cell, output

    def step(self, input_gates: Tensor, state: State, blocked: bool, layer: int = 0) -> State:
        """Return the next (h, c), each (n, H)."""
        new = super().step(input_gates, state, blocked, layer)
        return (
            zoneout(state[0], new[0], self.output_rate, self.training),
            zoneout(state[1], new[1], self.cell_rate, self.training),
        )


def zoneout(before: Tensor, after: Tensor, rate: float, training: bool) -> Tensor:
    """Replace values of `after` by those of `before` with probability `rate`, or take the mean."""
    if training:
        return torch.where(torch.rand_like(before) < rate, before, after)
    return after.lerp(before, rate)


class IndRNN(nn.Module):
    """Two layers whose units are recurrent with themselves only (Li et al. 2018).

    h[t] = relu(W x[t] + u h[t-1] + b) with |u| <= 2^(1/T), so that gradients stay within a factor
    of two over T steps.
    """

    def __init__(self, inputs: int, hidden: int, steps: int, layers: int = 2):
        super().__init__()
        self.bound = 2 ** (1 / steps)
        self.inputs = nn.ModuleList(
            nn.Linear(inputs if layer == 0 else hidden, hidden) for layer in range(layers)
        )
        self.recurrent = nn.ParameterList(torch.empty(hidden) for _ in range(layers))
        for layer, weight in enumerate(self.recurrent):
            # The last layer starts with long memories only, as the authors advise.
            nn.init.uniform_(weight, 1.0 if layer + 1 == layers else 0.0, self.bound)

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        """Return hidden (T, B, H) of the last layer."""
        x = inputs
        for linear, weight in zip(self.inputs, self.recurrent, strict=True):
            bounded = weight.clamp(-self.bound, self.bound)
            h, outputs = x.new_zeros(x.shape[1], len(weight)), []
            for now in linear(x).unbind():
                h = torch.addcmul(now, bounded, h).relu()
                outputs.append(h)
            x = torch.stack(outputs)
        return x, None
