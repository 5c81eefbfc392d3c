"""HDetachLSTM: equal to nn.LSTM forward, equal to the definition of h-detach backward."""

import copy
import itertools
import os

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from captioner.errors import ConfigError
from captioner.model.fused.buffers import reused
from captioner.model.lstm import HDetachLSTM, draw_blocked

T, B, I, H = 5, 3, 4, 6
ENGINES = ("auto", "fused", "segments", "definition")


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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("detach", ["h", "c"])
def test_gradients_equal_the_definition_for_every_pattern_of_blocked_steps(detach, engine):
    _, ours = pair()
    ours.detach, ours.engine = detach, engine
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


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    layers=st.integers(1, 2),
    detach=st.sampled_from(["h", "c"]),
    share=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_engine_has_the_outputs_and_gradients_of_the_definition(
    lengths, layers, detach, share, bias, seed
):
    """Any lengths, any pattern, outputs, cells and both last states used or not, with dropout."""
    torch.manual_seed(seed)
    ours = HDetachLSTM(
        I, H, layers, bias, dropout=0.3 * (layers - 1), detach_prob=0.5, detach=detach,
        share_detach=share,
    ).double()  # fmt: skip
    sizes = [sum(length > t for length in lengths) for t in range(max(lengths))]
    x = torch.randn(sum(sizes), I, dtype=torch.float64, requires_grad=True)
    hx = tuple(
        torch.randn(layers, len(lengths), H, dtype=torch.float64, requires_grad=True) for _ in "hc"
    )
    blocked = ours.draw(len(sizes))
    used = torch.rand(4) < 0.7
    used[0] |= not used.any()
    results = []
    for name in ENGINES:
        ours.engine = name
        torch.manual_seed(seed)
        hidden, cells, (h, c) = ours.run(x, sizes, hx, blocked, with_cells=bool(used[1]))
        outputs = [part for part, use in zip((hidden, cells, h, c), used, strict=True) if use]
        loss = sum((part.sin() * (k + 1)).sum() for k, part in enumerate(outputs))
        wanted = [*ours.parameters(), x, *hx]
        gradient = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        results.append((*outputs, *gradient))
    for result in results:
        for found, wanted in zip(result, results[-1], strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("detach", ["h", "c"])
def test_every_engine_blocks_exactly_the_steps_of_each_of_32_patterns(detach, engine):
    """Packed sequences of unlike lengths, two layers with patterns of their own."""
    _, ours = pair(num_layers=2)
    ours.detach = detach
    packed = pack_sequence([torch.randn(n, I, dtype=torch.float64) for n in (5, 4, 4, 2)])
    state = tuple(torch.randn(2, 4, H, dtype=torch.float64, requires_grad=True) for _ in "hc")
    seen = set()
    for first in itertools.product([False, True], repeat=5):
        blocked = torch.tensor([first, first[::-1]])
        results = []
        for name in (engine, "definition"):
            ours.engine = name
            output, (h, c) = ours(packed, state, blocked)
            loss = output.data.square().sum() + h.sum() + c.sin().sum()
            results.append(
                torch.autograd.grad(loss, [*ours.parameters(), *state], materialize_grads=True)
            )
        torch.testing.assert_close(*results)
        seen.add(tuple(results[0][0].flatten()[:3].tolist()))
    assert len(seen) == 32


def test_the_engine_is_chosen_by_the_device():
    ours = HDetachLSTM(I, H)
    cases = {"cpu": "_fuse_layer", "cuda": "_segment_layer", "mps": "_segment_layer"}
    for device, method in cases.items():
        assert ours._layer_of(device, with_cells=False).__name__ == method
    assert ours._layer_of("cuda", with_cells=True).__name__ == "_fuse_layer"
    with pytest.raises(ConfigError, match=r"engine is 'cudnn'.*segments"):
        HDetachLSTM(I, H, engine="cudnn")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("error:RNN module weights")  # cuDNN would copy them for each segment
@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_every_engine_on_a_gpu_equals_the_definition_on_the_cpu(precision):
    _, ours = pair(num_layers=2)
    ours.detach_prob = 0.5
    packed = pack_sequence([torch.randn(n, I, dtype=torch.float64) for n in (9, 6, 6, 2)])
    blocked = torch.tensor([False, True, True, False, False, True, False, False, True])
    ours.engine = "definition"
    wanted = gradients(ours, ours(packed, None, blocked)[0].data.square().sum())
    there = copy.deepcopy(ours).cuda()
    inputs = packed.to("cuda")
    if precision != torch.float64:
        there, inputs = there.float(), inputs.to(torch.float32)
    for name in ENGINES:
        there.engine = name
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            output, _ = there(inputs, None, blocked)
        for found, correct in zip(
            gradients(there, output.data.double().square().sum()), wanted, strict=True
        ):
            if precision == torch.float64:
                torch.testing.assert_close(found.cpu(), correct)
            else:
                close = torch.cosine_similarity(
                    found.cpu().double().flatten(), correct.flatten(), 0
                )
                assert close > 0.999


def test_long_batches_have_the_same_gradients_in_blocks_of_steps():
    _, ours = pair()
    x = torch.randn(9, 700, I, dtype=torch.float64)  # three blocks
    blocked = torch.tensor([True, False, False] * 3)
    results = []
    for name in ENGINES:
        ours.engine = name
        results.append(gradients(ours, ours(x, None, blocked)[0].square().sum()))
    for result in results:
        torch.testing.assert_close(result, results[-1])


@pytest.mark.parametrize("blocked", list(itertools.product([False, True], repeat=3))[:7])
def test_gradients_equal_finite_differences_if_no_path_is_blocked(blocked):
    """A blocked step is no derivative of the forward pass, so its cut state is held constant."""
    _, ours = pair()
    names = [name for name, _ in ours.named_parameters()]
    first = max([t for t, b in enumerate(blocked) if b], default=0)
    x = torch.randn(3, 2, I, dtype=torch.float64)
    state = tuple(torch.randn(1, 2, H, dtype=torch.float64) for _ in "hc")
    if first:  # h and c where the cut was made are constants: start there
        state = tuple(part.detach() for part in ours(x[:first], state)[1])
    x = x[first:].requires_grad_()
    c = state[1].requires_grad_()

    def run(x, c, *weights):
        values = dict(zip(names, weights, strict=True))
        output, (h, last) = torch.func.functional_call(
            ours, values, (x, (state[0], c), torch.tensor(blocked[first:]))
        )
        return output, h, last

    assert torch.autograd.gradcheck(run, (x, c, *ours.parameters()))


def test_buffers_of_one_pass_are_not_those_of_another_that_is_still_needed():
    _, ours = pair()
    ours = ours.float()
    inputs = [torch.randn(40, 60, I) for _ in range(3)]
    alone = [gradients(ours, ours(x)[0].square().sum()) for x in inputs]
    outputs = [ours(x)[0] for x in inputs]  # all forward, then all backward, one of them twice
    for k in (1, 0, 2, 1):
        found = torch.autograd.grad(
            outputs[k].square().sum(), list(ours.parameters()), retain_graph=True
        )
        for one, other in zip(found, alone[k], strict=True):
            assert torch.equal(one, other)


def test_memory_is_reused_after_the_last_view_of_a_tensor():
    like = torch.zeros((), dtype=torch.bfloat16)
    first = reused(700, 300, like=like)
    address, part = first.data_ptr(), first[-1:]
    del first
    assert reused(700, 300, like=like).data_ptr() != address
    del part
    again = [reused(600, 300, like=like) for _ in range(3)]  # a size of the same class
    assert address in [tensor.data_ptr() for tensor in again]
    assert again[0].dtype == torch.bfloat16


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_second_derivatives(engine):
    plain, ours = pair(num_layers=2)
    ours.engine = engine
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    results = []
    for module in (plain, ours):
        state = (x.new_zeros(2, B, H), x[:2, :, :1].repeat(1, 1, H))  # c0 is a function of x
        (slope,) = torch.autograd.grad(module(x, state)[0].sum(), x, create_graph=True)
        results.append((slope, *gradients(module, slope.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_second_derivatives_of_a_blocked_sequence_are_those_of_the_definition():
    _, ours = pair()
    x = torch.randn(8, I, dtype=torch.float64, requires_grad=True)
    for blocked in itertools.product([False, True], repeat=4):
        results = []
        for name in ("fused", "definition"):
            ours.engine = name
            h0 = x[:3, :1].repeat(1, H)[None]  # from x, which enters the same pass
            hidden, _, (h, c) = ours.run(x, [3, 2, 2, 1], (h0, h0 * 2), torch.tensor(blocked))
            loss = hidden.square().sum() + h.sum() * c.sum()
            slopes = torch.autograd.grad(loss, [*ours.parameters(), x], create_graph=True)
            second = sum(slope.square().sum() for slope in slopes)
            results.append([*slopes, *gradients(ours, second, x)])
        torch.testing.assert_close(*results)


def test_under_bfloat16_it_stays_close_to_float32():
    torch.manual_seed(0)
    ours = HDetachLSTM(32, 48, detach_prob=0.25)
    x, blocked = torch.randn(20, 8, 32), torch.arange(20) % 4 == 0
    wanted = ours(x, None, blocked)[0]
    exact = gradients(ours, wanted.square().mean())
    with torch.autocast("cpu", torch.bfloat16):
        output, (h, c) = ours(x, None, blocked)
    low = gradients(ours, output.float().square().mean())
    assert output.dtype == h.dtype == torch.bfloat16
    assert c.dtype == torch.float32
    torch.testing.assert_close(output.float(), wanted, atol=0.02, rtol=0)
    for found, correct in zip(low, exact, strict=True):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), correct.flatten(), 0) > 0.999
    whole = copy.deepcopy(ours).bfloat16()
    output, (_, c) = whole(x.bfloat16(), None, blocked)
    assert output.dtype == c.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), wanted, atol=0.02, rtol=0)


def test_it_exports_in_evaluation_for_any_batch():
    plain, ours = pair()
    x = torch.randn(T, B, I, dtype=torch.float64)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(ours.eval(), (x,), dynamic_shapes={"input": {1: batch}})
    wider = torch.randn(T, 2 * B, I, dtype=torch.float64)
    output, (h, c) = exported.module()(wider)
    wanted, (wanted_h, wanted_c) = plain(wider)
    torch.testing.assert_close((output, h, c), (wanted, wanted_h, wanted_c))


def _train_one_step(rank, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DistributedDataParallel(HDetachLSTM(I, H, detach_prob=0.5))
    x = torch.randn(T, 4, I)[:, 2 * rank : 2 * rank + 2]
    model(x, None, torch.tensor([True, False] * 3)[:T])[0].square().mean().backward()
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_get_the_gradient_of_the_whole_batch(tmp_path):
    mp.spawn(_train_one_step, (str(tmp_path),), nprocs=2)
    torch.manual_seed(0)
    ours = HDetachLSTM(I, H, detach_prob=0.5)
    x = torch.randn(T, 4, I)
    whole = gradients(ours, ours(x, None, torch.tensor([True, False] * 3)[:T])[0].square().mean())
    for rank in range(2):
        for found, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), whole, strict=True):
            torch.testing.assert_close(found, wanted)


def test_blocking_never_changes_forward_values():
    plain, ours = pair()
    x = torch.randn(T, B, I, dtype=torch.float64)
    ours.detach_prob = 0.5
    assert torch.equal(ours(x)[0], ours(x)[0])
    torch.testing.assert_close(ours(x)[0], plain(x)[0])


def test_blocking_every_step_leaves_only_the_cell_state_path():
    _, ours = pair()
    x = torch.randn(T, B, I, dtype=torch.float64)
    h0 = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    c0 = torch.randn(1, B, H, dtype=torch.float64, requires_grad=True)
    output, _ = ours(x, (h0, c0), torch.ones(T, dtype=torch.bool))
    by_h, by_c = torch.autograd.grad(output[-1].sum(), [h0, c0], allow_unused=True)
    assert by_h is None
    assert by_c.abs().min() > 0


def test_a_blocked_step_still_has_a_gradient_of_the_recurrent_weights():
    _, ours = pair()
    output, _ = ours(torch.randn(2, B, I, dtype=torch.float64), None, torch.tensor([True, True]))
    output[-1].sum().backward()
    assert ours.weight_hh_l0.grad.abs().max() > 0


def test_a_module_draws_whenever_it_trains_whatever_the_gradient_mode():
    ours = HDetachLSTM(I, H, detach_prob=0.5)
    draws = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        torch.manual_seed(3)
        with mode():
            ours(torch.randn(T, B, I))
        draws.append(torch.rand(4).tolist())
    assert draws[0] == draws[1] == draws[2]
    ours.detach_prob = 1.0
    assert ours.draw(T).all()
    assert not ours.eval().draw(T).any()


def test_layers_block_the_same_steps_unless_share_detach_is_false():
    generator = torch.Generator().manual_seed(1)
    shared = HDetachLSTM(I, H, 2, detach_prob=0.5, generator=generator).draw(50)
    apart = HDetachLSTM(I, H, 2, detach_prob=0.5, share_detach=False, generator=generator).draw(50)
    assert torch.equal(shared[0], shared[1])
    assert not torch.equal(apart[0], apart[1])


def test_blocked_steps_repeat_with_the_seed_and_have_the_right_share():
    first = draw_blocked(4000, 0.25, torch.Generator().manual_seed(7))
    again = draw_blocked(4000, 0.25, torch.Generator().manual_seed(7))
    assert torch.equal(first, again)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            again = draw_blocked(4000, 0.25, torch.Generator("cpu").manual_seed(7))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first, again)
    assert 0.22 < first.float().mean() < 0.28


def test_each_sequence_of_a_packed_batch_has_the_output_it_has_alone():
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
    "settings",
    [
        {"bidirectional": True},
        {"proj_size": 2},
        {"detach_prob": 1.5},
        {"detach_prob": "0.5"},
        {"detach": "x"},
        {"engine": "fast"},
    ],
)
def test_settings_without_a_definition_of_h_detach_are_refused(settings):
    with pytest.raises(ConfigError):
        HDetachLSTM(I, H, **settings)
