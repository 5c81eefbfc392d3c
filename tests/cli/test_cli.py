"""The commands: what they print, and one line and exit code 1 for whatever goes wrong."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, MODEL, write_checkpoint

import captioner
from captioner.checkpoint import Checkpoint, load, save
from captioner.cli import main
from captioner.cli.parsing import exit_code
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.model.decoder import make_decoder

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "checkpoints" / "samples"
CAT = str(SAMPLES / "chelsea.jpg")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A checkpoint with random weights and a real encoder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "untrained"
    words = Vocabulary.build(CAPTIONS, 1)
    torch.manual_seed(0)
    save(
        Checkpoint(
            make_decoder(MODEL, len(words), 1280),
            MODEL,
            EncoderConfig("efficientnet_lite0"),
            DecodeConfig(beam_size=3, max_words=6),
            words,
            feature_dim=1280,
            grid=7,
        ),
        folder,
    )
    return folder


def fails(capsys, *arguments):
    """The one line that a failing command prints."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_a_picture_gives_one_line_and_a_folder_one_line_each(untrained, capsys):
    assert main(["caption", CAT, "--checkpoint", str(untrained)]) == 0
    alone = capsys.readouterr().out.strip()
    assert main(["caption", str(SAMPLES), "--checkpoint", str(untrained)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == len(list(SAMPLES.glob("*.jpg")))
    assert f"{CAT}: {alone}" in lines


def test_json_alternatives_and_the_attention_picture(untrained, capsys, tmp_path):
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
    assert (drawn < 200).mean() > 0.3  # photographs, not an empty page


def test_repeats_and_endings_in_the_middle_of_a_phrase_are_settings(untrained, capsys, tmp_path):
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


def test_one_bad_picture_does_not_cost_the_others(untrained, capsys, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    Image.open(CAT).save(tmp_path / "b.png")
    assert main(["caption", str(tmp_path), "--checkpoint", str(untrained)]) == 1
    captured = capsys.readouterr()
    assert "a.jpg is not a picture" in captured.err
    assert captured.out.startswith(f"{tmp_path / 'b.png'}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "no command 'fly'; choose from train, evaluate, score, caption"),
        (["caption", CAT], "checkpoint"),
        (["caption", CAT, "--checkpoint", "checkpoints/none"], "no checkpoint at checkpoints/none"),
        (["train", "--config", "none.yaml"], "none.yaml"),
        (["train"], "data"),
        (["train", "--data", "x", "--out", "y", "--train.epochs", "many"], "train.epochs"),
        (["train", "--data", "x", "--out", "y", "--train.epochs", "0"], "epochs is 0"),
        (["train", "--data", "x", "--out", "y", "--train.schedule", "sine"], "'cosine'"),
        (["train", "--data", "x", "--out", "y", "--train.epoch", "3"], "--train.epochs"),
        (["train", "--data", "nowhere", "--out", "y"], "no prepared data at nowhere"),
        (["evaluate", "checkpoints/none", "--data", "nowhere"], "no checkpoint"),
        (["evaluate", "c", "--data", "d", "--metrics", "WER"], "'METEOR'"),
    ],
)
def test_what_goes_wrong_is_one_line_that_names_it(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_wrong_captioning_options_are_one_line(untrained, capsys, tmp_path):
    common = ["caption", CAT, "--checkpoint", untrained]
    assert "beam_size is 0" in fails(capsys, *common, "--beam-size", "0")
    assert "top_p is 7" in fails(capsys, *common, "--top-p", "7")
    assert "no picture" in fails(capsys, "caption", "gone.jpg", "--checkpoint", untrained)
    assert "no pictures in" in fails(capsys, "caption", tmp_path, "--checkpoint", untrained)


def test_a_config_file_with_a_wrong_key_names_the_nearest(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("data: d\nout: o\ntrain:\n  detach_probability: 0.5\n")
    assert "--train.detach_prob" in fails(capsys, "train", "--config", config)


def test_every_shipped_config_is_valid_and_opens_with_its_command():
    from jsonargparse import ArgumentParser

    from captioner.config import Config

    for path in sorted((ROOT / "configs").glob("*.yaml")):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(Config)
        parser.instantiate(parser.parse_args(["--config", str(path)]))
        assert f"captioner train --config configs/{path.name}" in path.read_text().split("data:")[0]


def test_help_and_version_are_quick_and_need_no_torch():
    code = (
        "import sys; from captioner.cli import main; main(['--help']); main(['--version']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(captioner.__version__ + "\n")
    assert "captioner train --config" in done.stdout


def test_a_reader_that_has_enough_costs_no_traceback():
    command = f"{sys.executable} -m captioner --help | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


def test_the_python_api_of_the_readme(untrained):
    model = captioner.load(untrained)
    caption = model.caption(CAT, beam_size=5)
    assert caption.text == " ".join(caption.words) == str(caption)
    assert caption.attention.shape == (len(caption.words), 7, 7)
    assert caption.attention.sum((1, 2)) == pytest.approx(1.0, rel=1e-4)
    pictures = [CAT, Path(CAT).read_bytes(), Image.open(CAT)]
    found = list(model.caption_many(pictures, batch_images=2, beam_size=5))
    assert [one.text for one in found] == [caption.text] * 3
    several = model.captions(CAT, captions=3)
    assert len({one.text for one in several}) == 3
    with pytest.raises(ConfigError, match="no setting 'beams'"):
        model.caption(CAT, beams=3)
    with pytest.raises(DataError, match="no picture at"):
        model.caption("gone.jpg")
    with pytest.raises(CheckpointError):
        captioner.load("gone")


# Options that would do nothing


@pytest.mark.parametrize("option", ["--temperature", "--top-k", "--top-p", "--seed"])
def test_an_option_of_sampling_is_refused_where_nothing_is_sampled(option, untrained, capsys):
    told = fails(capsys, "caption", CAT, "--checkpoint", untrained, option, "1")
    name = option.strip("-").replace("-", "_")
    assert told.startswith(f"error: {name} is 1")
    assert told.endswith(f"set sample (--sample) or leave {name} out")


def test_a_beam_is_refused_where_captions_are_sampled(untrained, capsys, tmp_path):
    common = ["caption", CAT, "--checkpoint", untrained, "--beam-size", "2"]
    assert "set sample to false (--no-sample)" in fails(capsys, *common, "--sample")
    sampling = load(untrained)
    save(dataclasses.replace(sampling, decode=DecodeConfig(sample=True)), tmp_path / "sampling")
    common[3] = tmp_path / "sampling"
    assert "set sample to false (--no-sample)" in fails(capsys, *common)
    assert main([*map(str, common), "--no-sample"]) == 0


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("evaluate", ["--images", "x"], "--images is for the report; add --report"),
        ("evaluate", ["--corenlp", "x"], "--corenlp is for SPICE; add it to --metrics"),
        ("evaluate", ["--limit", "-1"], "--limit is -1"),
        ("score", ["--images", "x"], "--images is for the report; add --report"),
    ],
)
def test_an_option_without_its_companion_is_refused(command, options, message, capsys):
    needed = ["--data", "d"] if command == "evaluate" else ["--references", "r"]
    assert message in fails(capsys, command, "x", *needed, *options)


# Outputs


@pytest.mark.parametrize(
    ("names", "sheets"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "b.png"]),
        (["a.jpg", "a.png", "b.png"], ["a.jpg.png", "a.png.png", "b.png.png"]),
        (["a/x.jpg", "b/x.jpg", "c.jpg"], ["a/x.png", "b/x.png", "c.png"]),
        (["a/x.jpg", "a/X.jpg", "b/x.png"], ["1-X.png", "2-x.png", "3-x.png"]),
        (["a/x.jpg", "a/x.png", "b/x.png"], ["a/x.jpg.png", "a/x.png.png", "b/x.png.png"]),
    ],
)
def test_every_image_has_an_attention_sheet_of_its_own(
    names, sheets, untrained, capsys, tmp_path, paint
):
    paint(tmp_path / "in", *names)
    if len(list((tmp_path / "in").rglob("*.*"))) < len(names):
        pytest.skip("this file system does not tell upper from lower case")
    arguments = ["caption", tmp_path / "in", "--recursive", "--checkpoint", untrained]
    arguments += ["--beam-size", "1", "--max-words", "1", "--attention", tmp_path / "out"]
    assert main([str(argument) for argument in arguments]) == 0
    drawn = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [path.relative_to(tmp_path / "out").as_posix() for path in drawn] == sorted(sheets)


def test_one_image_and_a_folder_for_its_sheet(untrained, capsys, tmp_path):
    arguments = ["caption", CAT, "--checkpoint", str(untrained), "--attention", str(tmp_path)]
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["chelsea.png"]


def test_outputs_that_would_overwrite_each_other_are_refused_before_the_work(
    untrained, capsys, tmp_path, paint
):
    paint(tmp_path, "1.png", "x/1.png", "y/7.jpg", "y/7.bmp", "z/cat.jpg")
    common = ["caption", "--checkpoint", untrained]
    both = [*common, tmp_path / "1.png", tmp_path / "x" / "1.png"]
    refused = {
        "have the same image id 1": [*both, "--results", tmp_path / "r.json"],
        "--attention: ": [*common, tmp_path / "1.png", "--attention", tmp_path / "1.png"],
        "7.bmp.png is also the file of --results": [
            *common, tmp_path / "y" / "7.bmp", "--results", tmp_path / "7.bmp.png",
            "--attention", tmp_path / "7.bmp.png",
        ],
        "it is a folder; give a file": [*common, tmp_path / "1.png", "--results", tmp_path / "x"],
        "1.png is not a folder": [*both, "--attention", tmp_path / "1.png"],
        "File name too long": [*common, tmp_path / "1.png", "--attention", "x" * 300],
        "cannot write": ["score", "r", "--references", "s", "--report", "x" * 300],
        "is also the file of --out": [
            "evaluate", untrained, "--data", "d", "--out", tmp_path / "o", "--report",
            tmp_path / "x" / ".." / "o",
        ],
        "is also what is read": ["score", "r", "--references", "s", "--report", "s"],
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    for message, arguments in refused.items():
        assert message in fails(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_run_into_the_folder_of_the_images_spares_them(untrained, capsys, tmp_path, paint):
    paint(tmp_path, "x.jpg", "y.jpg")
    arguments = ["caption", tmp_path, "--checkpoint", untrained, "--attention", tmp_path]
    assert main([str(argument) for argument in arguments]) == 0
    sheet = (tmp_path / "x.png").read_bytes()
    main([str(argument) for argument in arguments])
    assert (tmp_path / "x.png").read_bytes() == sheet


def test_a_decoder_without_attention_says_so_before_the_work(capsys, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", "show_tell")
    told = fails(capsys, "caption", CAT, "--checkpoint", folder, "--attention", tmp_path / "a.png")
    assert "decoder has no attention" in told


# Names and folders


def test_what_a_folder_holds_beside_images_is_counted(untrained, capsys, tmp_path, paint):
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


def test_names_reach_no_terminal_raw_and_need_no_encoding(untrained, tmp_path, paint):
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
def test_a_picture_comes_through_a_pipe_and_is_drawn(untrained, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "captioner", "caption", "-", "--checkpoint", str(untrained),
         "--attention", str(tmp_path / "look.png")],
        input=Path(CAT).read_bytes(), capture_output=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert (tmp_path / "look.png").is_file()


def test_a_file_in_place_of_prepared_data_is_refused(untrained, capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "is a file; give the folder" in fails(capsys, "evaluate", untrained, "--data", file)
    told = fails(capsys, "train", "--data", file, "--out", tmp_path / "out")
    assert "is a file; give the folder" in told


# How all commands end


@pytest.mark.parametrize(
    "module",
    [
        "app.__main__", "data_prep.__main__", "benchmarks.captioning_study.__main__",
        "benchmarks.definition", "benchmarks.gradients.__main__", "benchmarks.memory.__main__",
        "benchmarks.throughput.__main__", "captioner",
    ],
)  # fmt: skip
def test_every_command_refuses_a_wrong_option_in_one_line(module, capsys):
    assert importlib.import_module(module).main(["--no-such-option"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_ctrl_c_ends_a_command_with_130_and_a_word_on_how_to_go_on(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert exit_code(interrupted, "the same command goes on") == 130
    assert capsys.readouterr().err == "\nstopped; the same command goes on\n"


def test_a_reader_who_has_enough_ends_a_command_quietly():
    command = "import captioner.cli, sys; sys.exit(captioner.cli.main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
