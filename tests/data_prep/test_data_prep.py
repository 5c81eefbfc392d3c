"""Records become a prepared folder, or the command prints one line with the reason."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioner.config import EncoderConfig
from captioner.data.feature_store import DONE, UNREADABLE, FeatureStore
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError, DataError
from captioner.files import locked
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
    """Return a function (count, split) that writes images and returns their records."""

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
        ({"key": "train0.png"}, r"train0\.png: the captions name it twice"),
        ({"image_id": 0}, r"train1\.png: its image id 0 is also that of train0\.png"),
        ({"split": "dev"}, r"train1\.png: its split is 'dev'; use train, val, test"),
    ],
)
def test_records_that_contradict_each_other_are_refused(tmp_path, changed, complaint, records):
    first, second = records(2)
    with pytest.raises(DataError, match=complaint):
        build([first, Record(**(vars(second) | changed))], tmp_path / "out", SMALL, min_count=1)
    assert not (tmp_path / "out").exists()


def test_data_with_nothing_to_train_on_is_refused_at_once(tmp_path, records):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no word occurs 9 times in the 4 training captions"):
        build(records(2), out, SMALL, min_count=9)
    with pytest.raises(DataError, match=r"no readable image .* in the train split"):
        build(records(2, "val"), out, SMALL, min_count=1)
    with pytest.raises(DataError, match="no image with a caption was found"):
        build([Record("a", tmp_path / "a", "train", (" ", "..."), 0)], out, SMALL)
    with pytest.raises(
        DataError, match=r"none of the 1 images was found, for example .*x; .*--images"
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


def test_a_captions_file_is_prepared_without_its_faulty_lines_and_images(tmp_path, capsys, paint):
    names = [f"{number}.png" for number in range(10)]
    paint(tmp_path / "images", *names)
    (tmp_path / "images/0.png").write_bytes(b"not an image")
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
    assert "it is not an image" in report["unreadable"]["0.png"]
    assert "no image at" in report["unreadable"]["1.png"]
    assert report["without_captions"] == ["extra.png"]
    printed, progress = capsys.readouterr()
    assert "left out: 2 images cannot be read (0.png, 1.png)" in printed
    assert f"written to {out} in" in printed
    assert "left out: no image at" in progress


def test_a_finished_folder_is_kept_and_a_repaired_image_is_added(tmp_path, records):
    images = records(4)
    whole = images[1].path.read_bytes()
    images[1].path.write_bytes(whole[:100])
    out = tmp_path / "out"
    build(images, out, SMALL, min_count=1)
    before = FeatureStore(out).values.copy()
    stamp = (out / "features.f16").stat().st_mtime_ns

    report = build(images, out, SMALL, min_count=1)
    assert list(report.unreadable) == ["train1.png"]
    assert (out / "features.f16").stat().st_mtime_ns == stamp

    images[1].path.write_bytes(whole)
    report = build(images, out, SMALL, min_count=1)
    assert not report.unreadable
    assert report.images["train"] == 4
    after = FeatureStore(out)
    assert (after.state == DONE).all()
    np.testing.assert_array_equal(after.values[[0, 2, 3]], before[[0, 2, 3]])


def test_an_interrupted_run_resumes_and_ends_like_one_that_was_not(
    tmp_path, capsys, monkeypatch, records
):
    images = records(10)
    captions = write(tmp_path / "c.csv", "".join(f"{r.key},a dog\n" for r in images))
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
    assert "run the same command to resume" in capsys.readouterr().err
    assert FeatureStore(tmp_path / "halves").pending() == [4, 5, 6, 7, 8, 9]
    assert not (tmp_path / "halves/examples.json").exists()

    assert main([*command, "--out", str(tmp_path / "halves")]) == 0
    assert batches[3:] == [[4, 5], [6, 7], [8, 9]]
    for name in ("examples.json", "vocabulary.json", "report.json", "features.f16"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def features_of(folder: Path) -> dict[str, np.ndarray]:
    """Return the features of each example of a prepared folder, by image."""
    store = FeatureStore(folder)
    examples = json.loads((folder / "examples.json").read_text("utf-8"))
    return {example["image"]: store.values[example["row"]].copy() for example in examples}


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Count the rows of each write of features."""
    counts: list[int] = []
    write_rows = FeatureStore.write

    def counted(store: FeatureStore, rows: list[int], features: np.ndarray) -> None:
        counts.append(len(rows))
        write_rows(store, rows, features)

    monkeypatch.setattr(FeatureStore, "write", counted)
    return counts


def test_only_a_replaced_image_is_encoded_again(tmp_path, records, encoded):
    images, out = records(4), tmp_path / "out"
    build(images, out, SMALL, min_count=1)
    before = features_of(out)
    encoded.clear()
    stat = images[2].path.stat()
    Image.new("RGB", (24, 32), "red").save(images[2].path)
    os.utime(images[2].path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    build(images, out, SMALL, min_count=1)
    assert encoded == [1]
    after = features_of(out)
    assert not np.array_equal(after["train2.png"], before["train2.png"])
    build(images, tmp_path / "new", SMALL, min_count=1)
    expected = features_of(tmp_path / "new")
    for name in expected:
        np.testing.assert_allclose(after[name], expected[name], atol=2e-2)


def test_images_of_the_same_names_in_another_folder_are_encoded(tmp_path, paint, encoded):
    names = ["0.png", "1.png", "2.png"]
    paint(tmp_path / "one", *names)
    paint(tmp_path / "two", *names[::-1])
    captions = write(tmp_path / "c.csv", "".join(f"{name},a dog\n" for name in names))
    command = ["csv", "--captions", str(captions), "--out", str(tmp_path / "out"), *SMALL_OPTIONS]
    assert main([*command, "--images", str(tmp_path / "one")]) == 0
    first = features_of(tmp_path / "out")
    encoded.clear()
    assert main([*command, "--images", str(tmp_path / "two")]) == 0
    second = features_of(tmp_path / "out")
    assert encoded == [2]  # the one in the middle is the same
    for name, other in zip(names, names[::-1], strict=True):
        np.testing.assert_allclose(second[name], first[other], atol=2e-2)


def test_adding_and_removing_an_image_does_not_encode_the_others_again(tmp_path, records, encoded):
    images, out = records(5), tmp_path / "out"
    build(images[1:], out, SMALL, min_count=1)
    before = features_of(out)
    encoded.clear()
    report = build(images[:4], out, SMALL, min_count=1)
    assert encoded == [1]
    after = features_of(out)
    assert list(after) == [record.key for record in images[:4]]
    assert FeatureStore(out).values.shape[0] == 4  # the last one is forgotten
    for record in images[1:4]:
        np.testing.assert_array_equal(after[record.key], before[record.key])
    assert report.images["train"] == 4


def test_a_missing_image_is_left_out_and_its_features_are_kept(tmp_path, records, encoded, caplog):
    images, out = records(4), tmp_path / "out"
    build(images, out, SMALL, min_count=1)
    encoded.clear()
    images[1].path.rename(tmp_path / "aside.png")
    report = build(images, out, SMALL, min_count=1)
    assert list(report.unreadable) == ["train1.png"]
    assert list(features_of(out)) == ["train0.png", "train2.png", "train3.png"]
    assert "left out: 1 of the 4 images cannot be read" in caplog.text
    (tmp_path / "aside.png").rename(images[1].path)
    assert build(images, out, SMALL, min_count=1).images["train"] == 4
    assert encoded == []


def test_the_folder_is_incomplete_while_features_change(tmp_path, records, monkeypatch):
    images, out = records(4), tmp_path / "out"
    build(images, out, SMALL, min_count=1)
    images[0].path.write_bytes(images[1].path.read_bytes())

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FeatureStore, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            build(images, out, SMALL, min_count=1)
    assert not (out / "examples.json").exists()
    build(images, out, SMALL, min_count=1)
    found = features_of(out)
    np.testing.assert_allclose(found["train0.png"], found["train1.png"], atol=2e-2)


def test_an_image_in_two_splits_stays_in_the_scored_one(tmp_path, paint):
    names = ["train0.png", "train1.png", "train2.png", "val0.png", "val1.png", "test0.png"]
    paint(tmp_path, *names)
    for copy, original in (("train1", "val0"), ("train2", "test0"), ("val1", "test0")):
        original_bytes = (tmp_path / f"{original}.png").read_bytes()
        (tmp_path / f"{copy}.png").write_bytes(original_bytes)
    images = [
        Record(name, tmp_path / name, name[:-5], ("a dog",), number)
        for number, name in enumerate(names)
    ]
    report = build(images, tmp_path / "out", SMALL, min_count=1)
    expected = {"train1.png": "val0.png", "train2.png": "test0.png", "val1.png": "test0.png"}
    assert report.copies == expected
    assert list(features_of(tmp_path / "out")) == ["train0.png", "val0.png", "test0.png"]
    printed = "\n".join(report.lines())
    assert "left out: 3 images are also in another split" in printed
    assert "train1.png = val0.png" in printed


def test_copies_of_an_image_are_held_out_together(tmp_path, paint):
    names = [f"{number:02d}.png" for number in range(20)]
    paint(tmp_path, *names)
    for original in names:  # under another name, by a link, and written in another way
        (tmp_path / f"copy{original}").write_bytes((tmp_path / original).read_bytes())
        (tmp_path / f"link{original}").symlink_to(tmp_path / original)
    ways = ("", "copy", "link", "./", "x/../")
    captions = "".join(f"{way}{name},a dog {number}\n" for number, way in enumerate(ways)
                       for name in names)  # fmt: skip
    write(tmp_path / "c.csv", captions)
    command = ["csv", "--captions", str(tmp_path / "c.csv"), "--images", str(tmp_path)]
    command += ["--out", str(tmp_path / "out"), "--val-share", "0.3", *SMALL_OPTIONS]
    assert main(command) == 0
    examples = json.loads((tmp_path / "out/examples.json").read_text())
    assert len(examples) == 60
    splits: dict[str, set[str]] = {}
    for example in examples:
        splits.setdefault(example["image"][-6:], set()).add(example["split"])
    assert all(len(found) == 1 for found in splits.values())
    assert {split for (split,) in splits.values()} == {"train", "val"}
    assert max(len(example["captions"]) for example in examples) == 3  # of ./ and x/../ too


def test_a_hidden_test_set_is_prepared_with_the_vocabulary_of_a_checkpoint_and_evaluated(
    tmp_path, records, paint
):
    import torch

    from captioner.checkpoint import Checkpoint, load, save
    from captioner.config import DecodeConfig
    from captioner.evaluate import evaluate
    from captioner.model import make_decoder
    from captioner.model.encoder import Encoder
    from tests.tiny import MODEL

    torch.manual_seed(0)
    network = Encoder(SMALL)
    with torch.no_grad():
        next(network.body.parameters()).mul_(1.01)  # as if it had been trained
    trained = EncoderConfig(SMALL.name, network.fingerprint(), image_size=32)
    words = Vocabulary.build(["a dog runs", "a cat sleeps"], 1)
    decoder = make_decoder(MODEL, len(words), network.dim)
    save(
        Checkpoint(
            decoder, MODEL, trained, DecodeConfig(beam_size=1, max_words=5), words, network.dim,
            network.grid, encoder_state=network.state_dict(),
        ),
        tmp_path / "checkpoint",
    )  # fmt: skip
    paint(tmp_path / "images", "1.png", "2.png")
    lines = "image,caption,split\n1.png,a dog runs,test\n2.png,one zebra runs,test\n"
    captions = str(write(tmp_path / "c.csv", lines))
    out = tmp_path / "out"
    command = ["csv", "--captions", captions, "--images", str(tmp_path / "images")]
    assert main([*command, "--out", str(out), *SMALL_OPTIONS]) == 1  # no words of its own
    assert main([*command, "--out", str(out), "--encoder-of", str(tmp_path / "checkpoint")]) == 0
    assert Vocabulary.load(out / "vocabulary.json") == words
    checkpoint = load(tmp_path / "checkpoint")
    result = evaluate(checkpoint, out, "test", checkpoint.decode, metrics=("BLEU-1",))
    assert sorted(result.captions) == [0, 1]

    # The folder keeps the weights of that CNN, exactly, under the name that its features have.
    from safetensors import safe_open
    from safetensors.torch import load_file

    kept = load_file(out / "encoder.safetensors")
    again = Encoder(trained, kept)
    assert again.fingerprint() == trained.weights == FeatureStore(out).encoder.weights
    with safe_open(out / "encoder.safetensors", "pt") as file:
        assert file.metadata()["weights"] == trained.weights


def test_weights_that_are_exact_in_half_precision_are_stored_in_it(tmp_path, records):
    import torch
    from safetensors.torch import load_file

    from captioner.model.encoder import Encoder

    state = {name: w.half().float() for name, w in Encoder(SMALL).state_dict().items()}
    trained = EncoderConfig(SMALL.name, "sha256:0123456789abcdef", image_size=32)
    build(records(2), tmp_path / "out", trained, encoder_state=state, min_count=1)
    kept = load_file(tmp_path / "out/encoder.safetensors")
    assert {value.dtype for value in kept.values()} == {torch.float16}
    assert all(torch.equal(kept[name].float(), value) for name, value in state.items())


def test_a_karpathy_file_without_a_val_split_holds_some_out_and_says_so(tmp_path, paint, capsys):
    names = [f"{number:02d}.png" for number in range(14)]
    paint(tmp_path, *names)
    images = [
        {"filename": name, "split": "train", "imgid": n, "sentences": [{"raw": "a dog"}]}
        for n, name in enumerate(names)
    ]
    path = write(tmp_path / "d.json", json.dumps({"images": images}))
    command = ["karpathy", "--dataset", str(path), "--images", str(tmp_path), *SMALL_OPTIONS]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    examples = json.loads((tmp_path / "out/examples.json").read_text())
    assert splits_of_examples(examples) == {"train": 9, "val": 5, "test": 0}
    assert "held out: 5 of 14 images for validation (--val-share)" in capsys.readouterr().out


def test_languages_without_spaces_are_refused_or_split_into_characters(tmp_path, paint, capsys):
    paint(tmp_path, "1.png", "2.png", "3.png")
    captions = write(tmp_path / "c.csv", "1.png,一只狗在雪地里跑\n2.png,一只猫睡觉\n3.png,狗跑\n")
    command = ["csv", "--captions", str(captions), "--images", str(tmp_path), *SMALL_OPTIONS]
    command += ["--out", str(tmp_path / "out"), "--val-share", "0.4"]
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert (
        "no spaces between words, for example '一只狗在雪地里跑'; give --tokens characters"
        in errors
    )
    assert main([*command, "--tokens", "characters"]) == 0
    examples = json.loads((tmp_path / "out/examples.json").read_text("utf-8"))
    assert {"一 只 狗 在 雪 地 里 跑", "狗 跑"} <= {e["captions"][0] for e in examples}
    words = Vocabulary.load(tmp_path / "out/vocabulary.json").words[4:]
    assert max(map(len, words)) == 1


def test_long_captions_are_reported(tmp_path, records):
    images = records(2)
    long = Record(**(vars(images[0]) | {"captions": ("word " * 500, "a dog")}))
    report = build([long, images[1]], tmp_path / "out", SMALL, min_count=1)
    assert (report.long_share, report.longest) == (0.25, 500)
    assert "25.00% of train have more than 20 words (at most 500)" in "\n".join(report.lines())


def test_a_setting_of_the_cnn_beside_a_checkpoints_is_refused(tmp_path, capsys):
    command = [
        "csv",
        "--captions",
        "c",
        "--images",
        "i",
        "--out",
        "x",
        "--encoder-of",
        "checkpoint",
    ]
    for options in (["--encoder", "resnet18"], ["--grid", "0"], ["--resize", "squash"]):
        assert main([*command, *options]) == 1
        assert f"{options[0]}: given beside --encoder-of" in capsys.readouterr().err


def test_a_name_close_to_that_of_an_image_is_suggested(tmp_path, paint, capsys):
    paint(tmp_path / "photos", "beach.JPG", "dog.png")
    for name, hint in (
        ("beach.jpg", "did you mean beach.JPG?"),
        ("beach", "did you mean beach.JPG?"),
        ("folder/dog.png", "did you mean dog.png?"),
        ("photos/dog.png", "did you mean dog.png?"),
    ):
        captions = write(tmp_path / "c.csv", f"{name},a dog\n{name}x,a cat\n")
        command = ["csv", "--captions", str(captions), "--images", str(tmp_path / "photos")]
        assert main([*command, "--out", str(tmp_path / "out"), *SMALL_OPTIONS]) == 1
        assert hint in capsys.readouterr().err


def test_other_settings_do_not_overwrite_a_prepared_folder(tmp_path, records):
    images = records(2)
    build(images, tmp_path / "out", SMALL, min_count=1)
    with pytest.raises(DataError, match="other images or with other encoder settings"):
        build(images, tmp_path / "out", SMALL, min_count=1, mirror=True)


def test_mirrored_features_are_those_of_the_mirrored_image(tmp_path, records):
    images = records(2)
    mirrored = [
        Record(f"m{r.key}", tmp_path / f"m{r.key}", "train", r.captions, r.image_id) for r in images
    ]
    for straight, turned in zip(images, mirrored, strict=True):
        flip = Image.Transpose.FLIP_LEFT_RIGHT
        Image.open(straight.path).transpose(flip).save(turned.path)
    build(images, tmp_path / "both", SMALL, min_count=1, mirror=True)
    build(mirrored, tmp_path / "mirrored", SMALL, min_count=1)
    both, expected = FeatureStore(tmp_path / "both"), FeatureStore(tmp_path / "mirrored")
    assert both.views == 2
    assert not np.allclose(both.values[:, 0], both.values[:, 1], atol=1e-2)
    np.testing.assert_allclose(both.values[:, 1], expected.values[:, 0], atol=5e-2)


def test_only_the_first_unreadable_images_are_logged(tmp_path, caplog, records):
    images = records(30)
    for record in images[1:]:
        record.path.unlink()
    report = build(images, tmp_path / "out", SMALL, min_count=1)
    assert len(report.unreadable) == 29
    assert caplog.text.count("left out: no image at") == WARNINGS


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_a_killed_run_resumes_where_it_stopped(tmp_path, records):
    images = records(120)
    captions = write(tmp_path / "c.csv", "".join(f"{r.key},a dog\n" for r in images))
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


# --- one run at a time -----------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_is_refused_and_names_the_first(tmp_path, capsys):
    command = ["toy", "--out", str(tmp_path / "out"), "--images", "3", *SMALL_OPTIONS]
    with locked(tmp_path / "out"):
        assert main(command) == 1
    error = capsys.readouterr().err
    assert f"out: process {os.getpid()} on {socket.gethostname()} (since 20" in error
    assert "is writing to it; wait until it ends or give another --out" in error
    assert not (tmp_path / "out/images").exists()


@pytest.mark.skipif(os.name == "nt", reason="kills with SIGKILL")
def test_the_lock_of_a_killed_process_is_released(tmp_path):
    code = "import sys, time; from pathlib import Path; from captioner.files import locked\n"
    code += "with locked(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=rf"process {holder.pid} on "), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / ".lock.json").exists()


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


def test_an_error_with_a_line_break_in_the_file_name_stays_on_one_line(tmp_path, capsys):
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
def test_the_real_coco_images_are_prepared(shared_data, tmp_path):
    folder = shared_data / "coco_mini"
    if not folder.is_dir():
        pytest.skip(f"no images at {folder}")
    path = str(folder / "annotations/captions_train2017.json")
    command = ["coco", "--annotations", path, "--images", str(folder), "--out", str(tmp_path)]
    assert main([*command, "--test-share", "0.1", *SMALL_OPTIONS]) == 0
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert splits_of_examples(examples) == {"train": 104, "val": 13, "test": 13}
    assert (FeatureStore(tmp_path).state == DONE).all()


def splits_of_examples(examples: list[dict[str, str]]) -> dict[str, int]:
    splits = [example["split"] for example in examples]
    return {split: splits.count(split) for split in ("train", "val", "test")}
