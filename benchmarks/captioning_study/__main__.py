"""The command `python -m benchmarks.captioning_study`: what h-detach and the recipe's parts add."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tqdm import tqdm

from benchmarks.captioning_study.data import first_images, make_data
from benchmarks.captioning_study.plan import (
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
    best_cider,
    plot_curves,
    plot_differences,
    pooled_table,
    rows,
    rows_table,
    write_epochs,
    write_trials,
)
from benchmarks.reporting import command_line
from benchmarks.trials import print_machines
from captioner.cli.parsing import Parser, exit_code, number, picture, positive
from captioner.data.dataset import read_examples
from captioner.data.feature_store import FeatureStore
from captioner.errors import ConfigError
from captioner.model import DECODERS

_MODULE = "benchmarks.captioning_study"
_ATTENDS = "show_attend_tell"
_NAMES = (*(name for name, _, _ in INGREDIENTS), FINE_GRID)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _study(given), "the same command goes on where it stopped")


def _study(given: Sequence[str]) -> None:
    args = _parser().parse_args(given)
    outcomes = _detach(args) if args.study == "detach" else _ingredients(args)
    _report(args, outcomes, command_line(_MODULE, given))


def _detach(args: argparse.Namespace) -> list[Outcome]:
    """Run every combination; then the best p with the attention's query detached, too."""
    data = _data(args, args.grid, mirror=False)
    base = base_config(
        data, args.out / "detach", size=args.size, epochs=args.epochs, recipe=False,
        captions=args.captions, rate=args.rates[0],
    )  # fmt: skip
    trials = detach_plan(
        base, decoders=args.decoders, rates=args.rates, probs=args.probs, seeds=args.seeds
    )
    outcomes = _run(trials, args)
    if args.report:
        best = [prob for prob in args.probs if prob]  # any of them may have been the best
    else:
        best = [best_prob(outcomes)] if best_prob(outcomes) else []
    also = detach_plan(
        base, decoders=[_ATTENDS], rates=args.rates, probs=best, seeds=args.seeds,
        detach_attention=True,
    )  # fmt: skip
    return outcomes + _run(also, args)


def best_prob(outcomes: Sequence[Outcome]) -> float:
    """Return the p > 0 with the highest mean CIDEr of the decoder with attention; 0 if none."""
    scores: dict[float, list[float]] = {}
    for outcome in outcomes:
        prob = outcome.trial.config.train.detach_prob
        if outcome.trial.family == _ATTENDS and prob and not outcome.diverged:
            scores.setdefault(prob, []).append(best_cider(outcome))
    return max(scores, key=lambda prob: fmean(scores[prob]), default=0.0)


def _ingredients(args: argparse.Namespace) -> list[Outcome]:
    data = _data(args, args.grid, mirror=True)
    other_data = _encoders(args, data)
    names = [*args.only, *other_data]
    if FINE_GRID in args.only:
        other_data[FINE_GRID] = _data(args, args.fine_grid, mirror=True)
    base = base_config(
        data, args.out / "ingredients", size=args.size, epochs=args.epochs, recipe=True,
        captions=args.captions, rate=args.rate,
    )  # fmt: skip
    return _run(ingredients_plan(base, names, args.seeds, other_data), args)


def _encoders(args: argparse.Namespace, data: Path) -> dict[str, Path]:
    """Make the data of other encoders as small as `data`; return them by the encoder's name."""
    store = FeatureStore(data)
    made: dict[str, Path] = {}
    ours = [(example.image, example.captions) for example in read_examples(data)]
    for source in args.encoders:
        other = FeatureStore(source)
        name = other.encoder.name
        if name in (store.encoder.name, *made):
            raise ConfigError(f"{source}: has features of {name}; give each encoder once")
        if other.views != store.views:
            raise ConfigError(f"{source}: its views differ; make it and {args.data} with --mirror")
        theirs = first_images(source, args.pictures, args.validation)
        if ours != [(example.image, example.captions) for example in theirs]:
            raise ConfigError(f"{source}: begins with other images or captions than {args.data}")
        made[name] = _data(args, args.grid, mirror=True, source=source, label=name)
    return made


def _data(
    args: argparse.Namespace, grid: int, *, mirror: bool, source: Path | None = None,
    label: str = "",
) -> Path:  # fmt: skip
    return make_data(
        source or args.data, args.out, images=args.pictures, validation=args.validation,
        grid=grid, mirror=mirror, label=label,
    )  # fmt: skip


def _run(trials: Sequence[Trial], args: argparse.Namespace) -> list[Outcome]:
    """Run the trials, unless only a report is wanted; return those that are finished."""
    if not args.report:
        with tqdm(trials, unit="trial") as bar:
            for trial in bar:
                bar.set_description(trial.folder.name)
                run_trial(trial)
    return [outcome for trial in trials if (outcome := read_outcome(trial)) is not None]


def _report(args: argparse.Namespace, outcomes: Sequence[Outcome], command: str) -> None:
    """Print the tables; write CSV files and a plot beside the trials."""
    if not outcomes:
        raise ConfigError(f"no trial in {args.out / args.study} is finished yet; omit --report")
    note = print_machines(outcomes, command)
    found = rows(outcomes)
    print("", rows_table(found), sep="\n")
    if len({outcome.trial.panel for outcome in outcomes}) > 1:
        print("", "Several panels together:", pooled_table(outcomes), sep="\n")
    write_trials(outcomes, args.out / f"{args.study}.csv")
    write_epochs(outcomes, args.out / f"{args.study}_epochs.csv")
    if args.study == "detach":
        plot_curves(outcomes, note, args.plot or args.out / "detach.png")
    else:
        plot_differences(found, note, args.plot or args.out / "ingredients.png")


def _parser() -> Parser:
    parser = Parser(
        prog=f"python -m {_MODULE}",
        description="Train many small captioning runs that differ in one thing, one after the "
        "other. An interrupted study resumes where it stopped. Prints tables; writes CSV files and "
        "a plot to --out.",
    )
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    rate = number(lambda value: value > 0, "above 0")

    what = "h-detach: probabilities x rates x decoders x seeds"
    detach = studies.add_parser("detach", help=what, description=what)
    _add_common(detach, seeds=[1, 2, 3], epochs=4, grid=5)
    add = detach.add_argument
    add("--decoders", nargs="+", choices=tuple(DECODERS), metavar="NAME",
        default=[_ATTENDS, "show_tell"],
        help="decoders (%(default)s); show_tell trains for 1.5 times the epochs")  # fmt: skip
    add("--rates", nargs="+", type=rate, metavar="R", default=[3e-3, 9e-3],
        help="learning rates (%(default)s)")  # fmt: skip
    add("--probs", nargs="+", type=number(lambda prob: 0 <= prob <= 1, "from 0 to 1"),
        metavar="P", default=[0.0, 0.1, 0.25, 0.4, 0.5],
        help="detach probabilities (%(default)s)")  # fmt: skip

    what = "the recipe of configs/own_data.yaml, each part changed in turn"
    ingredients = studies.add_parser("ingredients", help=what, description=what)
    _add_common(ingredients, seeds=[1, 2], epochs=5, grid=7)
    add = ingredients.add_argument
    add("--only", nargs="+", choices=_NAMES, metavar="NAME", default=list(_NAMES),
        help=f"settings to run, of {', '.join(map(repr, _NAMES))}")  # fmt: skip
    add("--rate", type=rate, metavar="R", default=4e-3, help="learning rate (%(default)s)")
    add("--fine-grid", type=positive, metavar="N", default=9,
        help="cells along a side for the finer grid (%(default)s)")  # fmt: skip
    add("--encoders", nargs="+", type=Path, metavar="FOLDER", default=[],
        help="prepared data of other encoders, one setting each")  # fmt: skip
    return parser


def _add_common(
    parser: argparse.ArgumentParser, *, seeds: list[int], epochs: int, grid: int
) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="folder of prepared data")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for trials and figures")
    add("--seeds", type=positive, nargs="+", metavar="N", default=seeds,
        help="random seeds (%(default)s)")  # fmt: skip
    for option, default, meaning in (
        ("pictures", 3000, "training images"),
        ("validation", 500, "validation images"),
        ("captions", 2, "captions per image and epoch, others in each epoch"),
        ("epochs", epochs, "epochs per trial"),
        ("size", 128, "size of embedding, LSTM, attention and projected features"),
        ("grid", grid, "cells along a side, averaged from those of the data"),
    ):
        add(f"--{option}", type=positive, metavar="N", default=default,
            help=f"{meaning} (%(default)s)")  # fmt: skip
    add("--plot", type=picture, metavar="FILE", help="file of the plot (STUDY.png in --out)")
    add("--report", action="store_true", help="report the finished trials without training")


if __name__ == "__main__":
    sys.exit(main())
