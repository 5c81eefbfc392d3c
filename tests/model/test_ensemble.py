"""Several checkpoints that caption together."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_cli import CAT, fails
from tiny import CAPTIONS, DIM, MODEL, make_data, random_features

import captioner
from captioner.checkpoint import Checkpoint, save
from captioner.cli import main
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.vocabulary import BOS, EOS, UNWRITTEN, Vocabulary
from captioner.errors import CheckpointError
from captioner.evaluate import caption_split, evaluate
from captioner.model.decoder import DECODERS, make_decoder
from captioner.model.ensemble import Ensemble, load_members, members, writer
from captioner.search import search

WORDS = Vocabulary.build(CAPTIONS, 1)
BEAM = DecodeConfig(beam_size=3, max_words=8)
LITE = EncoderConfig("efficientnet_lite0", image_size=64)


def decoder(kind, seed=0, dim=DIM):
    """A decoder with random weights, large enough to mean something by its words."""
    torch.manual_seed(seed)
    made = make_decoder(replace(MODEL, decoder=kind), len(WORDS), dim).eval()
    for weight in made.parameters():
        weight.data *= 3
    return made


def checkpoint(kind="show_attend_tell", seed=0, words=WORDS, encoder=LITE, dim=DIM, grid=2):
    model = replace(MODEL, decoder=kind)
    made = decoder(kind, seed, dim) if words is WORDS else make_decoder(model, len(words), dim)
    return Checkpoint(made, model, encoder, BEAM, words, dim, grid)


def found_by(writes, config, features):
    memory, state = writes.start(features)
    return search(partial(writes.step, memory), state, config)


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("sampled", [False, True])
def test_one_decoder_twice_captions_as_it_does_alone(kind, sampled):
    alone, features = decoder(kind), random_features(4, torch.float32)
    config = replace(BEAM, sample=sampled, captions=3)
    for ours, theirs in zip(
        found_by(Ensemble([alone, alone]), config, features),
        found_by(alone, config, features),
        strict=True,
    ):
        assert [h.tokens for h in ours] == [h.tokens for h in theirs]
        assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)
        for one, other in zip(ours, theirs, strict=True):
            if kind == "show_tell":
                assert one.attention is other.attention is None
            else:
                torch.testing.assert_close(one.attention, other.attention)


def test_probabilities_and_attention_are_the_mean_of_the_members_word_by_word():
    decoders = [decoder(kind, seed) for seed, kind in enumerate(DECODERS)]
    features = random_features(2, torch.float32)
    several = Ensemble(decoders)
    memory, state = several.start(features)
    own = [one.start(features) for one in decoders]
    image, rows = torch.arange(2), torch.tensor([1, 0, 0])  # as a search takes rows on
    for words in ([BOS, BOS], [7, 9, 5], [6, 5, 8]):
        tokens = torch.tensor(words)
        log_probs, state, attention = several.step(memory, tokens, state, image)
        steps = [
            one.step(kept, tokens, hc, image) for one, (kept, hc) in zip(decoders, own, strict=True)
        ]
        mean = torch.stack([logits.softmax(-1) for logits, _, _ in steps]).mean(0)
        torch.testing.assert_close(log_probs.exp(), mean)
        looks = [look for _, _, look in steps if look is not None]
        assert len(looks) == 2  # ShowTell has none
        torch.testing.assert_close(attention, torch.stack(looks).mean(0))
        image, state = image[rows].sort().values, tuple(part[rows] for part in state)
        own = [
            (kept, tuple(part[rows] for part in hc))
            for (kept, _), (_, hc, _) in zip(own, steps, strict=True)
        ]
        rows = torch.tensor([2, 1, 0])


def test_the_score_of_a_caption_is_that_of_the_mean_probabilities():
    decoders = [decoder(kind, seed) for seed, kind in enumerate(DECODERS)]
    features = random_features(3, torch.float32)
    config = replace(BEAM, length_norm=0)
    for picture, found in enumerate(found_by(Ensemble(decoders), config, features)):
        for hypothesis in found:
            words, log_prob = hypothesis.tokens, 0.0
            own = [one.start(features[picture : picture + 1]) for one in decoders]
            following = [*words, EOS][: config.max_words]  # the end of a cut one was not written
            for t, (last, word) in enumerate(zip([BOS, *words], following, strict=False)):
                steps = [
                    one.step(kept, torch.tensor([last]), hc, torch.tensor([0]))
                    for one, (kept, hc) in zip(decoders, own, strict=True)
                ]
                mean = torch.stack([logits[0].softmax(-1) for logits, _, _ in steps]).mean(0)
                mean[[*UNWRITTEN, EOS] if t == 0 else UNWRITTEN] = 0
                log_prob += (mean[word] / mean.sum()).log().item()
                own = [(kept, hc) for (kept, _), (_, hc, _) in zip(own, steps, strict=True)]
            assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-3)


def test_one_checkpoint_writes_with_its_own_decoder_and_several_do_not_learn():
    alone = checkpoint()
    assert writer(members(alone)) is alone.decoder
    several = writer(members([alone, checkpoint("adaptive")]))
    assert isinstance(several, Ensemble)
    assert not any(part.training for part in several.modules())


def test_a_mean_attention_needs_one_grid_and_one_view_of_the_picture():
    coarse, finer = checkpoint(), checkpoint(seed=1, grid=3)
    cropped = checkpoint(seed=1, encoder=replace(LITE, resize="crop"))
    blind = checkpoint("show_tell", grid=3)
    features = random_features(1, torch.float32)

    def looks(*several):
        return found_by(writer(members(several)), BEAM, features)[0][0].attention is not None

    assert looks(coarse, checkpoint("adaptive"))
    assert looks(coarse, blind)
    assert not looks(coarse, finer)
    assert not looks(coarse, cropped)
    assert not looks(blind, blind)


def test_other_words_and_no_checkpoint_are_refused_with_the_names(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    save(checkpoint(), ours)
    save(checkpoint(words=Vocabulary.build(["two other words"], 1)), theirs)
    with pytest.raises(CheckpointError, match=f"{theirs} has another vocabulary than {ours}"):
        load_members([ours, ours, theirs])
    turned = Vocabulary([*WORDS.words[:4], *reversed(WORDS.words[4:])])
    with pytest.raises(CheckpointError, match=r"checkpoint 2 has .* in another order"):
        members([checkpoint(), checkpoint(words=turned)])
    with pytest.raises(CheckpointError, match="no checkpoint is given"):
        captioner.load([])


def test_each_encoder_runs_once_and_gives_its_members_their_features():
    finer = replace(LITE, image_size=96)
    several = captioner.Captioner(
        [
            checkpoint("show_tell", 0, dim=1280),
            checkpoint("adaptive", 1, encoder=finer, dim=1280, grid=3),
            checkpoint("show_attend_tell", 2, encoder=finer, dim=1280, grid=3),
        ]
    )
    assert several.encoder.config == finer  # the attention lies over its cells
    runs = []
    for encoder in several._encoders.values():
        encoder.register_forward_hook(lambda made, _, out: runs.append((made.config, out)))
    caption = several.caption(CAT)
    assert {config for config, _ in runs} == {LITE, finer}
    assert len(runs) == 2
    assert caption.attention.shape == (len(caption.words), 3, 3)
    features = dict(runs)
    with torch.inference_mode():
        memory, state = several.decoder.start(features[LITE], features[finer], features[finer])
        step = partial(several.decoder.step, memory)
        best = search(step, state, BEAM, WORDS.bad_endings())[0][0]
    assert list(caption.words) == WORDS.decode(best.tokens)
    assert caption.score == pytest.approx(best.score, abs=1e-4)


@pytest.mark.parametrize("kinds", [["adaptive"], ["show_attend_tell", "adaptive"]])
def test_a_weight_changed_after_a_caption_is_seen_by_the_next(kinds):
    parts = [checkpoint(kind, number, dim=1280) for number, kind in enumerate(kinds)]
    model = captioner.Captioner(parts)
    before = model.caption(CAT)
    for part in parts:
        cells = part.decoder.project or part.decoder.key  # (32, 1280): large enough to be packed
        cells.weight.data[::2] += 1
    after, wanted = model.caption(CAT), captioner.Captioner(parts).caption(CAT)
    assert after.words == wanted.words
    assert after.score == pytest.approx(wanted.score, abs=1e-4)
    assert abs(after.score - before.score) > 1e-3


def test_captioners_write_the_same_from_several_threads():
    several = [
        captioner.Captioner([checkpoint("adaptive", seed, dim=1280)] * members)
        for seed, members in ((0, 1), (1, 2))
    ]
    wanted = [model.caption(CAT) for model in several]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: several[number % 2].caption(CAT), range(12)))
    for number, caption in enumerate(found):
        assert caption.words == wanted[number % 2].words
        assert caption.score == pytest.approx(wanted[number % 2].score, abs=1e-4)


def test_prepared_features_must_be_of_every_members_encoder(tmp_path):
    data = make_data(tmp_path / "data")
    lite = EncoderConfig("efficientnet_lite0")
    pair = [checkpoint(encoder=lite), checkpoint("adaptive", encoder=EncoderConfig("resnet18"))]
    with pytest.raises(CheckpointError, match="prepare the data with the checkpoint's encoder"):
        evaluate(pair, data, "val", BEAM)


def test_a_split_is_captioned_by_all_members(tmp_path):
    dataset = CaptionDataset(make_data(tmp_path / "data"), "val")
    pair = Ensemble([decoder("show_tell"), decoder("adaptive", 1)])
    found = caption_split(pair, dataset, BEAM, batch_images=4)
    wanted = found_by(pair, BEAM, dataset.features(range(6)))
    assert [h[0].tokens for h in found.values()] == [h[0].tokens for h in wanted]
    assert not any(part.training for part in pair.modules())


@pytest.fixture
def pair(tmp_path):
    """Folders of two checkpoints with random weights for pictures."""
    for name, kind in (("a", "show_attend_tell"), ("b", "adaptive")):
        save(checkpoint(kind, ord(name), dim=1280), tmp_path / name)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def printed(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_command_captions_with_several_checkpoints(pair, capsys, tmp_path):
    named = ["--checkpoint", pair[0], "--checkpoint", pair[1]]
    both = printed(capsys, "caption", *named, "--json", CAT)
    one = captioner.load(pair).caption(CAT)
    assert both["caption"] == one.text
    assert both["score"] == pytest.approx(one.score, abs=1e-4)
    scores = [captioner.load(path).caption(CAT).score for path in pair]
    assert all(abs(both["score"] - score) > 1e-3 for score in scores)  # neither of them alone
    save(checkpoint(words=Vocabulary.build(["two other words"], 1)), tmp_path / "c")
    line = fails(capsys, "caption", CAT, *named, "--checkpoint", tmp_path / "c")
    assert f"{tmp_path / 'c'} has another vocabulary than {pair[0]}" in line


@pytest.mark.slow
def test_the_command_evaluates_several_checkpoints(capsys, tmp_path):
    data, lite = make_data(tmp_path / "data"), EncoderConfig("efficientnet_lite0")
    folders = [tmp_path / kind for kind in DECODERS]
    for folder in folders:
        save(checkpoint(folder.name, encoder=lite), folder)
    out, page = tmp_path / "out.json", tmp_path / "report.html"
    options = ["--data", data, "--metrics", "CIDEr", "--out", out, "--report", page]
    printed(capsys, "evaluate", *folders, *options, "--diversity", "2", "--json")
    wanted = evaluate(load_members(folders), data, "val", BEAM, metrics=("CIDEr",)).captions
    assert {e["image_id"]: e["caption"] for e in json.loads(out.read_text())} == wanted
    assert "show_tell + show_attend_tell + adaptive" in page.read_text()
