"""The command `python -m benchmarks.gradients`: does what comes through h drown the cell's way?"""

from __future__ import annotations

import argparse
import math
import shlex
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
)
from benchmarks.gradients.plots import draw_captions, draw_random
from benchmarks.gradients.random_lstms import RandomSettings, add_random
from benchmarks.gradients.report import Groups, detached_table, parts_table, write_rows
from benchmarks.reporting import aligned, machine, short_note
from captioner.checkpoint import Checkpoint, load
from captioner.cli.parsing import Parser, exit_code, number, picture, positive
from captioner.data.dataset import CaptionDataset
from captioner.errors import ConfigError
from captioner.model.decoder import Decoder, ShowAttendTell, make_decoder
from captioner.model.lstm import HDetachLSTM
from captioner.training.flow import Flow

_PROGRAM = "python -m benchmarks.gradients"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _gradients(given))


def _gradients(given: Sequence[str]) -> None:
    command = shlex.join(["python", "-m", "benchmarks.gradients", *given])
    if given[:1] == ["random"]:
        _random(_random_parser().parse_args(given[1:]), command)
    else:
        _captions(_checkpoint_parser().parse_args(given), command)


def _random(args: argparse.Namespace, command: str) -> None:
    """LSTMs with random weights: the Jacobians over the lags as W_hh grows."""
    note = _tell_machine(command)
    detached = [Detach(prob, draws=draws) for prob in args.probs for draws in (0, args.draws)]
    groups: dict[tuple[str, ...], list[Row]] = {}
    gates = []
    todo = [(bias, scale) for bias in args.forget_bias for scale in args.scales]
    for bias, scale in tqdm(todo, unit="LSTM", leave=False):
        settings = RandomSettings(args.hidden, bias, args.lags)
        samples = Samples()
        forget = [add_random(samples, settings, scale, detached, seed) for seed in args.seeds]
        group = (f"{bias:g}", f"{scale:g}")
        groups[group] = samples.rows()
        gates.append([*group, f"{sum(forget) / len(forget):.2f}"])
    names = ("forget bias", "W_hh x")
    lags = sorted({1, *(max(1, round(args.lags * part)) for part in (0.2, 0.6, 1))})
    print("", aligned([*names, "mean forget gate"], gates, ()), "", sep="\n")
    print("Gain of the Jacobian of (c, h), lag steps back (median over seeds):")
    _tell(args, groups, names, lags, draw_random, note)


def _captions(args: argparse.Namespace, command: str) -> None:
    """A checkpoint's decoder on validation captions, and one like it with fresh weights."""
    checkpoint = load(args.checkpoint)
    data = _data(args, checkpoint)
    note = _tell_machine(command)
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
        summary.append([name, *_summary(found)])
        values += [[name, *line] for line in _singular_lines(decoder)]
    head = ["decoder", "captions", "words", "forget gate", "to c directly", "to c through h", "h"]
    print(f"decoder: {checkpoint.model.decoder}, H = {checkpoint.model.hidden_dim}")
    print("", "One step of the backward pass (mean norms):", sep="\n")
    print(aligned(head, summary, ("decoder",)))
    print("", "Singular values of the recurrent weights:", sep="\n")
    print(aligned(["decoder", "part", "largest", "median"], values, ("decoder", "part")), "")
    print("Gradient of a word's loss in c, lag words back:")
    _tell(args, groups, ["decoder"], range(args.lags + 1), draw_captions, note)


def _summary(found: CaptionLags) -> list[str]:
    flow = Flow(found.flow_cell, found.flow_hidden)
    return [
        str(found.captions),
        f"{found.words:.1f}",
        f"{found.forget:.2f}",
        f"{flow.cell:.3g}",
        f"{flow.hidden:.3g}",
        f"{100 * flow.share:.0f} %",
    ]


def _singular_lines(decoder: Decoder) -> list[list[str]]:
    return [
        [part, f"{values.max():.2f}", f"{values.median():.2f}"]
        for lstm in decoder.modules()
        if isinstance(lstm, HDetachLSTM)
        for part, values in singular_values(lstm.weight_hh_l0).items()
    ]


def _data(args: argparse.Namespace, checkpoint: Checkpoint) -> CaptionDataset:
    """The split, if its words and features are the checkpoint's."""
    data = CaptionDataset(args.data, args.split)
    if data.vocabulary != checkpoint.vocabulary or data.store.dim != checkpoint.feature_dim:
        raise ConfigError(
            f"{args.data} is not what {args.checkpoint} was trained on: its words or the size of "
            "its features are others"
        )
    return data


def _tell_machine(command: str) -> str:
    """Print what the figures depend on; the short form for a picture."""
    header = machine(command, torch.device("cpu"))
    print(*(f"{key}: {value}" for key, value in header.items()), sep="\n")
    return short_note(header)


def _tell(
    args: argparse.Namespace,
    groups: Groups,
    names: Sequence[str],
    lags: Sequence[int],
    draw: Callable[[Groups, str, Path], None],
    note: str,
) -> None:
    """Print the tables of some lags, and write all rows and the picture where they are wanted."""
    print(parts_table(groups, names, lags))
    print("", "h-detach: norm over that of all paths, and cosine with c alone:", sep="\n")
    print(detached_table(groups, names, lags))
    if args.csv:
        write_rows(groups, names, args.csv)
    if args.plot:
        told = {
            group: [row for row in rows if row.lag <= args.lags] for group, rows in groups.items()
        }
        draw(told, note, args.plot)


def _random_parser() -> Parser:
    parser = Parser(
        prog=f"{_PROGRAM} random",
        description="Jacobians of (c, h) over time lags in LSTMs with random weights and inputs, "
        "by all paths, along c alone, and with h-detach, as the recurrent weights grow.",
    )
    add = parser.add_argument
    add("--hidden", type=positive, metavar="H", default=64, help="units (%(default)s)")
    add("--scales", type=number(lambda s: s > 0, "above 0"), nargs="+", metavar="X",
        default=[0.5, 1, 2, 4, 8], help="of W_hh, times U(+-1/sqrt H) (%(default)s)")  # fmt: skip
    add("--forget-bias", type=number(math.isfinite, "that is finite"), nargs="+", metavar="X",
        default=[0, 3], help="added to that of the forget gate (%(default)s)")  # fmt: skip
    add("--lags", type=positive, metavar="K", default=50, help="steps back (%(default)s)")
    add("--seeds", type=positive, nargs="+", metavar="N", default=[1, 2, 3],
        help="of weights and inputs (%(default)s)")  # fmt: skip
    _add_common(parser, draws=50, of="LSTM")
    return parser


def _checkpoint_parser() -> Parser:
    parser = Parser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} CHECKPOINT --data FOLDER [option ...]\n       {_PROGRAM} random "
        "[option ...]",
        description="Gradient of each word's loss in the cell state of earlier words, on captions "
        "with their own words given: by all paths, along c alone, through h, and with h-detach. "
        "`random` does the like for LSTMs with random weights; see random --help.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder of a captioning checkpoint, or `random`")
    add("--data", type=Path, required=True, metavar="FOLDER", help="prepared data")
    add("--split", default="val", help="of the data (%(default)s)")
    add("--pictures", type=positive, metavar="N", default=16,
        help="the first N, all their captions (%(default)s)")  # fmt: skip
    add("--untrained", action="store_true", help="the same decoder with fresh weights beside it")
    add("--lags", type=positive, metavar="K", default=12, help="words back told (%(default)s)")
    add("--seed", type=positive, metavar="N", default=1, help="of draws and fresh weights")
    _add_common(parser, draws=2, of="word of a caption")
    return parser


def _add_common(parser: argparse.ArgumentParser, *, draws: int, of: str) -> None:
    add = parser.add_argument
    add("--probs", type=number(lambda p: 0 < p <= 1, "above 0, at most 1"), nargs="+",
        metavar="P", default=[0.25, 0.5], help="of h-detach (%(default)s)")  # fmt: skip
    add("--draws", type=positive, metavar="N", default=draws,
        help=f"of blocked steps, for each {of} (%(default)s)")  # fmt: skip
    add("--csv", type=_table_file, metavar="FILE", help="every row, with quantiles")
    add("--plot", type=picture, metavar="FILE", help="a picture")


def _table_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".csv" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no .csv in a folder there is")
    return path


if __name__ == "__main__":
    sys.exit(main())
