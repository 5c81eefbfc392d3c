"""Training the CNN: the images it reads, that it learns, and that it resumes exactly."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, MODEL, make_config

from captioner import checkpoint as checkpoints
from captioner.config import EncoderConfig
from captioner.data.dataset import CaptionDataset
from captioner.errors import ConfigError, DataError
from captioner.model.encoder import TRAINED, Encoder
from captioner.pipeline import Captioner
from captioner.training.augmentation import AugmentedImages, ahead
from captioner.training.log import read_log
from captioner.training.loop import epoch_batches, train, train_step
from captioner.training.run import prepare
from data_prep.build import build
from data_prep.records import Record

ENCODER = EncoderConfig("efficientnet_lite0", image_size=64)
CAPTIONS_WITH_SIDES = (*CAPTIONS[:5], "a man stands on the left")


@pytest.fixture
def folder(tmp_path, paint):
    """A prepared data folder of six painted images, in `photos`, in both splits."""
    names = [f"{number}.jpg" for number in range(6)]
    paint(tmp_path / "photos", *names, *(f"val/{name}" for name in names))
    records = [
        Record(
            prefix + name,
            tmp_path / "photos" / prefix / name,
            split,
            (CAPTIONS_WITH_SIDES[number],),
            number + 10 * len(prefix),
        )
        for split, prefix in (("train", ""), ("val", "val/"))
        for number, name in enumerate(names)
    ]
    build(records, tmp_path / "data", ENCODER, min_count=1)
    return tmp_path


def config_of(folder: Path, out: str, **train_settings):
    settings = {"encoder_blocks": 3, "batch_images": 2, "mirror": True, "detach_prob": 0.25}
    made = make_config(folder / "data", folder / out, **{**settings, **train_settings})
    return replace(made, images=str(folder / "photos"), model=replace(MODEL, feature_dim=16))


def a_reader(folder, blocks=0):
    data, encoder = CaptionDataset(folder / "data", "train"), Encoder(ENCODER)
    encoder.unfreeze(blocks)
    return AugmentedImages([folder / "photos"], data, encoder), data, encoder


def test_the_two_parts_of_an_encoder_make_the_whole(folder):
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    encoder = Encoder(ENCODER)
    with torch.no_grad():
        whole = encoder(pixels)
        for blocks in (1, 3, len(encoder.body)):
            encoder.unfreeze(blocks)
            parts = encoder.trained_part(encoder.frozen_part(pixels))
            torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"encoder_blocks is 99; .* has 18 blocks"):
        encoder.unfreeze(99)


def test_only_the_last_blocks_get_a_gradient():
    encoder = Encoder(ENCODER)
    encoder.unfreeze(2)
    encoder(torch.zeros(1, 3, 64, 64)).square().sum().backward()
    with_gradient = [
        block for block in encoder.body if any(p.grad is not None for p in block.parameters())
    ]
    assert with_gradient == list(encoder.body[-2:])


def test_an_image_is_augmented_by_its_seed_alone_whatever_else_is_read(folder):
    images, _, _ = a_reader(folder, blocks=18)  # then the frozen part changes nothing
    read = images.augmented(1)
    together, alone = read([0, 3], [False, False]), images.augmented(1)([3], [False])
    assert torch.equal(together[1:], alone)
    assert not torch.allclose(images.augmented(2)([3], [False]), alone)


def test_an_augmented_image_shows_most_of_the_image_in_its_own_colours(folder):
    bright = Image.new("RGB", (100, 80), (200, 20, 20))
    bright.save(folder / "photos" / "0.jpg")
    images, _, encoder = a_reader(folder, blocks=18)  # then the frozen part changes nothing
    for seed in range(5):
        pixels = images.augmented(seed)([0], [False]) * encoder.std + encoder.mean
        red, green, blue = (255 * pixels[0]).mean((1, 2)).tolist()
        assert red > 110 > 100 > max(green, blue)
        assert abs(green - blue) < 2


def test_a_mirrored_image_is_the_same_crop_mirrored_unless_captions_name_a_side(folder):
    images, data, _ = a_reader(folder, blocks=18)
    data.reader = images.augmented(1)
    plain, mirrored = data.features([0, 5]), data.features([0, 5], [True, True])
    torch.testing.assert_close(mirrored[0], plain[0].flip(-1))
    torch.testing.assert_close(mirrored[1], plain[1])  # "on the left"


def test_a_missing_image_is_named_before_training_and_a_broken_one_in_the_middle(folder):
    with pytest.raises(DataError, match=r"none of the 6 train images is .*give the folder"):
        prepare(replace(config_of(folder, "run"), images=str(folder / "elsewhere")), resume=False)
    run = prepare(config_of(folder, "run"), resume=False)
    assert len(run.data.train) == 6
    (folder / "photos" / "3.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"3\.jpg"):
        for _ in epoch_batches(run):
            pass


def test_an_image_deleted_before_fine_tuning_costs_only_itself(folder, caplog):
    (folder / "photos" / "3.jpg").unlink()
    (folder / "photos" / "val" / "0.jpg").unlink()  # the first of its split
    run = prepare(config_of(folder, "run"), resume=False)
    assert "left out: 1 of 6 train images are missing" in caplog.text
    assert "left out: 1 of 6 val images are missing" in caplog.text
    assert sum(len(batch.examples) for batch in epoch_batches(run)) == 5
    assert len(run.data.validation[0]) == 5
    run.data.encode_validation(run.network.encoder)
    assert run.data.validation[0].features(range(5)).shape[0] == 5


def test_items_computed_ahead_are_the_same_and_an_early_end_stops_the_thread():
    assert list(ahead(iter(range(20)))) == list(range(20))
    made = []

    def numbers():
        for number in range(1000):
            made.append(number)
            yield number

    some = ahead(numbers())
    assert [next(some), next(some)] == [0, 1]
    some.close()
    assert len(made) < 10


def test_the_encoder_learns_with_the_decoder_at_its_own_rate(folder):
    run = prepare(config_of(folder, "run", encoder_rate=1e-3, learning_rate=1e-2), resume=False)
    run.decoder.train()
    before = [weight.clone() for weight in run.network.encoder.parameters()]
    losses = []
    for _ in range(15):
        losses += [train_step(run, batch)["loss"] for batch in epoch_batches(run)]
        run.progress.next_epoch()
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([1e-2, 1e-3])
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    for weight, old in zip(run.network.encoder.parameters(), before, strict=True):
        assert torch.equal(weight, old) != weight.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical"])
def test_a_trained_encoder_travels_in_the_checkpoint_and_makes_features_for_more_training(
    folder, objective
):
    made = config_of(folder, "run", objective=objective, average=0.5, encoder_rate=1e-3)
    train(made, show_progress=False)
    trained = checkpoints.load(folder / "run" / "last")
    assert trained.encoder.weights.startswith(TRAINED)
    captioner = Captioner(trained)
    image = folder / "photos" / "0.jpg"
    text = captioner.caption(image).text
    checkpoints.save(trained, folder / "half", half=True)
    half = checkpoints.load(folder / "half")
    assert half.encoder == trained.encoder  # the same name, though rounded
    assert Captioner(half).caption(image).text == text
    with pytest.raises(ConfigError, match="are in a checkpoint"):
        Encoder(trained.encoder)

    from captioner.evaluate import check_encoder
    from data_prep.__main__ import main

    rows = "".join(f"{n}.jpg,{CAPTIONS[n]}\n" for n in range(6))
    (folder / "captions.csv").write_text("image,caption\n" + rows)
    arguments = ["csv", "--captions", str(folder / "captions.csv"), "--min-count", "1",
                 "--images", str(folder / "photos"), "--out", str(folder / "more"),
                 "--encoder-of", str(folder / "run" / "last")]  # fmt: skip
    assert main(arguments) == 0
    data = CaptionDataset(folder / "more", "train")
    check_encoder(trained, data)
    encoder = Encoder(trained.encoder, trained.encoder_state)
    pixels = encoder.preprocess(captioner.seen(folder / "photos" / data.examples[0].image))
    expected = encoder(pixels.unsqueeze(0))
    assert expected.std() > 0.1
    torch.testing.assert_close(data.features([0]), expected, atol=1e-2, rtol=1e-2)

    # A run that starts from it without touching the CNN hands it on.
    words = trained.vocabulary
    words.save(folder / "more" / "vocabulary.json")
    start = str(folder / "run" / "last")
    later = replace(made, data=str(folder / "more"), out=str(folder / "later"), images="")
    later = replace(later, train=replace(later.train, start=start, encoder_blocks=0))
    train(later, show_progress=False)
    handed_on = checkpoints.load(folder / "later" / "last")
    assert handed_on.encoder == trained.encoder
    for name, weight in trained.encoder_state.items():
        assert torch.equal(handed_on.encoder_state[name], weight), name


@pytest.mark.slow
def test_a_resumed_run_with_the_encoder_has_exactly_the_losses_of_an_uninterrupted_one(
    folder, monkeypatch, stop_after
):
    monkeypatch.setattr("captioner.training.log.STEPS_BETWEEN_LINES", 1)
    train(config_of(folder, "whole", average=0.9), show_progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config_of(folder, "parts", average=0.9), show_progress=False, **stop_after(2))
    train(config_of(folder, "parts", average=0.9), resume=True, show_progress=False)
    whole, parts = (
        [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(folder / name)]
        for name in ("whole", "parts")
    )
    assert parts == whole
