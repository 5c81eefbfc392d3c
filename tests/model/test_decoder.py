"""Decoders: no padding effects, one of a batch equals a batch of one, h-detach where it belongs."""

from dataclasses import replace

import pytest
import torch
from tiny import DIM, MODEL, random_features
from torch.nn.utils import parameters_to_vector

from captioner.data.dataset import pack
from captioner.model import attention as additive
from captioner.model.attention import Places
from captioner.model.decoder import DECODERS, make_decoder

V = 20
CAPTIONS = [[[5, 6, 7, 8, 9], [4, 5]], [[10, 11, 12]], [[13]]]
ALL = tuple(DECODERS)


def decoder_of(name, **settings):
    torch.manual_seed(0)
    return make_decoder(replace(MODEL, decoder=name, **settings), V, DIM).double()


def run(decoder, features, captions, **settings):
    batch = pack(features, captions)
    torch.manual_seed(1)
    return decoder(features, batch.captions, **settings), batch


def token_losses(prediction, batch):
    """Loss of every caption, in the order of the rows."""
    losses = torch.nn.functional.cross_entropy(
        prediction.logits, batch.targets, reduction="none"
    ).split(batch.captions.batch_sizes)
    return [
        sum(step[row] for step in losses if row < len(step))
        for row in range(len(batch.captions.image))
    ]


@pytest.mark.parametrize("name", ALL)
def test_a_caption_has_the_same_loss_alone_and_among_longer_ones(name):
    decoder, features = decoder_of(name), random_features(3)
    together = token_losses(*run(decoder, features, CAPTIONS))
    rows = [(0, [5, 6, 7, 8, 9]), (1, [10, 11, 12]), (0, [4, 5]), (2, [13])]  # longest first
    for loss, (image, caption) in zip(together, rows, strict=True):
        (alone,) = token_losses(*run(decoder, features[image : image + 1], [[caption]]))
        torch.testing.assert_close(loss, alone)


@pytest.mark.parametrize("name", ALL)
def test_writing_step_by_step_gives_the_logits_of_the_whole_caption_at_once(name):
    decoder, features = decoder_of(name).eval(), random_features(1)
    prediction, batch = run(decoder, features, [[[5, 6, 7]]])
    memory, state = decoder.start(features)
    image = torch.tensor([0])
    for token, wanted in zip(batch.captions.inputs, prediction.logits, strict=True):
        logits, state, attention = decoder.step(memory, token.view(1), state, image)
        torch.testing.assert_close(logits[0], wanted)
        if attention is not None:
            torch.testing.assert_close(attention.sum(), torch.ones_like(attention.sum()))


@pytest.mark.parametrize("name", ALL)
def test_h_detach_changes_gradients_but_not_the_loss(name):
    decoder, features = decoder_of(name), random_features(3)
    results = []
    for prob in (0.0, 1.0):
        prediction, _ = run(decoder, features, CAPTIONS, detach_prob=prob)
        loss = prediction.logits.square().mean()
        results.append((loss, torch.autograd.grad(loss, list(decoder.core.parameters()))))
    torch.testing.assert_close(results[0][0], results[1][0])
    assert not torch.allclose(results[0][1][1], results[1][1][1])


def test_the_attention_keeps_its_gradient_unless_it_is_detached_too():
    """With every step blocked, h reaches the LSTM's next step through the attention only."""
    decoder, features = decoder_of("show_attend_tell"), random_features(1)
    with torch.no_grad():
        decoder.init_h.weight.mul_(3)

    def gradient_of_first_h(detach_attention):
        prediction, _ = run(
            decoder, features, [[[5, 6, 7]]], detach_prob=1.0, detach_attention=detach_attention
        )
        loss = prediction.logits[-1].square().sum()
        return torch.autograd.grad(loss, decoder.init_h.weight, allow_unused=True)[0]

    assert gradient_of_first_h(False).abs().max() > 0
    blocked = gradient_of_first_h(True)
    assert blocked is None or blocked.abs().max() == 0


@pytest.mark.parametrize("large", [0, 10**9], ids=["row by row", "all rows at once"])
def test_the_additive_scores_equal_the_tanh_definition_and_its_gradients(monkeypatch, large):
    monkeypatch.setattr(additive, "_LARGE", large)
    decoder, features = decoder_of("show_attend_tell", feature_dim=7), random_features(2)
    memory, (h, _) = decoder.start(features)
    image = torch.tensor([0, 1, 1])
    context, attention = decoder._attend(memory, h[image], image, Places.of(image, 2))

    x = decoder.key(memory.values)[image] + decoder.query(h[image]).unsqueeze(1)
    wanted = (x.tanh() @ decoder.score).softmax(-1)
    wanted_context = (wanted.unsqueeze(-1) * memory.values[image]).sum(1)
    wanted_context = decoder.gate(h[image]).sigmoid() * wanted_context
    torch.testing.assert_close(attention, wanted)
    torch.testing.assert_close(context, wanted_context)

    parts = [decoder.key.weight, decoder.query.weight, decoder.score, decoder.project.weight]
    found = torch.autograd.grad(
        context.square().sum() + attention.pow(3).sum(), parts, retain_graph=True
    )
    correct = torch.autograd.grad(wanted_context.square().sum() + wanted.pow(3).sum(), parts)
    for one, other in zip(found, correct, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("large", [0, 10**9], ids=["row by row", "all rows at once"])
@pytest.mark.parametrize("feature_dim", [0, 7])
@pytest.mark.parametrize("detach_attention", [False, True])
@pytest.mark.parametrize("detach_prob", [0.0, 0.5, 1.0])
def test_the_fused_recurrence_has_the_outputs_and_gradients_of_the_definition(
    monkeypatch, detach_prob, detach_attention, feature_dim, large
):
    monkeypatch.setattr(additive, "_LARGE", large)
    decoder = decoder_of("show_attend_tell", feature_dim=feature_dim)
    features = random_features(4).requires_grad_()
    results = []
    for fused in (True, False):
        decoder.fused = fused
        prediction, _ = run(
            decoder,
            features,
            CAPTIONS,
            detach_prob=detach_prob,
            detach_attention=detach_attention,
        )
        assert prediction.attention is not None
        loss = prediction.logits.square().mean() + prediction.attention.pow(3).sum()
        results.append(
            (
                loss,
                torch.autograd.grad(
                    loss, [*decoder.parameters(), features], materialize_grads=True
                ),
            )
        )
    torch.testing.assert_close(results[0][0], results[1][0])
    for found, wanted in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(found, wanted)


def test_adaptive_attention_follows_the_equations_of_the_paper():
    """Lu et al. 2017, equations 5-13, written out for one caption word by word."""
    decoder, features = decoder_of("adaptive").eval(), random_features(1)
    prediction, batch = run(decoder, features, [[[5, 6, 7]]])
    values = decoder.project(features[0]).relu()  # (L, H)
    whole = decoder.whole(features[0].mean(0)).relu()
    h = c = values.new_zeros(1, MODEL.hidden_dim)
    for token, wanted in zip(batch.captions.inputs, prediction.logits, strict=True):
        x = torch.cat([decoder.embed(token), whole])[None]
        gate = (decoder.sentinel_x(x) + decoder.sentinel_h(h)).sigmoid()
        _, (h, c) = decoder.core(x[None], (h[None], c[None]))
        h, c = h[0], c[0]
        sentinel = gate * c.tanh()
        z = (decoder.key(values) + decoder.query(h)).tanh() @ decoder.score  # (L,)
        own = (decoder.sentinel_key(sentinel) + decoder.query(h)).tanh() @ decoder.score
        beta = torch.cat([z, own]).softmax(0)[-1]
        seen = beta * sentinel + (1 - beta) * (z.softmax(0) @ values)
        torch.testing.assert_close(decoder.out(seen + h)[0], wanted)


@pytest.mark.parametrize("name", ALL)
def test_scheduled_sampling_at_zero_is_teacher_forcing_and_at_one_is_not(name):
    decoder, features = decoder_of(name), random_features(3)
    plain, _ = run(decoder, features, CAPTIONS)
    own, batch = run(decoder, features, CAPTIONS, sampling_prob=1.0)
    first = batch.captions.batch_sizes[0]
    torch.testing.assert_close(plain.logits[:first], own.logits[:first])
    assert not torch.allclose(plain.logits[first:], own.logits[first:])


@pytest.mark.parametrize("name", ALL)
def test_every_weight_learns(name):
    decoder, features = decoder_of(name, feature_dim=8), random_features(3)
    prediction, _ = run(decoder, features, CAPTIONS)
    prediction.logits.square().mean().backward()
    for weight, parameter in decoder.named_parameters():
        assert parameter.grad is not None, weight
        assert parameter.grad.abs().max() > 0 or weight.endswith("key.bias"), weight


def test_stacked_layers_are_a_setting_of_show_tell():
    one = parameters_to_vector(decoder_of("show_tell").parameters())
    two = parameters_to_vector(decoder_of("show_tell", num_layers=2).parameters())
    assert len(two) > len(one)
