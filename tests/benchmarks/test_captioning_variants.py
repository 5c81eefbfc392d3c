"""The study's other decoders: each is the recipe's decoder but for the one thing it changes."""

from dataclasses import replace

import pytest
import torch
from tiny import CELLS, DIM, MODEL, make_data, random_features
from torch.nn import functional as F

from benchmarks.captioning_study.variants import (
    VARIANTS,
    CaptionDropout,
    LayerNorm,
    Tied,
    Variational,
    Zoneout,
    known_variants,
    zoneout,
)
from captioner import checkpoint
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.dataset import pack
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError
from captioner.model.decoder import DECODERS, ShowAttendTell, make_decoder
from captioner.training.loss import cross_entropy

V = 20
CAPTIONS = [[[5, 6, 7, 8, 9], [4, 5]], [[10, 11, 12]], [[13]]]
BATCH = pack(random_features(3), CAPTIONS)


def make(kind, **settings):
    torch.manual_seed(0)
    config = replace(MODEL, embed_dim=MODEL.hidden_dim, **settings)
    return kind(config, V, DIM).double()


def gradients(decoder, **settings):
    """The loss and its gradients, by the names of the parameters."""
    torch.manual_seed(1)
    prediction = decoder(BATCH.features, BATCH.captions, **settings)
    loss, _ = cross_entropy(prediction, BATCH.targets)
    decoder.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in decoder.named_parameters()}


@pytest.mark.parametrize("kind", VARIANTS.values())
def test_a_caption_written_step_by_step_has_the_logits_of_training(kind):
    decoder = make(kind, dropout=0.5).eval()
    captions = [[[5, 6, 7]]]
    batch = pack(random_features(1), captions)
    wanted = decoder(batch.features, batch.captions).logits
    memory, state = decoder.start(batch.features)
    for token, logits in zip(batch.captions.inputs, wanted, strict=True):
        found, state, attention = decoder.step(memory, token.view(1), state, torch.tensor([0]))
        torch.testing.assert_close(found[0], logits)
        assert attention.shape == (1, CELLS)


@pytest.mark.parametrize("kind", VARIANTS.values())
def test_h_detach_changes_gradients_but_not_the_loss(kind):
    decoder = make(kind)
    (loss, free), (same, blocked) = (gradients(decoder, detach_prob=p) for p in (0.0, 1.0))
    torch.testing.assert_close(loss, same)
    assert not torch.allclose(free["core.weight_hh_l0"], blocked["core.weight_hh_l0"])


def test_zoneout_blocks_h_where_it_stays_as_well_as_where_it_enters_the_gates():
    decoder = make(Zoneout)
    h, c = torch.randn(2, 5, MODEL.hidden_dim, dtype=torch.float64, requires_grad=True)
    gates = decoder._word_gates(torch.randn(5, MODEL.hidden_dim).double())
    context = torch.randn(5, DIM, dtype=torch.float64)
    for blocked in (False, True):
        next_h, _ = decoder._recur(gates.detach(), context, (h, c), blocked)
        (grad,) = torch.autograd.grad(next_h.sum(), h, allow_unused=True)
        assert (grad is None) == blocked


def test_without_dropout_and_zoneout_a_variant_is_the_plain_decoder(monkeypatch):
    monkeypatch.setattr(Zoneout, "cell_rate", 0.0)
    monkeypatch.setattr(Zoneout, "hidden_rate", 0.0)
    loss, plain = gradients(make(ShowAttendTell), detach_prob=0.5)
    for kind in (Zoneout, Variational):
        same_loss, same = gradients(make(kind), detach_prob=0.5)
        torch.testing.assert_close(same_loss, loss)
        for name, gradient in plain.items():
            torch.testing.assert_close(same[name], gradient, msg=name)


def test_zoneout_keeps_its_share_of_values_and_their_mean_at_evaluation():
    before, after = torch.zeros(200, 100), torch.ones(200, 100)
    torch.manual_seed(0)
    drawn = zoneout(before, after, 0.2, training=True)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.8, abs=0.01)
    torch.testing.assert_close(zoneout(before, after, 0.2, training=False), 0.8 * after)


def test_tied_embeddings_are_one_parameter_with_the_sum_of_both_gradients():
    tied, plain = make(Tied), make(ShowAttendTell)
    assert tied.out.weight is tied.embed.weight
    names = {name for name, _ in plain.named_parameters()}
    assert names - {name for name, _ in tied.named_parameters()} == {"out.weight"}
    with torch.no_grad():
        plain.out.weight.copy_(plain.embed.weight)
    (loss, once), (same, both) = gradients(tied), gradients(plain)
    torch.testing.assert_close(loss, same)
    torch.testing.assert_close(once["embed.weight"], both["embed.weight"] + both["out.weight"])


def test_a_caption_has_one_dropout_mask_for_all_its_steps_unlike_its_neighbour():
    dropout, sizes = CaptionDropout(0.5), [3, 2, 1]
    torch.manual_seed(0)
    with dropout.of_rows(sizes):
        first, second, third = dropout(torch.ones(6, 40)).split(sizes)
        again = dropout(torch.ones(6, 40))
    assert torch.equal(first[:2], second)
    assert torch.equal(first[:1], third)
    assert not torch.equal(first[0], first[1])
    assert set(first.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(again[:3], first)  # another layer, another mask
    assert torch.equal(dropout.eval()(first), first)


def test_masks_of_captions_reach_the_words_and_the_output_layer():
    decoder = make(Variational, dropout=0.5)
    decoder.embed.weight.data.fill_(1.0)
    seen = []
    decoder.out_z.register_forward_hook(lambda *_: seen.append(decoder.dropout.rows))
    hidden = decoder(BATCH.features, BATCH.captions).hidden.split(BATCH.captions.batch_sizes)
    assert len(seen) == 1
    assert torch.equal(hidden[0][:1] == 0, hidden[-1] == 0)  # the longest caption's
    assert decoder.dropout.rows is None
    with pytest.raises(ConfigError, match="scheduled_sampling"):
        decoder(BATCH.features, BATCH.captions, sampling_prob=0.5)


def test_layer_norm_gives_the_gates_the_statistics_of_its_gains():
    decoder, H = make(LayerNorm), MODEL.hidden_dim
    seen = {}
    for name in ("norm_x", "norm_h", "norm_c"):
        part = getattr(decoder, name)
        part.register_forward_hook(lambda _m, _x, out, name=name: seen.update({name: out}))
    words, context = 50 + 9 * torch.randn(5, H).double(), torch.randn(5, DIM).double()
    h, c = torch.randn(2, 5, H, dtype=torch.float64)
    found_h, found_c = decoder._recur(decoder._word_gates(words), context, (h, c), False)
    for out, size in ((seen["norm_x"], 4 * H), (seen["norm_h"], 4 * H), (seen["norm_c"], H)):
        assert out.shape == (5, size)
        torch.testing.assert_close(out.mean(1), torch.zeros(5).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(
            out.var(1, correction=0), torch.ones(5).double(), atol=2e-2, rtol=0
        )

    core = decoder.core
    x = F.linear(torch.cat([words, context], 1), core.weight_ih_l0)
    gates = F.layer_norm(x, [4 * H]) + F.layer_norm(h @ core.weight_hh_l0.T, [4 * H])
    i, f, g, o = (gates + core.bias_ih_l0 + core.bias_hh_l0).chunk(4, 1)
    wanted = f.sigmoid() * c + i.sigmoid() * g.tanh()
    torch.testing.assert_close(found_c, wanted)
    torch.testing.assert_close(found_h, o.sigmoid() * F.layer_norm(wanted, [H]).tanh())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_loads_where_its_decoder_is_known_and_is_refused_elsewhere(tmp_path, name):
    vocabulary = Vocabulary.load(make_data(tmp_path / "data") / "vocabulary.json")
    config = replace(MODEL, decoder=name, embed_dim=MODEL.hidden_dim)
    with known_variants():
        decoder = make_decoder(config, len(vocabulary), DIM)
        saved = checkpoint.Checkpoint(
            decoder, config, EncoderConfig(), DecodeConfig(), vocabulary, DIM, 2
        )
        checkpoint.save(saved, tmp_path / "best")
        loaded = checkpoint.load(tmp_path / "best").decoder
    assert type(loaded) is VARIANTS[name]
    for key, value in decoder.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value)
    assert not set(DECODERS) & set(VARIANTS)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(tmp_path / "best")
