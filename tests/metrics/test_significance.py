"""Corpus scores from sums equal the metrics' own; intervals and p-values are calibrated."""

import itertools
import math

import numpy as np
import pytest
from metric_captions import CANDIDATES, REFERENCES, coco_captions

from captioner.errors import MetricError
from captioner.metrics import significance
from captioner.metrics.scorer import score
from captioner.metrics.scores import METRICS, Scores
from captioner.metrics.significance import Interval, compare, corpus_score, intervals


def scores_of(**sums):
    """Scores with given statistics; BLEU_4 stands for BLEU-4."""
    arrays = {name.replace("_", "-"): np.array(own, float) for name, own in sums.items()}
    arrays = {name: own if own.ndim == 2 else own[:, None] for name, own in arrays.items()}
    return Scores(
        {name: float(corpus_score(name, own.sum(0), len(own))) for name, own in arrays.items()},
        {name: dict(enumerate(corpus_score(name, own, 1))) for name, own in arrays.items()},
        arrays,
    )


def bleu_statistics(rng, images, share):
    """Statistics of captions of 8 to 12 words of which a share is right."""
    length = rng.integers(8, 13, images)
    guesses = length[:, None] - np.arange(4)
    matches = rng.binomial(guesses, share ** np.arange(1, 5))
    return np.hstack([matches, guesses, length[:, None], rng.integers(8, 13, (images, 1))])


@pytest.mark.slow
def test_the_sums_give_the_scores_of_the_corpus_and_of_every_image():
    candidates, references = coco_captions(images=100)
    (first, second, third, *_) = candidates
    candidates[first] = references[first][0]  # wholly right
    candidates[second], candidates[third] = "", "xyzzy"
    scores = score({**candidates, **CANDIDATES}, {**references, **REFERENCES})
    assert tuple(scores.sums) == METRICS
    for name, sums in scores.sums.items():
        corpus = corpus_score(name, sums.sum(0), len(sums))
        assert corpus == pytest.approx(scores.values[name], abs=1e-12), name
        images = list(scores.per_image[name].values())
        assert corpus_score(name, sums, 1) == pytest.approx(images, abs=1e-12), name


def test_many_sums_are_scored_at_once():
    sums = bleu_statistics(np.random.default_rng(0), 6, 0.7).astype(float).reshape(2, 3, 10)
    several = corpus_score("BLEU-2", sums, 1)
    assert several.shape == (2, 3)
    assert several[1, 2] == corpus_score("BLEU-2", sums[1, 2], 1)


def test_an_interval_is_that_of_the_mean_and_shrinks_with_the_root_of_the_images():
    values = np.random.default_rng(0).normal(1, 0.5, 1600)
    for images in (100, 400, 1600):
        found = intervals(scores_of(CIDEr=values[:images]), samples=4000)["CIDEr"]
        error = values[:images].std() / math.sqrt(images)
        assert found.low == pytest.approx(values[:images].mean() - 1.96 * error, abs=0.15 * error)
        assert found.high == pytest.approx(values[:images].mean() + 1.96 * error, abs=0.15 * error)


def test_nineteen_of_twenty_intervals_hold_the_true_value():
    rng = np.random.default_rng(1)
    found = [intervals(scores_of(CIDEr=rng.normal(1, 1, 100)), samples=300) for _ in range(400)]
    held = np.mean([own["CIDEr"].low < 1 < own["CIDEr"].high for own in found])
    assert 0.91 < held < 0.97


def test_a_higher_level_gives_a_wider_interval_and_a_seed_the_same_one():
    scores = scores_of(BLEU_4=bleu_statistics(np.random.default_rng(2), 200, 0.7))
    usual, wide = intervals(scores)["BLEU-4"], intervals(scores, level=0.99)["BLEU-4"]
    assert wide.low < usual.low < scores.values["BLEU-4"] < usual.high < wide.high
    assert intervals(scores)["BLEU-4"] == usual
    assert intervals(scores, seed=1)["BLEU-4"] != usual


def test_the_interval_of_bleu_is_that_of_whole_corpora_resampled_one_by_one(monkeypatch):
    sums = bleu_statistics(np.random.default_rng(3), 50, 0.7)
    rng = np.random.default_rng(0)
    resampled = [
        corpus_score("BLEU-3", sums[rng.integers(50, size=50)].sum(0), 50) for _ in range(99)
    ]
    monkeypatch.setattr(significance, "CHUNK", 1000)  # 20 corpora at a time
    found = intervals(scores_of(BLEU_3=sums), samples=99)["BLEU-3"]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])))


def test_a_system_does_not_differ_from_itself():
    sums = bleu_statistics(np.random.default_rng(4), 30, 0.7)
    scores = scores_of(BLEU_4=sums, CIDEr=np.random.default_rng(5).random(30))
    for found in compare(scores, scores, samples=50).values():
        assert (found.difference, found.interval, found.p_value) == (0, Interval(0, 0), 1)


def test_a_clearly_better_system_has_the_smallest_p_value():
    rng = np.random.default_rng(6)
    ours = scores_of(BLEU_4=bleu_statistics(rng, 300, 0.8), CIDEr=rng.normal(1.2, 0.5, 300))
    theirs = scores_of(BLEU_4=bleu_statistics(rng, 300, 0.6), CIDEr=rng.normal(1, 0.5, 300))
    better, worse = compare(ours, theirs), compare(theirs, ours)
    for name in ("BLEU-4", "CIDEr"):
        assert better[name].difference == ours.values[name] - theirs.values[name]
        assert better[name].interval.low > 0 > worse[name].interval.high
        assert better[name].p_value == worse[name].p_value == 1 / 1001
        assert worse[name].difference == -better[name].difference


def test_p_values_of_equal_systems_are_uniform():
    rng = np.random.default_rng(7)
    p_values = {"BLEU-4": [], "CIDEr": []}
    for _ in range(300):
        hard = rng.normal(size=60)  # an image that is hard is so for both
        ours, theirs = (
            scores_of(BLEU_4=bleu_statistics(rng, 60, 0.7), CIDEr=hard + rng.normal(size=60))
            for _ in range(2)
        )
        for name, found in compare(ours, theirs, samples=199, seed=int(rng.integers(1000))).items():
            p_values[name].append(found.p_value)
    for found in p_values.values():
        for share in (0.05, 0.25, 0.5, 0.75):
            assert np.mean(np.array(found) <= share) == pytest.approx(share, abs=0.08)


def test_the_p_value_is_the_share_of_all_swaps_that_differ_as_much():
    rng = np.random.default_rng(8)
    ours, theirs = bleu_statistics(rng, 8, 0.85), bleu_statistics(rng, 8, 0.6)

    def difference(swaps):
        mixed = [np.where(swaps, theirs, ours), np.where(swaps, ours, theirs)]
        return np.subtract(*[corpus_score("BLEU-1", own.sum(0), 8) for own in mixed])

    every = [difference(np.array(own)[:, None]) for own in itertools.product((0, 1), repeat=8)]
    exact = np.mean(np.abs(every) >= abs(every[0]) - 1e-12)
    assert 0.01 < exact < 0.5
    found = compare(scores_of(BLEU_1=ours), scores_of(BLEU_1=theirs), samples=9999)["BLEU-1"]
    assert found.p_value == pytest.approx(exact, abs=0.015)


def test_images_are_paired_by_their_ids_and_not_by_their_order():
    values = np.random.default_rng(9).random(20)
    ours = scores_of(CIDEr=values + np.linspace(0, 0.1, 20), BLEU_1=np.ones((20, 10)))
    theirs = scores_of(CIDEr=values)
    order = np.random.default_rng(10).permutation(20)
    moved = Scores(
        theirs.values,
        {"CIDEr": {int(image): values[image] for image in order}},
        {"CIDEr": values[order, None]},
    )
    assert compare(ours, moved) == compare(ours, theirs)
    assert list(compare(ours, theirs)) == ["CIDEr"]


def test_scores_of_different_images_are_not_compared():
    ours, theirs = scores_of(CIDEr=[1, 2, 3]), scores_of(CIDEr=[1, 2])
    with pytest.raises(MetricError, match=r"different images \(3 and 2\): 2 is in one alone"):
        compare(ours, theirs)
    with pytest.raises(MetricError, match=r"different images \(2 and 3\): 2 is in one alone"):
        compare(theirs, ours)


@pytest.mark.parametrize("wrong", [{"level": 95}, {"level": 0}, {"samples": 0}])
def test_an_impossible_level_or_number_of_samples_is_an_error(wrong):
    scores = scores_of(CIDEr=[1, 2, 3])
    for function in (lambda: intervals(scores, **wrong), lambda: compare(scores, scores, **wrong)):
        with pytest.raises(MetricError, match="give"):
            function()
