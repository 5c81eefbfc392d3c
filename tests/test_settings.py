"""Types and ranges of settings hold for values from code, JSON and the command line."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import pytest

from captioner.checkpoint import load
from captioner.cli.settings import SettingsParser
from captioner.config import (
    Config,
    DecodeConfig,
    EncoderConfig,
    ModelConfig,
    TrainConfig,
    from_dict,
)
from captioner.data.feature_store import FeatureStore
from captioner.errors import CheckpointError, ConfigError, DataError

ROOT = Path(__file__).resolve().parents[1]
KINDS = (EncoderConfig, ModelConfig, TrainConfig, DecodeConfig)


def wrong_values(value):
    """Return values of another type than a setting's default."""
    others = {bool: ["no", 1, None], int: [2.5, 2.0, True, "2", None]}
    others |= {float: ["0.5", True, float("nan"), float("inf")], str: [3, None, True]}
    return others[type(value)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_setting_takes_a_value_of_another_type_and_the_error_names_it(kind):
    for name, value in asdict(kind()).items():
        if type(value) in (bool, int, float, str):
            for wrong in wrong_values(value):
                with pytest.raises(ConfigError, match=f"^{name} is .* but must be "):
                    kind(**{name: wrong})
                with pytest.raises(ConfigError, match=f"^somewhere: {name} is "):
                    from_dict(kind, {name: wrong}, "somewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_below_its_range_is_refused(kind):
    free = {"seed"}  # of any sign
    for name, value in asdict(kind()).items():
        if type(value) in (int, float) and name not in free:
            with pytest.raises(ConfigError, match=f"^{name} is -1 but must be a "):
                kind(**{name: -1})


def test_a_whole_number_is_accepted_as_a_number_and_an_unknown_choice_is_refused():
    assert TrainConfig(clip=5).clip == 5
    with pytest.raises(ConfigError, match="optimizer is 'sgd' but must be 'adam' or 'adamw'"):
        replace(TrainConfig(), optimizer="sgd")


def test_all_wrong_settings_are_reported_in_one_line():
    with pytest.raises(ConfigError) as found:
        TrainConfig(epochs=1.5, optimizer="sgd", average=1)
    assert str(found.value) == (
        "epochs is 1.5 but must be a whole number >= 1; optimizer is 'sgd' but must be 'adam' or "
        "'adamw'; average is 1 but must be a number >= 0 and < 1"
    )
    tree = {"data": 3, "model": {"heads": 8, "dropout": 2}, "train": {"epochs": "3"}, "decode": []}
    with pytest.raises(ConfigError) as found:
        from_dict(Config, tree)
    for part in ("data is 3", "out is missing", "'model.heads'", "model.dropout is 2"):
        assert part in str(found.value)
    assert "train.epochs is '3'" in str(found.value)
    assert "decode is []" in str(found.value)
    assert "\n" not in str(found.value)


def test_incompatible_settings_are_refused_at_any_level():
    with pytest.raises(ConfigError, match="captions is 9, but beam_size is 3"):
        DecodeConfig(beam_size=3, captions=9)
    tree = {"data": "a", "out": "b", "train": {"keep_start": 0.5}}
    with pytest.raises(ConfigError, match=r"train: keep_start is 0.5, but start is empty"):
        from_dict(Config, tree)


def test_settings_survive_a_round_trip_through_json():
    config = Config("a", "b", train=TrainConfig(epochs=3, clip=1), decode=DecodeConfig(seed=-1))
    assert from_dict(Config, json.loads(json.dumps(asdict(config)))) == config


def test_a_command_line_and_its_file_are_checked_as_a_whole(tmp_path):
    parser = SettingsParser(prog="captioner train")
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Config)
    file = tmp_path / "c.yaml"
    file.write_text("data: d\nout: o\ntrain:\n  epochs: 0\n  clip: 1\ndecode:\n  top_p: 2\n")
    read = parser.read(["--config", str(file), "--model.dropout", "1"])
    with pytest.raises(ConfigError) as found:
        parser.made(Config, read)
    for part in ("train.epochs is 0", "decode.top_p is 2", "model.dropout is 1"):
        assert part in str(found.value)
    good = ["--train.epochs", "2", "--decode.top_p", "1", "--model.dropout", "0"]
    made = parser.made(Config, parser.read(["--config", str(file), *good]))
    assert made.train == TrainConfig(epochs=2, clip=1)
    with pytest.raises(ConfigError, match=r"train.epochs"):
        parser.read([*good, "--data", "d", "--out", "o", "--train.epochs", "1.5"])


def test_a_checkpoint_or_a_feature_store_with_settings_of_the_wrong_type_is_refused(tmp_path):
    folder = shutil.copytree(ROOT / "checkpoints" / "coco_flickr8k", tmp_path / "c")
    settings = json.loads((folder / "config.json").read_text())
    settings["decode"] |= {"beam_size": 2.5, "sample": "no"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"beam_size is 2.5 .* sample is 'no' but must be"):
        load(folder)
    settings["decode"] = [5]
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"decode: it is \[5\] but must map names"):
        load(folder)
    features = tmp_path / "f"
    features.mkdir()
    store = FeatureStore.create(features, ["a"], (1, 1, 1), EncoderConfig())
    header = json.loads((store.folder / "features.json").read_text())
    header["encoder"]["grid"] = "3"
    (store.folder / "features.json").write_text(json.dumps(header))
    with pytest.raises((ConfigError, DataError), match="grid is '3' but must be a whole number"):
        FeatureStore(store.folder)


def test_checking_settings_takes_little_of_the_start():
    code = "import time; t = time.process_time(); import captioner.config; "
    code += "captioner.config.DecodeConfig(); print(time.process_time() - t)"
    seconds = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)]
    assert median(seconds) < 0.3
