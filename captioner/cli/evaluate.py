"""`captioner evaluate`: caption a split of prepared data and score the captions."""

from __future__ import annotations

import dataclasses
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.options import (
    CHECKPOINT_HELP,
    add_decode_arguments,
    add_score_arguments,
    add_server_argument,
    check_score_arguments,
    chosen_metrics,
    decode_settings,
    result_file,
)
from captioner.cli.outputs import check_distinct, writable
from captioner.cli.parsing import Parser
from captioner.cli.printing import duration, print_files, print_scores
from captioner.config import DecodeConfig
from captioner.errors import ConfigError

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint
    from captioner.evaluate import Evaluation
    from captioner.metrics.pointing import Boxes, Pointing
    from captioner.metrics.significance import Interval

DESCRIPTION = "Caption a split of prepared data and score the captions."


def add_arguments(parser: Parser) -> None:
    """Add the checkpoints, the data, the outputs and the settings of the search."""
    parser.usage = "%(prog)s CHECKPOINT ... --data DIR [options]"
    add = parser.add_argument
    add("checkpoint", nargs="+", metavar="CHECKPOINT", help=CHECKPOINT_HELP)
    add("--data", required=True, metavar="DIR", help="folder made by `python -m data_prep`")
    add("--split", default="val", metavar="NAME", help="train, val or test (%(default)s)")
    add("--limit", type=int, default=0, metavar="N", help="evaluate only the first N images")
    add("--out", metavar="JSON", help="write the captions as a COCO result file")
    add_server_argument(parser, "--out")
    add("--diversity", type=int, metavar="N",
        help="also sample N captions for each image and measure how they differ")  # fmt: skip
    add("--boxes", type=Path, metavar="INSTANCES",
        help="COCO instances file: measure whether the attention of a word that names an object "
        "lies in its box")  # fmt: skip
    add_score_arguments(parser)
    add_decode_arguments(parser)


def run(options: Namespace) -> int:
    """Caption and score a split, print the scores and write the files that were asked for."""
    _check(options)

    from captioner.checkpoint import load_members
    from captioner.evaluate import evaluate
    from captioner.metrics.significance import intervals

    started = time.monotonic()
    report = writable(options.report)
    out = result_file(options.out, options.server)
    check_distinct([("--out", out), ("--report", report)])
    members = load_members(options.checkpoint)
    boxes = _read_boxes(options.boxes, members)
    decode = decode_settings(members[0].decode, options)
    result = evaluate(
        members,
        options.data,
        options.split,
        decode,
        metrics=chosen_metrics(options),
        corenlp=options.corenlp,
        limit=options.limit,
        results=out,
        progress=True,
    )
    diversity = _diversity(members, result, options, decode)
    found = intervals(result.scores)
    points = _pointing(result, boxes)
    print_scores(result.scores, found, options.json, diversity, points)
    if report:
        _write_report(report, result, found, members, decode, options)
    if not options.json:
        print(
            f"{len(result.captions):,} images of {options.split}, beam {decode.beam_size}, "
            f"in {duration(time.monotonic() - started)}"
        )
        print_files(captions=out, report=report)
    return 0


def _check(options: Namespace) -> None:
    if options.diversity is not None and options.diversity < 2:
        raise ConfigError(f"--diversity is {options.diversity}; give 2 captions or more")
    if options.limit < 0:
        raise ConfigError(f"--limit is {options.limit}; give a number of images, or 0 for all")
    check_score_arguments(options)


def _diversity(
    members: Sequence[Checkpoint], result: Evaluation, options: Namespace, decode: DecodeConfig
) -> dict[str, float]:
    if not options.diversity:
        return {}
    from captioner.evaluate import sampled_captions
    from captioner.metrics.diversity import diversity

    several = dataclasses.replace(decode, captions=options.diversity, sample=True)
    samples = sampled_captions(members, result.dataset, several, limit=options.limit, progress=True)
    return diversity(samples)


def _read_boxes(path: Path | None, members: Sequence[Checkpoint]) -> Boxes | None:
    if path is None:
        return None
    from captioner.metrics.pointing import read_boxes

    if any(member.encoder.resize == "crop" for member in members):
        raise ConfigError(
            "--boxes needs an encoder that sees the whole image; this one crops it: evaluate a "
            "checkpoint made with `data_prep --resize squash`, or leave --boxes out"
        )
    return read_boxes(path)


def _pointing(result: Evaluation, boxes: Boxes | None) -> Pointing | None:
    if boxes is None:
        return None
    from captioner.metrics.pointing import pointing

    weights = {
        image_id: None if attention is None else attention.numpy()
        for image_id, attention in result.attention.items()
    }
    return pointing(result.captions, weights, boxes)


def _write_report(
    path: Path,
    result: Evaluation,
    found: Mapping[str, Interval],
    members: Sequence[Checkpoint],
    decode: DecodeConfig,
    options: Namespace,
) -> None:
    from captioner.report.overview import report_evaluation

    settings = {
        "checkpoint": ", ".join(options.checkpoint),
        "data": options.data,
        "split": options.split,
        "beam": str(decode.beam_size),
        "length norm": f"{decode.length_norm:g}",
    }
    if decode.block_repeats:
        settings["blocked repeats"] = f"of {decode.block_repeats} words"
    report_evaluation(path, result, found, members, options.data, settings, options.images)
