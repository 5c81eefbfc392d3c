"""HDetachLSTM: equal to nn.LSTM forward, equal to the definition of h-detach backward."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from captioner.errors import ConfigError
from captioner.lstm import HDetachLSTM, draw_blocked

T, B, I, H = 5, 3, 4, 6


def pair(**settings):
    """An nn.LSTM and an HDetachLSTM with the same weights, in float64."""
    torch.manual_seed(0)
    plain = nn.LSTM(I, H, **settings).double()
    ours = HDetachLSTM(I, H, **settings).double()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def definition(ours, x, state, blocked, detach="h"):
    """Algorithm 1 of the paper, written out gate by gate for one layer."""
    h, c = state
    w_i, w_h = ours.weight_ih_l0, ours.weight_hh_l0
    bias = ours.bias_ih_l0 + ours.bias_hh_l0
    outputs = []
    for t in range(len(x)):
        h_in = h.detach() if blocked[t] and detach == "h" else h
        c_in = c.detach() if blocked[t] and detach == "c" else c
        i, f, g, o = (x[t] @ w_i.T + h_in @ w_h.T + bias).chunk(4, -1)
        c = torch.sigmoid(f) * c_in + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    return torch.stack(outputs), (h, c)


def gradients(module, loss, *inputs):
    return torch.autograd.grad(loss, [*module.parameters(), *inputs])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_without_detaching_it_equals_nn_lstm_in_outputs_states_and_gradients(
    layers, bias, batch_first
):
    plain, ours = pair(num_layers=layers, bias=bias, batch_first=batch_first)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    inputs = x.transpose(0, 1) if batch_first else x
    state = tuple(torch.randn(layers, B, H, dtype=torch.float64, requires_grad=True) for _ in "hc")
    losses = []
    for module in (plain, ours):
        output, (h, c) = module(inputs, state)
        losses.append((output**2).sum() + (h * 3).sum() + c.sin().sum())
    torch.testing.assert_close(losses[0], losses[1])
    expected = gradients(plain, losses[0], x, *state)
    for found, wanted in zip(gradients(ours, losses[1], x, *state), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("detach", ["h", "c"])
def test_gradients_equal_the_definition_for_every_pattern_of_blocked_steps(detach):
    _, ours = pair()
    ours.detach = detach
    x = torch.randn(4, B, I, dtype=torch.float64, requires_grad=True)
    h0, c0 = (torch.randn(B, H, dtype=torch.float64, requires_grad=True) for _ in "hc")
    seen = set()
    for blocked in itertools.product([False, True], repeat=4):
        output, (h, c) = ours(x, (h0[None], c0[None]), torch.tensor(blocked))
        loss = (output**2).sum() + h.sum() + c.sum()
        wanted_output, (wanted_h, wanted_c) = definition(ours, x, (h0, c0), blocked, detach)
        wanted_loss = (wanted_output**2).sum() + wanted_h.sum() + wanted_c.sum()
        found = torch.autograd.grad(loss, [*ours.parameters(), x, c0, h0], allow_unused=True)
        wanted = torch.autograd.grad(
            wanted_loss, [*ours.parameters(), x, c0, h0], allow_unused=True
        )
        torch.testing.assert_close(loss, wanted_loss)
        for one, other in zip(found, wanted, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other)
        reached = [gradient is not None for gradient in found[-2:]]  # c0 and h0
        seen.add((*found[0].flatten()[:3].tolist(), *reached))
    assert len(seen) == 16  # every pattern gives gradients of its own


def test_blocking_never_changes_what_is_computed_forward():
    plain, ours = pair()
    x = torch.randn(T, B, I, dtype=torch.float64)
    ours.detach_prob = 0.5
    assert torch.equal(ours(x)[0], ours(x)[0])
    torch.testing.assert_close(ours(x)[0], plain(x)[0])


def test_blocking_every_step_leaves_the_path_through_the_cell_alone():
    _, ours = pair()
    x = torch.randn(T, B, I, dtype=torch.float64)
    h0 = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    output, _ = ours(x, (h0, c0), torch.ones(T, dtype=torch.bool))
    by_h, by_c = torch.autograd.grad(output[-1].sum(), [h0, c0], allow_unused=True)
    assert by_h is None
    assert by_c.abs().min() > 0


def test_a_blocked_step_still_teaches_the_recurrent_weights():
    _, ours = pair()
    output, _ = ours(torch.randn(2, B, I, dtype=torch.float64), None, torch.tensor([True, True]))
    output[-1].sum().backward()
    assert ours.weight_hh_l0.grad.abs().max() > 0


def test_in_evaluation_and_without_gradients_nothing_is_drawn():
    ours = HDetachLSTM(I, H, detach_prob=1.0)
    assert ours.draw(T).all()
    with torch.no_grad():
        assert not ours.draw(T).any()
    assert not ours.eval().draw(T).any()


def test_layers_share_the_draw_unless_told_otherwise():
    generator = torch.Generator().manual_seed(1)
    shared = HDetachLSTM(I, H, 2, detach_prob=0.5, generator=generator).draw(50)
    apart = HDetachLSTM(I, H, 2, detach_prob=0.5, share_detach=False, generator=generator).draw(50)
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(apart[0], apart[1])


def test_draws_repeat_with_the_seed_and_have_the_right_share():
    first = draw_blocked(4000, 0.25, torch.Generator().manual_seed(7))
    again = draw_blocked(4000, 0.25, torch.Generator().manual_seed(7))
    assert torch.equal(first, again)
    assert 0.22 < first.float().mean() < 0.28


def test_a_packed_batch_gives_each_sequence_what_it_gives_alone():
    plain, ours = pair(num_layers=2)
    sequences = [torch.randn(n, I, dtype=torch.float64) for n in (2, 5, 3)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    state = tuple(torch.randn(2, 3, H, dtype=torch.float64) for _ in "hc")
    for module_state in (None, state):
        output, (h, c) = ours(packed, module_state)
        wanted, (wanted_h, wanted_c) = plain(packed, module_state)
        torch.testing.assert_close(pad_packed_sequence(output)[0], pad_packed_sequence(wanted)[0])
        torch.testing.assert_close(h, wanted_h)
        torch.testing.assert_close(c, wanted_c)
    alone, _ = ours(sequences[2].unsqueeze(1), tuple(s[:, 2:] for s in state))
    torch.testing.assert_close(pad_packed_sequence(output)[0][:3, 2], alone[:, 0])


def test_a_sequence_without_a_batch_dimension_works_as_in_torch():
    plain, ours = pair()
    x = torch.randn(T, I, dtype=torch.float64)
    output, (h, _) = ours(x)
    wanted, (wanted_h, _) = plain(x)
    torch.testing.assert_close(output, wanted)
    torch.testing.assert_close(h, wanted_h)


@pytest.mark.parametrize(
    "settings", [{"bidirectional": True}, {"proj_size": 2}, {"detach_prob": 1.5}, {"detach": "x"}]
)
def test_what_h_detach_is_not_defined_for_is_refused(settings):
    with pytest.raises(ConfigError):
        HDetachLSTM(I, H, **settings)
