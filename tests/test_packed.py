"""Products with packed weights: those of torch, whatever happens to the weights in between."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from captioner import packed
from captioner.packed import linear

needs_packing = pytest.mark.skipif(
    not packed._available(), reason="this build of torch cannot pack weights"
)


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
    weight = nn.Parameter(torch.randn(n, k))
    x = torch.randn(*rows, k)[..., columns]
    added = torch.randn(n) if bias else None
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(
                linear(x, weight, added, columns),
                F.linear(x, weight[:, columns], added),
                atol=1e-4,
                rtol=1e-4,
            )


@needs_packing
def test_a_weight_is_packed_once_and_forgotten_with_its_layer():
    layer, x = nn.Linear(128, 300), torch.randn(4, 128)
    with torch.no_grad():
        linear(x, layer.weight)
        (first,) = packed._packed[layer.weight].values()
        linear(x, layer.weight)
        (second,) = packed._packed[layer.weight].values()
    assert first is second
    before = len(packed._packed)
    del layer
    gc.collect()
    assert len(packed._packed) == before - 1


def in_place(layer):
    with torch.no_grad():
        layer.weight.add_(1)


def by_data(layer):
    layer.weight.data.add_(1)


def by_a_state_dict(layer):
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def by_another_storage(layer):
    layer.weight.data = layer.weight.data + 1


def by_an_optimizer(layer):
    layer.weight.grad = -torch.ones_like(layer.weight)
    torch.optim.Adam([layer.weight], 1.0, fused=True).step()


def test_the_smallest_step_of_an_optimizer_is_seen():
    layer = nn.Linear(128, 300)
    before = packed._mark(layer.weight)
    layer.weight.grad = torch.randn_like(layer.weight)
    torch.optim.Adam([layer.weight], 1e-7, fused=True).step()
    assert packed._mark(layer.weight) != before


@pytest.mark.parametrize(
    "change", [in_place, by_data, by_a_state_dict, by_another_storage, by_an_optimizer]
)
def test_a_weight_that_has_changed_is_packed_anew(change):
    layer, x = nn.Linear(128, 300), torch.randn(4, 128)
    with torch.no_grad():
        linear(x, layer.weight)
    change(layer)
    with torch.no_grad():
        torch.testing.assert_close(
            linear(x, layer.weight), F.linear(x, layer.weight), atol=1e-4, rtol=1e-4
        )


def test_with_gradients_it_is_the_plain_product():
    weight, x = nn.Parameter(torch.randn(300, 128)), torch.randn(4, 128, requires_grad=True)
    found = torch.autograd.grad(linear(x, weight).square().sum(), (x, weight))
    wanted = torch.autograd.grad(F.linear(x, weight).square().sum(), (x, weight))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    "reason", ["not built in", "float64", "bfloat16", "inference tensor", "autocast"]
)
def test_where_packing_is_not_possible_the_product_is_the_plain_one(reason, monkeypatch):
    if reason == "not built in":
        monkeypatch.setattr(packed, "_available", lambda: False)
    dtype = getattr(torch, reason, torch.float32)
    dtype = dtype if isinstance(dtype, torch.dtype) else torch.float32
    with (
        torch.inference_mode(reason == "inference tensor"),
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"),
    ):
        weight, x = torch.randn(300, 128, dtype=dtype), torch.randn(4, 128, dtype=dtype)
        assert torch.equal(linear(x, weight), F.linear(x, weight))
        assert weight not in packed._packed
