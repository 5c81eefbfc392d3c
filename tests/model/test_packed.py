"""Products with packed weights equal those of torch, also after a change of the weights."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from captioner.model.fused import linear as module
from captioner.model.fused.linear import Linear, PackedWeights, linear, packed

needs_packing = pytest.mark.skipif(
    not module._available(), reason="this build of torch cannot pack weights"
)


def copies_of(weights):
    """All packed copies that are kept."""
    return [copy for kept in weights._copies.values() for copy in kept.packed.values()]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([(1,), (2,), (5,), (80,), (3, 7), (0,)]),
    n=st.sampled_from([1, 200, 515]),
    k=st.sampled_from([128, 260]),
    columns=st.sampled_from([slice(None), slice(0, 100), slice(100, None)]),
    bias=st.booleans(),
)
def test_the_product_is_that_of_torch(rows, n, k, columns, bias):
    torch.manual_seed(0)
    layer = nn.Linear(k, n, bias=bias)
    weight, added = layer.weight, layer.bias
    x = torch.randn(*rows, k)[..., columns]
    with torch.inference_mode(), packed(layer):
        for _ in range(2):
            torch.testing.assert_close(
                linear(x, weight, added, columns),
                F.linear(x, weight[:, columns], added),
                atol=1e-4,
                rtol=1e-4,
            )


@needs_packing
def test_kept_weights_are_packed_once_and_others_are_dropped_at_the_end():
    layer, x = nn.Linear(128, 300), torch.randn(4, 128)
    kept = PackedWeights(layer)
    seen = []
    for _ in range(2):
        with torch.no_grad(), packed(kept):
            linear(x, layer.weight)
            seen += copies_of(kept)
    assert len(seen) == 2
    assert seen[0] is seen[1]
    with torch.no_grad(), packed(layer):
        linear(x, layer.weight)
        (once,) = map(weakref.ref, copies_of(module._in_use.get()))
        assert once() is not None
    gc.collect()
    assert once() is None
    assert module._in_use.get() is None


@needs_packing
def test_outside_of_a_block_and_for_another_network_the_product_is_the_plain_one():
    layer, other, x = nn.Linear(128, 300), nn.Linear(128, 300), torch.randn(4, 128)
    kept = PackedWeights(other)
    with torch.no_grad():
        assert torch.equal(linear(x, layer.weight), F.linear(x, layer.weight))
        with packed(kept):
            assert torch.equal(linear(x, layer.weight), F.linear(x, layer.weight))
            linear(x, other.weight)
            with packed(layer):  # the inner block is that of another network
                assert torch.equal(linear(x, other.weight), F.linear(x, other.weight))
            assert module._in_use.get() is kept
    assert list(kept._copies) == [id(other.weight)]


def in_place(layer):
    with torch.no_grad():
        layer.weight.add_(1)


def by_data(layer):
    layer.weight.data.add_(1)


def one_row_by_data(layer):
    layer.weight.data[17] += 1


def one_element_by_the_least(layer):
    data = layer.weight.data
    data[17, 3] = torch.nextafter(data[17, 3], torch.tensor(9.0))


def two_rows_exchanged(layer):
    layer.weight.data[[17, 18]] = layer.weight.data[[18, 17]]


def by_numpy(layer):
    layer.weight.detach().numpy()[17] *= np.float32(2)


def to_nan(layer):
    layer.weight.data[0] = torch.nan


def by_a_state_dict(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def by_an_assigned_state_dict(layer):
    state = {name: value + 1 for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


def by_another_parameter(layer):
    layer.weight = nn.Parameter(layer.weight.detach() + 1)


def by_another_storage(layer):
    layer.weight.data = layer.weight.data + 1


def by_another_shape(layer):
    layer.weight.data = layer.weight.data[:100].clone()
    layer.bias.data = layer.bias.data[:100].clone()


def by_an_optimizer(layer):
    layer.weight.grad = -torch.ones_like(layer.weight)
    torch.optim.Adam([layer.weight], 1.0, fused=True).step()


def by_the_smallest_step_of_an_optimizer(layer):
    layer.weight.grad = torch.randn_like(layer.weight)
    torch.optim.Adam([layer.weight], 1e-7, fused=True).step()


CHANGES = [
    in_place, by_data, one_row_by_data, one_element_by_the_least, two_rows_exchanged, by_numpy,
    to_nan, by_a_state_dict, by_an_assigned_state_dict, by_another_parameter, by_another_storage,
    by_another_shape, by_an_optimizer, by_the_smallest_step_of_an_optimizer,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("keep", [True, False])
def test_a_weight_that_has_changed_between_two_blocks_is_packed_again(change, keep):
    torch.manual_seed(0)
    layer, x = Linear(128, 300), torch.eye(128)  # so that each product is one weight
    weights = PackedWeights(layer) if keep else layer
    with torch.no_grad(), packed(weights):
        linear(x, layer.weight)
        layer(x)
    before = layer.weight.detach().clone()
    change(layer)
    assert layer.weight.shape != before.shape or not torch.equal(layer.weight, before)
    with torch.no_grad(), packed(weights):
        assert torch.equal(linear(x, layer.weight), layer.weight.t()) or change is to_nan
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), equal_nan=True)


@needs_packing
@pytest.mark.parametrize("change", CHANGES)
def test_a_weight_that_changed_inside_a_block_is_an_error_at_its_end(change):
    def block(then):
        layer, x = nn.Linear(128, 300), torch.randn(4, 128)
        with packed(layer):
            with torch.no_grad():
                linear(x, layer.weight)
            change(layer)
            then()

    with pytest.raises(RuntimeError, match="change weights outside"):
        block(lambda: None)
    assert module._in_use.get() is None
    with pytest.raises(KeyError):  # an error inside is not hidden by that
        block(lambda: {}["missing"])


@needs_packing
def test_threads_share_kept_weights_and_another_thread_has_none():
    layer, x = nn.Linear(128, 300), torch.randn(4, 128)
    kept, found, ready = PackedWeights(layer), [], threading.Barrier(4)
    wanted = F.linear(x, layer.weight).detach()

    def work():
        for _ in range(20):
            ready.wait(20)
            with torch.no_grad(), packed(kept):
                found.append(linear(x, layer.weight))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    for product in found:
        torch.testing.assert_close(product, wanted, atol=1e-4, rtol=1e-4)
    with packed(kept):
        thread = threading.Thread(target=lambda: found.append(module._in_use.get()))
        thread.start()
        thread.join()
    assert found[-1] is None


@needs_packing
def test_an_owner_of_kept_weights_can_be_copied_and_pickled():
    layer, x = nn.Linear(128, 300), torch.randn(4, 128)
    kept = PackedWeights(layer)
    with torch.no_grad(), packed(kept):
        linear(x, layer.weight)
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        theirs = other._network.weight
        theirs.data[17] += 1
        with torch.no_grad(), packed(other):
            torch.testing.assert_close(linear(x, theirs), F.linear(x, theirs), atol=1e-4, rtol=1e-4)
        assert len(copies_of(other)) == 1
    assert len(copies_of(kept)) == 1


def test_with_gradients_it_is_the_plain_product():
    layer, x = nn.Linear(128, 300), torch.randn(4, 128, requires_grad=True)
    weight = layer.weight
    with packed(layer):
        found = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    wanted = torch.autograd.grad(F.linear(x, weight).square().sum(), (x, weight))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("reason", ["not built in", "float64", "bfloat16", "autocast"])
def test_the_product_is_the_plain_one_if_packing_is_not_possible(reason, monkeypatch):
    if reason == "not built in":
        monkeypatch.setattr(module, "_available", lambda: False)
    dtype = getattr(torch, reason, torch.float32)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    layer, x = nn.Linear(128, 300, dtype=dtype), torch.randn(4, 128, dtype=dtype)
    kept = PackedWeights(layer)
    with (
        packed(kept),
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"),
    ):
        assert torch.equal(linear(x, layer.weight), F.linear(x, layer.weight))
    assert not copies_of(kept)


@needs_packing
def test_changes_of_weights_without_a_version_are_detected():
    with torch.inference_mode():
        layer, x = nn.Linear(128, 300), torch.eye(128)
        kept = PackedWeights(layer)
        for _ in range(2):
            with packed(kept):
                assert torch.equal(linear(x, layer.weight), layer.weight.t())
            assert len(copies_of(kept)) == 1
            layer.weight[17] += 1
