"""`captioner caption`: what it prints, its options, and the names of images."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from console import CAT, ROOT, SAMPLES, fails
from PIL import Image

from captioner.checkpoint import load, save
from captioner.cli import main
from captioner.config import DecodeConfig


def test_one_image_prints_one_line_and_a_folder_one_line_each(untrained, capsys):
    assert main(["caption", CAT, "--checkpoint", str(untrained)]) == 0
    alone = capsys.readouterr().out.strip()
    assert main(["caption", str(SAMPLES), "--checkpoint", str(untrained)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(list(SAMPLES.glob("*.jpg")))
    assert f"{CAT}: {alone}" in lines


def test_alternatives_as_json_and_a_sheet_of_attention(untrained, capsys, tmp_path):
    arguments = [
        "caption",
        CAT,
        "--checkpoint",
        untrained,
        "--json",
        "--captions",
        "4",
        "--attention",
        tmp_path / "look" / "cat.png",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["rank"] for entry in entries] == [1, 2, 3, 4]
    assert entries[0]["image"] == CAT
    assert entries[0]["score"] >= entries[-1]["score"]
    drawn = np.asarray(Image.open(tmp_path / "look" / "cat.png").convert("L"))
    assert min(drawn.shape) > 200
    assert (drawn < 200).mean() > 0.3  # images, not an empty page


def test_repeated_words_and_unfinished_endings_can_be_refused(untrained, capsys, tmp_path):
    ending = load(untrained)
    biases = {"<end>": 50.0, "a": 40.0, "cat": 30.0}  # after any word it would rather end
    for word, bias in biases.items():
        ending.decoder.out.bias.data[ending.vocabulary.words.index(word)] = bias
    save(ending, tmp_path / "ending")
    common = ["caption", CAT, "--beam-size", "1", "--checkpoint", str(tmp_path / "ending")]
    for options, caption in (
        (["--no-whole-endings"], "a"),
        (["--whole-endings", "--max-words", "4"], "a a a a"),
        (["--block-repeats", "1"], "a cat"),
        (["--block-repeats", "2"], "a a cat"),
    ):
        assert main([*common, *options]) == 0
        assert capsys.readouterr().out.strip() == caption
    assert "block_repeats is -1" in fails(capsys, *common, "--block-repeats", "-1")


def test_samples_repeat_with_their_seed(untrained, capsys):
    arguments = ["caption", CAT, "--checkpoint", str(untrained), "--sample", "--captions", "3"]
    outputs = []
    for seed in ("1", "1", "2"):
        assert main([*arguments, "--top-p", "0.95", "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_one_bad_image_does_not_cost_the_others(untrained, capsys, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    Image.open(CAT).save(tmp_path / "b.png")
    assert main(["caption", str(tmp_path), "--checkpoint", str(untrained)]) == 1
    captured = capsys.readouterr()
    assert "a.jpg: it is not an image" in captured.err
    assert captured.out.startswith(f"{tmp_path / 'b.png'}: ")


def test_wrong_captioning_options_are_one_line(untrained, capsys, tmp_path):
    common = ["caption", CAT, "--checkpoint", untrained]
    assert "beam_size is 0" in fails(capsys, *common, "--beam-size", "0")
    assert "top_p is 7" in fails(capsys, *common, "--top-p", "7")
    assert "no image" in fails(capsys, "caption", "gone.jpg", "--checkpoint", untrained)
    assert "no images in" in fails(capsys, "caption", tmp_path, "--checkpoint", untrained)


# Options that would do nothing


@pytest.mark.parametrize("option", ["--temperature", "--top-k", "--top-p", "--seed"])
def test_an_option_of_sampling_is_refused_where_nothing_is_sampled(option, untrained, capsys):
    line = fails(capsys, "caption", CAT, "--checkpoint", untrained, option, "1")
    name = option.strip("-").replace("-", "_")
    assert line.startswith(f"error: {name} is 1")
    assert line.endswith(f"set sample (--sample) or leave {name} out")


def test_a_beam_is_refused_where_captions_are_sampled(untrained, capsys, tmp_path):
    common = ["caption", CAT, "--checkpoint", untrained, "--beam-size", "2"]
    assert "set sample to false (--no-sample)" in fails(capsys, *common, "--sample")
    sampling = load(untrained)
    save(dataclasses.replace(sampling, decode=DecodeConfig(sample=True)), tmp_path / "sampling")
    common[3] = tmp_path / "sampling"
    assert "set sample to false (--no-sample)" in fails(capsys, *common)
    assert main([*map(str, common), "--no-sample"]) == 0


# Names and folders


def test_other_files_in_a_folder_are_counted(untrained, capsys, tmp_path, paint):
    paint(tmp_path, "a.jpg", "b.avif", "c.jp2")
    for name in ("notes.txt", "._a.jpg"):
        (tmp_path / name).touch()
    assert main(["caption", str(tmp_path), "--checkpoint", str(untrained)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert captured.err.startswith("skipped 2 files: 1 ")


def test_one_bad_name_does_not_cost_the_others(untrained, capsys, tmp_path, paint):
    paint(tmp_path, "a.jpg")
    bad = [tmp_path / "gone.jpg", "x" * 300]
    arguments = ["caption", *bad, tmp_path / "a.jpg", "--checkpoint", untrained]
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["error", "error"]


def test_names_are_escaped_for_the_terminal(untrained, tmp_path, paint):
    paint(tmp_path, "caf\xe9.jpg", "red\x1b[31m.jpg")
    try:
        (tmp_path / "caf\udce9.jpg").write_bytes((tmp_path / "caf\xe9.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "bad\x1b[31m.jpg").write_text("not a picture")
    done = subprocess.run(
        [sys.executable, "-m", "captioner", "caption", str(tmp_path), "--checkpoint",
         str(untrained)],
        capture_output=True, cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stdout.decode("ascii").splitlines()
    shown = [line.split(": ")[0].removeprefix(f"{tmp_path}{os.sep}") for line in lines]
    assert shown == ["caf\\udce9.jpg", "caf\\xe9.jpg", "red\\x1b[31m.jpg"] or shown == [
        "caf\\xe9.jpg", "caf\\udce9.jpg", "red\\x1b[31m.jpg"
    ]  # fmt: skip
    assert done.stderr.decode("ascii").startswith(f"error: {tmp_path}{os.sep}bad\\x1b[31m.jpg")


@pytest.mark.skipif(os.name == "nt", reason="no /dev/stdin")
def test_an_image_from_a_pipe_is_captioned_and_its_attention_drawn(untrained, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "captioner", "caption", "-", "--checkpoint", str(untrained),
         "--attention", str(tmp_path / "look.png")],
        input=Path(CAT).read_bytes(), capture_output=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert (tmp_path / "look.png").is_file()
