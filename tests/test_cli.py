"""The commands: what they print, and one line and exit code 1 for whatever goes wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, MODEL

import captioner
from captioner.arguments import exit_code
from captioner.checkpoint import Checkpoint, load, save
from captioner.cli import main
from captioner.config import DecodeConfig, EncoderConfig
from captioner.decoder import make_decoder
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
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
    command = f"{sys.executable} -m captioner.cli --help | true"
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


# How all commands end


@pytest.mark.parametrize(
    "module",
    [
        "app.__main__", "data_prep.__main__", "benchmarks.captioning_study.__main__",
        "benchmarks.definition", "benchmarks.gradients.__main__", "benchmarks.memory.__main__",
        "benchmarks.throughput.__main__", "captioner.cli",
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
