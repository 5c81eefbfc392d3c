"""The command `python -m benchmarks.gradients`: how much of a gradient comes through h?"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.gradients.lags import (
    CaptionLags,
    Detach,
    Row,
    Samples,
    caption_lags,
    singular_values,
)  # fmt: skip
from benchmarks.gradients.random_lstms import RandomSettings, add_random
from benchmarks.gradients.report import (
    Groups,
    detached_table,
    parts_table,
    plot_captions,
    plot_random,
    write_rows,
)  # fmt: skip
from benchmarks.gradients.training import plot_flow, train_measured
from benchmarks.reporting import command_line, print_machine, short_note, table
from captioner.checkpoint import Checkpoint, load
from captioner.cli.parsing import Parser, exit_code, number, picture, positive
from captioner.cli.settings import SettingsParser
from captioner.cli.signals import stop_requested
from captioner.config import Config
from captioner.data.dataset import CaptionDataset
from captioner.errors import ConfigError
from captioner.model.decoder import Decoder, ShowAttendTell, make_decoder
from captioner.model.lstm import HDetachLSTM

_MODULE = "benchmarks.gradients"
_PROGRAM = f"python -m {_MODULE}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _gradients(given), "`train` goes on with --resume")


def _gradients(given: Sequence[str]) -> None:
    command = command_line(_MODULE, given)
    if given[:1] == ["random"]:
        _random(_random_parser().parse_args(given[1:]), command)
    elif given[:1] == ["train"]:
        _train(given[1:], command)
    else:
        _captions(_checkpoint_parser().parse_args(given), command)


def _train(given: Sequence[str], command: str) -> None:
    """Train a captioner with measurements of its gradient."""
    parser = SettingsParser(
        prog=f"{_PROGRAM} train",
        description="Train as `captioner train` does, and measure every few steps the gradient "
        "along c and through h; writes flow.jsonl and flow.png to `out`.",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_argument("--every", type=int, default=100, help="steps between measurements")
    parser.add_argument("--resume", action="store_true", help="resume the run in `out`")
    parser.add_class_arguments(Config)
    settings = parser.read(given)
    if settings.every < 1:
        raise ConfigError(f"every is {settings.every}; it must be >= 1")
    config = parser.made(Config, settings)
    with stop_requested() as stop:
        path = train_measured(config, settings.every, resume=settings.resume, stop=stop)
    print(f"{path} and {plot_flow(path, command)}")


def _random(args: argparse.Namespace, command: str) -> None:
    """Measure Jacobians over the lags in LSTMs with random weights, as W_hh grows."""
    note = short_note(print_machine(command))
    detached = [Detach(prob, draws=draws) for prob in args.probs for draws in (0, args.draws)]
    groups: dict[tuple[str, ...], list[Row]] = {}
    gates = []
    todo = [(bias, scale) for bias in args.forget_bias for scale in args.scales]
    names = ("forget bias", "W_hh x")
    for bias, scale in tqdm(todo, unit="LSTM", leave=False):
        settings = RandomSettings(args.hidden, bias, args.lags)
        samples = Samples()
        forget = [add_random(samples, settings, scale, detached, seed) for seed in args.seeds]
        group = (f"{bias:g}", f"{scale:g}")
        groups[group] = samples.rows()
        gate = f"{sum(forget) / len(forget):.2f}"
        gates.append({**dict(zip(names, group, strict=True)), "mean forget gate": gate})
    lags = sorted({1, *(max(1, round(args.lags * part)) for part in (0.2, 0.6, 1))})
    print("", table(gates), "", sep="\n")
    print("Gain of the Jacobian of (c, h), lag steps back (median over seeds):")
    _report(args, groups, names, lags, plot_random, note)


def _captions(args: argparse.Namespace, command: str) -> None:
    """Measure a checkpoint's decoder on validation captions, and one with fresh weights."""
    checkpoint = load(args.checkpoint)
    data = _data(args, checkpoint)
    note = short_note(print_machine(command))
    decoders: dict[str, Decoder] = {"trained": checkpoint.decoder}
    if args.untrained:
        torch.manual_seed(args.seed)
        fresh = make_decoder(checkpoint.model, len(checkpoint.vocabulary), checkpoint.feature_dim)
        decoders["untrained"] = fresh
    attends = isinstance(checkpoint.decoder, ShowAttendTell)
    detached = [
        detach
        for prob in args.probs
        for detach in (Detach(prob), Detach(prob, True), Detach(prob, draws=args.draws))
        if attends or not detach.attention
    ]
    groups: dict[tuple[str, ...], list[Row]] = {}
    summary, values = [], []
    for name, decoder in decoders.items():
        found = caption_lags(decoder, data, args.pictures, detached=detached, seed=args.seed)
        groups[(name,)] = found.rows
        summary.append({"decoder": name, **_summary(found)})
        values += [{"decoder": name, **line} for line in _singular_lines(decoder)]
    print(f"decoder: {checkpoint.model.decoder}, H = {checkpoint.model.hidden_dim}")
    print("", "One step of the backward pass (mean norms):", sep="\n")
    print(table(summary, ["decoder"]))
    print("", "Singular values of the recurrent weights:", sep="\n")
    print(table(values, ["decoder", "part"]), "", sep="\n")
    print("Gradient of a word's loss in c, lag words back:")
    _report(args, groups, ["decoder"], range(args.lags + 1), plot_captions, note)


def _summary(found: CaptionLags) -> dict[str, str]:
    return {
        "captions": str(found.captions),
        "words": f"{found.words:.1f}",
        "forget gate": f"{found.forget:.2f}",
        "to c directly": f"{found.flow.cell:.3g}",
        "to c through h": f"{found.flow.hidden:.3g}",
        "h": f"{100 * found.flow.share:.0f} %",
    }


def _singular_lines(decoder: Decoder) -> list[dict[str, str]]:
    return [
        {"part": part, "largest": f"{values.max():.2f}", "median": f"{values.median():.2f}"}
        for lstm in decoder.modules()
        if isinstance(lstm, HDetachLSTM)
        for part, values in singular_values(lstm.weight_hh_l0).items()
    ]


def _data(args: argparse.Namespace, checkpoint: Checkpoint) -> CaptionDataset:
    """Read the split; raise ConfigError unless its words and features are the checkpoint's."""
    data = CaptionDataset(args.data, args.split)
    if data.vocabulary != checkpoint.vocabulary or data.store.dim != checkpoint.feature_dim:
        raise ConfigError(
            f"{args.data}: its words or feature size are not those of {args.checkpoint}; give the "
            "data it was trained on"
        )
    return data


def _report(
    args: argparse.Namespace, groups: Groups, names: Sequence[str], lags: Sequence[int],
    plot: Callable[[Groups, str, Path], None], note: str,
) -> None:  # fmt: skip
    """Print the tables of some lags; write all rows and the plot if asked."""
    print(parts_table(groups, names, lags))
    print("", "h-detach: norm over that of all paths, and cosine with c alone:", sep="\n")
    print(detached_table(groups, names, lags))
    if args.csv:
        write_rows(groups, names, args.csv)
    if args.plot:
        shown = {
            group: [row for row in rows if row.lag <= args.lags] for group, rows in groups.items()
        }
        plot(shown, note, args.plot)


def _random_parser() -> Parser:
    parser = Parser(
        prog=f"{_PROGRAM} random",
        description="Measure Jacobians of (c, h) over time lags in LSTMs with random weights and "
        "inputs: by all paths, along c alone, and with h-detach, as the recurrent weights grow.",
    )
    add = parser.add_argument
    add("--hidden", type=positive, metavar="H", default=64, help="units (%(default)s)")
    add("--scales", type=number(lambda s: s > 0, "above 0"), nargs="+", metavar="X",
        default=[0.5, 1, 2, 4, 8], help="factors of W_hh (%(default)s)")  # fmt: skip
    add("--forget-bias", type=number(math.isfinite, "that is finite"), nargs="+", metavar="X",
        default=[0, 3], help="added to the bias of the forget gate (%(default)s)")  # fmt: skip
    add("--lags", type=positive, metavar="K", default=50, help="steps back (%(default)s)")
    add("--seeds", type=positive, nargs="+", metavar="N", default=[1, 2, 3],
        help="random seeds of weights and inputs (%(default)s)")  # fmt: skip
    _add_common(parser, draws=50, of="LSTM")
    return parser


def _checkpoint_parser() -> Parser:
    parser = Parser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} CHECKPOINT --data FOLDER [option ...]\n       {_PROGRAM} random "
        f"[option ...]\n       {_PROGRAM} train [option ...]",
        description="Measure the gradient of each word's loss in the cell state of earlier words, "
        "with teacher forcing: by all paths, along c alone, through h, and with h-detach. `random` "
        "measures LSTMs with random weights, `train` a training; see their --help.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="checkpoint folder, or `random` or `train`")
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder of prepared data")
    add("--split", default="val", help="split of the data (%(default)s)")
    add("--pictures", type=positive, metavar="N", default=16,
        help="first N images, with all captions (%(default)s)")  # fmt: skip
    add("--untrained", action="store_true", help="also measure fresh weights")
    add("--lags", type=positive, metavar="K", default=12, help="words back (%(default)s)")
    add("--seed", type=positive, metavar="N", default=1, help="random seed (%(default)s)")
    _add_common(parser, draws=2, of="word of a caption")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, draws: int, of: str) -> None:
    add = parser.add_argument
    add("--probs", type=number(lambda p: 0 < p <= 1, "above 0, at most 1"), nargs="+",
        metavar="P", default=[0.25, 0.5], help="detach probabilities (%(default)s)")  # fmt: skip
    add("--draws", type=positive, metavar="N", default=draws,
        help=f"samples of blocked steps for each {of} (%(default)s)")  # fmt: skip
    add("--csv", type=_table_file, metavar="FILE", help="file for every row, with quantiles")
    add("--plot", type=picture, metavar="FILE", help="file for a plot")


def _table_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".csv" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a .csv file in an existing folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
