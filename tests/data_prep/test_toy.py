"""The captions of the toy data set are true of its images."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from captioner.data.feature_store import FeatureStore
from data_prep import toy
from data_prep.__main__ import main


def test_the_toy_is_prepared_with_three_splits(tmp_path, capsys):
    assert main(["toy", "--out", str(tmp_path), "--images", "20", "--image-size", "32"]) == 0
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert sorted(e["split"] for e in examples) == ["test"] * 2 + ["train"] * 16 + ["val"] * 2
    assert all(len(set(example["captions"])) == 5 for example in examples)
    assert all((tmp_path / "images" / example["image"]).is_file() for example in examples)
    assert FeatureStore(tmp_path).views == 1
    assert "train: 16 images, 80 captions" in capsys.readouterr().out


def test_the_same_seed_draws_the_same_toy_and_another_seed_another(tmp_path):
    first = toy.draw(tmp_path / "a", 3, 0)
    again = toy.draw(tmp_path / "b", 5, 0)
    other = toy.draw(tmp_path / "c", 3, 1)
    assert [r.captions for r in again[:3]] == [r.captions for r in first]
    assert [r.path.read_bytes() for r in again[:3]] == [r.path.read_bytes() for r in first]
    assert not {r.key for r in first} & {r.key for r in other}
    assert [r.captions for r in other] != [r.captions for r in first]


def test_toy_captions_say_where_the_shapes_are():
    """The centres of the two colours agree with the first caption."""
    seen = set()
    for number in range(60):
        image, captions = toy.scene(np.random.default_rng(number))
        words = captions[0].split()
        first, second, relation = words[2], words[-2], words[4]
        (x1, y1), (x2, y2) = (place_of(image, toy.COLOURS[colour]) for colour in (first, second))
        seen.add(relation)
        if relation == "above":
            assert y2 - y1 > 60, captions[0]
        elif relation == "left":
            assert x2 - x1 > 60, captions[0]
        else:
            assert relation == "inside"
            assert abs(x1 - x2) + abs(y1 - y2) < 20, captions[0]
            assert words[1] == "small"
            assert words[-3] == "big"
    assert seen == {"above", "left", "inside"}


def place_of(image: Image.Image, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Return the centre of the pixels near a colour."""
    near = np.abs(np.asarray(image).astype(int) - colour).max(-1) <= 14
    rows, columns = np.nonzero(near)
    return columns.mean(), rows.mean()
