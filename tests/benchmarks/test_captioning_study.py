"""The captioning study: its plan, its smaller data, its trials and what it tells of them."""

import csv
import json
import math
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from tiny import DIM, make_config, make_data

from benchmarks.captioning_study.__main__ import best_prob, main
from benchmarks.captioning_study.data import make_data as make_small_data
from benchmarks.captioning_study.plan import (
    BASE,
    FINE_GRID,
    INGREDIENTS,
    Outcome,
    Trial,
    base_config,
    detach_plan,
    ingredients_plan,
    read_outcome,
    run_trial,
)
from benchmarks.captioning_study.report import (
    epochs_to_reach,
    plain_targets,
    pooled_table,
    rows,
    rows_table,
)
from benchmarks.trials import locked
from captioner.config import EncoderConfig
from captioner.data.dataset import CaptionDataset
from captioner.data.feature_store import FeatureStore
from captioner.errors import ConfigError

MACHINE = {
    "date": "2026-01-01 00:00 UTC",
    "processor": "",
    "torch": "",
    "threads": "",
    "allocator": "",
}
NAMES = [name for name, _, _ in INGREDIENTS] + [FINE_GRID, "other_encoder"]


def base(tmp_path, **changes):
    settings = {"size": 8, "epochs": 1, "captions": 2, "rate": 1e-3, "recipe": False, **changes}
    return base_config(tmp_path / "data", tmp_path / "out", **settings)


def plan(tmp_path, **changes):
    factors = {
        "decoders": ["show_tell", "show_attend_tell"], "rates": [1e-3, 3e-3], "probs": [0.0, 0.25],
        "seeds": [1, 2, 3],
    }  # fmt: skip
    return detach_plan(base(tmp_path), **{**factors, **changes})


def outcome(setting, seed, ciders, *, panel="a", against="p = 0", diverged="", losses=None):
    """A trial that gave these scores, an epoch each."""
    config = make_config("data", f"{setting}-{seed}", seed=seed)
    losses = losses or [3.0] * len(ciders)
    epochs = [
        {"epoch": n + 1, "step": n, "train_loss": loss, "val_loss": loss, "cider": cider,
         "seconds": 2.0 * (n + 1)}
        for n, (cider, loss) in enumerate(zip(ciders, losses, strict=True))
    ]  # fmt: skip
    return Outcome(Trial("f", panel, setting, against, config), epochs, diverged, MACHINE, 1.0)


def test_the_plan_holds_every_combination_once_and_each_in_a_folder_of_its_own(tmp_path):
    trials = plan(tmp_path)
    combinations = {
        (
            trial.config.model.decoder,
            trial.config.train.learning_rate,
            trial.config.train.detach_prob,
            trial.seed,
        )
        for trial in trials
    }
    assert len(trials) == len(combinations) == 2 * 2 * 2 * 3
    assert len({trial.folder for trial in trials}) == len(trials)
    assert {trial.setting for trial in trials} == {"p = 0", "p = 0.25"}
    assert {trial.against for trial in trials} == {"p = 0"}


def test_a_seed_is_complete_before_the_next_begins(tmp_path):
    seeds = [trial.seed for trial in plan(tmp_path)]
    assert seeds == sorted(seeds)
    seeds = [trial.seed for trial in ingredients_plan(base(tmp_path), NAMES, [1, 2], {})]
    assert seeds == sorted(seeds)


def test_trials_that_detach_the_attention_are_compared_with_those_that_do_not(tmp_path):
    usual = plan(tmp_path, probs=[0.25])
    also = plan(tmp_path, probs=[0.25], detach_attention=True)
    assert not {trial.folder for trial in usual} & {trial.folder for trial in also}
    for one, other in zip(usual, also, strict=True):
        train = replace(one.config.train, detach_attention=True)
        assert other.config.train == train
        assert (other.panel, other.against) == (one.panel, one.setting)


def test_each_ingredient_changes_one_thing_of_the_recipe(tmp_path):
    other_data = {name: tmp_path / name for name in (FINE_GRID, "other_encoder")}
    recipe, *others = ingredients_plan(base(tmp_path, recipe=True), NAMES, [1], other_data)
    assert recipe.setting == BASE
    for trial in others:
        was, now = (
            {**vars(t.config.model), **vars(t.config.train), "data": t.config.data}
            for t in (recipe, trial)
        )
        assert sum(was[key] != now[key] for key in was) == 1, trial.setting


def test_the_smaller_data_has_the_first_images_with_the_means_of_their_cells(tmp_path):
    source = make_data(tmp_path / "source", views=2)  # 2 x 2 cells
    small = make_small_data(
        source, tmp_path, images=3, validation=2, grid=1, mirror=True, min_count=1
    )
    whole = {example.image: example for example in CaptionDataset(source, "train").examples}
    whole |= {example.image: example for example in CaptionDataset(source, "val").examples}
    store = FeatureStore(source)
    for split, images in (("train", ["0.jpg", "1.jpg", "2.jpg"]), ("val", ["6.jpg", "7.jpg"])):
        data = CaptionDataset(small, split)
        assert [example.image for example in data.examples] == images
        assert data.store.shape == (2, 1, DIM)
        assert data.store.encoder == replace(store.encoder, grid=1)
        for example in data.examples:
            original = whole[example.image]
            assert example.captions == original.captions
            mean = store.values[original.row].astype(np.float32).mean(1, keepdims=True)
            np.testing.assert_allclose(data.store.values[example.row], mean, atol=1e-3)
    assert "horse" in data.vocabulary.words  # of the third image
    assert "cat" not in data.vocabulary.words  # of the fourth


def test_the_cells_of_a_finer_grid_are_averaged_where_they_lie(tmp_path):
    source = make_data(tmp_path / "source")
    values = np.arange(16, dtype=np.float16).reshape(1, 16, 1)
    for file in ("features.json", "features.f16", "features.state"):
        (source / file).unlink()
    keys = [f"{number}.jpg" for number in range(12)]
    store = FeatureStore.create(source, keys, (1, 16, 1), EncoderConfig())
    store.write(range(12), np.repeat(values[None], 12, 0))
    small = make_small_data(source, tmp_path, images=6, validation=6, grid=2, mirror=False)
    assert FeatureStore(small).values[5, 0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]


def test_existing_data_is_not_made_again(tmp_path):
    source = make_data(tmp_path / "source")
    sizes = {"images": 3, "validation": 2, "grid": 2, "mirror": False, "min_count": 1}
    folder = make_small_data(source, tmp_path, **sizes)
    before = (folder / "features.f16").stat().st_mtime_ns
    assert make_small_data(tmp_path / "nowhere", tmp_path, **sizes) == folder
    assert (folder / "features.f16").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("wrong", "said"), [({"images": 7}, "6 images of train"), ({"grid": 3}, "no grid of 3 x 3")]
)
def test_data_that_is_too_small_is_refused_before_any_training(tmp_path, wrong, said):
    source = make_data(tmp_path / "source")
    sizes = {"images": 3, "validation": 2, "grid": 2, "mirror": False, **wrong}
    with pytest.raises(ConfigError, match=said):
        make_small_data(source, tmp_path, **sizes)


@pytest.mark.parametrize(
    ("curve", "epochs"),
    [
        ([0.1, 0.2, 0.4], 2.5),
        ([0.6], 0.5),
        ([0.1, 0.3, 0.2], 2.0),
        ([0.1, 0.2, 0.29], None),
        ([], None),
    ],
)
def test_epochs_to_a_score_are_counted_on_the_straight_line_between_epochs(curve, epochs):
    assert epochs_to_reach(curve, 0.3) == (epochs and pytest.approx(epochs))


def test_the_score_to_reach_is_that_of_the_best_mean_plain_curve():
    outcomes = [
        outcome("p = 0", 1, [0.1, 0.4]),
        outcome("p = 0", 2, [0.3, 0.2]),  # mean 0.2, 0.3
        outcome("p = 0", 1, [0.4, 0.3], panel="b"),
        outcome("p = 0", 2, [9.0, 9.0], panel="b", diverged="no"),
        outcome("p = 0", 1, [0.1, 0.1], panel="c"),
        outcome("p = 0.5", 1, [5.0, 5.0]),
    ]
    assert plain_targets(outcomes) == {"f": pytest.approx(0.95 * 0.4)}


def test_a_row_has_mean_and_deviation_over_seeds_and_differences_seed_by_seed():
    outcomes = [
        outcome("p = 0", 1, [0.1, 0.30]),
        outcome("p = 0", 2, [0.1, 0.40]),
        outcome("p = 0.5", 1, [0.35, 0.32]),
        outcome("p = 0.5", 2, [0.1, 0.43]),
        outcome("p = 0.5", 3, [0.1, 0.90]),  # without a partner
    ]
    plain, half = rows(outcomes)
    assert plain.best == (pytest.approx(0.35), pytest.approx(math.sqrt(0.005)))
    assert plain.differences == []
    assert half.last[0] == pytest.approx((0.32 + 0.43 + 0.90) / 3)
    assert half.differences == [pytest.approx(0.05), pytest.approx(0.03)]
    assert half.loss_differences == [0, 0]
    assert plain.seconds == 2.0
    assert plain.epochs_to[0] is None  # 0.95 x 0.35 is 0.3325
    assert half.epochs_to[0] == pytest.approx(0.3325 / 0.35)
    text = rows_table([plain, half])
    assert len(text.splitlines()) == 3
    assert "CIDEr best" in text
    assert "CPU s/epoch" in text
    assert "+0.040 ± 0.010" in text
    assert "(1 of 2)" in text


def test_diverged_trials_are_counted_and_left_out_of_the_means():
    (row,) = rows([outcome("p = 0", 1, [0.5]), outcome("p = 0", 2, [], diverged="nan")])
    assert (row.trials, row.diverged) == (2, 1)
    assert row.best[0] == 0.5
    (row,) = rows([outcome("p = 0", 1, [], diverged="nan")])
    assert "never" in rows_table([row])


def test_differences_of_several_panels_are_paired_within_each_of_them():
    outcomes = [
        outcome("p = 0", 1, [0.1], losses=[3.0]),
        outcome("p = 0.5", 1, [0.2], losses=[2.9]),
        outcome("p = 0", 1, [0.5], losses=[3.0], panel="b"),
        outcome("p = 0.5", 1, [0.4], losses=[2.9], panel="b"),
    ]
    _, line = pooled_table(outcomes).splitlines()
    assert line.split()[-8:] == ["+0.000", "±", "0.100", "-0.100", "±", "0.000", "2", "1"]


def test_a_loss_that_ends_higher_than_it_began_is_a_divergence(tmp_path):
    trial = Trial("f", "a", "p = 0", "p = 0", make_config("data", tmp_path))
    note = {
        "settings": trial.settings,
        "diverged": "",
        "cpu_seconds": 1.0,
        "machine": MACHINE,
    }
    (tmp_path / "trial.json").write_text(json.dumps(note))
    for last, diverged in ((2.9, False), (3.1, True), (math.nan, True)):
        entries = outcome("p = 0", 1, [0.1, 0.1], losses=[3.0, last]).entries
        (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
        assert bool(read_outcome(trial).diverged) == diverged


def test_a_trial_older_than_a_setting_has_its_default(tmp_path):
    trial = Trial("f", "a", "p = 0", "p = 0", make_config("data", tmp_path))
    note = {"settings": trial.settings, "diverged": "", "cpu_seconds": 1.0}
    (tmp_path / "log.jsonl").write_text(json.dumps(outcome("p = 0", 1, [0.1]).entries[0]))
    for missing, value, accepted in (("average", 0.0, True), ("clip", 9.0, False)):
        settings = json.loads(json.dumps(note["settings"]))
        del settings["train"][missing]
        now = replace(trial.config, train=replace(trial.config.train, **{missing: value}))
        text = json.dumps({**note, "settings": settings, "machine": MACHINE})
        (tmp_path / "trial.json").write_text(text)
        if accepted:
            assert read_outcome(replace(trial, config=now)) is not None
        else:
            with pytest.raises(ConfigError, match="other settings"):
                read_outcome(replace(trial, config=now))


def test_the_best_p_is_that_of_the_decoder_with_attention_and_never_0():
    def attends(prob, cider):
        made = outcome(f"p = {prob}", 1, [cider])
        train = replace(made.trial.config.train, detach_prob=prob)
        config = replace(made.trial.config, train=train)
        return replace(made, trial=replace(made.trial, family="show_attend_tell", config=config))

    assert best_prob([attends(0.0, 0.9), attends(0.25, 0.3), attends(0.5, 0.2)]) == 0.25
    assert best_prob([attends(0.0, 0.9)]) == 0


def test_a_trial_that_another_process_runs_is_skipped(tmp_path):
    trial = Trial("f", "a", "p = 0", "p = 0", make_config(tmp_path / "no data", tmp_path / "run"))
    with locked(trial.folder / "lock", wait=False) as mine:
        assert mine
        run_trial(trial)  # would fail: there is no data
    assert read_outcome(trial) is None


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path, error_of):
    source = make_data(tmp_path / "source")
    options = ["detach", "--data", str(source), "--out", str(source / "features.f16")]
    assert "give another --out" in error_of(main, options)


def make_other(folder, encoder="efficientnet_lite1", views=1, skip=0, captions=1):
    """Data of another encoder, without its first images and with each caption repeated."""
    make_data(folder, views=views)
    header = json.loads((folder / "features.json").read_text("utf-8"))
    header["encoder"]["name"] = encoder
    (folder / "features.json").write_text(json.dumps(header), "utf-8")
    examples = json.loads((folder / "examples.json").read_text("utf-8"))
    for example in examples:
        example["captions"] *= captions
    (folder / "examples.json").write_text(json.dumps(examples[skip:]), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": "efficientnet_lite0"}, "other: has features of efficientnet_lite0"),
        ({"views": 2}, "with --mirror"),
        ({"skip": 1}, "other images"),
        (None, "no features at"),
    ],
)
def test_data_of_another_encoder_that_does_not_fit_is_one_line(tmp_path, error_of, changes, said):
    source, other = make_data(tmp_path / "source"), tmp_path / "other"
    if changes is not None:
        make_other(other, **changes)
    options = [
        "ingredients", "--data", str(source), "--out", str(tmp_path / "out"), "--pictures", "5",
        "--validation", "5", "--grid", "1", "--only", BASE, "--encoders", str(other),
    ]  # fmt: skip
    assert said in error_of(main, options)


# What follows trains: CIDEr of every epoch starts Java.

TINY = [
    "--pictures", "6", "--validation", "6", "--grid", "2", "--size", "8", "--epochs", "1",
]  # fmt: skip


@pytest.fixture
def tiny_data(tmp_path):
    """Each word of a tiny data folder often enough to be learnt."""
    return make_other(tmp_path / "source", "efficientnet_lite0", captions=5)


@pytest.mark.slow
def test_a_study_prints_its_table_writes_its_figures_and_is_not_run_twice(
    tiny_data, tmp_path, capsys
):
    out = tmp_path / "out"
    options = [
        "detach", "--data", str(tiny_data), "--out", str(out), *TINY, "--seeds", "1",
        "--decoders", "show_attend_tell", "--rates", "1e-2", "--probs", "0", "0.5",
    ]  # fmt: skip
    assert main([*options, "--report"]) == 1
    assert "no trial" in capsys.readouterr().err
    assert main(options) == 0
    printed = capsys.readouterr().out
    for said in (
        "processor",
        "p = 0.5, attention too",
        "show_attend_tell, rate 0.01",
        "CIDEr best",
    ):
        assert said in printed
    with (out / "detach.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["setting"] for line in lines] == ["p = 0", "p = 0.5", "p = 0.5, attention too"]
    assert {line["detach_prob"] for line in lines} == {"0.0", "0.5"}
    with (out / "detach_epochs.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 3
    assert (out / "detach.png").read_bytes().startswith(b"\x89PNG")

    logs = {path: path.stat().st_mtime_ns for path in out.glob("detach/*/log.jsonl")}
    assert len(logs) == 3
    assert main(options) == 0
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
    again = capsys.readouterr().out
    assert [row for row in again.splitlines() if "p = " in row and "command" not in row] == [
        row for row in printed.splitlines() if "p = " in row and "command" not in row
    ]

    assert main([*options, "--epochs", "2"]) == 1
    assert "other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ingredients_are_written_to_their_own_files(tiny_data, tmp_path, capsys):
    out = tmp_path / "out"
    options = [
        "ingredients", "--data", str(tiny_data), "--out", str(out), *TINY, "--seeds", "1",
        "--only", BASE, "dropout 0.5", "zoneout", FINE_GRID, "--grid", "1", "--fine-grid", "2",
        "--encoders", str(make_other(tmp_path / "lite1", captions=5)),
    ]  # fmt: skip
    assert main(options) == 0
    assert "dropout 0.5" in capsys.readouterr().out
    with (out / "ingredients.csv").open(encoding="utf-8", newline="") as file:
        lines = {line["setting"]: line for line in csv.DictReader(file)}
    assert lines[BASE]["data"].endswith("1x1-mirror")
    assert lines[FINE_GRID]["data"].endswith("2x2-mirror")
    assert lines["efficientnet_lite1"]["data"].endswith("1x1-mirror-efficientnet_lite1")
    assert lines["dropout 0.5"]["dropout"] == "0.5"
    assert lines["zoneout"]["decoder"] == "zoneout"
    assert (out / "ingredients.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_interrupted_trial_resumes_and_ends_as_without_the_interruption(tmp_path):
    data = make_data(tmp_path / "data")
    whole, broken = (
        Trial("f", "a", "p = 0", "p = 0", make_config(data, tmp_path / name, epochs=3))
        for name in ("whole", "broken")
    )
    run_trial(whole)

    def stop():
        while not (broken.folder / "last").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_trial(broken)
    assert read_outcome(broken) is None
    run_trial(broken)
    one, other = (read_outcome(trial).entries for trial in (whole, broken))
    assert len(one) == 3
    assert [e["train_loss"] for e in one] == [e["train_loss"] for e in other]


@pytest.mark.slow
def test_a_trial_that_diverges_is_recorded_and_the_study_goes_on(tiny_data, tmp_path, capsys):
    options = [
        "detach", "--data", str(tiny_data), "--out", str(tmp_path / "out"), *TINY, "--epochs", "2",
        "--seeds", "1", "--decoders", "show_tell", "--rates", "1e38", "0.5", "--probs", "0",
    ]  # fmt: skip
    assert main(options) == 0
    assert "show_tell, rate 1e+38" in capsys.readouterr().out
    with (tmp_path / "out/detach.csv").open(encoding="utf-8", newline="") as file:
        lost, kept = csv.DictReader(file)
    assert lost["learning_rate"] == "1e+38"
    assert lost["diverged"]
    assert not kept["diverged"]
