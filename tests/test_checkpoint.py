"""Checkpoint folders: a round trip changes nothing, and every kind of damage is reported."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tiny import CAPTIONS, DIM, MODEL, random_features

from captioner import checkpoint as module
from captioner.checkpoint import Checkpoint, load, load_state, save, save_state
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError
from captioner.model import make_decoder

WORDS = Vocabulary.build(CAPTIONS, 1)


def make(**changes):
    torch.manual_seed(0)
    parts = {
        "decoder": make_decoder(MODEL, len(WORDS), DIM),
        "model": MODEL,
        "encoder": EncoderConfig("efficientnet_lite0", grid=2),
        "decode": DecodeConfig(beam_size=3),
        "vocabulary": WORDS,
        "feature_dim": DIM,
        "grid": 2,
        "trained": {"epoch": 3},
    }
    return Checkpoint(**{**parts, **changes})


def test_a_round_trip_changes_nothing(tmp_path):
    checkpoint = make()
    save(checkpoint, tmp_path / "c", card="# A card\n")
    back = load(tmp_path / "c")
    for name in ("model", "encoder", "decode", "vocabulary", "feature_dim", "grid", "trained"):
        assert getattr(back, name) == getattr(checkpoint, name)
    features = random_features(1, torch.float32)
    memory, state = checkpoint.decoder.eval().start(features)
    memory_back, state_back = back.decoder.start(features)
    assert torch.equal(memory.keys, memory_back.keys)
    assert torch.equal(state[0], state_back[0])
    assert (tmp_path / "c" / "README.md").read_text() == "# A card\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path):
    save(make(), tmp_path / "full")
    save(make(), tmp_path / "half", half=True)
    full, half = (tmp_path / name / "model.safetensors" for name in ("full", "half"))
    assert half.stat().st_size < 0.6 * full.stat().st_size
    weights = load(tmp_path / "half").decoder.state_dict()
    for name, weight in load(tmp_path / "full").decoder.state_dict().items():
        assert weights[name].dtype == torch.float32
        torch.testing.assert_close(weights[name], weight, atol=1e-3, rtol=1e-3)


def test_saving_again_replaces_the_whole_folder(tmp_path):
    save(make(), tmp_path / "c", card="old")
    save(make(trained={"epoch": 4}), tmp_path / "c")
    assert load(tmp_path / "c").trained == {"epoch": 4}
    assert not (tmp_path / "c" / "README.md").exists()


class KilledError(BaseException):
    """Ends a save as SIGKILL does: nothing catches it."""


def killed_at(step, monkeypatch):
    """Kill the process before its `step`-th change to the disk; a removal, within it, too."""
    changes = iter(range(1000))

    def counted(change, within=None):
        def changed(*arguments, **options):
            if next(changes) == step:
                raise KilledError
            if within and Path(arguments[0]).exists():
                within(arguments[0])
                if next(changes) == step:
                    raise KilledError
            return change(*arguments, **options)

        return changed

    def half_removed(folder):
        (Path(folder) / "config.json").unlink(missing_ok=True)

    for name in ("rename", "mkdir", "write_bytes", "replace"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree, half_removed))
    monkeypatch.setattr(module, "write_tensors", counted(module.write_tensors))


@pytest.mark.parametrize("first", range(18))
def test_a_save_killed_anywhere_leaves_a_complete_checkpoint_and_so_does_the_next(tmp_path, first):
    folder = tmp_path / "c"
    save(make(trained={"epoch": 1}), folder)
    known = {1}
    for epoch, step in ((2, first), (3, 6), (4, 7), (5, 8)):
        with pytest.MonkeyPatch.context() as patch, suppress(KilledError):
            killed_at(step, patch)
            save(make(trained={"epoch": epoch}), folder)
        found = load(folder).trained["epoch"]
        assert found in {*known, epoch}
        known = {found}
    save(make(trained={"epoch": 9}), folder)
    assert load(folder).trained["epoch"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_save_that_fails_at_its_last_step_puts_the_old_checkpoint_back(tmp_path, monkeypatch):
    save(make(), tmp_path / "c")
    rename = Path.rename

    def refused(path, target):
        if path.name == "c.part":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(CheckpointError, match="No space left"):
        save(make(trained={"epoch": 4}), tmp_path / "c")
    assert load(tmp_path / "c").trained == {"epoch": 3}
    assert (tmp_path / "c").is_dir()


def damage(folder, what):
    settings = folder / "config.json"
    content = json.loads(settings.read_text())
    weights = folder / "model.safetensors"
    if what == "no weights":
        weights.unlink()
    elif what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "empty weights":
        weights.write_bytes(b"")
    elif what == "no vocabulary":
        (folder / "vocabulary.json").unlink()
    elif what == "shorter vocabulary":
        WORDS.__class__(WORDS.words[:-1]).save(folder / "vocabulary.json")
    elif what == "settings cut off":
        settings.write_text(settings.read_text()[:40])
    elif what == "another format":
        settings.write_text(json.dumps({**content, "format": 99}))
    elif what == "an unknown setting":
        settings.write_text(json.dumps({**content, "model": {**content["model"], "heads": 8}}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no weights", "model.safetensors"),
        ("truncated weights", "damaged"),
        ("empty weights", "damaged"),
        ("no vocabulary", "vocabulary"),
        ("shorter vocabulary", "do not fit together"),
        ("settings cut off", "damaged"),
        ("another format", "format 99; this version of captioner reads 1"),
        ("an unknown setting", "unknown setting 'heads'"),
    ],
)
def test_damage_is_reported(tmp_path, what, message):
    save(make(), tmp_path / "c")
    damage(tmp_path / "c", what)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "c")


def test_a_missing_checkpoint_says_where_others_are(tmp_path):
    with pytest.raises(CheckpointError, match=r"train one or see checkpoints/README.md"):
        load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config.json"):
        load(tmp_path / "empty")


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        save(make(), tmp_path / "file" / "c")


@pytest.mark.parametrize("content", [b"", b"not a torch file", None])
def test_training_state_that_is_missing_or_damaged_is_an_error(tmp_path, content):
    path = tmp_path / "state.pt"
    if content is None:
        save_state({"weights": torch.zeros(1000)}, path)
        path.write_bytes(path.read_bytes()[:500])
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(path)
