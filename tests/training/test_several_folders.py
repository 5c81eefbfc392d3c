"""Training on two data folders together, with weights and attributes."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import CAPTIONS, MODEL, make_config, make_data

from captioner.training.log import read_log
from captioner.training.loop import epoch_batches, train, train_step
from captioner.training.run import prepare


def two_folders(tmp_path, **settings):
    """Return settings of a run with attributes on six images and on three, these twice as often."""
    one = make_data(tmp_path / "one")
    two = make_data(tmp_path / "two", pictures=3)
    entries = json.loads((two / "examples.json").read_text())
    for entry in entries:
        entry["captions"] = ["a zebra runs", "two boys play"]
    (two / "examples.json").write_text(json.dumps(entries))
    settings = {"min_count": 1, "batch_images": 3, **settings}
    config = make_config(tmp_path, tmp_path / "run", **settings)
    return replace(
        config,
        data=[str(one), str(two)],
        model=replace(MODEL, attributes=5),
        train=replace(config.train, data_weights=[1.0, 2.0]),
    )


def test_the_vocabulary_is_joint_and_batches_follow_the_weights(tmp_path):
    run = prepare(two_folders(tmp_path), resume=False)
    words = run.data.train.vocabulary
    captions = (*CAPTIONS, "a zebra runs")
    assert len(words) == 4 + len({word for caption in captions for word in caption.split()})
    batches = list(epoch_batches(run))
    assert [len(batch.examples) for batch in batches] == [3, 3, 3]
    folders = [run.data.train.folder_of[index] for batch in batches for index in batch.examples]
    assert folders.count(1) in (4, 5)  # half of nine, as 3 images x 2 = 6 images x 1
    assert [len(split) for split in run.data.validation] == [6, 3]
    assert run.decoder.attributes.detect.out_features == 5


@pytest.mark.parametrize("objective", ["cross_entropy", "self_critical"])
def test_each_objective_learns_over_both_folders(tmp_path, objective):
    config = two_folders(
        tmp_path, objective=objective, learning_rate=1e-2, samples=8, max_words=8,
        attention_penalty=0.0,
    )  # fmt: skip
    run = prepare(config, resume=False)
    run.decoder.train(run.objective.dropout)
    name = "cross_entropy" if objective == "cross_entropy" else "reward"
    figures = []
    for _ in range(25):
        figures += [train_step(run, batch)[name] for batch in epoch_batches(run)]
        run.progress.next_epoch()
    first, last = sum(figures[:15]), sum(figures[-15:])
    assert last < first if objective == "cross_entropy" else last > first


@pytest.mark.slow
def test_validation_is_logged_by_folder_with_the_mean_in_the_epochs_asked_for(
    tmp_path, monkeypatch
):
    scores = {6: 0.25, 3: 0.75}  # by the number of images
    monkeypatch.setattr(
        "captioner.training.validation.validation_cider",
        lambda _decoder, _run, split, _scorer: scores[len(split)],
    )
    config = two_folders(tmp_path, epochs=5, eval_epochs=2)
    assert train(config, show_progress=False).cider == 0.5
    epochs = [entry for entry in read_log(tmp_path / "run") if "epoch" in entry]
    assert [entry["epoch"] for entry in epochs] == [2, 4, 5]  # the last one always
    for entry in epochs:
        assert (entry["cider_one"], entry["cider_two"], entry["cider"]) == (0.25, 0.75, 0.5)


def test_equal_images_repeats_the_captions_of_an_image_that_has_fewer(tmp_path):
    for equal, captions in ((False, {1, 2}), (True, {2})):
        config = two_folders(tmp_path / str(equal), captions_per_image=2, equal_images=equal)
        run = prepare(config, resume=False)
        found = set()
        for batch in epoch_batches(run):
            found |= set(torch.bincount(batch.captions.image).tolist())
        assert found == captions
