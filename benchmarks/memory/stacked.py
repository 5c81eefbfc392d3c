"""Several trainings as one: their weights stacked, one product a time step for all of them.

For GPUs, where a time step of one small network leaves most of the device idle. There a whole
optimizer step is one CUDA graph, so that no time goes into launching its kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory.training import Stretch, Training
from captioner.model.lstm import HDetachLSTM, draw_blocked, lstm_cell_, lstm_cell_backward_

_WEIGHTS = ("core.weight_ih_l0", "core.weight_hh_l0", "core.bias_ih_l0", "core.bias_hh_l0",
            "answer.weight", "answer.bias")  # fmt: skip


class StackedSequence(torch.autograd.Function):
    """`HDetachLSTM` for S networks at once, from a zero state: hidden (T, S, B, H).

    Inputs: x (T, S, B, I), weight_ih (S, 4H, I), weight_hh (S, 4H, H), bias (S, 4H); `open_h` and
    `open_c` (T, S) are 0 where the gradient through h[t-1] or c[t-1] is blocked, else 1. Control
    flow does not depend on their values, as a CUDA graph requires.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, weight_ih, weight_hh, bias, open_h, open_c = inputs
        T, S, B, _ = x.shape
        H = weight_hh.shape[2]
        gates = x @ weight_ih.transpose(1, 2) + bias.unsqueeze(1)  # (T, S, B, 4H)
        hidden, cells, squashed = (x.new_empty(T, S, B, H) for _ in range(3))
        h = c = x.new_zeros(S, B, H)
        for t in range(T):
            torch.baddbmm(gates[t], h, weight_hh.transpose(1, 2), out=gates[t])
            lstm_cell_(
                gates[t].flatten(0, 1), c.flatten(0, 1), cells[t].flatten(0, 1),
                squashed[t].flatten(0, 1), hidden[t].flatten(0, 1),
            )  # fmt: skip
            h, c = hidden[t], cells[t]
        ctx.save_for_backward(x, weight_ih, weight_hh, hidden, open_h, open_c)
        ctx.kept = gates, cells, squashed
        return hidden

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, hidden, open_h, open_c = ctx.saved_tensors
        gates, cells, squashed = ctx.kept
        T, S, B, H = hidden.shape
        start = hidden.new_zeros(S, B, H)
        deltas = torch.empty_like(gates)
        dh, dc, slope = (torch.zeros_like(start) for _ in range(3))
        for t in reversed(range(T)):
            dh += d_hidden[t]
            before = cells[t - 1] if t else start
            lstm_cell_backward_(
                gates[t].flatten(0, 1), before.flatten(0, 1), squashed[t].flatten(0, 1),
                dh.flatten(0, 1), dc.flatten(0, 1), deltas[t].flatten(0, 1), slope.flatten(0, 1),
            )  # fmt: skip
            torch.bmm(deltas[t], weight_hh, out=dh)
            dh *= open_h[t, :, None, None]
            dc *= open_c[t, :, None, None]
        previous = torch.cat([start.unsqueeze(0), hidden[:-1]])
        by_network = deltas.transpose(0, 1).flatten(1, 2).transpose(1, 2)  # (S, 4H, T B)
        return (
            deltas @ weight_ih if ctx.needs_input_grad[0] else None,
            by_network @ x.transpose(0, 1).flatten(1, 2),
            by_network @ previous.transpose(0, 1).flatten(1, 2),
            by_network.sum(2),
            None,
            None,
        )


def stackable(training: Training) -> bool:
    """Return whether it trains an LSTM; the other networks are trained one by one."""
    return type(training.network.core) is HDetachLSTM


def train_together(trainings: Sequence[Training], steps: int) -> list[Stretch]:
    """Do `Training.train` for all at once; they share the experiment, the rate and the step.

    A gradient that is not finite affects its own training only.
    """
    started = time.process_time()
    stack = _Stack(trainings)
    for training in trainings:
        training.network.train()
    losses, largest = stack.zeros(), stack.zeros()
    take = _captured(stack) if stack.device.type == "cuda" else stack.take_step
    for _ in range(steps):
        loss, norm = take(*stack.next_inputs())
        losses += loss
        torch.maximum(largest, norm, out=largest)  # NaN stays
    stack.give_back()
    seconds = (time.process_time() - started) / len(trainings)
    for training in trainings:
        training.cpu_seconds += seconds
    return [
        Stretch(loss / steps, norm)
        for loss, norm in zip(losses.tolist(), largest.tolist(), strict=True)
    ]


class _Stack:
    """Weights (S, ...) and Adam's state of S trainings during `train_together`."""

    def __init__(self, trainings: Sequence[Training]):
        self.trainings = trainings
        first = trainings[0]
        self.task, self.device = first.task, first.device
        self.weights = {
            name: torch.stack([t.network.get_parameter(name).detach() for t in trainings])
            .requires_grad_()
            for name in _WEIGHTS
        }  # fmt: skip
        on_gpu = self.device.type == "cuda"
        self.optimizer = torch.optim.Adam(
            self.weights.values(), first.trial.rate, capturable=on_gpu
        )
        for name, weight in self.weights.items():
            states = [t.optimizer.state.get(t.network.get_parameter(name), {}) for t in trainings]
            if all(states):
                moments = ("exp_avg", "exp_avg_sq")
                state = {key: torch.stack([one[key] for one in states]) for key in moments}
                step = states[0]["step"].clone()
                state["step"] = step.to(self.device) if on_gpu else step
                self.optimizer.state[weight] = state
        self.clip = torch.tensor([t.clip for t in trainings], device=self.device)

    def zeros(self) -> Tensor:
        return torch.zeros(len(self.trainings), device=self.device)

    def next_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return inputs (T, S, B, I), targets (..., S, B) and the open steps of h and c (T, S)."""
        batches, opened = [], []
        for training in self.trainings:
            core = training.network.core
            assert isinstance(core, HDetachLSTM)
            batches.append(training.next_batch())
            free = torch.ones(2, self.task.steps)  # of h and of c
            if core.detach_prob > 0:
                blocked = draw_blocked(self.task.steps, core.detach_prob, training.draws)
                free[0 if core.detach == "h" else 1] -= blocked.float()
            opened.append(free)
        open_h, open_c = torch.stack(opened, -1).to(self.device)
        inputs = torch.stack([batch.inputs for batch in batches], 1)
        targets = torch.stack([batch.targets for batch in batches], -2)
        return inputs, targets, open_h, open_c

    def take_step(
        self, inputs: Tensor, targets: Tensor, open_h: Tensor, open_c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take one optimizer step; return losses and gradient norms before clipping, (S,) each."""
        weights = self.weights
        bias = weights["core.bias_ih_l0"] + weights["core.bias_hh_l0"]
        hidden = StackedSequence.apply(
            inputs, weights["core.weight_ih_l0"], weights["core.weight_hh_l0"], bias, open_h, open_c
        )[-self.task.answered :]
        answers = hidden @ weights["answer.weight"].transpose(1, 2)
        answers = answers + weights["answer.bias"].unsqueeze(1)  # (answered, S, B, outputs)
        pairs = zip(answers.unbind(1), targets.unbind(-2), strict=True)
        losses = torch.stack([self.task.loss(answer, target) for answer, target in pairs])
        self.optimizer.zero_grad()
        losses.sum().backward()
        grads = [weight.grad for weight in weights.values() if weight.grad is not None]
        norms = torch.stack([grad.flatten(1).norm(dim=1) for grad in grads]).norm(dim=0)
        scale = (self.clip / (norms + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
        for grad in grads:
            grad.mul_(scale.view(-1, *[1] * (grad.dim() - 1)))
        self.optimizer.step()
        return losses.detach(), norms

    @torch.no_grad()
    def give_back(self) -> None:
        """Copy weights and Adam's state back into the trainings."""
        for name, weight in self.weights.items():
            state = self.optimizer.state[weight]
            for s, training in enumerate(self.trainings):
                own = training.network.get_parameter(name)
                own.copy_(weight[s])
                training.optimizer.state[own] = {
                    "step": state["step"].detach().cpu().clone(),
                    "exp_avg": state["exp_avg"][s].clone(),
                    "exp_avg_sq": state["exp_avg_sq"][s].clone(),
                }


def _captured(stack: _Stack) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `take_step` as a CUDA graph; the warm-up steps that torch requires train, too."""
    graph = torch.cuda.CUDAGraph()
    static: list[Tensor] = []
    results: list[Tensor] = []
    warm_up = torch.cuda.Stream()
    taken = 0

    def take(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal taken
        taken += 1
        if taken <= 3:
            warm_up.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(warm_up):
                found = stack.take_step(*inputs)
            torch.cuda.current_stream().wait_stream(warm_up)
            return found
        if not static:
            static.extend(tensor.clone() for tensor in inputs)
            with torch.cuda.graph(graph):
                results.extend(stack.take_step(*static))
        for place, tensor in zip(static, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        loss, norm = results
        return loss, norm

    return take
