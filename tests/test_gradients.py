"""Gradients taken apart: block matrices, valves, lags, the training diagnostic, the command."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import DIM, MODEL, random_features

from benchmarks.block_recursion import block_matrices
from captioner.data import pack
from captioner.decoder import Teacher, make_decoder
from captioner.flow import gradient_flow, unroll, unroll_lstm
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


WORDS = 20
CAPTIONS = [[[5, 6, 7], [8]], [[9, 10, 11, 12, 5], [6, 7]]]  # picture, caption, token


def small_decoder(name, layers=1):
    """A decoder in float64, and a batch of two pictures with two captions each."""
    torch.manual_seed(1)
    config = replace(MODEL, decoder=name, num_layers=layers, dropout=0.4)
    decoder = make_decoder(config, WORDS, DIM).double()
    batch = pack(random_features(2), CAPTIONS)
    return decoder, batch, Teacher(batch.inputs, batch.batch_sizes, batch.image)


SHAPES = [("show_tell", 1), ("show_tell", 2), ("show_attend_tell", 1), ("adaptive", 1)]


@pytest.mark.parametrize("detach_attention", [False, True])
@pytest.mark.parametrize(("name", "layers"), SHAPES)
def test_valves_give_the_losses_and_gradients_of_training_for_every_pattern_of_blocked_steps(
    name, layers, detach_attention, monkeypatch
):
    decoder, batch, teacher = small_decoder(name, layers)
    run = unroll(decoder, batch.features, teacher, batch.targets)
    losses = torch.cat([loss for loss in run.losses if loss is not None])
    decoder.eval()
    weights = [decoder.core.weight_hh_l0, decoder.core.weight_ih_l0]
    if name == "show_attend_tell":
        weights.append(decoder.query.weight)
    for pattern in itertools.product([False, True], repeat=3):
        blocked = [*pattern, *[False, True] * 4][: len(run.steps)]
        keep = [float(not b) for b in blocked]
        run.set_valves(keep, keep if detach_attention else [1.0] * len(keep))
        found = torch.autograd.grad(losses.sum(), weights, retain_graph=True)
        draw = torch.tensor(blocked)
        monkeypatch.setattr("captioner.decoder.draw_blocked", lambda *_, draw=draw: draw)
        prediction = decoder(
            batch.features, teacher, detach_prob=0.5, detach_attention=detach_attention
        )
        wanted = torch.nn.functional.cross_entropy(
            prediction.logits, batch.targets, reduction="none"
        )
        torch.testing.assert_close(losses, wanted)
        torch.testing.assert_close(found, torch.autograd.grad(wanted.sum(), weights))


@pytest.mark.parametrize(("name", "layers"), SHAPES)
def test_with_everything_blocked_no_gradient_comes_through_h(name, layers):
    decoder, batch, teacher = small_decoder(name, layers)
    run = unroll(decoder, batch.features, teacher, batch.targets)
    run.expect(1.0, detach_attention=True)
    flow = gradient_flow(run)
    assert flow.hidden == flow.share == 0
    assert flow.cell > 0
    run.expect(1.0)
    assert (gradient_flow(run).share > 0) == (name == "show_attend_tell")  # its attention is open
    run.expect(0.0)
    assert 0.1 < gradient_flow(run).share < 0.9


def test_half_a_gradient_is_the_mean_over_all_draws():
    decoder, batch, teacher = small_decoder("show_attend_tell")
    run = unroll(decoder, batch.features, teacher, batch.targets)
    loss, states = run.losses[-1].sum(), [run.steps[0].c[0]]
    mean = torch.zeros_like(states[0])
    for keep in itertools.product([0.0, 1.0], repeat=len(run.steps)):
        run.set_valves(keep, keep)
        mean += torch.autograd.grad(loss, states, retain_graph=True)[0] / 2 ** len(keep)
    run.expect(0.5, detach_attention=True)
    torch.testing.assert_close(torch.autograd.grad(loss, states)[0], mean)


def test_the_flow_of_one_unit_over_two_steps_is_what_one_computes_by_hand():
    lstm = HDetachLSTM(1, 1).double()
    w = 1.7
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.weight_hh_l0[2] = w  # of g alone: i = f = o = 1/2
    zero = torch.zeros(1, 1).double()
    run = unroll_lstm(lstm, torch.zeros(2, 1).double(), [1, 1], ((zero,), (zero + 2,)))
    run.losses[-1] = run.steps[-1].h[0][:, 0]
    h1 = 0.5 * math.tanh(1)  # c1 = 1
    g = math.tanh(w * h1)
    c2 = 0.5 + 0.5 * g
    dc2 = 0.5 * (1 - math.tanh(c2) ** 2)
    flow = gradient_flow(run)
    assert flow.cell == pytest.approx(0.5 * dc2)
    through_h = 0.5 * (1 - math.tanh(1) ** 2) * w * 0.5 * (1 - g**2) * dc2
    assert flow.hidden == pytest.approx(through_h)
    run.expect(0.25)
    assert gradient_flow(run).share == pytest.approx(
        0.75 * through_h / (0.75 * through_h + 0.5 * dc2)
    )


def test_the_flow_is_that_of_the_block_matrices():
    lstm, x, (h, c) = small()
    run = unroll_lstm(lstm, x, [1] * T, ((h[None],), (c[None],)))
    direction = torch.randn(T, H, dtype=torch.float64)
    for t, step in enumerate(run.steps):
        run.losses[t] = step.h[0] @ direction[t]
    blocks = block_matrices(lstm, x, (h, c))
    d_c, d_h, cell, hidden = torch.zeros(H).double(), torch.zeros(H).double(), [], []
    for t in reversed(range(1, T)):
        arrived = torch.cat([d_c, d_h + direction[t], d_c * 0])
        d_c, d_h = (arrived @ blocks.cell[t])[:H], (arrived @ blocks.hidden[t])[H : 2 * H]
        tanh = blocks.c[t - 1].tanh()
        cell.append(d_c.norm())
        hidden.append((blocks.h[t - 1] / tanh * (1 - tanh**2) * d_h).norm())
    flow = gradient_flow(run)
    assert flow.cell == pytest.approx(torch.stack(cell).mean().item())
    assert flow.hidden == pytest.approx(torch.stack(hidden).mean().item())


def test_in_stacked_layers_each_unit_gets_what_its_own_h_brings():
    torch.manual_seed(0)
    lstm = HDetachLSTM(I, H, 2).double()
    x = torch.randn(2, I, dtype=torch.float64)
    run = unroll_lstm(lstm, x, [1, 1])
    run.losses[-1] = run.steps[-1].h[-1].sum(1)
    first, second = run.steps
    grads = torch.autograd.grad(run.losses[-1].sum(), second.from_h, retain_graph=True)
    through = []
    for layer in range(2):
        tanh = first.c[layer].tanh()
        through.append(first.h[layer] / tanh * (1 - tanh**2) * grads[layer])
    assert gradient_flow(run).hidden == pytest.approx(torch.cat(through, 1).norm().item())


def test_taking_a_pass_apart_leaves_no_gradient_and_draws_nothing():
    decoder, batch, teacher = small_decoder("show_tell", 2)
    decoder.train()
    before = torch.get_rng_state()
    gradient_flow(unroll(decoder, batch.features, teacher, batch.targets))
    assert torch.equal(torch.get_rng_state(), before)
    assert decoder.training
    assert all(module.training for module in decoder.modules())
    assert all(weight.grad is None for weight in decoder.parameters())
