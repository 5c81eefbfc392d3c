"""The feature store keeps what was written, survives interruption and refuses damaged files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from captioner.config import EncoderConfig
from captioner.data import feature_store as features_module
from captioner.data.feature_store import (
    DONE,
    PENDING,
    UNREADABLE,
    FeatureStore,
    Source,
    read_sources,
)
from captioner.errors import CaptionerError, DataError

KEYS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
SHAPE = (2, 3, 5)  # views, L, D
ENCODER = EncoderConfig("efficientnet_lite0")


def create(folder: Path, **changed: object) -> FeatureStore:
    arguments = {"keys": KEYS, "shape": SHAPE, "encoder": ENCODER} | changed
    return FeatureStore.create(folder, **arguments)


def random_features(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, *SHAPE)).astype(np.float16)


def test_written_features_are_read_back_by_another_store(tmp_path):
    features = random_features(2)
    create(tmp_path).write([2, 0], features)
    store = FeatureStore(tmp_path)
    assert store.keys == KEYS
    assert store.encoder == ENCODER
    assert (store.views, store.cells, store.dim) == SHAPE
    np.testing.assert_array_equal(store.values[[2, 0]], features)
    assert list(store.state) == [DONE, PENDING, DONE, PENDING]


def test_the_writing_store_reads_its_own_values(tmp_path):
    store, features = create(tmp_path), random_features(1)
    store.write([3], features)
    np.testing.assert_array_equal(store.values[3], features[0])


def test_single_precision_features_are_stored_in_half_precision(tmp_path):
    store = create(tmp_path)
    store.write([0], np.full((1, *SHAPE), 1 / 3, np.float32))
    assert np.all(store.values[0] == np.float16(1 / 3))


def test_a_store_opened_again_resumes_with_the_rows_that_have_no_features(tmp_path):
    store = create(tmp_path)
    assert store.pending() == [0, 1, 2, 3]
    store.write([1], random_features(1))
    store.mark_unreadable(2)
    again = create(tmp_path)
    assert again.pending() == [0, 2, 3]  # an unreadable image may have been repaired
    assert again.state[2] == UNREADABLE
    np.testing.assert_array_equal(again.values[1], random_features(1)[0])


def test_a_new_store_takes_no_space_for_pending_rows(tmp_path):
    create(tmp_path, shape=(1, 1000, 1000))
    assert (tmp_path / "features.f16").stat().st_blocks * 512 < 100_000


@pytest.mark.parametrize("kept", [[], ["features.f16"], ["features.f16", "features.state"]])
def test_a_store_that_was_half_created_is_created_again(tmp_path, kept):
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
def test_features_of_other_images_or_settings_are_not_mixed(tmp_path, changed):
    create(tmp_path)
    with pytest.raises(DataError, match="other images or with other encoder settings"):
        create(tmp_path, **changed)


def test_a_disk_that_is_too_small_is_reported_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"the features need .* GB, but .* GB are free"):
        create(tmp_path, shape=(2, 10**7, 10**7))
    assert not list(tmp_path.iterdir())


# --- stores of files that change ---------------------------------------------------------------


def source(content: str) -> Source:
    return Source(content, (1, 1, 1, 1))


def finished(folder: Path, contents: dict[str, str]) -> dict[str, np.ndarray]:
    """A store with features of all keys; returns them by key."""
    store = create(folder, keys=list(contents), sources={k: source(c) for k, c in contents.items()})
    store.write(range(len(contents)), random_features(len(contents)))
    return dict(zip(contents, random_features(len(contents)), strict=True))


def kept(folder: Path) -> dict[str, np.ndarray]:
    """The features that a store has, by key."""
    store = FeatureStore(folder)
    done = [row for row, state in enumerate(store.state) if state == DONE]
    return {store.keys[row]: store.values[row] for row in done}


BEFORE = {"a": "1", "b": "1", "c": "1", "d": "1"}


@pytest.mark.parametrize(
    ("after", "unchanged"),
    [
        ({**BEFORE, "e": "1"}, "abcd"),
        ({"0": "1", **BEFORE}, "abcd"),
        ({**BEFORE, "b": "2"}, "acd"),
        ({"a": "1", "c": "1", "d": "1"}, "acd"),
        ({"c": "1", "d": "1"}, "cd"),
        ({"d": "2"}, ""),
        ({"d": "2", "e": "1", "c": "1"}, "c"),
        ({"d": "1", "x": "1", "y": "1", "z": "1", "b": "1", "u": "1"}, "bd"),
        ({"d": "1", "c": "1", "b": "1", "a": "1"}, "abcd"),
    ],
)
def test_rows_of_unchanged_files_are_kept_and_only_those(tmp_path, after, unchanged):
    before = finished(tmp_path, BEFORE)
    store = create(tmp_path, keys=list(after), sources={k: source(c) for k, c in after.items()})
    assert sorted(store.keys) == sorted(after)
    found = kept(tmp_path)
    assert sorted(found) == sorted(unchanged)
    for key in unchanged:
        np.testing.assert_array_equal(found[key], before[key])
    assert {store.keys[row] for row in store.pending()} == set(after) - set(unchanged)
    assert {key: source.sha256 for key, source in read_sources(tmp_path).items()} == after


@pytest.mark.parametrize("place", ["_write_state", "_resize", "_write_sources", "_write_header"])
@pytest.mark.parametrize("after", [{"d": "1", "b": "2"}, {**BEFORE, "b": "2", "e": "1", "f": "1"}])
@pytest.mark.parametrize("call", [1, 2])
def test_a_change_that_is_interrupted_never_leaves_features_of_another_file(
    tmp_path, monkeypatch, place, after, call
):
    before, calls = finished(tmp_path, BEFORE), []
    owner = features_module if place.startswith("_write_") else features_module._Change
    owner = owner if hasattr(owner, place) else features_module._Change
    real = getattr(owner, place)

    def interrupted(*arguments: object) -> None:
        calls.append(place)
        if len(calls) == call:
            raise KeyboardInterrupt
        real(*arguments)

    sources = {key: source(content) for key, content in after.items()}
    with monkeypatch.context() as patched:
        patched.setattr(owner, place, interrupted)
        try:
            create(tmp_path, keys=list(after), sources=sources)
        except KeyboardInterrupt:
            assert len(calls) == call
    store = create(tmp_path, keys=list(after), sources=sources)
    assert sorted(store.keys) == sorted(after)
    found = kept(tmp_path)
    assert not {key for key in found if after[key] != BEFORE.get(key)}
    for key in found:
        np.testing.assert_array_equal(found[key], before[key])


def test_nothing_is_written_where_nothing_has_changed(tmp_path):
    finished(tmp_path, BEFORE)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    calls: list[bool] = []
    sources = {key: source(content) for key, content in BEFORE.items()}
    store = create(tmp_path, keys=list(BEFORE), sources=sources)
    assert store.pending() == []
    sources["a"] = source("2")
    create(tmp_path, keys=list(BEFORE), sources=sources, before_change=lambda: calls.append(True))
    assert calls == [True]
    del stamps["features.state"], stamps["features.sources.json"]
    assert all((tmp_path / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_a_missing_file_keeps_its_features(tmp_path):
    finished(tmp_path, BEFORE)
    gone = {key: source("1") for key in "acd"} | {"b": None}
    assert create(tmp_path, keys=list(BEFORE), sources=gone).pending() == []
    assert sorted(read_sources(tmp_path)) == ["a", "b", "c", "d"]


def test_a_store_without_sources_is_usable_and_takes_them_over(tmp_path):
    finished(tmp_path, BEFORE)
    (tmp_path / "features.sources.json").unlink()
    assert read_sources(tmp_path) is None
    assert len(FeatureStore(tmp_path).values) == 4
    later = (tmp_path / "features.f16").stat().st_mtime_ns + 1
    sources = {key: source("1") for key in BEFORE} | {"c": Source("2", (1, later, 1, 1))}
    store = create(tmp_path, keys=list(BEFORE), sources=sources)
    assert [store.keys[row] for row in store.pending()] == ["c"]  # newer than the features
    assert read_sources(tmp_path) == sources


def test_a_store_of_none_of_these_images_is_not_overwritten(tmp_path):
    finished(tmp_path, BEFORE)
    with pytest.raises(DataError, match="other images or with other encoder settings"):
        create(tmp_path, keys=["x"], sources={"x": source("1")})
    assert len(kept(tmp_path)) == 4


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', '{"a": ["x", "y"]}'])
def test_damaged_sources_are_refused_with_a_way_out(tmp_path, content):
    finished(tmp_path, BEFORE)
    (tmp_path / "features.sources.json").write_text(content)
    with pytest.raises(DataError, match=r"features\.sources\.json"):
        create(tmp_path, keys=list(BEFORE), sources={key: source("1") for key in BEFORE})


def test_a_source_is_the_content_of_a_file(tmp_path):
    path, copy = tmp_path / "a.jpg", tmp_path / "b.jpg"
    path.write_bytes(b"one")
    first = Source.of(path)
    assert Source.of(path, first) is first  # known by its stamp: not read again
    copy.write_bytes(b"one")
    assert Source.of(copy).sha256 == first.sha256
    os.utime(path)  # touched, not changed
    assert Source.of(path, first).sha256 == first.sha256
    stat = path.stat()
    path.write_bytes(b"two")  # the same size, and the same time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Source.of(path, first).sha256 != first.sha256
    assert Source.of(tmp_path / "none.jpg") is None
    assert Source.of(tmp_path) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_an_error_that_keeps_what_was_written(tmp_path):
    store = create(tmp_path)
    store.write([0], random_features(1))
    (tmp_path / "features.f16").rename(tmp_path / "aside")
    (tmp_path / "features.f16").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"No space left on device; .* resumes where it stopped"):
        store.write([1], random_features(1))
    (tmp_path / "aside").replace(tmp_path / "features.f16")
    assert create(tmp_path).pending() == [1, 2, 3]


@pytest.mark.skipif(os.name == "nt", reason="needs a path that cannot be a file")
def test_a_store_that_cannot_be_created_is_an_error(tmp_path):
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
    with pytest.raises(DataError, match=rf"{name}: it is truncated \(.* bytes instead of "):
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
