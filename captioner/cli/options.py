"""Options that several commands share, and their checks."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from pathlib import Path

from captioner.cli.outputs import writable
from captioner.config import DecodeConfig
from captioner.errors import ConfigError

CHECKPOINT_HELP = "checkpoint folder or Hugging Face Hub id; several caption as an ensemble"


def add_score_arguments(parser: ArgumentParser) -> None:
    """Add the options that say what is scored and how the scores are shown."""
    from captioner.metrics.scores import METRICS, SPICE

    add = parser.add_argument
    add("--metrics", nargs="+", choices=(*METRICS, SPICE), metavar="METRIC",
        help=f"metrics to compute, of {', '.join(METRICS)} (all of these) and {SPICE}")  # fmt: skip
    add("--corenlp", type=Path, metavar="DIR",
        help=f"folder with the jars of Stanford CoreNLP 3.6 and Nashorn; {SPICE} needs "
        "them")  # fmt: skip
    add("--json", action="store_true", help="print the scores as JSON")
    add("--report", metavar="HTML", help="write a report with figures and example images")
    add("--images", type=Path, metavar="DIR", help="folder of the images, to show in the report")


def check_score_arguments(options: Namespace) -> None:
    """Raise ConfigError for options without effect."""
    from captioner.metrics.scores import SPICE

    if options.images and not options.report:
        raise ConfigError("--images is for the report; add --report or leave --images out")
    if options.corenlp and SPICE not in (options.metrics or ()):
        raise ConfigError(f"--corenlp is for {SPICE}; add it to --metrics or leave --corenlp out")


def chosen_metrics(options: Namespace) -> tuple[str, ...]:
    """Return the metrics that were chosen, by default all but SPICE."""
    from captioner.metrics.scores import METRICS

    return tuple(options.metrics or METRICS)


def add_server_argument(parser: ArgumentParser, out: str) -> None:
    """Add `--server`, which names the result file in the folder of the option `out`."""
    parser.add_argument(
        "--server",
        nargs=2,
        metavar=("SET", "NAME"),
        help=f"name the result file for COCO's evaluation server, captions_SET_NAME_results.json, "
        f"in the folder {out}; SET is val2014 or test2014",
    )


def result_file(out: str | None, server: Sequence[str] | None) -> Path | None:
    """Return the result file to write: `out`, or with `server` a file in the folder `out`."""
    if server is None:
        return writable(out)
    from captioner.data.coco import server_file

    name = server_file(*server)
    if out is None:
        raise ConfigError("--server names a file; say in which folder")
    return writable(Path(out) / name)


def add_decode_arguments(parser: ArgumentParser) -> None:
    """Add the settings of a search that differ from the checkpoint's own."""
    add = parser.add_argument
    add("--beam-size", type=int, metavar="N", help="hypotheses kept at each word; 1 is greedy")
    add("--max-words", type=int, metavar="N", help="cut captions after N words")
    add("--length-norm", type=float, metavar="X",
        help="score captions by log-probability / length ** X; higher favours longer "
        "captions")  # fmt: skip
    add("--block-repeats", type=int, metavar="N",
        help="never write the same N words twice; 0 allows it")  # fmt: skip
    add("--whole-endings", action=BooleanOptionalAction,
        help='end no caption with a word that needs another, such as "a" or "with"')  # fmt: skip


def decode_settings(default: DecodeConfig, options: Namespace) -> DecodeConfig:
    """Return the checkpoint's own settings with those given on the command line."""
    from captioner.pipeline import changed

    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    values = {name: getattr(options, name, None) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    captions, beams = given.get("captions", default.captions), given.get("beam_size")
    sample = given.get("sample", default.sample)
    if beams is None and not sample and captions > default.beam_size:
        given["beam_size"] = captions  # a search returns at most one caption for each beam
    return changed(default, given)
