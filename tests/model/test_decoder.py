"""Decoders: a batch equals its captions one by one, h-detach, attention, attributes."""

from dataclasses import replace

import pytest
import torch
from tiny import DIM, MODEL, random_features
from torch.nn.utils import parameters_to_vector

from captioner.config import TrainConfig
from captioner.data.dataset import pack
from captioner.model import DECODERS, make_decoder
from captioner.model import attention as additive
from captioner.model.attention import Places
from captioner.model.lstm import HDetachLSTM
from captioner.training.loss import caption_loss

V = 20
CAPTIONS = [[[5, 6, 7, 8, 9], [4, 5]], [[10, 11, 12]], [[13]]]
ALL = tuple(DECODERS)
ATTRIBUTES = [("show_attend_tell", 8), ("up_down", 8)]  # decoders that have them


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


@pytest.mark.parametrize(("name", "attributes"), [*((name, 0) for name in ALL), *ATTRIBUTES])
def test_step_by_step_returns_the_logits_of_forward(name, attributes):
    decoder, features = decoder_of(name, attributes=attributes).eval(), random_features(1)
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
    lstms = [part for part in decoder.modules() if isinstance(part, HDetachLSTM)]
    results = []
    for prob in (0.0, 1.0):
        prediction, _ = run(decoder, features, CAPTIONS, detach_prob=prob)
        loss = prediction.logits.square().mean()
        results.append((loss, torch.autograd.grad(loss, [lstm.weight_hh_l0 for lstm in lstms])))
    torch.testing.assert_close(results[0][0], results[1][0])
    for plain, blocked in zip(results[0][1], results[1][1], strict=True):
        assert not torch.allclose(plain, blocked)


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
        context = beta * sentinel + (1 - beta) * (z.softmax(0) @ values)
        torch.testing.assert_close(decoder.out(context + h)[0], wanted)


@pytest.mark.parametrize("feature_dim", [0, 7])
@pytest.mark.parametrize(
    ("blocked", "detach_attention"), [(False, False), (True, False), (True, True)]
)
def test_up_down_has_the_outputs_and_gradients_of_two_lstm_cells(
    blocked, detach_attention, feature_dim
):
    """Anderson et al. 2018, section 3.2, written out for one caption word by word."""
    decoder = decoder_of("up_down", feature_dim=feature_dim)
    features = random_features(1).requires_grad_()
    prediction, batch = run(
        decoder,
        features,
        [[[5, 6, 7]]],
        detach_prob=float(blocked),
        detach_attention=detach_attention,
    )
    attention_cell, language_cell = map(
        lstm_cell_of, (decoder.attention_lstm, decoder.language_lstm)
    )
    values = decoder.project(features[0]).relu() if feature_dim else features[0]  # (L, D)
    h1 = c1 = h2 = c2 = values.new_zeros(1, MODEL.hidden_dim)
    logits, attentions = [], []
    for token in batch.captions.inputs:
        before = h2.detach() if detach_attention else h2
        if blocked:
            h1, h2 = h1.detach(), h2.detach()
        x = torch.cat([before, values.mean(0)[None], decoder.embed(token)[None]], 1)
        h1, c1 = attention_cell(x, (h1, c1))
        scores = (decoder.key(values) + decoder.query(h1)).tanh() @ decoder.score
        attentions.append(scores.softmax(0))
        h2, c2 = language_cell(torch.cat([(attentions[-1] @ values)[None], h1], 1), (h2, c2))
        logits.append(decoder.out(h2)[0])
    logits, attentions = torch.stack(logits), torch.stack(attentions)
    torch.testing.assert_close(prediction.logits, logits)
    torch.testing.assert_close(prediction.attention, attentions)

    shared = [features, decoder.embed.weight, decoder.key.weight, decoder.query.weight]
    lstms = [*decoder.attention_lstm.parameters(), *decoder.language_lstm.parameters()]
    cells = [*attention_cell.parameters(), *language_cell.parameters()]
    found = torch.autograd.grad(
        prediction.logits.square().sum() + prediction.attention.pow(3).sum(), [*shared, *lstms]
    )
    wanted = torch.autograd.grad(logits.square().sum() + attentions.pow(3).sum(), [*shared, *cells])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def lstm_cell_of(lstm):
    """Return torch's LSTM cell with the weights of a one-layer LSTM."""
    cell = torch.nn.LSTMCell(lstm.input_size, lstm.hidden_size).double()
    weights = {name.removesuffix("_l0"): weight for name, weight in lstm.state_dict().items()}
    cell.load_state_dict(weights)
    return cell


@pytest.mark.parametrize(("name", "count"), ATTRIBUTES)
def test_attributes_learn_which_frequent_words_the_captions_of_an_image_hold(name, count):
    decoder, features = decoder_of(name, attributes=count), random_features(3)
    prediction, batch = run(decoder, features, CAPTIONS)
    logits, present = prediction.attributes
    torch.testing.assert_close(logits, decoder.attributes.detect(features.mean(1)))
    # ids 4 to 11: the first image has the words 4 to 9, the second 10 to 12, the third 13
    assert present.tolist() == [[1] * 6 + [0] * 2, [0] * 6 + [1] * 2, [0] * 8]

    def loss(weight):
        settings = TrainConfig(attribute_weight=weight, attention_penalty=0)
        sizes = batch.captions.batch_sizes
        return caption_loss(prediction, batch.targets, sizes, settings)[0]

    probabilities = logits.sigmoid()
    likelihoods = present * probabilities.log() + (1 - present) * (1 - probabilities).log()
    torch.testing.assert_close(loss(0.5) - loss(0.0), -0.5 * likelihoods.sum() / 3)


@pytest.mark.parametrize(("name", "count"), ATTRIBUTES)
def test_attributes_change_the_words_of_the_decoder_and_learn_from_them(name, count):
    decoder, features = decoder_of(name, attributes=count), random_features(3)
    before = run(decoder, features, CAPTIONS)[0].logits
    gradient = torch.autograd.grad(before.square().sum(), decoder.attributes.detect.weight)[0]
    assert gradient.abs().max() > 0
    with torch.no_grad():
        decoder.attributes.detect.bias += 5  # higher probabilities
    assert not torch.allclose(before, run(decoder, features, CAPTIONS)[0].logits)


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
