"""What all commands share: dispatch, help, start-up, wrong options and exit codes."""

import importlib
import subprocess
import sys

import pytest
from console import CAT, ROOT, fails

import captioner
from captioner.cli.parsing import exit_code


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
        (["evaluate", "c", "--data", "d", "--metrics", "WER"], "METEOR"),
        (["caption", CAT, "--checkpoint", "c", "--beamsize", "3"], "did you mean --beam-size?"),
    ],
)
def test_an_error_is_one_line_that_names_what_is_wrong(
    arguments, message, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_a_wrong_key_in_a_config_file_is_answered_with_the_nearest(tmp_path, capsys):
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


def test_a_closed_pipe_causes_no_traceback():
    command = f"{sys.executable} -m captioner --help | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""


FORBIDDEN = (
    "gradio", "jsonargparse", "matplotlib", "nltk", "pandas", "scipy", "tensorboard",
    "torch._dynamo", "torchvision",
)  # fmt: skip


def test_captioning_imports_nothing_that_it_does_not_need(untrained):
    code = (
        "import sys; from captioner.cli import main; code = main(sys.argv[1:]); "
        f"print(*(set({FORBIDDEN}) & sys.modules.keys()), file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "caption", CAT, "--checkpoint", str(untrained)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "\n")
    assert done.stdout.strip()


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


def test_a_file_in_place_of_prepared_data_is_refused(untrained, capsys, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert "is a file; give the folder" in fails(capsys, "evaluate", untrained, "--data", file)
    line = fails(capsys, "train", "--data", file, "--out", tmp_path / "out")
    assert "is a file; give the folder" in line


# How all commands end


@pytest.mark.parametrize(
    "module",
    [
        "app.__main__", "data_prep.__main__", "benchmarks.captioning_study.__main__",
        "benchmarks.definition", "benchmarks.gradients.__main__", "benchmarks.memory.__main__",
        "benchmarks.throughput.__main__", "captioner.__main__",
    ],
)  # fmt: skip
def test_every_command_refuses_a_wrong_option_in_one_line(module, capsys):
    assert importlib.import_module(module).main(["--no-such-option"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_ctrl_c_ends_a_command_with_130_and_says_how_to_continue(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert exit_code(interrupted, "the same command continues") == 130
    assert capsys.readouterr().err == "\nstopped; the same command continues\n"


def test_a_closed_output_ends_a_command_quietly():
    command = "import captioner.cli, sys; sys.exit(captioner.cli.main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
