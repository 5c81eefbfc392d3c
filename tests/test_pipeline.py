"""The Python interface: what it takes, what it refuses, and what one bad image costs."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_checkpoint

import captioner
from captioner import CaptionerError, CheckpointError, ConfigError, DataError
from captioner.config import DecodeConfig

CAT = Path(__file__).resolve().parents[1] / "checkpoints" / "samples" / "chelsea.jpg"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "checkpoint")


@pytest.fixture(scope="module")
def model(folder):
    return captioner.load(folder)


def test_one_image_has_the_same_caption_in_every_form(model):
    caption = model.caption(CAT, beam_size=5)
    assert caption.text == " ".join(caption.words) == str(caption)
    assert caption.attention.shape == (len(caption.words), 3, 3)
    assert caption.attention.sum((1, 2)) == pytest.approx(1.0, rel=1e-4)
    images = [CAT, CAT.read_bytes(), Image.open(CAT)]
    found = list(model.caption_many(images, batch_images=2, beam_size=5))
    assert [one.text for one in found] == [caption.text] * 3
    several = model.captions(CAT, captions=3)
    assert len({one.text for one in several}) == 3
    with pytest.raises(ConfigError, match="no setting 'beams'"):
        model.caption(CAT, beams=3)
    with pytest.raises(DataError, match="no image at"):
        model.caption("gone.jpg")
    with pytest.raises(CheckpointError):
        captioner.load("gone")


@pytest.mark.parametrize("batch_images", [1, 2, 16])
def test_a_bad_image_costs_itself_and_keeps_its_place(model, batch_images):
    images = [CAT, CAT, "missing.jpg", b"nonsense", CAT]
    found = list(model.caption_many(images, batch_images=batch_images))
    assert [isinstance(one, DataError) for one in found] == [False, False, True, True, False]
    assert found[0].text == found[-1].text == model.caption(CAT).text
    assert str(found[2]) == "no image at missing.jpg"


def test_images_are_taken_a_batch_at_a_time(model):
    endless = itertools.cycle([CAT, None])
    found = model.caption_many(endless, batch_images=2)
    assert next(found).text == model.caption(CAT).text
    assert isinstance(next(found), DataError)


@pytest.mark.parametrize(
    "one", ["photo.jpg", Path("photo.jpg"), b"bytes", Image.new("RGB", (4, 4)), np.zeros((4, 4, 3)),
            torch.zeros(3, 4, 4), None, 7],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_one_image_in_place_of_many_is_refused_at_once(model, one):
    with pytest.raises(ConfigError, match="caption_many takes a list of images"):
        model.caption_many(one)


def test_wrong_settings_are_refused_when_many_are_asked_for_not_later(model):
    with pytest.raises(ConfigError, match="beam_size is 0"):
        model.caption_many([CAT], beam_size=0)
    with pytest.raises(ConfigError, match="batch_images is 0"):
        model.caption_many([CAT], batch_images=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam_size": 2.5}, "beam_size is 2.5; it must be a whole number"),
        ({"beam_size": True}, "beam_size is True; it must be a whole number"),
        ({"max_words": "3"}, "max_words is '3'; it must be a whole number"),
        ({"sample": True, "seed": None}, "seed is None; it must be a whole number"),
        ({"sample": True, "seed": 2**64}, "seed is 18446744073709551616; it must have at most 64"),
        ({"sample": "no"}, "sample is 'no'; it must be True or False"),
        ({"length_norm": "much"}, "length_norm is 'much'; it must be a number"),
        ({"length_norm": float("nan")}, "length_norm is nan but must be a number >= 0"),
        ({"temperature": 0.5}, "temperature is 0.5, but the captions are searched, not sampled"),
        ({"seed": 1}, "seed is 1, but the captions are searched"),
        ({"sample": True, "beam_size": 3}, "beam_size is 3, but the captions are sampled"),
        ({"beams": 3}, "no setting 'beams'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_it_must_be(model, settings, message):
    with pytest.raises(ConfigError) as caught:
        model.captions(CAT, **settings)
    assert str(caught.value).startswith(message)


def test_numbers_of_numpy_are_numbers(model):
    settings = {"beam_size": np.int64(2), "length_norm": np.float32(0.7), "max_words": np.int8(6)}
    assert model.caption(CAT, **settings, whole_endings=np.bool_(True)).text


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", None, 1.5])
def test_a_device_that_is_not_there_is_refused(folder, device):
    with pytest.raises(ConfigError, match=r"^device .* cannot be used: .*; take cpu or auto$"):
        captioner.load(folder, device=device)


def test_the_device_may_be_chosen_automatically(folder):
    assert captioner.load(folder, device="auto").caption(CAT).text


def test_what_surrounds_a_call_does_not_change_its_caption(model):
    usual = model.caption(CAT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.caption(CAT)
    assert (mixed.text, mixed.score) == (usual.text, usual.score)
    before = torch.get_default_dtype()
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            other = model.caption(CAT)
        finally:
            torch.set_default_dtype(before)
        assert other.text == usual.text
        assert other.score == pytest.approx(usual.score, rel=1e-5)


@pytest.mark.parametrize(
    "path", [None, 7, [], ["x", 7], "", "x" * 300, "a\0b", str(CAT), Path("name/model")],
    ids=lambda path: repr(path)[:20],
)  # fmt: skip
def test_what_is_not_a_checkpoint_is_refused(path):
    with pytest.raises(CheckpointError):
        captioner.load(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_checkpoint_in_a_closed_folder_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    for path in (tmp_path / "closed", tmp_path / "closed" / "checkpoint"):
        with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
            captioner.load(path)


def test_a_captioner_of_a_path_says_how_to_load_it(folder):
    with pytest.raises(CheckpointError, match=r"captioner\.load the path of one"):
        captioner.Captioner(str(folder))


# The Hub


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What was asked of the Hub, which has nothing."""
    found = []

    def nothing(name):
        found.append(name)
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nothing)
    monkeypatch.chdir(tmp_path)
    return found


def test_the_hub_is_asked_for_what_can_only_be_an_id(asked):
    with pytest.raises(
        CheckpointError,
        match=r"it is not a folder here, and not found on the Hugging Face Hub: no connection",
    ):
        captioner.load("somebody/captioner-v1.5")
    assert asked == ["somebody/captioner-v1.5"]


@pytest.mark.parametrize(
    "path",
    ["album/best", "albun/best", "runs/best", "run/best", "Checkpoints/flickr8k", "checkpoint/x",
     "name/model.safetensors", "./a/b", "../a", "~/a", "a/b/c", "/a/b", "a", "a/", "a\\b", "a b/c"],
)  # fmt: skip
def test_the_hub_is_never_asked_for_a_path(asked, path, tmp_path):
    (tmp_path / "album").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        captioner.load(path)
    assert asked == []


def test_a_path_with_a_slip_in_it_names_the_nearest_checkpoint(asked, tmp_path):
    write_checkpoint(tmp_path / "mine" / "flickr8k")
    with pytest.raises(CheckpointError, match=r"did you mean mine.flickr8k\?"):
        captioner.load("mime/flickr8")
    assert asked == []


def test_every_error_of_the_package_is_caught_as_one(model):
    for call in (
        lambda: captioner.load("nowhere"),
        lambda: model.caption(None),
        lambda: model.caption(CAT, beam_size=0),
    ):
        with pytest.raises(CaptionerError):
            call()


def test_settings_change_one_by_one(model):
    assert model.decode == DecodeConfig(beam_size=3, max_words=6)
