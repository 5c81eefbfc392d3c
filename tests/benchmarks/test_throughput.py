"""The throughput benchmark: right baselines, right counts, items that run, and the command."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import make_config, make_data
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.definition import compare
from benchmarks.engines import ENGINES, difference, measure
from benchmarks.throughput import products
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.bars import BARS, Bar, Verdict, verdicts
from benchmarks.throughput.baselines import (
    AttendNet,
    CellLoop,
    Rows,
    ShowTellNet,
    TwoProductCell,
    authors_attend,
    authors_show_tell,
    beam_batched,
    beam_one_by_one,
    greedy,
    packed_loss,
    packed_show_tell,
    padded_loss,
    tutorial_attend,
)
from benchmarks.throughput.items import FILES, ITEMS
from benchmarks.throughput.measure import OURS, Figure, Item, Result, _growth_here
from benchmarks.throughput.products import CoreSizes, DecoderSizes
from captioner.data.dataset import pack
from captioner.model import DECODERS
from captioner.tokens import EOS

T, B, I, H, D, V = 5, 3, 4, 6, 7, 12
CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Two images of three cells with captions of unequal length."""
    return pack(torch.randn(2, 3, D), [[[4, 5, 6, 7], [8]], [[9, 10], [4, 11, 5]]])


def copy_weights(lstm, cell):
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if isinstance(cell, TwoProductCell):
        targets = (cell.input.weight, cell.hidden.weight, cell.input.bias, cell.hidden.bias)
    else:
        targets = (getattr(cell, name) for name in names)
    with torch.no_grad():
        for name, target in zip(names, targets, strict=True):
            target.copy_(getattr(lstm, f"{name}_l0"))


@pytest.mark.parametrize("kind", [nn.LSTMCell, TwoProductCell])
def test_every_loop_over_a_cell_gives_the_output_of_nn_lstm(kind):
    lstm, cell, x = nn.LSTM(I, H), kind(I, H), torch.randn(T, B, I)
    copy_weights(lstm, cell)
    for prob in (0.0, 1.0):  # detaching leaves the output alone
        torch.testing.assert_close(CellLoop(cell, prob)(x), lstm(x)[0])


def test_a_loop_that_always_detaches_has_no_gradient_through_h():
    x = torch.randn(T, B, I, requires_grad=True)
    loop = CellLoop(nn.LSTMCell(I, H), 1.0)
    with torch.no_grad():
        loop.cell.bias_hh[H : 2 * H] = -1e4  # the forget gate shuts the other way back, c
    loop(x)[-1].sum().backward()
    assert x.grad[-1].any()
    assert not x.grad[:-1].any()


def test_the_loops_with_attention_agree_on_every_word_and_on_the_loss(batch):
    net, rows = AttendNet(D, V, H, TwoProductCell, dropout=0.0), Rows(batch, CPU)
    authors = authors_attend(net, batch.features, rows, detach_prob=0.5)
    real = torch.arange(rows.captions.shape[1]) < rows.lengths[:, None]
    for hoist in (False, True):
        tutorial = tutorial_attend(net, batch.features, rows, hoist=hoist)
        for mine, theirs in zip(tutorial, authors, strict=True):
            torch.testing.assert_close(mine[real], theirs[real])
        torch.testing.assert_close(
            packed_loss(tutorial[0], None, rows), padded_loss(authors[0], None, rows)
        )


def test_the_loops_without_attention_agree_on_every_word(batch):
    packed = ShowTellNet(D, V, H, lambda *sizes: nn.LSTM(*sizes, batch_first=True)).eval()
    looped = ShowTellNet(D, V, H, nn.LSTMCell).eval()
    copy_weights(packed.recurrent, looped.recurrent)
    for name in ("image", "embed", "fc"):
        getattr(looped, name).load_state_dict(getattr(packed, name).state_dict())
    rows = Rows(batch, CPU)
    real = torch.arange(rows.captions.shape[1]) < rows.lengths[:, None]
    torch.testing.assert_close(
        packed_show_tell(packed, batch.features, rows)[real],
        authors_show_tell(looped, batch.features, rows, 0.0)[real],
    )


def test_the_searches_find_the_same_captions():
    net, features = AttendNet(D, V, H).eval(), torch.randn(4, 3, D)
    assert beam_one_by_one(net, features, 1, 6) == greedy(net, features, 6)
    with torch.no_grad():
        net.fc.bias[EOS] = -1e4
    found = beam_one_by_one(net, features, 3, 6)
    assert found == beam_batched(net, features, 3, 6)
    assert all(len(words) == 6 for words in found)


def test_the_count_for_an_lstm_is_what_a_loop_multiplies_and_a_blocked_step_saves_one_product():
    x = torch.randn(T, B, I, requires_grad=True)
    loop = CellLoop(TwoProductCell(I, H))
    with FlopCounterMode(display=False) as counter:
        loop(x).sum().backward()
    sizes = CoreSizes(T, B, I, H, True)
    one_product = 2 * B * 4 * H * H  # to the initial h, which the loop does not need
    assert counter.get_total_flops() == products.core(sizes, 0.0) - one_product
    assert products.core(sizes, 0.0) - products.core(sizes, 1.0) == T * one_product
    without = replace(sizes, input_grad=False)
    assert products.core(sizes, 0.0) - products.core(without, 0.0) == 2 * T * B * 4 * H * I


def test_the_count_for_show_tell_is_what_a_loop_multiplies():
    features = torch.randn(3, 1, D)
    rows = Rows(pack(features, [[[4, 5, 6]], [[7, 8, 9]], [[4, 9, 7]]]), CPU)
    net = ShowTellNet(D, V, H, TwoProductCell)
    with FlopCounterMode(display=False) as counter:
        authors_show_tell(net, features, rows, 0.0).sum().backward()
    sizes = DecoderSizes(images=3, captions=1, cells=1, dim=D, vocabulary=V, hidden=H)
    counted = products.train_show_tell(sizes, tokens=12, detach_prob=0.0)
    assert counter.get_total_flops() == counted - 2 * 3 * 4 * H * H


def result(**changes):
    speeds = {OURS: 30.0, "good": 20.0, "poor": 10.0}
    figures = {side: Figure(speed, speed, speed) for side, speed in speeds.items()}
    whole = Result(
        name="beam-5",
        unit="images",
        speeds=figures,
        gemm=Figure(130.0, 130.0, 130.0),
        flops_per_unit=1e9,
        memory_mb={OURS: 299.0},
        stages_ms={},
    )
    return replace(whole, **changes)


def test_ratio_bound_share_and_scaled_speed_follow_from_the_medians():
    measured = result()
    assert measured.best_baseline == "good"
    assert measured.ratio("good") == 1.5
    assert measured.bound == 130
    assert measured.share == pytest.approx(30 / 130)
    assert measured.scaled == 15  # on a core of half the speed


def test_bars_of_memory_and_time_are_upper_ones_and_the_others_lower_ones():
    assert [verdict.reached for verdict in verdicts(result())] == [True, True]
    worse = result(gemm=Figure(140.0, 140.0, 140.0), memory_mb={OURS: 301.0})
    assert [verdict.reached for verdict in verdicts(worse)] == [False, False]
    assert not Verdict(Bar("memory", 300), None).reached  # not measured
    photo = result(name="photo", speeds={OURS: Figure(8.0, 8.0, 8.0)})
    assert verdicts(photo)[0].figure == 250
    assert verdicts(photo)[0].reached


def test_every_bar_belongs_to_an_item():
    assert set(BARS) <= set(ITEMS)


def test_the_growth_of_memory_is_that_of_the_runs_not_of_what_was_there():
    def side():
        there, kept = torch.ones(20_000_000), []
        return lambda: kept.append(there.clone())

    grown = _growth_here(lambda quick, device: Item("runs", 1, {OURS: side}), False, OURS)
    if grown is None:
        pytest.skip("this system does not tell the peak of memory")
    assert 155 < grown < 200  # two runs of 80 MB


def test_a_quick_run_prints_the_table_and_writes_every_figure(tmp_path, capsys):
    written = tmp_path / "figures.json"
    plot = tmp_path / "figures.png"
    options = ["--quick", "--only", "core-copying", "--rounds", "1"]
    assert main([*options, "--json", str(written), "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    assert "core-copying" in printed
    assert "nn.LSTM" in printed
    document = json.loads(written.read_text("utf-8"))
    assert set(document["machine"]) == {
        "processor", "torch", "threads", "date", "allocator", "command",
    }  # fmt: skip
    assert document["machine"]["threads"] == "1"
    (item,) = document["items"]
    assert set(item) == {
        "name", "unit", "speed", "best_baseline", "ratio", "sgemm_gflops", "bound", "share",
        "speed_scaled", "memory_mb", "stages_ms", "bars",
    }  # fmt: skip
    assert set(item["speed"]) == {OURS, "nn.LSTMCell loop", "nn.LSTM", "authors' loop"}
    for figure in item["speed"].values():
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    assert item["share"] == pytest.approx(item["speed"][OURS]["median"] / item["bound"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_failing_item_costs_only_itself(monkeypatch, capsys):
    def fail(quick, device):
        raise RuntimeError("out of memory")

    monkeypatch.setitem(ITEMS, "core-copying", fail)
    names = ["core-copying", "core-mnist"]
    assert main(["--quick", "--rounds", "1", "--only", *names]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert "core-copying  failed: RuntimeError: out of memory" in lines
    assert any(line.startswith("core-mnist ") and "nn.LSTM" in line for line in lines)
    assert "error: core-copying: not measured" in printed.err


@pytest.mark.parametrize("name", [name for name in ITEMS if name.startswith("train-")])
def test_every_training_item_runs_every_side_at_tiny_sizes(name):
    for build in ITEMS[name](True, CPU).sides.values():
        build()()


# up_down has no fused pass: its training is the definition.
@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "up_down"])
def test_a_hundred_steps_of_fast_training_have_the_losses_of_the_definition(tmp_path, decoder):
    config = make_config(make_data(tmp_path / "data"), tmp_path / "run", learning_rate=1e-3)
    model = replace(config.model, decoder=decoder, dropout=0.5)
    fused, defined = compare(replace(config, model=model), 100)
    assert fused.losses == pytest.approx(defined.losses, rel=0, abs=1e-4)
    assert fused.losses != defined.losses  # two ways of computing, not one twice
    assert fused.losses[-1] < fused.losses[0]


def test_the_engines_are_compared_with_the_definition_and_nn_lstm():
    assert all(difference(engine, CPU) < 1e-12 for engine in ENGINES)
    assert len(measure((4, 2, 3, 5), CPU, 1)) == len(ENGINES) + 1


def test_the_files_that_items_read_are_there():
    assert FILES
    for paths in FILES.values():
        for path in paths:
            assert path.exists()
            assert path.is_relative_to(ROOT)


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("name", [name for name in ITEMS if not name.startswith("train-")])
def test_every_item_runs_on_every_side_and_in_its_stages(name):
    item = ITEMS[name](True, CPU)
    for build in item.sides.values():
        build()()
    if item.stages:
        assert min(item.stages()().values()) >= 0


def test_a_missing_file_is_found_before_anything_is_measured(tmp_path, monkeypatch, error_of):
    monkeypatch.setitem(FILES, "photo", (tmp_path / "gone.jpg",))
    assert "gone.jpg, which is missing" in error_of(main, ["--quick"])


def test_every_path_made_from_a_source_files_own_place_exists():
    """`parents[n]` is right only until a folder moves: each must lead to the checkout's top."""
    for folder in ("benchmarks", "captioner", "data_prep", "app"):
        for source in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text("utf-8"))):
                if isinstance(node, ast.Subscript) and ast.unparse(node.value).endswith(
                    "Path(__file__).resolve().parents"
                ):
                    assert isinstance(node.slice, ast.Constant)
                    assert source.resolve().parents[node.slice.value] == ROOT, source
