"""The fast CIDEr-D equals pycocoevalcap's, for every caption and in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_captions import all_coco_captions
from pycocoevalcap.cider.cider import Cider

from captioner.errors import MetricError
from captioner.metrics.cider import CiderD
from captioner.metrics.java import ptb_tokenize

REFERENCES = {
    "surf": ["a man rides a wave on top of a surfboard", "a surfer rides a big wave"],
    "dog": ["a dog runs through the snow", "the brown dog is not on a leash", "the dog the dog"],
    "sign": ["a red stop sign at a corner", "a sign near a tree"],
    "train": ["train"],
}
CANDIDATES = {
    "surf": "a man riding a wave on a surfboard",
    "dog": "the dog the dog the dog",
    "sign": "a red stop sign at a corner",
    "train": "",
}

WORDS = st.lists(st.sampled_from(["a", "dog", "runs", "on", "snow"]), max_size=6)
UNKNOWN = st.lists(st.sampled_from(["a", "dog", "runs", "on", "zebra", "quartz"]), max_size=8)
# One to four images: their references and a caption of each.
IMAGES = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), UNKNOWN), min_size=1).filter(
    lambda images: any(any(references) for references, _ in images)
)


def pycocoevalcap(references, candidates):
    """The corpus score and every image's, by pycocoevalcap."""
    corpus, each = Cider().compute_score(references, {k: [v] for k, v in candidates.items()})
    return corpus, dict(zip(references, each, strict=True))


def test_scores_are_those_of_pycocoevalcap():
    scorer = CiderD(REFERENCES)
    _, expected = pycocoevalcap(REFERENCES, CANDIDATES)
    assert expected["dog"] > 1  # repeated words and clipped counts are part of it
    for image, caption in CANDIDATES.items():
        assert scorer.score(image, caption) == pytest.approx(expected[image], abs=1e-9)


@given(IMAGES)
def test_any_caption_scores_as_with_pycocoevalcap(images):
    references = {key: [" ".join(words) for words in own] for key, (own, _) in enumerate(images)}
    candidates = {key: " ".join(words) for key, (_, words) in enumerate(images)}
    found = CiderD(references).scores(list(candidates), list(candidates.values()))
    corpus, expected = pycocoevalcap(references, candidates)
    assert found == pytest.approx(list(expected.values()), abs=1e-9)
    assert sum(found) / len(found) == pytest.approx(corpus, abs=1e-9)


@pytest.mark.slow
def test_all_of_coco_scores_as_with_pycocoevalcap():
    tokens = ptb_tokenize(all_coco_captions())
    references = {image: own[1:] for image, own in tokens.items()}
    candidates = {image: own[0] for image, own in tokens.items()}
    found = CiderD(references).scores(list(candidates), list(candidates.values()))
    corpus, expected = pycocoevalcap(references, candidates)
    assert found == pytest.approx(list(expected.values()), abs=1e-6)
    assert sum(found) / len(found) == pytest.approx(corpus, abs=1e-6)


def test_a_perfect_caption_scores_ten():
    scorer = CiderD({1: ["a dog runs through snow"], 2: ["two men sit on benches"]})
    assert scorer.score(1, "a dog runs through snow") == pytest.approx(10)


def test_a_score_does_not_depend_on_what_was_scored_before():
    scorer = CiderD(REFERENCES)
    images = [image for image in REFERENCES for _ in CANDIDATES]
    captions = [*CANDIDATES.values()] * len(REFERENCES)
    together = scorer.scores(images, captions)
    assert scorer.scores(images[::-1], captions[::-1]) == together[::-1]
    alone = [CiderD(REFERENCES).score(*pair) for pair in zip(images, captions, strict=True)]
    assert alone == together


def test_a_caption_may_be_its_words():
    scorer = CiderD(REFERENCES)
    for image, caption in CANDIDATES.items():
        assert scorer.score(image, caption.split()) == scorer.score(image, caption)


def test_frequencies_of_other_references_weigh_the_words():
    everything = CiderD(REFERENCES)
    some = {image: REFERENCES[image] for image in ("dog", "surf")}
    as_everywhere = CiderD(some, frequencies=everything.frequencies)
    for image in some:
        caption = CANDIDATES[image]
        assert as_everywhere.score(image, caption) == everything.score(image, caption)
        assert CiderD(some).score(image, caption) != everything.score(image, caption)


def test_words_that_the_other_references_lack_count_as_rare():
    frequencies = CiderD({1: ["a dog"], 2: ["a cat"], 3: ["a man"]}).frequencies
    scorer = CiderD({"x": ["zebra dog a"]}, frequencies=frequencies)
    assert scorer.score("x", "zebra") == pytest.approx(scorer.score("x", "dog"))
    assert scorer.score("x", "a") == 0


def test_an_image_without_references_is_an_error_that_names_it():
    with pytest.raises(MetricError, match=r"'cat' has no references"):
        CiderD(REFERENCES).score("cat", "a cat")
    with pytest.raises(MetricError, match=r"'cat' has no references"):
        CiderD({"dog": ["a dog"], "cat": []})


def test_no_references_at_all_are_an_error():
    with pytest.raises(MetricError, match="no references"):
        CiderD({})


def test_references_that_are_one_string_are_an_error():
    with pytest.raises(MetricError, match="image 1 has a string for references"):
        CiderD({1: "a dog"})


def test_fewer_captions_than_images_are_an_error():
    with pytest.raises(MetricError, match="1 captions for 2 image ids"):
        CiderD(REFERENCES).scores(["dog", "surf"], ["a dog"])
