"""The recurrent networks that are compared; each maps inputs (T, B, I) to hidden (T, B, H)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from captioner.errors import ConfigError
from captioner.model.lstm import HDetachLSTM, State

CELLS = ("lstm", "h-detach", "c-detach", "gru", "irnn", "zoneout", "indrnn")
_DETACHED = ("h-detach", "c-detach")
UNCLIPPED = "unclipped"


@dataclass(frozen=True)
class Method:
    """What is compared: a network, its detach probability, and whether gradients are clipped."""

    cell: str
    detach_prob: float = 0.0
    clipped: bool = True

    @classmethod
    def parse(cls, text: str) -> Method:
        """Read "lstm", "h-detach 0.25", "h-detach 0.25 unclipped"; ConfigError if it is none."""
        words = text.split()
        clipped = words[-1:] != [UNCLIPPED]
        cell, *rest = (words if clipped else words[:-1]) or [""]
        try:
            prob = float(rest.pop()) if cell in _DETACHED and rest else 0.0
        except ValueError:
            prob = math.nan
        if cell not in CELLS or rest or not 0 <= prob <= 1 or (cell in _DETACHED and not prob):
            raise ConfigError(
                f"no method {text!r}; one of {', '.join(CELLS)}, the detached ones with their "
                f'probability as in "h-detach 0.25", all with "{UNCLIPPED}" behind if wished'
            )
        return cls(cell, prob, clipped)

    def __str__(self) -> str:
        prob = f" {self.detach_prob:g}" if self.cell in _DETACHED else ""
        return f"{self.cell}{prob}{'' if self.clipped else ' ' + UNCLIPPED}"


class Network(nn.Module):
    """A recurrent core and a linear layer that answers."""

    def __init__(self, method: Method, inputs: int, hidden: int, outputs: int, steps: int):
        super().__init__()
        self.core = make_core(method, inputs, hidden, steps)
        self.answer = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor, answered: int) -> Tensor:
        """The answers (answered, B, outputs) of the last `answered` of the steps (T, B, I)."""
        hidden: Tensor = self.core(inputs)[0]
        answers: Tensor = self.answer(hidden[-answered:])
        return answers


def make_core(method: Method, inputs: int, hidden: int, steps: int) -> nn.Module:
    """The recurrent network of a method, freshly drawn; it returns hidden (T, B, H) and a state.

    Weights of the LSTMs and the GRU are from U(-1/sqrt(H), 1/sqrt(H)), as in the authors' code.
    """
    if method.cell in ("lstm", "h-detach"):
        return HDetachLSTM(inputs, hidden, detach_prob=method.detach_prob)
    if method.cell == "c-detach":
        return HDetachLSTM(inputs, hidden, detach_prob=method.detach_prob, detach="c")
    if method.cell == "zoneout":
        return ZoneoutLSTM(inputs, hidden)
    if method.cell == "gru":
        return nn.GRU(inputs, hidden)
    if method.cell == "irnn":
        return irnn(inputs, hidden)
    return IndRNN(inputs, hidden, steps)


def irnn(inputs: int, hidden: int) -> nn.RNN:
    """Rectified units that begin as the identity (Le et al. 2015)."""
    network = nn.RNN(inputs, hidden, nonlinearity="relu")
    nn.init.normal_(network.get_parameter("weight_ih_l0"), std=0.001)
    nn.init.eye_(network.get_parameter("weight_hh_l0"))
    for name in ("bias_ih_l0", "bias_hh_l0"):
        nn.init.zeros_(network.get_parameter(name))
    return network


class ZoneoutLSTM(HDetachLSTM):
    """An LSTM whose units keep their old value now and then (Krueger et al. 2016).

    While training, each entry of c and of h keeps its value of the step before with a probability
    of its own; afterwards both are the expectation. The defaults are those of the paper's permuted
    MNIST.
    """

    def __init__(self, inputs: int, hidden: int, *, cell: float = 0.15, output: float = 0.15):
        super().__init__(inputs, hidden, engine="definition")
        self.cell_rate, self.output_rate = cell, output

    def step(self, input_gates: Tensor, state: State, blocked: bool, layer: int = 0) -> State:
        """One time step: the next (h, c), each (n, H)."""
        new = super().step(input_gates, state, blocked, layer)
        return (
            zoneout(state[0], new[0], self.output_rate, self.training),
            zoneout(state[1], new[1], self.cell_rate, self.training),
        )


def zoneout(before: Tensor, after: Tensor, rate: float, training: bool) -> Tensor:
    """`after`, but each value that of `before` with probability `rate`; their mean otherwise."""
    if training:
        return torch.where(torch.rand_like(before) < rate, before, after)
    return after.lerp(before, rate)


class IndRNN(nn.Module):
    """Two layers whose units see their own past only (Li et al. 2018).

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
            # The last layer begins with long memories only, as the authors advise.
            nn.init.uniform_(weight, 1.0 if layer + 1 == layers else 0.0, self.bound)

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        """hidden (T, B, H) of the last layer."""
        x = inputs
        for linear, weight in zip(self.inputs, self.recurrent, strict=True):
            bounded = weight.clamp(-self.bound, self.bound)
            h, outputs = x.new_zeros(x.shape[1], len(weight)), []
            for now in linear(x).unbind():
                h = torch.addcmul(now, bounded, h).relu()
                outputs.append(h)
            x = torch.stack(outputs)
        return x, None
