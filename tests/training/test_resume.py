"""Resuming and starting: which changes of data and settings are allowed, which refused."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import save_file
from tiny import CELLS, DIM, MODEL, make_config, make_data

from captioner import checkpoint as checkpoints
from captioner.checkpoint import Checkpoint
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.fingerprint import PARTS, differences, fingerprint
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError, ConfigError, DataError, DivergenceError
from captioner.model.decoder import make_decoder
from captioner.model.encoder import Encoder
from captioner.training.checks import leave_out_missing
from captioner.training.log import read_log
from captioner.training.loop import train
from captioner.training.resume import save_run
from captioner.training.run import prepare


def edit(path, change):
    """Change a JSON file in place."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def write_sources(folder, digest="a", stamp=1):
    entries = json.loads((folder / "examples.json").read_text())
    sources = {entry["image"]: [digest + entry["image"], 7, stamp] for entry in entries}
    (folder / "features.sources.json").write_text(json.dumps(sources))


def swap_splits(folder):
    """Give a training and a validation image each other's split: the sizes stay the same."""

    def swap(entries):
        entries[0]["split"], entries[-1]["split"] = entries[-1]["split"], entries[0]["split"]

    edit(folder / "examples.json", swap)


def other_words(folder):
    words = json.loads((folder / "vocabulary.json").read_text())
    Vocabulary([*words[:4], *reversed(words[4:])]).save(folder / "vocabulary.json")


CHANGES = {
    "splits": swap_splits,
    "captions": lambda f: edit(f / "examples.json", lambda e: e[0].update(captions=["a cat"])),
    "vocabulary": other_words,
    "encoder": lambda f: edit(f / "features.json", lambda h: h["encoder"].update(resize="crop")),
    "features": lambda f: write_sources(f, "b"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_fingerprint_names_the_part_that_differs(tmp_path, part):
    data = make_data(tmp_path / "data")
    write_sources(data)
    before = fingerprint(data)
    CHANGES[part](data)
    assert differences(before, fingerprint(data)) == [part]


def test_a_folder_that_is_moved_reordered_or_only_dated_anew_is_the_same(tmp_path):
    data = make_data(tmp_path / "data")
    write_sources(data)
    other = shutil.copytree(data, tmp_path / "other")
    edit(other / "examples.json", lambda entries: entries[::-1])
    write_sources(other, stamp=99)
    assert fingerprint(data) == fingerprint(other)
    (other / "features.sources.json").unlink()  # prepared before these were written
    assert differences(fingerprint(data), fingerprint(other)) == []


def test_a_damaged_folder_is_named(tmp_path):
    data = make_data(tmp_path / "data")
    edit(data / "features.json", lambda _: {"shape": [1]})
    with pytest.raises(DataError, match="it is damaged"):
        fingerprint(data)


def begun(config):
    """A run that was saved before its first step."""
    run = prepare(config, resume=False)
    save_run(run, 0)
    return run


@pytest.mark.parametrize("part", ["splits", "captions", "vocabulary", "features"])
def test_a_run_is_not_resumed_on_data_of_the_same_size_with_another_content(tmp_path, part):
    data = make_data(tmp_path / "data")
    write_sources(data)
    config = make_config(data, tmp_path / "run")
    begun(config)
    prepare(config, resume=True)
    CHANGES[part](data)
    with pytest.raises(ConfigError, match=f"begun with other data, the {part} of .*data changed"):
        prepare(config, resume=True)


def test_of_several_data_folders_the_one_that_differs_is_named(tmp_path):
    folders = [str(make_data(tmp_path / name)) for name in ("one", "two")]
    config = replace(make_config(tmp_path, tmp_path / "run", min_count=1), data=folders)
    begun(config)
    prepare(config, resume=True)
    with pytest.raises(ConfigError, match="begun with 2 data folders, now there are 1"):
        prepare(replace(config, data=folders[:1]), resume=True)
    swap_splits(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"splits of .*two changed"):
        prepare(config, resume=True)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("decode", {"beam_size": 1}),
        ("decode", {"max_words": 5}),
        ("train", {"detach_prob": 0.5}),
        ("model", {"dropout": 0.1}),
    ],
)
def test_what_changes_the_result_may_not_change_silently(tmp_path, part, change):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run")
    begun(config)
    changed = replace(config, **{part: replace(getattr(config, part), **change)})
    with pytest.raises(ConfigError, match=f"begun with {part}.{next(iter(change))} = .*, now it"):
        prepare(changed, resume=True)


def test_a_state_saved_by_an_older_version_is_resumed(tmp_path):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run")
    begun(config)
    state = checkpoints.load_state(tmp_path / "run" / "state.pt")
    del state["data"], state["progress"]["best_loss"]
    for key in list(state["settings"]):  # what older versions did not write
        if key.startswith("decode.") or key in ("train.epochs", "train.augment"):
            del state["settings"][key]
    checkpoints.save_state(state, tmp_path / "run" / "state.pt")
    assert prepare(config, resume=True).changes == {}


def test_a_state_that_is_not_this_runs_says_how_to_go_on_and_that_works(tmp_path):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run")
    run = begun(config)
    checkpoints.save(run.checkpoint(run.network), tmp_path / "run" / "last")
    whole = checkpoints.load_state(tmp_path / "run" / "state.pt")
    for state in ({"weights": torch.zeros(2)}, {"settings": 3}, {**whole, "network": {}}):
        checkpoints.save_state(state, tmp_path / "run" / "state.pt")
        with pytest.raises(CheckpointError, match=r"run/last as train.start"):
            prepare(config, resume=True)
    (tmp_path / "run" / "state.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged: .*run/last as train.start"):
        prepare(config, resume=True)
    start = str(tmp_path / "run" / "last")
    prepare(make_config(tmp_path / "data", tmp_path / "next", start=start), resume=False)


def test_a_rate_changed_on_resume_keeps_the_encoders_share_as_it_is_set(tmp_path):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run", learning_rate=1e-3)
    run = begun(config)
    run.optimizer.param_groups[0]["share"] = 0.5
    save_run(run, 0)
    lower = replace(config, train=replace(config.train, learning_rate=5e-4))
    assert prepare(lower, resume=True).optimizer.param_groups[0]["share"] == 1.0


@pytest.mark.slow
def test_a_finished_run_is_prolonged_at_another_rate_and_the_change_is_logged(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("captioner.training.validation.validation_cider", lambda *_: 0.0)
    monkeypatch.setattr("captioner.training.log.STEPS_BETWEEN_LINES", 1)
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run", epochs=1, clip=5)
    train(config, show_progress=False)
    longer = replace(
        config, train=replace(config.train, epochs=2, learning_rate=1e-4, clip=1, patience=3)
    )
    assert train(longer, resume=True, show_progress=False).epochs == 2
    log = read_log(tmp_path / "run")
    assert [entry["epoch"] for entry in log if "epoch" in entry] == [1, 2]
    (changed,) = [entry["changed"] for entry in log if "changed" in entry]
    assert changed == {
        "train.clip": [5, 1],
        "train.epochs": [1, 2],
        "train.learning_rate": [5e-3, 1e-4],
        "train.patience": [0, 3],
    }
    rates = [entry["learning_rate"] for entry in log if "learning_rate" in entry]
    assert rates == [5e-3] * 2 + [1e-4] * 2
    train(longer, resume=True, show_progress=False)  # nothing is left to do, nothing has changed
    assert read_log(tmp_path / "run") == log


@pytest.mark.slow
def test_the_advice_after_a_divergence_works(tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.training.validation.validation_cider", lambda *_: 0.0)
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run", epochs=1)
    train(config, show_progress=False)
    longer = replace(config, train=replace(config.train, epochs=2))
    diverging = replace(longer, train=replace(longer.train, learning_rate=1e38))
    with pytest.raises(DivergenceError, match=r"step 4; .* with --resume$"):
        train(diverging, resume=True, show_progress=False)
    lower = replace(longer, train=replace(longer.train, learning_rate=1e-4, clip=0.1))
    assert train(lower, resume=True, show_progress=False).epochs == 2
    fresh = replace(config, out=str(tmp_path / "fresh"))
    diverging = replace(fresh, train=replace(fresh.train, learning_rate=1e38))
    with pytest.raises(DivergenceError, match=r"step 2; .* start again$"):
        train(diverging, show_progress=False)
    assert train(fresh, show_progress=False).epochs == 1


@pytest.mark.slow
def test_if_cider_is_always_0_the_loss_chooses_the_model_with_a_warning(tmp_path, caplog):
    data = make_data(tmp_path / "data")
    # One validation image: its CIDEr is 0 whatever the caption.
    edit(data / "examples.json", lambda entries: entries[:7])
    config = make_config(data, tmp_path / "run", epochs=3, patience=1)
    result = train(config, show_progress=False)
    losses = [entry["val_loss"] for entry in read_log(tmp_path / "run") if "epoch" in entry]
    assert losses == sorted(losses, reverse=True)  # it falls
    assert result.epochs == 3
    assert result.cider == 0
    assert checkpoints.load(result.best).trained["epoch"] == 3
    assert caplog.text.count("the best epoch is chosen by validation loss") == 1


def trained_checkpoint(encoder, state, data):
    words = CaptionDataset(data, "train").vocabulary
    decoder = make_decoder(MODEL, len(words), DIM)
    return Checkpoint(
        decoder, MODEL, encoder, DecodeConfig(), words, DIM, int(CELLS**0.5), {}, state
    )


@pytest.fixture(scope="module")
def cnn():
    """A CNN and the name of its weights."""
    encoder = Encoder(EncoderConfig("efficientnet_lite0", "none", image_size=32))
    return encoder, replace(encoder.config, weights=encoder.fingerprint())


def data_of(folder, encoder):
    data = make_data(folder)
    edit(data / "features.json", lambda header: header.update(encoder=asdict(encoder)))
    return data


def has_weights_of(path, cnn):
    found = checkpoints.load(path).encoder_state
    expected = cnn.state_dict()
    assert found is not None
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["the data folder", "train.start"])
def test_a_checkpoint_holds_the_trained_cnn_its_features_were_made_with(
    tmp_path, monkeypatch, cnn, source
):
    monkeypatch.setattr("captioner.training.validation.validation_cider", lambda *_: 0.0)
    encoder, named = cnn
    data = data_of(tmp_path / "data", named)
    config = make_config(data, tmp_path / "run", epochs=1)
    with pytest.raises(ConfigError, match=r"run data_prep on it again with --encoder-of"):
        train(config, show_progress=False)
    assert not (tmp_path / "run").exists()
    if source == "train.start":
        start = trained_checkpoint(named, encoder.state_dict(), data)
        checkpoints.save(start, tmp_path / "start")
        config = make_config(data, tmp_path / "run", epochs=1, start=str(tmp_path / "start"))
    else:
        weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
        save_file(weights, data / "encoder.safetensors", {"weights": "sha256:other"})
        with pytest.raises(ConfigError, match=named.weights):
            prepare(config, resume=False)
        save_file(weights, data / "encoder.safetensors", {"weights": named.weights})
    train(config, show_progress=False)
    for name in ("best", "last"):
        assert has_weights_of(tmp_path / "run" / name, encoder)


def test_damaged_weights_in_a_data_folder_are_an_error(tmp_path, cnn):
    data = data_of(tmp_path / "data", cnn[1])
    (data / "encoder.safetensors").write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"encoder.safetensors: it is damaged"):
        prepare(make_config(data, tmp_path / "run"), resume=False)


def test_weights_from_a_file_of_ones_own_travel_in_the_checkpoint(tmp_path):
    from torchvision import models

    file = tmp_path / "own.pth"
    torch.manual_seed(5)
    torch.save(models.resnet18().state_dict(), file)
    own = EncoderConfig("resnet18", str(file), image_size=32)
    data = data_of(tmp_path / "data", own)
    config = make_config(data, tmp_path / "run")
    state = prepare(config, resume=False).encoder_state
    for name, value in Encoder(own).state_dict().items():
        assert torch.equal(state[name], value)
    file.unlink()
    with pytest.raises(ConfigError, match=r"own.pth"):
        prepare(config, resume=False)
    for named in ("default", "none", "IMAGENET1K_V1"):
        data = data_of(tmp_path / named, EncoderConfig("resnet18", named))
        assert prepare(make_config(data, tmp_path / "r"), resume=False).encoder_state is None


def test_training_does_not_start_from_a_checkpoint_that_has_learnt_what_validates(tmp_path):
    encoder = EncoderConfig("efficientnet_lite0")
    data = make_data(tmp_path / "data")
    start = trained_checkpoint(encoder, None, data)
    start = replace(start, trained={"data": [fingerprint(data)]})
    checkpoints.save(start, tmp_path / "start")
    config = make_config(data, tmp_path / "run", start=str(tmp_path / "start"))
    prepare(config, resume=False)
    CHANGES["captions"](data)  # other data to go on with
    prepare(config, resume=False)
    shutil.rmtree(data)
    swap_splits(make_data(data))
    with pytest.raises(ConfigError, match="trained on another split of the same captions"):
        prepare(config, resume=False)
    checkpoints.save(replace(start, trained={}), tmp_path / "start")  # of an older version
    prepare(config, resume=False)


def test_missing_images_are_left_out_counted_and_named(tmp_path, caplog):
    dataset = CaptionDataset(make_data(tmp_path / "data"), "train")
    images = tmp_path / "images"
    images.mkdir()
    with pytest.raises(
        DataError, match=r"none of the 6 train images .*0.jpg; give the folder .* as --images"
    ):
        leave_out_missing(dataset, [images])
    for example in dataset.examples:
        (images / example.image).touch()
    leave_out_missing(dataset, [images])
    assert not caplog.text
    (images / "1.jpg").unlink()
    (images / "4.jpg").unlink()
    leave_out_missing(dataset, [images])
    assert "left out: 2 of 6 train images are missing" in caplog.text
    assert "1.jpg" in caplog.text
    assert [example.image for example in dataset.examples] == [f"{n}.jpg" for n in (0, 2, 3, 5)]
    assert len(dataset.tokens) == len(dataset.folder_of) == 4
