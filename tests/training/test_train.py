"""Training: it learns, it resumes exactly, it leaves a usable run behind."""

import json
import math
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CAPTIONS, CELLS, DIM, make_config, make_data, random_features

from captioner import checkpoint as checkpoints
from captioner.cli.signals import stop_requested
from captioner.config import TrainConfig
from captioner.data.dataset import CaptionDataset, pack
from captioner.errors import CheckpointError, ConfigError, DivergenceError
from captioner.evaluate import caption_split
from captioner.model.decoder import Prediction
from captioner.tokens import BOS
from captioner.training.log import read_log
from captioner.training.loop import train
from captioner.training.loss import caption_loss
from captioner.training.schedule import detach_probability, learning_rate

pytestmark = pytest.mark.slow  # CIDEr of every epoch starts Java


def test_it_learns_six_captions_by_heart_with_and_without_h_detach(tmp_path):
    data = make_data(tmp_path / "data")
    for prob in (0.0, 0.5):
        config = make_config(
            data,
            tmp_path / f"run{prob}",
            epochs=25,
            batch_images=1,
            detach_prob=prob,
            learning_rate=1e-2,
            eval_images=1,
        )
        with pytest.MonkeyPatch.context() as patch:
            # CIDEr of a single image is always 0; this saves 50 starts of Java.
            patch.setattr("captioner.training.validation.validation_cider", lambda *_: 0.0)
            train(config, show_progress=False)
        trained = checkpoints.load(tmp_path / f"run{prob}" / "last")
        split = CaptionDataset(data, "val")
        found = caption_split(trained.decoder, split, config.decode)
        for example in split.examples:
            written = " ".join(trained.vocabulary.decode(found[example.image_id][0].tokens))
            assert written == example.captions[0]


def losses(folder):
    """Return all entries of a log, without the times."""
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in read_log(folder)]


@pytest.mark.parametrize(
    ("decoder", "objective"),
    [
        ("show_tell", "cross_entropy"),
        ("show_attend_tell", "cross_entropy"),
        ("adaptive", "cross_entropy"),
        ("show_attend_tell", "self_critical"),
    ],
)
def test_a_resumed_run_has_exactly_the_losses_of_an_uninterrupted_one(
    tmp_path, monkeypatch, stop_after, decoder, objective
):
    monkeypatch.setattr("captioner.training.log.STEPS_BETWEEN_LINES", 1)
    data = make_data(tmp_path / "data", views=2)

    def config(name):
        made = make_config(
            data,
            tmp_path / name,
            epochs=2,
            batch_images=2,
            detach_prob=0.5,
            average=0.9,
            objective=objective,
            scheduled_sampling=0.3 if objective == "cross_entropy" else 0.0,
            schedule="cosine",
        )
        return replace(made, model=replace(made.model, decoder=decoder, dropout=0.3))

    train(config("whole"), show_progress=False)

    for resume in (False, True):  # in the middle of an epoch, and again
        with pytest.raises(KeyboardInterrupt):
            train(config("parts"), resume=resume, show_progress=False, **stop_after(2, 4))
    train(config("parts"), resume=True, show_progress=False)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len([e for e in losses(tmp_path / "whole") if "loss" in e]) == 6
    one, other = (checkpoints.load(tmp_path / name / "last") for name in ("whole", "parts"))
    for name, weight in one.decoder.state_dict().items():
        assert torch.equal(weight, other.decoder.state_dict()[name]), name


def test_after_step_gets_the_run_and_each_batch_and_changes_no_weight(tmp_path, monkeypatch):
    monkeypatch.setattr("captioner.training.validation.validation_cider", lambda *_: 0.0)
    data = make_data(tmp_path / "data", views=2)
    measured = []

    def measure(run, batch):
        features = run.network.encode(batch).features
        measured.append((run.progress.step, len(batch.examples), features.shape[1:]))

    for name, after_step in (("without", None), ("with", measure)):
        config = make_config(data, tmp_path / name, epochs=2, batch_images=4)
        train(config, show_progress=False, after_step=after_step)
    assert measured == [(step, 4 if step % 2 else 2, (CELLS, DIM)) for step in range(1, 5)]
    states = [checkpoints.load_state(tmp_path / name / "state.pt") for name in ("without", "with")]
    assert torch.equal(states[0]["random"], states[1]["random"])
    for name, weight in states[0]["network"].items():
        assert torch.equal(weight, states[1]["network"][name]), name


def test_a_run_leaves_checkpoints_logs_and_curves_and_is_not_overwritten(tmp_path):
    data, out = make_data(tmp_path / "data"), tmp_path / "run"
    result = train(make_config(data, out), show_progress=False)
    assert result.best == out / "best"
    assert checkpoints.load(out / "best").trained["val_cider"] == pytest.approx(result.cider)
    assert (out / "curves.png").stat().st_size > 1000
    assert any((out / "tensorboard").iterdir())
    epochs = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {"epoch", "train_loss", "val_loss", "cider"} <= set(epochs[-1])
    with pytest.raises(ConfigError, match="--resume"):
        train(make_config(data, out), show_progress=False)
    with pytest.raises(ConfigError, match=r"train.batch_images = 4, now it is 2"):
        train(make_config(data, out, batch_images=2), resume=True, show_progress=False)


def test_mixed_precision_learns_about_the_same(tmp_path):
    data = make_data(tmp_path / "data")
    found = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        train(make_config(data, out, precision=precision, epochs=1), show_progress=False)
        found.append([e["train_loss"] for e in read_log(out) if "epoch" in e])
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_training_stops_when_cider_stops_rising(tmp_path):
    config = make_config(
        make_data(tmp_path / "data"), tmp_path / "run", epochs=9, patience=1, learning_rate=1e-12
    )
    assert train(config, show_progress=False).epochs == 2


def test_a_run_whose_gradient_is_not_finite_stops_with_advice(tmp_path):
    data = make_data(tmp_path / "data")
    values = np.fromfile(data / "features.f16", np.float16)
    np.full_like(values, np.inf).tofile(data / "features.f16")
    with pytest.raises(DivergenceError, match=r"at step 1; lower train.learning_rate"):
        train(make_config(data, tmp_path / "run"), show_progress=False)


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    train(make_config(make_data(tmp_path / "data"), tmp_path / "run"), show_progress=False)
    other = make_config(make_data(tmp_path / "other", pictures=3), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"captions and splits of .* changed"):
        train(other, resume=True, show_progress=False)


def test_there_must_be_something_to_resume(tmp_path):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run")
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(config, resume=True, show_progress=False)


def test_a_sigterm_waits_for_the_end_of_the_step(tmp_path):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run", epochs=100_000)

    def stop():
        while not (tmp_path / "run" / "best").exists():
            time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with stop_requested() as stop_asked, pytest.raises(KeyboardInterrupt):
        train(config, show_progress=False, stop=stop_asked)
    state = checkpoints.load_state(tmp_path / "run" / "state.pt")
    assert state["progress"]["step"] >= 2


def test_the_doubly_stochastic_penalty_and_smoothing_follow_their_definition():
    batch = pack(random_features(2), [[[5, 6]], [[7]]])
    attention = torch.rand(len(batch.targets), 4).softmax(-1)
    prediction = Prediction(torch.randn(len(batch.targets), 6), torch.nn.Linear(6, 10), attention)
    settings = TrainConfig(attention_penalty=0.5, label_smoothing=0.1)
    loss, plain = caption_loss(prediction, batch.targets, batch.captions.batch_sizes, settings)
    first = attention[0] + attention[2] + attention[4]  # rows are packed step by step
    second = attention[1] + attention[3]
    penalty = torch.stack([(1 - first) ** 2, (1 - second) ** 2]).mean()
    log_probs = prediction.logits.log_softmax(-1)
    correct = -log_probs.gather(1, batch.targets.unsqueeze(1)).mean()
    smoothed = 0.9 * correct - 0.1 * log_probs.mean()
    torch.testing.assert_close(plain, correct)
    torch.testing.assert_close(loss, smoothed + 0.5 * penalty)


def test_rates_rise_and_fall_and_detaching_ends_as_set():
    settings = TrainConfig(learning_rate=1.0, warmup_steps=4, schedule="cosine")
    rates = [learning_rate(settings, step, 104) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[54] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    annealed = TrainConfig(detach_prob=0.4, detach_anneal=0.2)
    assert [detach_probability(annealed, share) for share in (0, 0.79, 0.8, 1)] == [0.4, 0.4, 0, 0]
    assert detach_probability(TrainConfig(detach_prob=0.4), 0.999) == 0.4


def test_batches_are_packed_by_time_step_longest_caption_first():
    batch = pack(random_features(2), [[[5, 6], [7, 8, 9]], [[4]]])
    assert batch.captions.batch_sizes == [3, 3, 2, 1]
    assert batch.captions.image.tolist() == [0, 0, 1]
    assert batch.captions.inputs.tolist() == [BOS, BOS, BOS, 7, 5, 4, 8, 6, 9]
    assert batch.targets.tolist() == [7, 5, 4, 8, 6, 2, 9, 2, 2]


def test_an_epoch_is_the_same_wherever_one_begins(tmp_path):
    data = CaptionDataset(make_data(tmp_path / "data", views=2), "train")
    whole = list(data.batches(2, max_words=9, mirror=True, seed=5))
    rest = list(data.batches(2, max_words=9, mirror=True, seed=5, skip=1))
    assert len(whole) == 3
    for one, other in zip(whole[1:], rest, strict=True):
        assert torch.equal(one.features, other.features)
        assert torch.equal(one.captions.inputs, other.captions.inputs)
    assert not torch.equal(
        whole[0].features, next(data.batches(2, max_words=9, mirror=True, seed=6)).features
    )


def test_images_whose_captions_say_left_or_right_are_never_mirrored(tmp_path):
    folder = make_data(tmp_path / "data", views=2)
    entries = json.loads((folder / "examples.json").read_text())
    entries[0]["captions"] = ["a dog on the left"]
    (folder / "examples.json").write_text(json.dumps(entries))
    data = CaptionDataset(folder, "train")
    plain = data.features([0, 1])
    mirrored = data.features([0, 1], [True, True])
    assert torch.equal(plain[0], mirrored[0])
    assert not torch.equal(plain[1], mirrored[1])


def test_an_untrained_model_is_as_unsure_as_guessing(tmp_path):
    result = train(
        make_config(make_data(tmp_path / "data"), tmp_path / "run", epochs=1, learning_rate=1e-12),
        show_progress=False,
    )
    words = len({word for caption in CAPTIONS for word in caption.split()}) + 4
    (epoch,) = [entry for entry in read_log(result.best.parent) if "epoch" in entry]
    assert epoch["val_loss"] == pytest.approx(math.log(words), rel=0.1)
