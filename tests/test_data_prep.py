"""Records become a prepared folder, and the command line says in one line why not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.config import EncoderConfig
from captioner.errors import DataError
from captioner.features import DONE, UNREADABLE, FeatureStore
from captioner.vocabulary import Vocabulary
from data_prep.__main__ import main
from data_prep.build import WARNINGS, build
from data_prep.records import Record

SMALL = EncoderConfig("efficientnet_lite0", image_size=32)
SMALL_OPTIONS = ["--encoder", "efficientnet_lite0", "--image-size", "32", "--min-count", "1"]


def write(path: Path, content: str) -> Path:
    path.write_text(content, "utf-8")
    return path


@pytest.fixture
def records(paint, tmp_path) -> Callable[..., list[Record]]:
    """A function (count, split) that writes pictures and returns their records."""

    def painted(count: int, split: str = "train") -> list[Record]:
        names = [f"{split}{number}.png" for number in range(count)]
        paint(tmp_path, *names)
        return [
            Record(name, tmp_path / name, split, ("a dog", "a cat"), number)
            for number, name in enumerate(names)
        ]

    return painted


# --- what is refused before anything is encoded ----------------------------------------------


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"key": "train0.png"}, r"name train0\.png twice"),
        ({"image_id": 0}, r"image id 0 stands for train0\.png and train1\.png"),
        ({"split": "dev"}, r"train1\.png is in split 'dev'; known are train, val, test"),
    ],
)
def test_records_that_contradict_each_other_are_refused(tmp_path, changed, complaint, records):
    first, second = records(2)
    with pytest.raises(DataError, match=complaint):
        build([first, Record(**(vars(second) | changed))], tmp_path / "out", SMALL, min_count=1)
    assert not (tmp_path / "out").exists()


def test_what_leaves_nothing_to_train_on_is_said_at_once(tmp_path, records):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no word occurs 9 times in the 4 training captions"):
        build(records(2), out, SMALL, min_count=9)
    with pytest.raises(DataError, match=r"no readable picture .* in the train split"):
        build(records(2, "val"), out, SMALL, min_count=1)
    with pytest.raises(DataError, match="no picture with a caption was found"):
        build([Record("a", tmp_path / "a", "train", (" ", "..."), 0)], out, SMALL)
    with pytest.raises(
        DataError, match=r"none of the 1 pictures was found, for one .*x; .*--images"
    ):
        build([Record("x", tmp_path / "x", "train", ("a dog",) * 5, 1)], out, SMALL)
    assert not (out / "features.json").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path, records):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match=r"cannot write to .*out: File exists; give another --out"):
        build(records(2), tmp_path / "out", SMALL, min_count=1)
    with pytest.raises(DataError, match=r"cannot write to .*: Not a directory"):
        build(records(2), tmp_path / "out/deeper", SMALL, min_count=1)


# --- prepared folders ------------------------------------------------------------------------


def test_a_captions_file_is_prepared_and_what_is_wrong_in_it_is_left_out(tmp_path, capsys, paint):
    names = [f"{number}.png" for number in range(10)]
    paint(tmp_path / "images", *names)
    (tmp_path / "images/0.png").write_bytes(b"not a picture")
    (tmp_path / "images/1.png").unlink()
    lines = [f"{name},A dog\u2028runs\n{name},two  dogs\n{name},...\n" for name in names]
    captions = write(tmp_path / "captions.csv", "".join(lines) + "extra.png,!!!\n")
    command = ["csv", "--captions", str(captions), "--images", str(tmp_path / "images")]
    out = tmp_path / "data/mine"
    assert main([*command, "--out", str(out), "--val-share", "0.3", *SMALL_OPTIONS]) == 0

    examples = json.loads((out / "examples.json").read_text("utf-8"))
    assert [example["image"] for example in examples] == names[2:]
    assert [example["image_id"] for example in examples] == list(range(2, 10))
    assert all(example["captions"] == ["A dog runs", "two dogs"] for example in examples)
    assert {example["split"] for example in examples} == {"train", "val"}

    store = FeatureStore(out)
    assert store.encoder == SMALL
    assert [store.keys[example["row"]] for example in examples] == names[2:]
    assert all(store.state[example["row"]] == DONE for example in examples)
    assert list(store.state[:2]) == [UNREADABLE, UNREADABLE]
    features = store.values[[example["row"] for example in examples]]
    assert np.isfinite(features).all()
    assert len(np.unique(features.reshape(8, -1), axis=0)) == 8  # no row is another's
    assert len(Vocabulary.load(out / "vocabulary.json")) == 4 + 5

    report = json.loads((out / "report.json").read_text("utf-8"))
    assert "not a picture" in report["unreadable"]["0.png"]
    assert "no picture at" in report["unreadable"]["1.png"]
    assert report["without_captions"] == ["extra.png"]
    printed, progress = capsys.readouterr()
    assert "left out: 2 pictures could not be read (0.png, 1.png)" in printed
    assert f"written to {out} in" in printed
    assert "left out: no picture at" in progress


def test_a_finished_folder_is_kept_and_a_mended_picture_joins_it(tmp_path, records):
    pictures = records(4)
    whole = pictures[1].path.read_bytes()
    pictures[1].path.write_bytes(whole[:100])
    out = tmp_path / "out"
    build(pictures, out, SMALL, min_count=1)
    before = FeatureStore(out).values.copy()
    stamp = (out / "features.f16").stat().st_mtime_ns

    report = build(pictures, out, SMALL, min_count=1)
    assert list(report.unreadable) == ["train1.png"]
    assert (out / "features.f16").stat().st_mtime_ns == stamp

    pictures[1].path.write_bytes(whole)
    report = build(pictures, out, SMALL, min_count=1)
    assert not report.unreadable
    assert report.images["train"] == 4
    after = FeatureStore(out)
    assert (after.state == DONE).all()
    np.testing.assert_array_equal(after.values[[0, 2, 3]], before[[0, 2, 3]])


def test_an_interrupted_run_goes_on_and_ends_like_one_that_was_not(
    tmp_path, capsys, monkeypatch, records
):
    pictures = records(10)
    captions = write(tmp_path / "c.csv", "".join(f"{r.key},a dog\n" for r in pictures))
    command = ["csv", "--captions", str(captions), "--images", str(tmp_path), *SMALL_OPTIONS]
    command += ["--batch-size", "2"]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0

    write_rows, batches = FeatureStore.write, []

    def interrupted(store: FeatureStore, rows: list[int], features: np.ndarray) -> None:
        batches.append(rows)
        if len(batches) == 3:
            raise KeyboardInterrupt
        write_rows(store, rows, features)

    monkeypatch.setattr(FeatureStore, "write", interrupted)
    assert main([*command, "--out", str(tmp_path / "halves")]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err
    assert FeatureStore(tmp_path / "halves").pending() == [4, 5, 6, 7, 8, 9]
    assert not (tmp_path / "halves/examples.json").exists()

    assert main([*command, "--out", str(tmp_path / "halves")]) == 0
    assert batches[3:] == [[4, 5], [6, 7], [8, 9]]
    for name in ("examples.json", "vocabulary.json", "report.json", "features.f16"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_other_settings_do_not_spoil_a_prepared_folder(tmp_path, records):
    pictures = records(2)
    build(pictures, tmp_path / "out", SMALL, min_count=1)
    with pytest.raises(DataError, match="other pictures or with other encoder settings"):
        build(pictures, tmp_path / "out", SMALL, min_count=1, mirror=True)


def test_mirrored_features_are_those_of_the_mirrored_picture(tmp_path, records):
    pictures = records(2)
    mirrored = [
        Record(f"m{r.key}", tmp_path / f"m{r.key}", "train", r.captions, r.image_id)
        for r in pictures
    ]
    for straight, turned in zip(pictures, mirrored, strict=True):
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        Image.open(straight.path).transpose(flip).save(turned.path)
    build(pictures, tmp_path / "both", SMALL, min_count=1, mirror=True)
    build(mirrored, tmp_path / "mirrored", SMALL, min_count=1)
    both, expected = FeatureStore(tmp_path / "both"), FeatureStore(tmp_path / "mirrored")
    assert both.views == 2
    assert not np.allclose(both.values[:, 0], both.values[:, 1], atol=1e-2)
    np.testing.assert_allclose(both.values[:, 1], expected.values[:, 0], atol=5e-2)


def test_many_unreadable_pictures_do_not_flood_the_screen(tmp_path, caplog, records):
    pictures = records(30)
    for record in pictures[1:]:
        record.path.unlink()
    report = build(pictures, tmp_path / "out", SMALL, min_count=1)
    assert len(report.unreadable) == 29
    assert caplog.text.count("left out: no picture at") == WARNINGS


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, records):
    pictures = records(120)
    captions = write(tmp_path / "c.csv", "".join(f"{r.key},a dog\n" for r in pictures))
    command = [sys.executable, "-m", "data_prep", "csv", "--captions", captions]
    command += ["--images", tmp_path, "--out", tmp_path / "out", "--batch-size", "1"]
    command += SMALL_OPTIONS
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=one_thread)
    state = tmp_path / "out/features.state"
    while running.poll() is None and not (state.exists() and sum(state.read_bytes()) >= 5):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the run ended before it was killed"
    done = FeatureStore(tmp_path / "out")
    before = done.values[done.state == DONE].copy()
    assert 5 <= len(before) < 120
    subprocess.run(command, check=True, capture_output=True, env=one_thread)
    after = FeatureStore(tmp_path / "out")
    assert (after.state == DONE).all()
    np.testing.assert_array_equal(after.values[: len(before)], before)
    assert after.values.reshape(120, -1).any(axis=1).all()


# --- the command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "{karpathy,coco,csv,toy}"),
        (["flickr"], "invalid choice: 'flickr' (choose from"),
        (["toy"], "the following arguments are required: --out"),
        (["toy", "--out", "x", "--mirror"], "unrecognized arguments: --mirror"),
        (["toy", "--out", "x", "--images", "2"], "'2' is not a whole number of at least 3"),
        (["toy", "--out", "x", "--image-size", "-5"], "'-5' is not a whole number of at least 32"),
        (["toy", "--out", "x", "--image-size", "5"], "'5' is not a whole number of at least 32"),
        (["toy", "--out", "x", "--batch-size", "0"], "'0' is not a whole number of at least 1"),
        (["toy", "--out", "x", "--resize", "stretch"], "choose from 'squash', 'crop'"),
        (
            ["csv", "--captions", "c", "--images", "i", "--out", "x", "--val-share", "1"],
            "'1' is not",
        ),
        (["csv", "--captions", "c", "--images", "i", "--out", "x"], "no file at c"),
        (["karpathy", "--dataset", "d", "--images", "i", "--out", "x"], "no file at d"),
        (["coco", "--annotations", "a", "--images", "i", "--out", "x"], "no file at a"),
        (
            ["coco", "--annotations", "a", "--splits", "dev", "--images", "i", "--out", "x"],
            "choose from 'train', 'val', 'test'",
        ),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_1(
    tmp_path, monkeypatch, capsys, options, complaint
):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert complaint in errors
    assert not list(tmp_path.iterdir())


def test_an_unknown_encoder_is_refused_with_the_choices(tmp_path, capsys):
    assert main(["toy", "--out", str(tmp_path), "--images", "3", "--encoder", "vgg"]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: no encoder 'vgg'; choose from efficientnet_lite0")
    assert errors.count("\n") == 1


def test_an_error_in_a_file_with_an_odd_name_stays_on_one_line(tmp_path, capsys):
    name = str(tmp_path / "odd\nname")
    assert main(["csv", "--captions", name, "--images", "i", "--out", "x"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", [[], ["karpathy"], ["coco"], ["csv"], ["toy"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert f"python -m data_prep {' '.join(command)}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_program_itself_reports_an_error_in_one_line(tmp_path):
    command = [sys.executable, "-m", "data_prep", "csv", "--captions", tmp_path / "nowhere"]
    ran = subprocess.run(
        [*command, "--images", tmp_path, "--out", tmp_path], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"error: no file at {tmp_path / 'nowhere'}\n"


@pytest.mark.slow
def test_the_real_coco_photographs_are_prepared(shared_data, tmp_path):
    folder = shared_data / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {folder}")
    path = str(folder / "annotations/captions_train2017.json")
    command = ["coco", "--annotations", path, "--images", str(folder), "--out", str(tmp_path)]
    assert main([*command, "--test-share", "0.1", *SMALL_OPTIONS]) == 0
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert splits_of_examples(examples) == {"train": 104, "val": 13, "test": 13}
    assert (FeatureStore(tmp_path).state == DONE).all()


def splits_of_examples(examples: list[dict[str, str]]) -> dict[str, int]:
    splits = [example["split"] for example in examples]
    return {split: splits.count(split) for split in ("train", "val", "test")}
