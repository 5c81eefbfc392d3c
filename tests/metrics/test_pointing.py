"""Whether attention lies on what a word names: boxes, words and both baselines."""

import json

import numpy as np
import pytest

from captioner.errors import DataError, MetricError
from captioner.metrics.pointing import category_of, pointing, read_boxes

DOG = {"dog": [(0.0, 0.0, 0.5, 0.5)]}  # the upper left quarter


def looking_at(row, column, side=4):
    grid = np.full((side, side), 0.0)
    grid[row, column] = 1
    return grid.reshape(-1)


def test_a_peak_in_the_box_counts_and_one_beside_it_does_not():
    attention = {1: np.stack([looking_at(3, 3), looking_at(1, 0)])}
    found = pointing({1: "the dog"}, attention, {1: DOG})
    assert (found.words, found.images, found.peak, found.inside) == (1, 1, 1.0, 1.0)
    attention = {1: np.stack([looking_at(0, 0), looking_at(2, 0)])}
    found = pointing({1: "the dog"}, attention, {1: DOG})
    assert (found.peak, found.inside) == (0.0, 0.0)


def test_the_baselines_are_the_centre_and_the_share_of_the_image():
    boxes = {1: {"dog": [(0.25, 0.25, 0.75, 0.75)]}, 2: DOG}
    even = np.full((1, 16), 1 / 16)
    found = pointing({1: "dog", 2: "dog"}, {1: even, 2: even}, boxes)
    assert found.centre == 1.0  # the corner of the second box is the centre, too
    assert found.uniform == pytest.approx(0.25)
    assert found.inside == pytest.approx(found.uniform)


def test_a_part_of_a_cell_counts_as_that_part():
    boxes = {1: {"cat": [(0.0, 0.0, 1.0, 0.125)]}}  # half of the upper row of four
    found = pointing({1: "cat"}, {1: looking_at(0, 2)[None]}, boxes)
    assert found.inside == pytest.approx(0.5)


def test_overlapping_boxes_of_one_category_are_counted_once():
    boxes = {1: {"dog": [(0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.5, 1.0)]}}
    assert pointing({1: "dogs"}, {1: looking_at(0, 0)[None]}, boxes).uniform == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("word", "category"),
    [("woman", "person"), ("dogs", "dog"), ("racquet", "tennis racket"), ("grass", None)],
)
def test_words_name_categories(word, category):
    assert category_of(word, ["person", "dog", "tennis racket"]) == category


def test_captions_that_name_nothing_known_are_refused():
    with pytest.raises(MetricError, match="no word of the captions names an object"):
        pointing({1: "a dog", 2: "grass"}, {1: None, 2: np.ones((1, 4))}, {1: DOG, 2: DOG})


def test_boxes_are_read_as_shares_of_their_image(tmp_path):
    path = tmp_path / "instances.json"
    content = {
        "images": [{"id": 7, "width": 200, "height": 100}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 18, "bbox": [50, 25, 100, 50]}],
    }
    path.write_text(json.dumps(content))
    assert read_boxes(path) == {7: {"dog": [(0.25, 0.25, 0.75, 0.75)]}}


@pytest.mark.parametrize("content", ["[]", '{"images": []}', '{"annotations": 3}'])
def test_other_files_are_refused_as_boxes(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(MetricError, match="not a COCO instances file"):
        read_boxes(path)
    with pytest.raises(DataError, match="no file"):
        read_boxes(tmp_path / "missing.json")
