"""HDetachLSTM in the place of nn.LSTM: one list of uses, run over both modules."""

import copy
import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, prune, rnn
from torch.utils.checkpoint import checkpoint

from captioner.errors import ConfigError
from captioner.model.lstm import HDetachLSTM

T, B, I, H = 5, 3, 4, 6
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1")


def build(kind, **settings):
    """A module with two layers and the same weights, whichever it is."""
    torch.manual_seed(0)
    settings = {"num_layers": 2, "dtype": torch.float64, **settings}
    return kind(I, H, **settings)


def inputs(*shape, **settings):
    generator = torch.Generator().manual_seed(1)
    settings = {"dtype": torch.float64, **settings}
    return torch.randn(*(shape or (T, B, I)), generator=generator).to(**settings)


def passes(module, x=None, hx=None):
    """Output, states, and the gradients of all that has one."""
    x = inputs().requires_grad_() if x is None else x
    output, (h, c) = module(x, hx)
    loss = output.square().sum() + h.sum() + c.sin().sum()
    leaves = [p for p in [*module.parameters(), x] if p.requires_grad]
    return output, h, c, *torch.autograd.grad(loss, leaves)


# --- uses: each takes a class and returns tensors --------------------------------------------


def functional_weights(kind):
    module = build(kind)
    weights = {k: (w * 2).requires_grad_() for k, w in module.state_dict().items()}
    output, _ = functional_call(module, weights, (inputs(),))
    return output, *torch.autograd.grad(output.sum(), list(weights.values()))


def gradient_of_a_function(kind):
    module = build(kind)
    weights = dict(module.named_parameters())
    found = grad(lambda w: functional_call(module, w, (inputs(),))[0].square().sum())(weights)
    return tuple(found.values())


def gradient_of_each_sample(kind):
    module = build(kind, num_layers=1, dtype=torch.float32)
    weights = dict(module.named_parameters())
    loss = grad(lambda w, x: functional_call(module, w, (x,))[0].sum())
    return tuple(vmap(loss, (None, 0))(weights, inputs(7, T, I, dtype=torch.float32)).values())


def jacobian(kind):
    module = build(kind, num_layers=1)
    return jacrev(lambda x: module(x)[0])(inputs(3, 2, I))


def directional_derivative(kind):
    module = build(kind)
    return jvp(lambda x: module(x)[0], (inputs(),), (torch.ones(T, B, I).double(),))


def forward_mode(kind):
    module = build(kind)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs(), torch.ones(T, B, I).double())
        return forward_ad.unpack_dual(module(dual)[0]).tangent


def gradient_penalty(kind):
    module, x = build(kind), inputs().requires_grad_()
    (slope,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().sum()
    return torch.autograd.grad(penalty, [x, *map(module.get_parameter, WEIGHTS)])


def parametrized(wrap):
    def use(kind):
        module = build(kind)
        for name in WEIGHTS:
            wrap(module, name)
        return passes(module.eval())

    return use


def parametrized_and_back(kind):
    module = build(kind)
    parametrizations.weight_norm(module, "weight_hh_l0")
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    return passes(module)


def pruned(kind):
    module = build(kind)
    for name in WEIGHTS:
        prune.l1_unstructured(module, name, 0.5)
    first = passes(module)
    for name in WEIGHTS:
        prune.remove(module, name)
    return *first, *passes(module)


def weight_drop(kind):
    """As in AWD-LSTM: the recurrent weight is set anew before each pass."""
    module = build(kind)
    raw = nn.Parameter(module.weight_hh_l0.detach().clone())
    del module._parameters["weight_hh_l0"]
    module.register_parameter("weight_hh_l0_raw", raw)
    torch.manual_seed(2)
    module.weight_hh_l0 = nn.functional.dropout(raw, 0.5)
    return passes(module)


def replica(kind):
    """What DataParallel makes for each device."""
    module = build(kind)
    copied = module._replicate_for_data_parallel()
    copied._parameters = {}
    for name, weight in module.named_parameters():
        setattr(copied, name, weight * 1)
    output, _ = copied(inputs())
    return output, *torch.autograd.grad(output.sum(), list(module.parameters()))


def tied_weights(kind):
    module = build(kind, num_layers=1)
    other = build(kind, num_layers=1)
    with torch.no_grad():
        other.weight_hh_l0.mul_(3)
    module.weight_hh_l0 = other.weight_hh_l0
    return passes(module)


def without_memory(kind):
    module = build(kind, device="meta")
    output, (h, c) = module(torch.empty(T, B, I, device="meta", dtype=torch.float64))
    shapes = [tuple(part.shape) for part in (output, h, c)]
    module.to_empty(device="cpu").load_state_dict(build(kind).state_dict())
    assigned = build(kind, device="meta")
    assigned.load_state_dict(build(kind).state_dict(), assign=True)
    return shapes, *passes(module), *passes(assigned)


def arguments_by_place(kind):
    torch.manual_seed(0)
    return passes(kind(I, H, 2, True, False, 0.0, False, 0, "cpu", torch.float64))


def compiled(kind):
    return passes(torch.compile(build(kind), backend="eager"))


def exported(kind):
    return torch.export.export(build(kind).eval(), (inputs(),)).module()(inputs())


def copied(kind):
    return passes(copy.deepcopy(build(kind)))


def pickled(kind):
    module = pickle.loads(pickle.dumps(build(kind)))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return *passes(module), *passes(torch.load(file, weights_only=False))


def shared_with_processes(kind):
    return passes(build(kind).share_memory())


def other_precision_and_back(kind):
    return passes(build(kind).bfloat16().double())


def ensemble(kind):
    modules = [build(kind), build(kind)]
    weights, buffers = stack_module_state(modules)
    one = {name: weight[1] for name, weight in weights.items()}
    return functional_call(modules[0], (one, buffers), (inputs(),))[0]


def weights_as_a_vector(kind):
    module = build(kind)
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector * 2, module.parameters())
    return passes(module)


def weights_set_by_data(kind):
    module = build(kind)
    passes(module)
    module.weight_hh_l0.data = module.weight_hh_l0.data * 2
    module.weight_ih_l0.data[3] += 1
    return passes(module)


def frozen_weights(kind):
    module = build(kind)
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l1.requires_grad_(False)
    return *passes(module), *passes(module.requires_grad_(False))


def evaluation_with_gradients(kind):
    return passes(build(kind, dropout=0.5).eval())


def hooks(kind):
    module, seen = build(kind), []
    module.register_forward_pre_hook(lambda _, given: (given[0] * 2, *given[1:]))
    module.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    module.register_full_backward_hook(lambda _, given, __: seen.append(given[0]))
    module(inputs().requires_grad_())[0].square().sum().backward()
    return seen


def backward_twice(kind):
    module = build(kind)
    loss = module(inputs())[0].square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return [weight.grad for weight in module.parameters()]


def inference_then_training(kind):
    module = build(kind)
    with torch.inference_mode():
        first = module(inputs())[0]
    return first.clone(), *passes(module)


def odd_strides(kind):
    module = build(kind, batch_first=True)
    x = inputs(I, T, B).permute(2, 1, 0).requires_grad_()
    hx = inputs(B, 2, H).transpose(0, 1), inputs(1, 1, H).expand(2, B, H)
    return *passes(module, x, hx), *passes(module, inputs(1, T, I).expand(B, T, I), list(hx))


def small_sizes(kind):
    module = build(kind)
    shapes = ((1, 1, I), (T, 1, I), (1, B, I), (T, 0, I), (T, I), (1, I))
    return [part for shape in shapes for part in passes(module, inputs(*shape))]


def batch_first_packed(kind):
    module = build(kind, batch_first=True)
    packed = rnn.pack_padded_sequence(inputs(B, T, I), [2, 5, 3], True, enforce_sorted=False)
    hx = inputs(2, B, H), inputs(2, B, H)
    output, (h, c) = module(packed, hx)
    return *rnn.pad_packed_sequence(output, True), h, c


def another_default_device_and_type(kind):
    module, x = build(kind), inputs(70, 200, I)
    packed = rnn.pack_sequence([inputs(n, I) for n in (3, 2)])
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            return *passes(module, x), module(packed)[0].data
    finally:
        torch.set_default_dtype(torch.float32)


def fake_tensors(kind):
    with FakeTensorMode():
        found = passes(build(kind), torch.empty(70, 200, I, dtype=torch.float64))
    return [torch.tensor(part.shape) for part in found]


def several_threads(kind):
    module, x = build(kind), inputs(70, 200, I)
    with ThreadPoolExecutor(4) as pool:
        return [
            part for found in pool.map(lambda _: passes(module, x), range(12)) for part in found
        ]


def truncated_in_time(kind):
    module, x, state, outputs = build(kind), inputs(), None, []
    for part in x.split(2):
        output, state = module(part, state)
        output.sum().backward()
        state = tuple(s.detach() for s in state)
        outputs.append(output)
    return *outputs, *(weight.grad for weight in module.parameters())


def checkpointed(reentrant):
    def use(kind):
        module, x = build(kind), inputs().requires_grad_()
        output, (h, _) = checkpoint(module, x, use_reentrant=reentrant)
        return torch.autograd.grad(output.sum() + h.sum(), x) if not reentrant else (output,)

    return use


USES = {
    "spectral_norm": parametrized(parametrizations.spectral_norm),
    "weight_norm": parametrized(parametrizations.weight_norm),
    "orthogonal": parametrized(parametrizations.orthogonal),
    "checkpoint": checkpointed(False),
    "reentrant checkpoint": checkpointed(True),
    **{
        use.__name__: use
        for use in (
            functional_weights, gradient_of_a_function, gradient_of_each_sample, jacobian,
            directional_derivative, forward_mode, gradient_penalty, parametrized_and_back, pruned,
            weight_drop, replica, tied_weights, without_memory,
            arguments_by_place, compiled, exported, copied, pickled,
            shared_with_processes, other_precision_and_back, ensemble, weights_as_a_vector,
            weights_set_by_data, frozen_weights, evaluation_with_gradients, hooks, backward_twice,
            inference_then_training, odd_strides, small_sizes, batch_first_packed,
            truncated_in_time, another_default_device_and_type, fake_tensors, several_threads,
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # of nn.LSTM
def test_what_nn_lstm_does_h_detach_lstm_does(name):
    torch.testing.assert_close(USES[name](HDetachLSTM), USES[name](nn.LSTM))


def test_its_attributes_are_those_of_nn_lstm():
    names = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
             "bidirectional", "proj_size")  # fmt: skip
    plain, ours = (build(kind, bias=False, dropout=0.5) for kind in (nn.LSTM, HDetachLSTM))
    assert isinstance(ours, nn.LSTM)
    assert [getattr(ours, name) for name in names] == [getattr(plain, name) for name in names]
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert ours.flatten_parameters() is None
    torch.testing.assert_close(ours.all_weights, plain.all_weights)
    assert "4, 6, num_layers=2, bias=False, dropout=0.5, detach_prob=0.0" in str(ours)


class Counted(nn.Module):
    """A parametrization that counts how often it is asked."""

    calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * 2


@pytest.mark.parametrize("engine", ["fused", "segments", "definition"])
def test_a_parametrized_weight_is_computed_once_a_pass(engine):
    module, counted = build(HDetachLSTM, engine=engine), Counted()
    parametrize.register_parametrization(module, "weight_hh_l0", counted)
    counted.calls = 0
    passes(module)
    assert counted.calls == 1


# --- errors ----------------------------------------------------------------------------------

WRONG_SETTINGS = (
    {"num_layers": 0}, {"dropout": 1.5}, {"dropout": True}, {"dropout": "a"}, {"bias": 1},
    {"batch_first": 1}, {"input_size": 0}, {"input_size": 2.0}, {"hidden_size": 0},
    {"hidden_size": 3.0}, {"hidden_size": -1},
)  # fmt: skip


@pytest.mark.parametrize("settings", WRONG_SETTINGS, ids=str)
def test_settings_that_nn_lstm_refuses_are_refused_with_the_same_kind_of_error(settings):
    kinds = []
    for kind in (nn.LSTM, HDetachLSTM):
        with pytest.raises((ValueError, TypeError)) as caught:
            kind(**{"input_size": I, "hidden_size": H, **settings})
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def packed_rows(batch):
    return rnn.pack_sequence([zeros(3, I)] * batch)


WRONG_INPUTS = {
    "states of a larger batch": (zeros(T, 4, I), (zeros(2, 8, H), zeros(2, 8, H))),
    "c of a larger batch": (zeros(T, 4, I), (zeros(2, 4, H), zeros(2, 8, H))),
    "states of a batch of one": (zeros(T, 4, I), (zeros(2, 1, H), zeros(2, 1, H))),
    "states of more layers": (zeros(T, 4, I), (zeros(3, 4, H), zeros(3, 4, H))),
    "states of another size": (zeros(T, 4, I), (zeros(2, 4, H + 1), zeros(2, 4, H + 1))),
    "states without a batch": (zeros(T, 4, I), (zeros(2, H), zeros(2, H))),
    "states with a batch": (zeros(T, I), (zeros(2, 1, H), zeros(2, 1, H))),
    "one state only": (zeros(T, 4, I), zeros(2, 4, H)),
    "packed, states of a larger batch": (packed_rows(4), (zeros(2, 8, H), zeros(2, 8, H))),
    "no time steps": (zeros(0, 4, I), None),
    "another input size": (zeros(T, 4, I + 1), None),
    "one dimension": (zeros(I), None),
    "four dimensions": (zeros(1, T, 4, I), None),
    "another type": (zeros(T, 4, I).float(), None),
    "whole numbers": (zeros(T, 4, I).long(), None),
}


@pytest.mark.parametrize("engine", ["auto", "segments", "definition"])
@pytest.mark.parametrize("name", WRONG_INPUTS)
def test_inputs_that_nn_lstm_refuses_are_refused_with_the_same_kind_of_error(name, engine):
    with pytest.raises((ValueError, RuntimeError)) as wanted:
        build(nn.LSTM)(*WRONG_INPUTS[name])
    with pytest.raises((ValueError, RuntimeError)) as found:
        build(HDetachLSTM, engine=engine)(*WRONG_INPUTS[name])
    assert found.type is wanted.type
    assert "; " in str(found.value)  # what was found, and what to do


def test_states_of_a_larger_batch_than_an_unsorted_packed_one_are_refused():
    """Here nn.LSTM itself takes the first of them."""
    packed = rnn.pack_sequence([zeros(n, I) for n in (2, 3)], enforce_sorted=False)
    with pytest.raises(RuntimeError, match=r"h: shape \(2, 8, 6\); give \(2, 2, 6\)"):
        build(HDetachLSTM)(packed, (zeros(2, 8, H), zeros(2, 8, H)))


@pytest.mark.parametrize("blocked", [torch.ones(1), torch.ones(T), torch.ones(3, T).bool()])
def test_a_pattern_of_another_shape_or_type_is_refused(blocked):
    with pytest.raises(ConfigError, match=r"blocked: .* give torch.bool of shape \(5,\)"):
        build(HDetachLSTM)(inputs(), None, blocked)


def test_dropout_without_a_next_layer_warns_as_in_torch():
    with pytest.warns(UserWarning, match="dropout"):
        HDetachLSTM(I, H, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HDetachLSTM(I, H, 2, dropout=0.5)


@pytest.mark.parametrize(
    ("tool", "use"),
    [
        ("jit.script", torch.jit.script),
        ("jit.script", lambda module: torch.jit.script(nn.Sequential(module))),
        ("jit.trace", lambda module: torch.jit.trace(module, inputs())),
        ("fx", lambda module: torch.fx.symbolic_trace(module)),
        ("fx", lambda module: torch.fx.symbolic_trace(nn.Sequential(module))),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_tracers_are_refused_with_advice(tool, use):
    with pytest.raises(ConfigError, match=rf"{tool}: .*; use torch.export"):
        use(build(HDetachLSTM).eval())


def test_a_trained_module_is_an_nn_lstm_in_evaluation():
    ours = build(HDetachLSTM, detach_prob=0.5)
    plain = nn.LSTM(I, H, 2, dtype=torch.float64)
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(inputs()), plain(inputs()))


# --- torch.utils.checkpoint ------------------------------------------------------------------


class Net(nn.Module):
    """An LSTM with dropout between its layers, and dropout after it."""

    def __init__(self, **settings):
        super().__init__()
        self.lstm = build(HDetachLSTM, dropout=0.3, detach_prob=0.5, **settings)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x):
        return self.dropout(self.lstm(x)[0])


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("engine", ["fused", "segments", "definition"])
def test_gradients_under_a_checkpoint_are_those_without_one(engine, share, reentrant):
    net, x = Net(engine=engine, share_detach=share), inputs(20, B, I).requires_grad_()
    results = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        net.zero_grad()
        x.grad = None
        run(x).square().sum().backward()
        results.append([x.grad, *(weight.grad.clone() for weight in net.parameters())])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("reentrant", [True, False])
def test_draws_that_a_checkpoint_cannot_repeat_are_refused(reentrant):
    net = Net(generator=torch.Generator().manual_seed(0))
    output = checkpoint(net, inputs().requires_grad_(), use_reentrant=reentrant)
    with pytest.raises(ConfigError, match=r"generator: .*checkpoint.*; leave it out"):
        output.sum().backward()
