"""Diversity equals values computed by hand for a few short captions."""

from math import exp, log, sqrt

import pytest
from pycocoevalcap.bleu.bleu import Bleu

from captioner.errors import MetricError
from captioner.metrics.cider import CiderD
from captioner.metrics.diversity import diversity

# Two images, so that every word weighs something; four words, so that there are 4-grams.
ALIKE = {1: ["a dog runs home"] * 3, 2: ["two men sit outside"] * 3}
UNLIKE = {
    1: ["a dog runs home", "brown pets like snow"],
    2: ["two men sit outside", "some people eat cake"],
}


def test_equal_captions_have_no_diversity():
    found = diversity(ALIKE)
    assert found["distinct captions"] == pytest.approx(2 / 6)
    assert found["distinct-1"] == pytest.approx(4 / 12)
    assert found["distinct-2"] == pytest.approx(3 / 12)
    assert found["mBLEU-4"] == pytest.approx(1)
    assert found["self-CIDEr"] == pytest.approx(0, abs=1e-6)
    assert found["words"] == 8


def test_captions_with_nothing_in_common_have_full_diversity():
    found = diversity(UNLIKE)
    assert found["distinct captions"] == 1
    assert found["distinct-1"] == 1
    assert found["distinct-2"] == pytest.approx(6 / 8)
    assert found["mBLEU-4"] == pytest.approx(0, abs=1e-6)
    assert found["self-CIDEr"] == pytest.approx(1)
    assert found["words"] == 16


def test_images_count_alike_whatever_the_number_of_their_words():
    found = diversity({1: ["a dog", "a dog"], 2: ["a cat sits", "two men eat"]})
    assert found["distinct-1"] == pytest.approx((2 / 4 + 6 / 6) / 2)
    assert found["distinct-2"] == pytest.approx((1 / 4 + 4 / 6) / 2)
    assert found["words"] == 7


def test_mutual_bleu_is_that_of_each_caption_against_the_others():
    several = ["a dog runs home", "a dog runs home now"]
    shorter = exp(1 - 5 / 4)
    longer = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    found = diversity({1: several, 2: several})
    assert found["mBLEU-4"] == pytest.approx((shorter + longer) / 2)


def test_mutual_bleu_is_that_of_the_corpus_for_first_second_and_third_captions():
    captions = {
        1: ["a dog runs home in snow", "a dog runs", "the dog runs home in snow now"],
        2: ["two men sit outside a bar", "men sit outside a bar", "two men sit outside a house"],
    }
    expected = []
    for place in range(3):
        others = {image: own[:place] + own[place + 1 :] for image, own in captions.items()}
        chosen = {image: [own[place]] for image, own in captions.items()}
        expected.append(Bleu().compute_score(others, chosen, verbose=0)[0][3])
    assert diversity(captions)["mBLEU-4"] == pytest.approx(sum(expected) / 3)


def test_mutual_bleu_weighs_captions_alike_where_an_image_has_more_of_them():
    captions = {1: ["a dog runs home"] * 2, 2: ["two men sit outside"] * 2 + ["no more words here"]}
    assert diversity(captions)["mBLEU-4"] == pytest.approx(4 / 5, abs=1e-6)


def test_self_cider_is_the_share_of_the_largest_singular_value():
    # The matrix is 10, 10, 0 / 10, 10, 0 / 0, 0, 10: eigenvalues 20, 10, 0.
    several = ["a dog runs home", "a dog runs home", "brown pets like snow"]
    found = diversity({1: several, 2: ["two men sit outside"] * 3})
    expected = -log(sqrt(2) / (sqrt(2) + 1), 3)
    assert found["self-CIDEr"] == pytest.approx((expected + 0) / 2, abs=1e-6)


def test_the_order_of_captions_changes_nothing_in_self_cider():
    several = ["a dog and a dog and a cat", "a dog and a cat", "the cat and a dog run a lot"]
    other = ["two men sit outside", "a man sits"]
    one, another = (
        diversity({1: order, 2: other})["self-CIDEr"] for order in (several, several[::-1])
    )
    assert 0 < one < 1
    assert one == pytest.approx(another)


def test_a_single_image_is_measured_with_given_frequencies():
    frequencies = CiderD({1: ["a dog runs home"], 2: ["two men sit outside"]}).frequencies
    alike = diversity({"x": ALIKE[1]}, frequencies=frequencies)
    unlike = diversity({"x": UNLIKE[1]}, frequencies=frequencies)
    assert alike["self-CIDEr"] == pytest.approx(0, abs=1e-6)
    assert unlike["self-CIDEr"] == pytest.approx(1)
    with pytest.raises(MetricError, match="two images or more, or the training set's frequencies"):
        diversity({"x": UNLIKE[1]})


def test_frequent_words_count_less_in_self_cider():
    captions = {"x": ["a man runs along here", "a man sits down now"]}
    rare = CiderD({1: ["a dog"], 2: ["the snow"], 3: ["two cats"]}).frequencies
    frequent = CiderD({1: ["a man"], 2: ["a man"], 3: ["two cats"]}).frequencies
    found = [diversity(captions, frequencies=own)["self-CIDEr"] for own in (rare, frequent)]
    assert found[0] < found[1]


def test_the_same_captions_for_every_image_have_no_diversity():
    assert diversity({1: ["a dog", "a cat"], 2: ["a dog", "a cat"]})["self-CIDEr"] == 0


def test_captions_without_a_word_have_no_diversity():
    found = diversity({1: ["", ""], 2: ["", ""]})
    assert found == {
        "distinct captions": 0.25,
        "distinct-1": 0,
        "distinct-2": 0,
        "mBLEU-4": pytest.approx(0, abs=1e-6),
        "self-CIDEr": 0,
        "words": 0,
    }


def test_a_single_caption_is_an_error_that_names_the_image():
    with pytest.raises(MetricError, match=r"'b\.jpg' has 1 captions; diversity needs two"):
        diversity({"a.jpg": ["a dog", "a cat"], "b.jpg": ["a dog"]})


def test_no_captions_and_captions_that_are_one_string_are_errors():
    with pytest.raises(MetricError, match="no captions to compare"):
        diversity({})
    with pytest.raises(MetricError, match="image 1 has a string for captions"):
        diversity({1: "a dog"})
