"""The long-memory benchmark: its tasks against their definitions, its networks, its trials."""

import csv
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.memory.__main__ import main
from benchmarks.memory.experiment import Experiment
from benchmarks.memory.lags import copying_lags
from benchmarks.memory.networks import CELLS, IndRNN, Method, Network, ZoneoutLSTM, irnn
from benchmarks.memory.report import accuracy_at, pairs, pairs_table, rows
from benchmarks.memory.running import run_trials
from benchmarks.memory.stacked import StackedSequence, train_together
from benchmarks.memory.tasks import Adding, Copying, Pixels, copying_batch, digits, mnist
from benchmarks.memory.training import Check, Outcome, Training, best_check, read_outcome
from benchmarks.memory.transfer import transfer
from captioner.errors import ConfigError
from captioner.model.lstm import HDetachLSTM


def tiny(tmp_path, **changes):
    settings = {
        "task": "adding", "length": 6, "methods": ("h-detach 0.5",), "seeds": (1,), "hidden": 8,
        "batch": 5, "steps": 6, "check_steps": 2, "out": str(tmp_path / "out"),
    }  # fmt: skip
    return Experiment(**{**settings, **changes})


def options(experiment):
    """The same experiment for the command line."""
    named = {
        "task": experiment.task, "length": experiment.length, "hidden": experiment.hidden,
        "batch": experiment.batch, "steps": experiment.steps, "out": experiment.out,
        "check_steps": experiment.check_steps, "methods": str(list(experiment.methods)),
        "seeds": str(list(experiment.seeds)),
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in named.items()]


# Tasks


def test_copying_presents_ten_symbols_waits_and_asks_for_them_again():
    symbols = torch.tensor([3, 1, 8, 8, 2, 5, 7, 4, 6, 1]).unsqueeze(1)
    batch = copying_batch(symbols, length=4)
    assert batch.inputs[:, 0, 0].tolist() == [3, 1, 8, 8, 2, 5, 7, 4, 6, 1, 0, 0, 0, 9] + [0] * 10
    assert batch.targets[:, 0].tolist() == [0] * 14 + [3, 1, 8, 8, 2, 5, 7, 4, 6, 1]


def test_copying_has_sequences_of_t_plus_20_steps_and_all_eight_symbols():
    task = Copying(30, seed=1)
    batch = task.batch(100, 0, torch.Generator().manual_seed(0))
    assert batch.inputs.shape == (50, 100, 1)
    assert set(batch.inputs[:10].flatten().tolist()) == set(range(1, 9))
    assert task.validation.inputs.shape == (50, 5000, 1)


def test_copying_counts_the_loss_of_every_step_and_the_accuracy_of_the_last_ten():
    task = Copying(5, seed=1, train=10, validation=3)
    targets = task.validation.targets
    assert task.loss(torch.zeros(25, 3, 9), targets).item() == pytest.approx(math.log(9))
    right = nn.functional.one_hot(targets, 9).float()
    assert task.accuracy(right, targets) == 1
    right[:15] = 0  # what is said before the symbols does not matter
    right[-1] = 0  # class 0 wins: wrong
    assert task.accuracy(right, targets) == pytest.approx(0.9)


def test_adding_marks_one_number_in_each_half_and_asks_for_their_sum():
    batch = Adding(7, seed=1, validation=1).batch(200, 0, torch.Generator().manual_seed(0))
    values, marks = batch.inputs.unbind(-1)
    assert (marks[:3].sum(0) == 1).all()
    assert (marks[3:].sum(0) == 1).all()
    assert torch.equal(batch.targets, (values * marks).sum(0))
    assert len(set(marks.argmax(0).tolist())) == 3  # every place of the first half occurs


def test_always_answering_one_to_the_adding_task_errs_by_a_sixth():
    task = Adding(10, seed=1, validation=20_000)
    answers = torch.ones(1, 20_000, 1)
    assert task.loss(answers, task.validation.targets).item() == pytest.approx(1 / 6, abs=0.005)


def test_training_data_of_adding_is_not_its_validation():
    task = Adding(10, seed=1)
    trial = Experiment(task="adding", length=10, seeds=(1,)).trials()[0]
    batch = task.batch(5, 0, Training(trial, task).order)
    assert not torch.equal(batch.inputs, task.validation.inputs[:, :5])


def test_digits_are_split_once_and_read_pixel_by_pixel():
    plain, permuted = (digits(permuted=permuted, seed=1) for permuted in (False, True))
    assert plain.validation.inputs.shape == (64, 300, 1)
    assert plain.test is not None
    assert plain.test.inputs.shape == (64, 300, 1)
    assert not torch.equal(plain.test.inputs, plain.validation.inputs)
    assert 0 <= plain.validation.inputs.min() < plain.validation.inputs.max() <= 1
    assert sorted(permuted.order.tolist()) == list(range(64))
    assert torch.equal(permuted.validation.inputs, plain.validation.inputs[permuted.order])
    assert torch.equal(permuted.validation.targets, plain.validation.targets)


@pytest.mark.slow
def test_mnist_is_read_from_torchvisions_files(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, size in (("train", 60_000), ("t10k", 10_000)):
        images = bytes(range(256)) * (size * 784 // 256)
        header = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (size, 28, 28))
        (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images)
        header = b"\0\0\x08\x01" + size.to_bytes(4, "big")
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(header + b"\7" * size)
    task = mnist(tmp_path, permuted=False, seed=1)
    assert task.steps == 784
    assert task.validation.inputs.shape == (784, 10_000, 1)
    assert task.validation.inputs[255, 0, 0] == 1
    assert task.test is not None
    assert (task.test.targets == 7).all()
    assert task.batch(3, 0, torch.Generator()).inputs.shape == (784, 3, 1)


def pixels(images, labels, seed=1):
    split = (images, labels)
    return Pixels(split, split, split, permuted=False, seed=seed)


def test_an_epoch_has_each_image_once_in_an_order_of_its_own():
    images, numbers = torch.rand(10, 4), torch.arange(10)

    def epoch(number, seed=1):
        task = pixels(images, numbers, seed)
        batches = [task.batch(5, 2 * number + place, torch.Generator()) for place in (0, 1)]
        for batch in batches:
            assert torch.equal(batch.inputs[..., 0].t(), images[batch.targets])
        return torch.cat([batch.targets for batch in batches]).tolist()

    assert sorted(epoch(0)) == sorted(epoch(7)) == list(range(10))
    assert epoch(7) == epoch(7)
    assert len({tuple(epoch(*which)) for which in ((0,), (1,), (0, 2))}) == 3


def test_a_training_reads_the_next_images_at_each_step(tmp_path):
    trial = tiny(tmp_path, task="digits").trials()[0]
    training = Training(trial)
    seen = [training.next_batch() for _ in range(3)]
    for step, batch in enumerate(seen):
        assert torch.equal(batch.inputs, training.task.batch(5, step, torch.Generator()).inputs)
    assert not torch.equal(seen[0].inputs, seen[1].inputs)


def test_a_batch_larger_than_all_images_is_refused():
    with pytest.raises(ConfigError, match="batch is 5; it must be <= 4"):
        pixels(torch.rand(4, 9), torch.arange(4)).batch(5, 0, torch.Generator())


def test_a_pixel_task_has_one_answer_per_image():
    images, labels = torch.rand(4, 9), torch.tensor([0, 1, 2, 3])
    task = pixels(images, labels)
    right = nn.functional.one_hot(labels, 10).float().unsqueeze(0)
    assert task.accuracy(right, labels) == 1
    assert task.loss(torch.zeros(1, 4, 10), labels).item() == pytest.approx(math.log(10))


# Networks


@pytest.mark.parametrize(
    "text", ["lstm", "h-detach 0.25", "c-detach 0.5", "gru unclipped", "h-detach 0.5 unclipped"]
)
def test_a_method_is_written_as_it_is_read(text):
    assert str(Method.parse(text)) == text


@pytest.mark.parametrize("text", ["", "unclipped", "rnn", "h-detach", "h-detach 2", "lstm 0.5"])
def test_an_unknown_method_is_refused_with_a_list_of_methods(text):
    with pytest.raises(ConfigError, match=f"no method '{text}'; choose from lstm, h-detach"):
        Method.parse(text)


@pytest.mark.parametrize("cell", CELLS)
def test_every_network_answers_for_the_last_steps_and_learns(cell):
    torch.manual_seed(1)
    method = Method(cell, 0.5 if "detach" in cell else 0.0)
    network = Network(method, inputs=2, hidden=16, outputs=3, steps=7)
    x, y = torch.rand(7, 20, 2), torch.randint(3, (20,))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    losses = []
    for _ in range(60):
        answers = network(x, 1)
        assert answers.shape == (1, 20, 3)
        loss = nn.functional.cross_entropy(answers[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_h_detach_and_the_plain_lstm_start_alike():
    networks = []
    for method in (Method("lstm"), Method("h-detach", 0.5), Method("c-detach", 0.5)):
        torch.manual_seed(1)
        networks.append(Network(method, 1, 8, 3, steps=5))
    x = torch.rand(5, 2, 1)
    first, *others = [network(x, 5) for network in networks]
    assert all(torch.equal(first, other) for other in others)


def test_zoneout_of_nothing_is_a_plain_lstm_and_of_everything_stands_still():
    x = torch.rand(5, 3, 2)
    zoneout = ZoneoutLSTM(2, 4, cell=0, output=0)
    plain = HDetachLSTM(2, 4)
    plain.load_state_dict(zoneout.state_dict())
    assert torch.allclose(zoneout(x)[0], plain(x)[0], atol=1e-6)
    assert not ZoneoutLSTM(2, 4, cell=1, output=1)(x)[0].any()


def test_zoneout_keeps_entries_in_training_and_takes_the_mean_afterwards():
    torch.manual_seed(1)
    zoneout = ZoneoutLSTM(1, 50, cell=0.3, output=0.3)
    state, gates = (torch.rand(100, 50), torch.rand(100, 50)), torch.rand(100, 200)
    h, c = zoneout.step(gates, state, blocked=False)
    for before, now in zip(state, (h, c), strict=True):
        assert (before == now).float().mean().item() == pytest.approx(0.3, abs=0.03)
    plain = HDetachLSTM.step(zoneout, gates, state, blocked=False)
    zoneout.eval()
    expected = [0.3 * before + 0.7 * now for before, now in zip(state, plain, strict=True)]
    for found, wanted in zip(zoneout.step(gates, state, blocked=False), expected, strict=True):
        assert torch.allclose(found, wanted)


def test_irnn_starts_as_the_identity():
    network = irnn(1, 5)
    h = torch.rand(1, 3, 5)
    assert torch.equal(network(torch.zeros(9, 3, 1), h)[1], h)


def test_indrnn_is_its_definition_and_keeps_its_bound():
    torch.manual_seed(1)
    network, x = IndRNN(2, 4, steps=6, layers=1), torch.randn(6, 3, 2)
    with torch.no_grad():
        network.recurrent[0][0] = 5.0  # as a step of the optimizer might leave it
    (linear,), weight, h = network.inputs, network.recurrent[0], torch.zeros(3, 4)
    for t in range(6):
        h = torch.relu(linear(x[t]) + weight.clamp(max=2 ** (1 / 6)) * h)
    assert torch.allclose(network(x)[0][-1], h)


# Trials


def outcome_of(trial):
    run_trials([trial])
    outcome = read_outcome(trial)
    assert outcome is not None
    return outcome


def without_time(checks):
    return [replace(check, cpu_seconds=0, test_accuracy=0) for check in checks]


def test_an_interrupted_trial_resumes_as_without_the_interruption(tmp_path):
    whole = outcome_of(tiny(tmp_path / "whole").trials()[0])

    def break_off(trial, check):
        if check.step == 4:
            raise InterruptedError

    trial = tiny(tmp_path).trials()[0]
    with pytest.raises(InterruptedError):
        run_trials([trial], break_off)
    assert read_outcome(trial) is None
    assert without_time(outcome_of(trial).entries) == without_time(whole.entries)


def test_a_trial_resumes_when_steps_are_raised_and_is_reported_up_to_its_steps(tmp_path):
    whole = outcome_of(tiny(tmp_path / "whole").trials()[0])
    short, long = tiny(tmp_path, steps=4).trials()[0], tiny(tmp_path).trials()[0]
    assert len(outcome_of(short).entries) == 2
    assert read_outcome(long) is None
    assert without_time(outcome_of(long).entries) == without_time(whole.entries)
    assert len(read_outcome(short).entries) == 2


def test_a_folder_with_a_trial_of_other_settings_is_refused(tmp_path):
    run_trials(tiny(tmp_path).trials())
    with pytest.raises(
        ConfigError, match=r"a trial with other settings \(hidden\); give another --out"
    ):
        run_trials(tiny(tmp_path, hidden=9).trials())


def test_a_trial_ends_at_the_accuracy_of_stop_at(tmp_path):
    outcome = outcome_of(tiny(tmp_path, stop_at=1e-9, steps=100_000, batch=50).trials()[0])
    assert outcome.entries[-1].accuracy > 0
    assert outcome.entries[-1].step < 100_000


def test_the_last_steps_are_trained_without_h_detach(tmp_path):
    training = Training(tiny(tmp_path, plain_steps=2).trials()[0])
    training.train(4)
    assert training.network.core.detach_prob == 0.5
    training.train(1)
    assert training.network.core.detach_prob == 0


def test_gradients_are_clipped_unless_the_method_says_otherwise(tmp_path):
    for method, limit in (("lstm", 1e-3), ("lstm unclipped", math.inf)):
        training = Training(tiny(tmp_path, methods=(method,), clip=1e-3).trials()[0])
        norm_before = training.train(1).largest_norm
        left = torch.stack([weight.grad.norm() for weight in training.network.parameters()]).norm()
        assert norm_before > 1e-3
        assert left.item() == pytest.approx(min(norm_before, limit), rel=1e-3)


def test_a_gradient_that_is_not_finite_ends_the_trial_as_diverged(tmp_path):
    outcome = outcome_of(tiny(tmp_path, methods=("irnn unclipped",), rates=(1e30,)).trials()[0])
    assert outcome.diverged.startswith("a gradient is")
    assert rows([outcome])[0].diverged == 1


ALL_LSTMS = ("lstm", "h-detach 0.5", "c-detach 0.5", "lstm unclipped")


@pytest.mark.parametrize("task", ["copying", "adding", "digits"])
def test_trainings_stacked_are_the_same_trainings(tmp_path, task):
    changes = {"task": task, "methods": ALL_LSTMS, "seeds": (1, 2), "clip": 0.1}
    together = tiny(tmp_path / "together", **changes).trials()
    run_trials(together)
    for one, alone in zip(together, tiny(tmp_path / "alone", **changes).trials(), strict=True):
        run_trials([alone])
        for found, wanted in zip(
            read_outcome(one).entries, read_outcome(alone).entries, strict=True
        ):
            assert found.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)
            assert found.largest_norm == pytest.approx(wanted.largest_norm, rel=1e-3)
            assert found.val_loss == pytest.approx(wanted.val_loss, rel=1e-3)


def test_gradients_of_stacked_networks_are_those_of_each(tmp_path):
    torch.manual_seed(1)
    x = torch.randn(5, 2, 3, 2, dtype=torch.float64, requires_grad=True)  # (T, S, B, I)
    weigh = torch.randn(5, 3, 4, dtype=torch.float64)
    blocked = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 1, 0, 0]], dtype=torch.bool)
    for detach in ("h", "c"):
        cores = [HDetachLSTM(2, 4, detach=detach, engine="definition").double() for _ in range(2)]
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0")
        weights = [
            torch.stack([core.get_parameter(name).detach() for core in cores]).requires_grad_()
            for name in names
        ]
        other = torch.stack([core.bias_hh_l0.detach() for core in cores])
        is_open, free = 1 - blocked.t().double(), torch.ones(5, 2, dtype=torch.float64)
        opened = (is_open, free) if detach == "h" else (free, is_open)
        hidden = StackedSequence.apply(x, *weights[:2], weights[2] + other, *opened)
        found = torch.autograd.grad((hidden * weigh.unsqueeze(1)).sum(), [x, *weights])
        for s, core in enumerate(cores):
            own = x[:, s].detach().requires_grad_()
            alone = core(own, blocked=blocked[s])[0]
            assert torch.allclose(hidden[:, s], alone, atol=1e-12)
            inputs = [own, *(core.get_parameter(name) for name in names)]
            wanted = torch.autograd.grad((alone * weigh).sum(), inputs)
            for of_all, of_one in zip(
                [found[0][:, s], *(g[s] for g in found[1:])], wanted, strict=True
            ):
                assert torch.allclose(of_all, of_one, atol=1e-12)


def test_a_stacked_training_that_diverges_does_not_disturb_the_others(tmp_path):
    broken, sound = tiny(tmp_path, methods=("lstm unclipped", "lstm")).trials()
    trainings = [Training(broken), Training(sound)]
    with torch.no_grad():
        trainings[0].network.answer.weight.fill_(math.inf)
    one, other = train_together(trainings, 3)
    assert not math.isfinite(one.largest_norm)
    assert math.isfinite(other.largest_norm)
    assert all(weight.isfinite().all() for weight in trainings[1].network.parameters())


def test_the_test_split_is_judged_where_validation_was_best(tmp_path):
    outcome = outcome_of(
        tiny(tmp_path, task="digits", methods=("lstm",), rates=(0.01,), steps=60, check_steps=20,
             batch=20).trials()[0]
    )  # fmt: skip
    test = {check.accuracy: check.test_accuracy for check in reversed(outcome.entries)}
    assert outcome.entries[-1].test_accuracy == test[best_check(outcome).accuracy]
    assert not math.isnan(best_check(outcome).test_accuracy)


@pytest.mark.slow
def test_a_tiny_copying_task_is_solved_with_h_detach():
    experiment = Experiment(
        length=10, methods=("h-detach 0.25",), rates=(5e-3,), seeds=(1,), hidden=64, batch=20
    )
    task = Copying(10, seed=1, copied=3, train=20_000, validation=500)
    training = Training(experiment.trials()[0], task)
    assert training.judge(task.validation)[1] < 0.2
    while training.step < 10_000 and training.judge(task.validation)[1] < 0.99:
        training.train(250)
    assert training.judge(task.validation)[1] >= 0.99


def test_transfer_at_the_trained_length_is_about_the_validation_accuracy(tmp_path):
    experiment = tiny(tmp_path, task="copying", length=3, hidden=16, batch=20, steps=30)
    run_trials(experiment.trials())
    outcome = read_outcome(experiment.trials()[0])
    (by_length,) = transfer(experiment.trials(), [3, 8]).values()
    assert by_length[3] == pytest.approx([best_check(outcome).accuracy], abs=0.02)
    assert set(by_length) == {3, 8}


def test_gradients_of_all_seeds_are_pooled(tmp_path):
    experiment = tiny(tmp_path, task="copying", methods=("lstm",), seeds=(1, 2), steps=2)
    run_trials(experiment.trials())
    both, singular = copying_lags(experiment.trials(), 4)
    assert list(both) == [("untrained", "", "2"), ("lstm", "0.001", "2")]
    alone = [copying_lags([trial], 4)[0]["lstm", "0.001", "1"] for trial in experiment.trials()]
    for together, first, second in zip(both["lstm", "0.001", "2"], *alone, strict=True):
        assert (together.lag, together.path) == (first.lag, first.path)
        assert together.count == first.count + second.count
        assert together.mean == pytest.approx((first.mean + second.mean) / 2)
    assert singular.count("\n") == 2


def test_gradients_without_an_lstm_are_refused(tmp_path):
    experiment = tiny(tmp_path, task="copying", methods=("gru",), steps=2)
    run_trials(experiment.trials())
    with pytest.raises(ConfigError, match="no trained lstm or h-detach"):
        copying_lags(experiment.trials(), 2)


def test_transfer_of_another_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="task is adding; this command needs `task: copying`"):
        transfer(tiny(tmp_path).trials(), [5])


# Reports


def outcome(method, seed, accuracies, **changes):
    """A trial that was as accurate as this after 10, 20, ... steps."""
    experiment = Experiment(methods=(method,), seeds=(seed,), **changes)
    checks = [
        Check(10 * (n + 1), 1.0, 1 - accuracy, accuracy, math.nan, 2.0, 1.0)
        for n, accuracy in enumerate(accuracies)
    ]
    return Outcome(experiment.trials()[0], checks, "", {"date": "2026-01-01"})


def test_a_row_counts_the_solved_and_takes_the_median_over_all_seeds():
    found = [
        outcome("lstm", 1, [0.5, 1.0]),
        outcome("lstm", 2, [0.2, 0.3, 0.99]),
        outcome("lstm", 3, [0.2, 0.3, 0.4]),
        outcome("gru", 1, [0.1]),
    ]
    lstm, gru = rows(found)
    assert (lstm.trials, lstm.solved, lstm.steps) == (3, 2, 30)
    assert lstm.accuracy[0] == pytest.approx((1 + 0.99 + 0.4) / 3)
    assert (gru.solved, gru.steps) == (0, math.inf)


def test_the_accuracy_that_counts_as_solved_can_be_set():
    (row,) = rows([outcome("lstm", 1, [0.2, 0.3, 0.4]), outcome("lstm", 2, [0.1])], solved=0.3)
    assert (row.solved, row.steps) == (1, math.inf)


def test_several_rates_are_also_reported_together():
    found = [outcome("lstm", 1, [0.5, 1.0]), outcome("lstm", 1, [0.3], rates=(1e-2,))]
    assert [(row.rate, row.trials, row.solved) for row in rows(found)] == [
        (1e-3, 1, 1), (1e-2, 1, 0), (None, 2, 1),
    ]  # fmt: skip


def test_methods_are_compared_with_the_first_seed_by_seed():
    found = [
        outcome("lstm", 1, [0.5, 1.0]),
        outcome("lstm", 2, [0.2, 0.3]),
        outcome("lstm", 4, [1.0]),  # without a partner
        outcome("lstm", 5, [1.0]),
        outcome("h-detach 0.5", 2, [0.6, 0.99]),
        outcome("h-detach 0.5", 1, [0.5, 0.6, 0.9]),
        outcome("h-detach 0.5", 3, [0.9]),  # without one, too
        outcome("h-detach 0.5", 5, [0.5, 1.0]),
    ]
    (pair,) = pairs(found)
    assert (pair.method, pair.against, pair.rate) == ("h-detach 0.5", "lstm", 1e-3)
    assert pair.differences == pytest.approx([0.99 - 0.3, 0.9 - 1.0, 0])
    assert (pair.sooner, pair.later) == (1, 2)
    assert "+19.7 ± 24.8" in pairs_table([pair])


def test_a_method_that_diverged_at_once_has_an_accuracy_of_0():
    (pair,) = pairs([outcome("lstm", 1, [0.4]), outcome("gru", 1, [])])
    assert pair.differences == [-0.4]


def test_of_a_task_with_a_test_split_the_test_counts():
    tested = outcome("gru", 1, [0.9])
    tested = replace(tested, entries=[replace(tested.entries[0], test_accuracy=0.7)])
    (pair,) = pairs([outcome("lstm", 1, [0.5]), tested])
    assert pair.differences == pytest.approx([0.2])


def test_a_curve_keeps_the_last_accuracy_of_a_trial_that_ended():
    trial = outcome("lstm", 1, [0.5, 1.0])
    assert [accuracy_at(trial, step) for step in (5, 10, 19, 20, 100)] == [0, 0.5, 0.5, 1, 1]


def test_the_command_trains_reports_and_writes_tables_and_plots(tmp_path, capsys):
    given = options(tiny(tmp_path, task="copying", methods=("lstm", "gru"), seeds=(1, 2)))
    assert main(["train", *given]) == 0
    plot = tmp_path / "curves.png"
    assert main(["report", *given, "--plot", str(plot)]) == 0
    told = capsys.readouterr().out
    assert "trials finished: 4 of 4" in told
    assert "Seed by seed" in told
    assert "python -m benchmarks.memory report" in told
    with (tmp_path / "out" / "trials.csv").open() as file:
        assert [line["method"] for line in csv.DictReader(file)] == ["lstm", "gru"] * 2
    with (tmp_path / "out" / "checks.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 3
    other = tmp_path / "transfer.png"
    assert main(["transfer", *given, "--lengths=[3,6]", "--plot", str(other)]) == 0
    assert "T = 3" in capsys.readouterr().out
    assert plot.stat().st_size > 1000 < other.stat().st_size
    assert main(["gradients", *given, "--lags=[1,9]", "--sequences=4"]) == 0
    told = capsys.readouterr().out
    assert "untrained" in told
    assert told.count("lstm") == 1 + 2 + 1  # the command; two lags and W_hh


def test_every_shipped_config_is_an_experiment():
    from pathlib import Path

    from captioner.cli.settings import SettingsParser

    folder = Path(__file__).resolve().parents[2] / "configs" / "memory"
    files = sorted(folder.glob("*.yaml"))
    assert files
    for file in files:
        parser = SettingsParser()
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(Experiment)
        assert parser.read([f"--config={file}"]).out == f"runs/memory/{file.stem}"
