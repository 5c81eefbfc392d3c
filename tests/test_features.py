"""The feature store keeps what was written, survives interruption and refuses damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from captioner.config import EncoderConfig
from captioner.errors import CaptionerError, DataError
from captioner.features import DONE, PENDING, UNREADABLE, FeatureStore

KEYS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
SHAPE = (2, 3, 5)  # views, L, D
ENCODER = EncoderConfig("efficientnet_lite0")


def create(folder: Path, **changed: object) -> FeatureStore:
    arguments = {"keys": KEYS, "shape": SHAPE, "encoder": ENCODER} | changed
    return FeatureStore.create(folder, **arguments)


def random_features(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, *SHAPE)).astype(np.float16)


def test_what_is_written_is_read_back_by_another_store(tmp_path):
    features = random_features(2)
    create(tmp_path).write([2, 0], features)
    store = FeatureStore(tmp_path)
    assert store.keys == KEYS
    assert store.encoder == ENCODER
    assert (store.views, store.cells, store.dim) == SHAPE
    np.testing.assert_array_equal(store.values[[2, 0]], features)
    assert list(store.state) == [DONE, PENDING, DONE, PENDING]


def test_the_writing_store_sees_its_own_values(tmp_path):
    store, features = create(tmp_path), random_features(1)
    store.write([3], features)
    np.testing.assert_array_equal(store.values[3], features[0])


def test_single_precision_features_are_stored_in_half_precision(tmp_path):
    store = create(tmp_path)
    store.write([0], np.full((1, *SHAPE), 1 / 3, np.float32))
    assert np.all(store.values[0] == np.float16(1 / 3))


def test_a_store_opened_again_goes_on_with_the_rows_that_have_no_features(tmp_path):
    store = create(tmp_path)
    assert store.pending() == [0, 1, 2, 3]
    store.write([1], random_features(1))
    store.mark_unreadable(2)
    again = create(tmp_path)
    assert again.pending() == [0, 2, 3]  # an unreadable picture may have been mended
    assert again.state[2] == UNREADABLE
    np.testing.assert_array_equal(again.values[1], random_features(1)[0])


def test_a_new_store_takes_no_space_for_what_is_not_written(tmp_path):
    create(tmp_path, shape=(1, 1000, 1000))
    assert (tmp_path / "features.f16").stat().st_blocks * 512 < 100_000


@pytest.mark.parametrize("kept", [[], ["features.f16"], ["features.f16", "features.state"]])
def test_a_store_half_created_is_created_anew(tmp_path, kept):
    create(tmp_path).write([0], random_features(1))
    for name in ("features.json", "features.f16", "features.state"):
        if name not in kept:
            (tmp_path / name).unlink()
    (tmp_path / "features.json.part").write_text('{"shape": [2,')
    assert create(tmp_path).pending() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changed",
    [
        {"keys": ["a.jpg", "b.jpg", "c.jpg", "x.jpg"]},
        {"keys": KEYS[::-1]},
        {"keys": KEYS[:3]},
        {"shape": (1, 3, 5)},
        {"encoder": EncoderConfig("efficientnet_lite2")},
        {"encoder": EncoderConfig("efficientnet_lite0", resize="crop")},
    ],
)
def test_features_of_other_pictures_or_settings_are_not_mixed(tmp_path, changed):
    create(tmp_path)
    with pytest.raises(DataError, match="other pictures or with other encoder settings"):
        create(tmp_path, **changed)


def test_a_disk_without_room_is_noticed_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"the features need .* GB but .* GB free"):
        create(tmp_path, shape=(2, 10**7, 10**7))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_that_fills_up_is_an_error_that_keeps_the_rest(tmp_path):
    store = create(tmp_path)
    store.write([0], random_features(1))
    (tmp_path / "features.f16").rename(tmp_path / "aside")
    (tmp_path / "features.f16").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"No space left on device; .* goes on where it stopped"):
        store.write([1], random_features(1))
    (tmp_path / "aside").replace(tmp_path / "features.f16")
    assert create(tmp_path).pending() == [1, 2, 3]


@pytest.mark.skipif(os.name == "nt", reason="needs a path that cannot be a file")
def test_a_store_that_cannot_be_created_says_so(tmp_path):
    (tmp_path / "features.f16").mkdir()
    with pytest.raises(DataError, match=r"cannot write features to .*Is a directory"):
        create(tmp_path)


# --- damaged stores --------------------------------------------------------------------------


def test_a_folder_without_features_says_how_to_make_them(tmp_path):
    with pytest.raises(DataError, match=r"no features at .*python -m data_prep"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("name", ["features.f16", "features.state"])
def test_a_truncated_file_is_refused(tmp_path, name):
    create(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name} has .* bytes, expected .*truncated"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("name", ["features.f16", "features.state"])
def test_a_missing_file_is_refused(tmp_path, name):
    create(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        FeatureStore(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 2]},
        {"shape": [0, 3, 5]},
        {"shape": "big"},
        {"keys": None},
        {"keys": []},
        {"encoder": "resnet101"},
        {"encoder": {"name": "efficientnet_lite0", "colour": "red"}},
    ],
)
def test_a_header_with_an_impossible_value_is_refused(tmp_path, change):
    create(tmp_path)
    path = tmp_path / "features.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CaptionerError, match=r"features\.json"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\x00"])
def test_a_damaged_header_is_refused(tmp_path, content):
    create(tmp_path)
    (tmp_path / "features.json").write_bytes(content)
    with pytest.raises(DataError, match=r"features\.json"):
        FeatureStore(tmp_path)


def test_reading_cannot_change_a_store(tmp_path):
    create(tmp_path)
    store = FeatureStore(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        store.state[0] = DONE
    with pytest.raises(ValueError, match="read-only"):
        store.values[0] = 1
