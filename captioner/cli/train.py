"""`captioner train`: train a decoder on prepared data."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from captioner.cli.printing import duration
from captioner.cli.settings import SettingsParser as Parser
from captioner.cli.settings import settings_from
from captioner.cli.signals import stop_requested
from captioner.config import Config

if TYPE_CHECKING:
    from captioner.training.loop import Result

DESCRIPTION = "Train a decoder on data prepared by `python -m data_prep`."


def add_arguments(parser: Parser) -> None:
    """Add the config file, `--resume` and an option for every setting."""
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    parser.add_class_arguments(Config)


def run(options: Namespace) -> int:
    """Train, then print the best score and where the checkpoint is."""
    config = settings_from(Config, options)

    from captioner.training.loop import train  # torch takes seconds to import; --help should not

    with stop_requested() as stop:
        result = train(config, resume=options.resume, stop=stop)
    _print_result(result)
    return 0


def _print_result(result: Result) -> None:
    best = f"best validation CIDEr {result.cider:.3f}"
    if result.cider == 0:
        best = "validation CIDEr stayed 0, so the best checkpoint is the one with the lowest loss,"
    print(f"{best} after {result.epochs} epochs in {duration(result.seconds)}")
    print(f"checkpoint: {result.best}\ncurves: {result.best.parent / 'curves.png'}")
