"""Gradients taken apart: block matrices, valves, lags, the training diagnostic, the command."""

import itertools

import pytest
import torch

from benchmarks.block_recursion import block_matrices
from captioner.lstm import HDetachLSTM

T, I, H = 6, 3, 4
# Every gate of W_hh and W_ih and the bias: rows of i, f, g and o.
ENTRIES = [
    (name, gate * H + 2, *column)
    for name, column in (("weight_hh_l0", (1,)), ("weight_ih_l0", (0,)), ("bias_hh_l0", ()))
    for gate in range(4)
]


def small(steps=T, scale=2.0):
    """An LSTM in float64 with large weights, its inputs (T, I) and a state (H,)."""
    torch.manual_seed(5)
    lstm = HDetachLSTM(I, H).double()
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.mul_(scale)
    x = torch.randn(steps, I, dtype=torch.float64)
    return lstm, x, (torch.randn(H, dtype=torch.float64), torch.randn(H, dtype=torch.float64))


def last_state(lstm, x, state, blocked=None):
    """c and h (2H,) after the last step."""
    hx = (state[0][None, None], state[1][None, None])
    _, (h, c) = lstm(x[:, None], hx, blocked)
    return torch.cat([c.flatten(), h.flatten()])


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_the_product_of_the_blocks_is_the_derivative_by_finite_differences(entry):
    lstm, x, state = small()
    blocks = block_matrices(lstm, x, state, entry)
    found = blocks.carry(blocks.start())[: 2 * H]
    weight, place, step = lstm.get_parameter(entry[0]), entry[1:], 1e-5
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            weight[place] += sign * step
            ends.append(last_state(lstm, x, state))
            weight[place] -= sign * step
    wanted = (ends[0] - ends[1]) / (2 * step)
    assert wanted.abs().min() > 1e-6  # nothing here is zero by chance
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_with_blocked_steps_the_product_is_the_gradient_of_the_h_detach_lstm(entry, fused):
    lstm, x, state = small()
    lstm.fused = fused
    blocks = block_matrices(lstm, x, state, entry)
    direction = torch.randn(2 * H, dtype=torch.float64)
    for blocked in itertools.product([False, True], repeat=T):
        found = direction @ blocks.carry(blocks.start(), [float(not b) for b in blocked])[: 2 * H]
        end = last_state(lstm, x, state, torch.tensor(blocked))
        (gradient,) = torch.autograd.grad(direction @ end, [lstm.get_parameter(entry[0])])
        torch.testing.assert_close(found, gradient[entry[1:]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("entry", ENTRIES[1::4], ids=str)
def test_the_expectation_over_all_draws_is_the_product_with_h_kept_by_1_minus_p(entry):
    lstm, x, state = small(steps=4)
    blocks, prob = block_matrices(lstm, x, state, entry), 0.3
    products, gradients = torch.zeros(3 * H).double(), torch.zeros(2 * H).double()
    for blocked in itertools.product([False, True], repeat=4):
        chance = prob ** sum(blocked) * (1 - prob) ** (4 - sum(blocked))
        products += chance * blocks.carry(blocks.start(), [float(not b) for b in blocked])
        end = last_state(lstm, x, state, torch.tensor(blocked))
        weight = lstm.get_parameter(entry[0])
        for row in range(2 * H):
            (gradient,) = torch.autograd.grad(end[row], [weight], retain_graph=True)
            gradients[row] += chance * gradient[entry[1:]]
    expected = blocks.carry(blocks.start(), 1 - prob)
    torch.testing.assert_close(products, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected[: 2 * H], rtol=0, atol=1e-10)
    assert (expected - blocks.carry(blocks.start())).abs().max() > 1e-4


def test_without_h_the_product_is_that_of_the_forget_gates():
    lstm, x, state = small()
    blocks = block_matrices(lstm, x, state)
    jacobian = blocks.carry(torch.eye(3 * H, dtype=torch.float64), 0.0)
    forget = torch.diagonal(blocks.cell[:, :H, :H], dim1=1, dim2=2).prod(0)
    torch.testing.assert_close(jacobian[:H, :H], torch.diag(forget))
    assert not jacobian[: 2 * H, H : 2 * H].any()
