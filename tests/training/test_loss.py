"""The loss that training minimises equals torch's, computed a piece at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captioner.data.vocabulary import BOS, EOS, PAD, UNK
from captioner.model.decoder import Prediction
from captioner.training import loss as module
from captioner.training.loss import cross_entropy

TOKENS, X, V = 9, 6, 11


def prediction():
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, X, dtype=torch.float64, requires_grad=True)
    out = nn.Linear(X, V).double()
    return Prediction(hidden, out, None), torch.randint(0, V, (TOKENS,))


@pytest.mark.parametrize("pieces", [1, 3, TOKENS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_and_its_gradients_are_torchs_own(monkeypatch, pieces, smoothing):
    monkeypatch.setattr(module, "_PIECE", TOKENS * V // pieces)
    made, targets = prediction()
    parts = [made.hidden, *made.out.parameters()]
    smoothed, plain = cross_entropy(made, targets, smoothing)
    wanted = F.cross_entropy(made.logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(smoothed, wanted)
    torch.testing.assert_close(plain, F.cross_entropy(made.logits, targets))
    assert not plain.requires_grad
    for found, correct in zip(
        torch.autograd.grad(3 * smoothed, parts),
        torch.autograd.grad(3 * wanted, parts),
        strict=True,
    ):
        torch.testing.assert_close(found, correct)


@pytest.mark.parametrize("pieces", [1, 3, TOKENS])
def test_a_sampled_token_counts_by_its_weight_among_the_words_that_can_be_sampled(
    monkeypatch, pieces
):
    monkeypatch.setattr(module, "_PIECE", TOKENS * V // pieces)
    made, _ = prediction()
    targets = torch.randint(4, V, (TOKENS,))
    parts = [made.hidden, *made.out.parameters()]
    weights = torch.randn(TOKENS, dtype=torch.float64)
    weighted, plain = cross_entropy(made, targets, weights=weights, begins=4)
    sampleable = made.logits.index_fill(1, torch.tensor([PAD, BOS, UNK]), -torch.inf)
    sampleable = torch.cat(
        [sampleable[:4].index_fill(1, torch.tensor([EOS]), -torch.inf), sampleable[4:]]
    )
    each = F.cross_entropy(sampleable, targets, reduction="none")
    wanted = (weights * each).mean()
    torch.testing.assert_close(weighted, wanted)
    torch.testing.assert_close(plain, each.mean())
    for found, correct in zip(
        torch.autograd.grad(weighted, parts), torch.autograd.grad(wanted, parts), strict=True
    ):
        torch.testing.assert_close(found, correct)


def test_no_logits_of_the_whole_batch_are_made(monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 2 * V)
    made, targets = prediction()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Watch():
        cross_entropy(made, targets)[0].backward()
    assert largest == V * X  # the weights; all logits would be V * TOKENS


def test_very_unlikely_words_have_a_finite_loss_and_gradient():
    made, targets = prediction()
    with torch.no_grad():
        made.out.bias[targets[0]] = -2000.0
    loss, _ = cross_entropy(made, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(made.hidden.grad).all()
    assert loss > 100


def test_differentiating_a_loss_twice_is_refused():
    made, targets = prediction()
    loss, _ = cross_entropy(made, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute it again"):
        loss.backward()
