"""Self-critical training: what is sampled, its reward, and that it is learnt."""

from dataclasses import replace

import pytest
import torch
from tiny import DIM, MODEL, make_config, make_data

from captioner.config import TrainConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.vocabulary import tokenize
from captioner.errors import ConfigError
from captioner.metrics.cider import CiderD
from captioner.model import make_decoder
from captioner.training.loop import epoch_batches, train_step
from captioner.training.resume import save_run
from captioner.training.run import prepare
from captioner.training.self_critical import END, SelfCritical

SETTINGS = TrainConfig(
    objective="self_critical", samples=3, max_words=5, batch_images=4, attention_penalty=0
)


@pytest.fixture
def data(tmp_path):
    return CaptionDataset(make_data(tmp_path / "data"), "train")


def a_decoder(data, seed=0):
    torch.manual_seed(seed)
    return make_decoder(MODEL, len(data.vocabulary), DIM).eval()


def rewards_of(target, data):
    """Return image, reward and whether it ended of each caption, from the packed batch alone."""
    scorer = CiderD(
        {
            number: [" ".join([*tokenize(caption), END]) for caption in example.captions]
            for number, example in enumerate(data.examples)
        }
    )
    rows = []
    for row, image in enumerate(target.batch.captions.image.tolist()):
        steps = [
            part[row].item()
            for part in target.batch.targets.split(target.batch.captions.batch_sizes)
            if row < len(part)
        ]
        words = data.vocabulary.decode(steps[:-1])  # the last target is EOS
        ended = len(words) < SETTINGS.max_words
        example = target.batch.examples[image]
        rows.append((image, scorer.score(example, [*words, END] if ended else words), ended))
    return rows


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_token_weighs_what_its_caption_scores_above_the_images_other_samples(data, seed):
    batch = next(data.batches(4, max_words=5, seed=seed))
    target = SelfCritical(data, SETTINGS).target(a_decoder(data), batch, seed)
    rows = rewards_of(target, data)
    assert target.figures["reward"] == pytest.approx(
        sum(reward for _, reward, _ in rows) / 12, abs=1e-5
    )
    assert [list(target.batch.captions.image).count(k) for k in range(4)] == [3] * 4
    weights = target.weights.split(target.batch.captions.batch_sizes)
    for row, (image, reward, ended) in enumerate(rows):
        others = [r for k, (p, r, _) in enumerate(rows) if p == image and k != row]
        advantage = reward - sum(others) / 2
        own = [float(part[row]) for part in weights if row < len(part)]
        if not ended:
            assert own.pop() == 0  # the end was not sampled
        assert own == pytest.approx([advantage] * len(own), abs=1e-5)


def test_with_the_greedy_baseline_a_caption_is_compared_with_the_likeliest(data):
    batch = next(data.batches(4, max_words=5))
    decoder = a_decoder(data)
    mean = SelfCritical(data, SETTINGS).target(decoder, batch, 1)
    greedy = SelfCritical(data, replace(SETTINGS, baseline="greedy")).target(decoder, batch, 1)
    assert torch.equal(mean.batch.targets, greedy.batch.targets)
    rewards = [reward for _, reward, _ in rewards_of(greedy, data)]
    baseline = torch.tensor(rewards) - greedy.weights[: len(rewards)]  # at the first step
    for image in range(4):
        own = baseline[greedy.batch.captions.image == image]
        torch.testing.assert_close(own, own[:1].expand(3), atol=1e-5, rtol=0)


def test_bleu_may_count_beside_cider(data):
    from pycocoevalcap.bleu.bleu import Bleu

    batch, decoder = next(data.batches(4, max_words=5)), a_decoder(data)
    plain, mixed = (
        SelfCritical(data, replace(SETTINGS, reward_bleu=weight)).target(decoder, batch, 1)
        for weight in (0.0, 2.0)
    )
    assert torch.equal(plain.batch.targets, mixed.batch.targets)
    written = {
        number: [" ".join([*tokenize(caption), END]) for caption in example.captions]
        for number, example in enumerate(data.examples)
    }
    perfect = SelfCritical(data, replace(SETTINGS, reward_bleu=2.0, max_words=30))
    cider = SelfCritical(data, replace(SETTINGS, max_words=30))
    for image, example in enumerate(data.examples):
        for other, tokens in enumerate(data.tokens):
            bleu = Bleu(4).compute_score(
                {0: written[image]}, {0: [" ".join([*data.vocabulary.decode(tokens[0]), END])]},
                verbose=0,
            )[0][3]  # fmt: skip
            gained = perfect._reward(image, tokens[0]) - cider._reward(image, tokens[0])
            assert gained == pytest.approx(2 * bleu, abs=1e-9)
            assert (bleu > 0.99) == (example.captions[0] == data.examples[other].captions[0])


def test_a_step_repeats_its_samples_and_another_step_has_others(data):
    batch, critic = next(data.batches(6, max_words=5)), SelfCritical(data, SETTINGS)
    first, same, other = (critic.target(a_decoder(data), batch, step) for step in (1, 1, 2))
    assert torch.equal(first.batch.targets, same.batch.targets)
    assert first.batch.targets.tolist() != other.batch.targets.tolist()


def test_the_samples_of_an_image_do_not_depend_on_its_batch(data):
    def words(batch):
        target = SelfCritical(data, SETTINGS).target(a_decoder(data), batch, 5).batch
        found = {example: [] for example in batch.examples}
        for row, image in enumerate(target.captions.image.tolist()):
            steps = [
                part[row].item()
                for part in target.targets.split(target.captions.batch_sizes)
                if row < len(part)
            ]
            found[batch.examples[image]].append(steps)
        return {example: sorted(captions) for example, captions in found.items()}

    everything = words(next(data.batches(6, max_words=5)))
    assert len({tuple(map(tuple, captions)) for captions in everything.values()}) == 6
    for seed in (1, 2):
        for batch in data.batches(2, max_words=5, seed=seed):
            for example, captions in words(batch).items():
                assert captions == everything[example]


def test_the_reward_rises_and_the_samples_grow_surer(tmp_path):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run", learning_rate=1e-2)
    settings = replace(
        config.train, objective="self_critical", samples=8, max_words=8, attention_penalty=0
    )
    run = prepare(replace(config, train=settings), resume=False)
    run.decoder.eval()
    rewards, entropies = [], []
    for _ in range(60):
        for batch in epoch_batches(run):
            figures = train_step(run, batch)
            rewards.append(figures["reward"])
            entropies.append(figures["cross_entropy"])
        run.progress.next_epoch()
    assert sum(rewards[-20:]) > 2 * sum(rewards[:20])
    assert entropies[-1] < entropies[0]  # no probability has gone to words that are never sampled


def test_training_starts_from_a_checkpoint_of_the_same_shape_only(tmp_path):
    from captioner.checkpoint import Checkpoint, save

    config = make_config(make_data(tmp_path / "data"), tmp_path / "run")
    data = CaptionDataset(config.data, "train")
    decoder = a_decoder(data, seed=7)
    encoder = data.store.encoder
    save(
        Checkpoint(decoder, MODEL, encoder, config.decode, data.vocabulary, DIM, 2),
        tmp_path / "checkpoint",
    )
    settings = replace(config.train, start=str(tmp_path / "checkpoint"), average=0.9)
    other_dropout = replace(config.model, dropout=0.3)
    run = prepare(replace(config, train=settings, model=other_dropout), resume=False)
    for part in (run.decoder, run.kept.network().decoder):
        for ours, theirs in zip(part.parameters(), decoder.parameters(), strict=True):
            assert torch.equal(ours, theirs)
    sharper = replace(settings, sharpen=2.0)
    sharp = prepare(replace(config, train=sharper, out=str(tmp_path / "sharp")), resume=False)
    batch = next(data.batches(4, max_words=5))
    torch.testing.assert_close(
        sharp.decoder.eval()(batch.features, batch.captions).logits,
        2 * decoder(batch.features, batch.captions).logits,
    )
    wider = replace(config, train=settings, model=replace(MODEL, hidden_dim=48))
    with pytest.raises(ConfigError, match=r"the model of .* is not that of the config"):
        prepare(replace(wider, out=str(tmp_path / "wider")), resume=False)
    assert not (tmp_path / "wider").exists()


def test_the_weights_kept_are_a_mean_of_those_at_the_start_and_the_trained_ones(tmp_path):
    from captioner.checkpoint import Checkpoint, save

    config = make_config(make_data(tmp_path / "data"), tmp_path / "run")
    data = CaptionDataset(config.data, "train")
    decoder = a_decoder(data, seed=7)
    start = Checkpoint(decoder, MODEL, data.store.encoder, config.decode, data.vocabulary, DIM, 2)
    save(start, tmp_path / "checkpoint")
    settings = replace(
        config.train, start=str(tmp_path / "checkpoint"), sharpen=2.0, keep_start=0.25
    )
    run = prepare(replace(config, train=settings), resume=False)
    before = {name: weight.clone() for name, weight in run.network.state_dict().items()}
    for batch in epoch_batches(run):
        train_step(run, batch)
    kept = run.kept.network().state_dict()
    for name, trained in run.network.state_dict().items():
        torch.testing.assert_close(kept[name], 0.25 * before[name] + 0.75 * trained)
    assert not torch.equal(before["decoder.out.weight"], run.decoder.out.weight)
    save_run(run, 0)
    again = prepare(replace(config, train=settings), resume=True)
    for name, weight in again.kept.network().state_dict().items():
        assert torch.equal(weight, kept[name]), name
    with pytest.raises(ConfigError, match="start is empty"):
        replace(config.train, keep_start=0.25)


@pytest.mark.parametrize("setting", ["label_smoothing", "scheduled_sampling"])
def test_settings_that_would_change_the_sampled_captions_are_refused(setting):
    with pytest.raises(ConfigError, match="set label_smoothing and scheduled_sampling to 0"):
        replace(SETTINGS, **{setting: 0.1})
