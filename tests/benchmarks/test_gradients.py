"""Gradients split by path: block matrices, valves, lags, measured trainings, the command."""

import csv
import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny import CAPTIONS as CAPTIONS_AS_TEXT
from tiny import DIM, MODEL, make_config, make_data, random_features

from benchmarks.gradients.__main__ import main
from benchmarks.gradients.block_recursion import Blocks, block_matrices
from benchmarks.gradients.flow import gradient_flow, unroll, unroll_lstm
from benchmarks.gradients.lags import (
    ALL,
    CELL,
    HIDDEN,
    SHARE,
    Detach,
    Samples,
    add_lags,
    lstm_lags,
    token_losses,
)
from benchmarks.gradients.random_lstms import RandomSettings, add_jacobians, add_random
from benchmarks.gradients.training import plot_flow, read_flow, train_measured
from benchmarks.memory.networks import Method, Network
from benchmarks.memory.tasks import Copying
from captioner.checkpoint import Checkpoint, load_state, save
from captioner.config import DecodeConfig
from captioner.data.dataset import CaptionDataset, pack
from captioner.data.vocabulary import Vocabulary
from captioner.model.decoder import make_decoder
from captioner.model.lstm import HDetachLSTM
from captioner.training import validation
from captioner.training.loop import train

T, I, H = 6, 3, 4
# Every gate of W_hh and W_ih and the bias: rows of i, f, g and o.
ENTRIES = [
    (name, gate * H + 2, *column)
    for name, column in (("weight_hh_l0", (1,)), ("weight_ih_l0", (0,)), ("bias_hh_l0", ()))
    for gate in range(4)
]


def small(steps=T, scale=2.0):
    """An LSTM in float64 with large weights, its inputs (T, I) and a state (H,)."""
    torch.manual_seed(5)
    lstm = HDetachLSTM(I, H).double()
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.mul_(scale)
    x = torch.randn(steps, I, dtype=torch.float64)
    return lstm, x, (torch.randn(H, dtype=torch.float64), torch.randn(H, dtype=torch.float64))


def last_state(lstm, x, state, blocked=None):
    """c and h (2H,) after the last step."""
    hx = (state[0][None, None], state[1][None, None])
    _, (h, c) = lstm(x[:, None], hx, blocked)
    return torch.cat([c.flatten(), h.flatten()])


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_the_product_of_the_blocks_is_the_derivative_by_finite_differences(entry):
    lstm, x, state = small()
    blocks = block_matrices(lstm, x, state, entry)
    found = blocks.carry(blocks.start())[: 2 * H]
    weight, place, step = lstm.get_parameter(entry[0]), entry[1:], 1e-5
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            weight[place] += sign * step
            ends.append(last_state(lstm, x, state))
            weight[place] -= sign * step
    wanted = (ends[0] - ends[1]) / (2 * step)
    assert wanted.abs().min() > 1e-6  # nothing here is zero by chance
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("engine", ["fused", "segments", "definition"])
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_with_blocked_steps_the_product_is_the_gradient_of_the_h_detach_lstm(entry, engine):
    lstm, x, state = small()
    lstm.engine = engine
    blocks = block_matrices(lstm, x, state, entry)
    direction = torch.randn(2 * H, dtype=torch.float64)
    for blocked in itertools.product([False, True], repeat=T):
        found = direction @ blocks.carry(blocks.start(), [float(not b) for b in blocked])[: 2 * H]
        end = last_state(lstm, x, state, torch.tensor(blocked))
        (gradient,) = torch.autograd.grad(direction @ end, [lstm.get_parameter(entry[0])])
        torch.testing.assert_close(found, gradient[entry[1:]], rtol=0, atol=1e-10)


@pytest.mark.parametrize("entry", ENTRIES[1::4], ids=str)
def test_the_expectation_over_blocked_steps_is_the_product_with_h_kept_by_1_minus_p(entry):
    lstm, x, state = small(steps=4)
    blocks, prob = block_matrices(lstm, x, state, entry), 0.3
    products, gradients = torch.zeros(3 * H).double(), torch.zeros(2 * H).double()
    for blocked in itertools.product([False, True], repeat=4):
        chance = prob ** sum(blocked) * (1 - prob) ** (4 - sum(blocked))
        products += chance * blocks.carry(blocks.start(), [float(not b) for b in blocked])
        end = last_state(lstm, x, state, torch.tensor(blocked))
        weight = lstm.get_parameter(entry[0])
        for row in range(2 * H):
            (gradient,) = torch.autograd.grad(end[row], [weight], retain_graph=True)
            gradients[row] += chance * gradient[entry[1:]]
    expected = blocks.carry(blocks.start(), 1 - prob)
    torch.testing.assert_close(products, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients, expected[: 2 * H], rtol=0, atol=1e-10)
    assert (expected - blocks.carry(blocks.start())).abs().max() > 1e-4


def test_without_h_the_product_is_that_of_the_forget_gates():
    lstm, x, state = small()
    blocks = block_matrices(lstm, x, state)
    jacobian = blocks.carry(torch.eye(3 * H, dtype=torch.float64), 0.0)
    forget = torch.diagonal(blocks.cell[:, :H, :H], dim1=1, dim2=2).prod(0)
    torch.testing.assert_close(jacobian[:H, :H], torch.diag(forget))
    assert not jacobian[: 2 * H, H : 2 * H].any()


WORDS = 20
CAPTIONS = [[[5, 6, 7], [8]], [[9, 10, 11, 12, 5], [6, 7]]]  # image, caption, token


def small_decoder(name, layers=1):
    """A decoder in float64, and a batch of two images with two captions each."""
    torch.manual_seed(1)
    config = replace(MODEL, decoder=name, num_layers=layers, dropout=0.4)
    decoder = make_decoder(config, WORDS, DIM).double()
    batch = pack(random_features(2), CAPTIONS)
    return decoder, batch, batch.captions


SHAPES = [("show_tell", 1), ("show_tell", 2), ("show_attend_tell", 1), ("adaptive", 1)]


@pytest.mark.parametrize("detach_attention", [False, True])
@pytest.mark.parametrize(("name", "layers"), SHAPES)
def test_valves_have_the_losses_and_gradients_of_training_for_every_pattern_of_blocked_steps(
    name, layers, detach_attention, monkeypatch
):
    decoder, batch, captions = small_decoder(name, layers)
    run = unroll(decoder, batch.features, captions, batch.targets)
    losses = torch.cat([loss for loss in run.losses if loss is not None])
    decoder.eval()
    weights = [decoder.core.weight_hh_l0, decoder.core.weight_ih_l0]
    if name == "show_attend_tell":
        weights.append(decoder.query.weight)
    for pattern in itertools.product([False, True], repeat=3):
        blocked = [*pattern, *[False, True] * 4][: len(run.steps)]
        keep = [float(not b) for b in blocked]
        run.set_valves(keep, keep if detach_attention else [1.0] * len(keep))
        found = torch.autograd.grad(losses.sum(), weights, retain_graph=True)
        draw = torch.tensor(blocked)
        monkeypatch.setattr("captioner.model.decoder.draw_blocked", lambda *_, draw=draw: draw)
        prediction = decoder(
            batch.features, captions, detach_prob=0.5, detach_attention=detach_attention
        )
        wanted = torch.nn.functional.cross_entropy(
            prediction.logits, batch.targets, reduction="none"
        )
        torch.testing.assert_close(losses, wanted)
        torch.testing.assert_close(found, torch.autograd.grad(wanted.sum(), weights))


@pytest.mark.parametrize(("name", "layers"), SHAPES)
def test_with_everything_blocked_no_gradient_comes_through_h(name, layers):
    decoder, batch, captions = small_decoder(name, layers)
    run = unroll(decoder, batch.features, captions, batch.targets)
    run.expect(1.0, detach_attention=True)
    flow = gradient_flow(run)
    assert flow.hidden == flow.share == 0
    assert flow.cell > 0
    run.expect(1.0)
    assert (gradient_flow(run).share > 0) == (name == "show_attend_tell")  # its attention is open
    run.expect(0.0)
    assert 0.1 < gradient_flow(run).share < 0.9


def test_a_valve_at_one_half_is_the_mean_over_all_blocked_steps():
    decoder, batch, captions = small_decoder("show_attend_tell")
    run = unroll(decoder, batch.features, captions, batch.targets)
    loss, states = run.losses[-1].sum(), [run.steps[0].c[0]]
    mean = torch.zeros_like(states[0])
    for keep in itertools.product([0.0, 1.0], repeat=len(run.steps)):
        run.set_valves(keep, keep)
        mean += torch.autograd.grad(loss, states, retain_graph=True)[0] / 2 ** len(keep)
    run.expect(0.5, detach_attention=True)
    torch.testing.assert_close(torch.autograd.grad(loss, states)[0], mean)


def test_the_flow_of_one_unit_over_two_steps_is_as_computed_by_hand():
    lstm = HDetachLSTM(1, 1).double()
    w = 1.7
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.weight_hh_l0[2] = w  # of g alone: i = f = o = 1/2
    zero = torch.zeros(1, 1).double()
    run = unroll_lstm(lstm, torch.zeros(2, 1).double(), [1, 1], ((zero,), (zero + 2,)))
    run.losses[-1] = run.steps[-1].h[0][:, 0]
    h1 = 0.5 * math.tanh(1)  # c1 = 1
    g = math.tanh(w * h1)
    c2 = 0.5 + 0.5 * g
    dc2 = 0.5 * (1 - math.tanh(c2) ** 2)
    flow = gradient_flow(run)
    assert flow.cell == pytest.approx(0.5 * dc2)
    through_h = 0.5 * (1 - math.tanh(1) ** 2) * w * 0.5 * (1 - g**2) * dc2
    assert flow.hidden == pytest.approx(through_h)
    run.expect(0.25)
    assert gradient_flow(run).share == pytest.approx(
        0.75 * through_h / (0.75 * through_h + 0.5 * dc2)
    )


def test_the_flow_is_that_of_the_block_matrices():
    lstm, x, (h, c) = small()
    run = unroll_lstm(lstm, x, [1] * T, ((h[None],), (c[None],)))
    direction = torch.randn(T, H, dtype=torch.float64)
    for t, step in enumerate(run.steps):
        run.losses[t] = step.h[0] @ direction[t]
    blocks = block_matrices(lstm, x, (h, c))
    d_c, d_h, cell, hidden = torch.zeros(H).double(), torch.zeros(H).double(), [], []
    for t in reversed(range(1, T)):
        arrived = torch.cat([d_c, d_h + direction[t], d_c * 0])
        d_c, d_h = (arrived @ blocks.cell[t])[:H], (arrived @ blocks.hidden[t])[H : 2 * H]
        tanh = blocks.c[t - 1].tanh()
        cell.append(d_c.norm())
        hidden.append((blocks.h[t - 1] / tanh * (1 - tanh**2) * d_h).norm())
    flow = gradient_flow(run)
    assert flow.cell == pytest.approx(torch.stack(cell).mean().item())
    assert flow.hidden == pytest.approx(torch.stack(hidden).mean().item())


def test_in_stacked_layers_each_unit_gets_the_gradient_of_its_own_h():
    torch.manual_seed(0)
    lstm = HDetachLSTM(I, H, 2).double()
    x = torch.randn(2, I, dtype=torch.float64)
    run = unroll_lstm(lstm, x, [1, 1])
    run.losses[-1] = run.steps[-1].h[-1].sum(1)
    first, second = run.steps
    grads = torch.autograd.grad(run.losses[-1].sum(), second.from_h, retain_graph=True)
    through = []
    for layer in range(2):
        tanh = first.c[layer].tanh()
        through.append(first.h[layer] / tanh * (1 - tanh**2) * grads[layer])
    assert gradient_flow(run).hidden == pytest.approx(torch.cat(through, 1).norm().item())


def test_splitting_a_pass_leaves_no_gradient_and_no_change_of_random_state():
    decoder, batch, captions = small_decoder("show_tell", 2)
    decoder.train()
    before = torch.get_rng_state()
    gradient_flow(unroll(decoder, batch.features, captions, batch.targets))
    assert torch.equal(torch.get_rng_state(), before)
    assert decoder.training
    assert all(module.training for module in decoder.modules())
    assert all(weight.grad is None for weight in decoder.parameters())


def detached_rows(rows, path):
    return {row.lag: row for row in rows if row.path == path}


def test_the_lags_of_an_lstm_are_products_of_its_block_matrices():
    lstm, x, _ = small()
    direction = torch.randn(H, dtype=torch.float64)
    rows = lstm_lags(lstm, x[:, None], lambda output: output @ direction, detached=[Detach(0.3)])
    blocks = block_matrices(lstm, x)
    for path, keep in ((ALL, 1.0), (CELL, 0.0), ("p = 0.3, expected", 0.7)):
        found = detached_rows(rows, path)
        assert list(found) == list(range(T))
        for lag, row in found.items():
            h, c = blocks.h[-1 - lag], blocks.c[-1 - lag]
            after = slice(T - lag, T)
            later = Blocks(blocks.cell[after], blocks.hidden[after], blocks.h, blocks.c)
            jacobian = later.carry(torch.eye(3 * H, dtype=torch.float64), keep)
            arrived = direction @ jacobian[H : 2 * H, : 2 * H]
            slope = h / c.tanh() * (1 - c.tanh() ** 2)  # c also acts through its own h
            wanted = arrived[:H] + slope * arrived[H:]
            assert row.mean == pytest.approx(wanted.norm().item()), (path, lag)


def test_a_sampled_step_has_all_paths_or_the_cell_alone_in_stacked_layers_too():
    torch.manual_seed(0)
    lstm = HDetachLSTM(I, H, 2).double()
    with torch.no_grad():
        lstm.weight_hh_l1.mul_(5)
    x = torch.randn(3, 3, I, dtype=torch.float64)
    run = unroll_lstm(lstm, x.flatten(0, 1), [3] * 3)
    run.losses[-1] = run.steps[-1].h[-1].sum(1)
    samples = Samples()
    sides = [Detach(0.25), Detach(0.25, draws=1500)]
    add_lags(samples, run, sides, torch.Generator().manual_seed(0))
    rows = samples.rows()
    for lag in range(3):
        everything, cell, hidden, expected, drawn = (
            detached_rows(rows, path)[lag]
            for path in (ALL, CELL, HIDDEN, sides[0].name, sides[1].name)
        )
        assert everything.mean <= cell.mean + hidden.mean + 1e-12
        assert (drawn.count, expected.count) == (3 * 1500, 3)
        if lag == 1:
            wanted = 0.75 * everything.mean + 0.25 * cell.mean
            assert drawn.mean == pytest.approx(wanted, rel=0.01)
            assert wanted != pytest.approx(everything.mean, rel=0.03)
        assert cell.cosine == pytest.approx(1)


def test_with_p_of_1_only_the_path_through_the_attention_is_left_unless_it_is_blocked_too():
    decoder, batch, captions = small_decoder("show_attend_tell")
    run = unroll(decoder, batch.features, captions, batch.targets)
    samples, query_open, blocked = Samples(), Detach(1.0), Detach(1.0, attention=True)
    add_lags(samples, run, [query_open, blocked])
    rows = samples.rows()
    everything, cell, left, nothing = (
        detached_rows(rows, path)[1].mean for path in (ALL, CELL, query_open.name, blocked.name)
    )
    assert nothing == pytest.approx(cell)
    assert left != pytest.approx(cell, rel=1e-3)
    assert left != pytest.approx(everything, rel=1e-3)


def test_a_network_of_a_long_memory_task_has_the_same_table():
    task = Copying(4, seed=0, copied=2, train=10, validation=3)
    network = Network(Method("h-detach", 0.5), task.inputs, 8, task.outputs, task.steps)
    loss = token_losses(network.answer, task.validation.targets)
    rows = lstm_lags(network.core, task.validation.inputs, loss, at=[6, 7])
    assert task.steps == 8
    counts = [row.count for row in rows if row.path == ALL]
    assert counts == [2 * 3] * 7 + [3]  # lag 7 from the last step only
    paths = dict.fromkeys(row.path for row in rows)
    assert list(paths) == [ALL, CELL, HIDDEN, SHARE, "p = 0.25, expected", "p = 0.5, expected"]


def test_random_lstms_drown_the_cell_more_the_larger_their_recurrent_weights_are():
    shares = []
    for scale in (0.5, 2.0, 8.0):
        samples = Samples()
        settings = RandomSettings(hidden=16, lags=20, warm_up=5)
        add_random(samples, settings, scale, [Detach(0.5), Detach(0.5, draws=3)], seed=1)
        rows = samples.rows()
        assert [row.lag for row in rows if row.path == ALL] == list(range(1, 21))
        shares.append(detached_rows(rows, SHARE)[20].mean)
        expected = detached_rows(rows, "p = 0.5, expected")[20]
        assert detached_rows(rows, CELL)[20].mean < expected.mean
        assert expected.mean < detached_rows(rows, ALL)[20].mean
    assert shares == sorted(shares)
    assert shares[0] < 0.9 < shares[2]


def test_the_jacobians_are_those_of_autograd():
    lstm, x, state = small()
    samples = Samples()
    add_jacobians(samples, block_matrices(lstm, x, state), 3, [], torch.Generator())

    def last(before):
        return last_state(lstm, x[-3:], (before[H:], before[:H]))

    middle = last_state(lstm, x[:-3], state).detach()
    wanted = torch.autograd.functional.jacobian(last, middle).norm().item() / (2 * H) ** 0.5
    assert detached_rows(samples.rows(), ALL)[3].mean == pytest.approx(wanted)


def checkpoint(folder, name, layers=1):
    """A saved tiny checkpoint, and prepared data it fits."""
    data = make_data(folder / "data")
    split = CaptionDataset(data, "val")
    config = replace(MODEL, decoder=name, num_layers=layers)
    decoder = make_decoder(config, len(split.vocabulary), DIM)
    made = Checkpoint(
        decoder, config, split.store.encoder, DecodeConfig(), split.vocabulary, DIM, 2
    )
    save(made, folder / "best")
    return folder / "best", data


@pytest.mark.parametrize(("name", "layers"), SHAPES)
def test_the_command_takes_any_checkpoint_and_writes_table_file_and_plot(
    name, layers, tmp_path, capsys
):
    best, data = checkpoint(tmp_path, name, layers)
    options = ["--data", str(data), "--pictures", "5", "--lags", "3", "--untrained"]
    files = ["--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.png")]
    assert main([str(best), *options, *files]) == 0
    printed = capsys.readouterr().out
    assert printed.count("attention too") == (2 if name == "show_attend_tell" else 0)
    assert "share of h" in printed
    assert (tmp_path / "a.png").stat().st_size > 1000
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    words = [len(caption.split()) + 1 for caption in CAPTIONS_AS_TEXT[:5]]
    first = [r for r in rows if r["decoder"] == "trained" and r["path"] == ALL]
    image = int(name == "show_tell")  # is a step, too
    lags = range(max(words) + image)
    wanted = [sum(max(0, n + image - max(lag, image)) for n in words) for lag in lags]
    assert [int(row["count"]) for row in first] == wanted


def test_the_random_command_prints_its_table_and_writes_file_and_plot(tmp_path, capsys):
    files = ["--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.png")]
    sizes = ["--hidden", "8", "--lags", "6", "--seeds", "1", "2", "--draws", "2"]
    assert main(["random", *sizes, "--scales", "1", "4", *files]) == 0
    printed = capsys.readouterr().out
    assert "mean forget gate" in printed
    assert "p = 0.5, drawn" in printed
    assert (tmp_path / "a.png").stat().st_size > 1000
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2 * 6 * 8  # biases, scales, lags, paths


def test_data_of_other_words_is_one_line(tmp_path, error_of):
    best, data = checkpoint(tmp_path, "show_tell")
    Vocabulary.build(["a dog"], min_count=1).save(data / "vocabulary.json")
    assert "its words or feature size are not" in error_of(main, [str(best), "--data", str(data)])


@pytest.mark.parametrize(
    ("decoder", "objective"),
    [
        ("show_tell", "cross_entropy"),
        ("show_attend_tell", "cross_entropy"),
        ("adaptive", "cross_entropy"),
        ("show_attend_tell", "self_critical"),
    ],
)
def test_measuring_a_training_changes_no_weight(tmp_path, monkeypatch, decoder, objective):
    monkeypatch.setattr(validation, "validation_cider", lambda *_: 0.0)
    data = make_data(tmp_path / "data", views=2)

    def config(name):
        made = make_config(
            data, tmp_path / name, epochs=3, batch_images=2, detach_prob=0.5, objective=objective
        )
        return replace(made, model=replace(made.model, decoder=decoder, dropout=0.3))

    train(config("plain"), show_progress=False)
    path = train_measured(config("measured"), 2, show_progress=False)
    plain, measured = (load_state(tmp_path / name / "state.pt") for name in ("plain", "measured"))
    assert torch.equal(plain["random"], measured["random"])
    for name, weight in plain["network"].items():
        assert torch.equal(weight, measured["network"][name]), name
    flows = read_flow(path)
    assert [entry["step"] for entry in flows] == [2, 4, 6, 8]
    for entry in flows:
        share = entry["flow_h"] / (entry["flow_c"] + entry["flow_h"])
        assert entry["flow_h_share"] == pytest.approx(share)
        assert 0 < share < 1


def test_a_training_with_h_blocked_has_no_gradient_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "validation_cider", lambda *_: 0.0)
    config = make_config(
        make_data(tmp_path / "data"), tmp_path / "run", epochs=2, batch_images=2,
        detach_prob=1.0, detach_attention=True, detach_anneal=0.5,
    )  # fmt: skip
    path = train_measured(config, 1, show_progress=False)
    shares = [entry["flow_h_share"] for entry in read_flow(path)]
    assert shares[:3] == [0, 0, 0]  # blocked in the first half of training only
    assert min(shares[3:]) > 0
    assert plot_flow(path, "note").stat().st_size > 1000


def test_a_measurement_after_a_resume_replaces_the_one_before(tmp_path):
    path = tmp_path / "flow.jsonl"
    path.write_text('{"step": 2, "x": 1}\n{"step": 4, "x": 1}\n{"step": 4, "x": 2}\n')
    assert read_flow(path) == [{"step": 2, "x": 1}, {"step": 4, "x": 2}]
