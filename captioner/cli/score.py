"""`captioner score`: score result files, or compare two, without a model."""

from __future__ import annotations

import dataclasses
import json
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from captioner.cli.options import add_score_arguments, check_score_arguments, chosen_metrics
from captioner.cli.outputs import check_distinct, writable
from captioner.cli.parsing import Parser
from captioner.cli.printing import duration, print_files, print_scores
from captioner.errors import ConfigError, DataError

if TYPE_CHECKING:
    from captioner.data.coco import ImageId, References
    from captioner.metrics.scores import Scores

Captions: TypeAlias = "Mapping[ImageId, str]"

DESCRIPTION = (
    "Score a COCO result file against a COCO captions file; no model is needed. "
    "Two result files are compared: is their difference significant?"
)


def add_arguments(parser: Parser) -> None:
    """Add the result files, the references and the options of scoring."""
    parser.usage = "%(prog)s RESULTS [RESULTS] --references JSON [options]"
    parser.add_argument(
        "results",
        nargs="+",
        metavar="RESULTS",
        help="one or two COCO result files: [{image_id, caption}, ...]",
    )
    parser.add_argument("--references", required=True, metavar="JSON", help="COCO captions file")
    add_score_arguments(parser)


def run(options: Namespace) -> int:
    """Score one result file or compare two, and print what was found."""
    _check(options)

    from captioner.data.coco import read_references

    started = time.monotonic()
    report = writable(options.report)
    inputs = [Path(path) for path in (*options.results, options.references)]
    check_distinct([("--report", report)], inputs)
    references = read_references(options.references)
    files = _read_files(options.results, references)
    if len(files) == 1:
        _score_one(files[0], references, options, report)
    else:
        _compare(files, references, options)
    if not options.json:
        print(
            f"{len(files[0]):,} of {len(references.captions):,} images of {options.references}, "
            f"in {duration(time.monotonic() - started)}"
        )
        print_files(report=report)
    return 0


def _check(options: Namespace) -> None:
    if len(options.results) > 2:
        raise ConfigError(f"{len(options.results)} result files; give one, or two to compare")
    if options.report and len(options.results) == 2:
        raise ConfigError("--report is of one result file; score the two one after the other")
    check_score_arguments(options)


def _read_files(paths: Sequence[str], references: References) -> list[Captions]:
    """Read the result files; raises DataError unless they caption the same, known images."""
    from captioner.data.coco import check_known, read_results

    files = [read_results(path) for path in paths]
    for path, captions in zip(paths, files, strict=True):
        check_known(captions, references.captions, path)
    first, last = files[0].keys(), files[-1].keys()
    if first != last:
        raise DataError(
            f"{paths[0]} and {paths[1]} caption different images: "
            f"{len(first - last):,} are in the first alone, {len(last - first):,} in the second "
            "alone; compare captions of the same images"
        )
    return list(files)


def _score_one(
    captions: Captions, references: References, options: Namespace, report: Path | None
) -> None:
    from captioner.metrics.scorer import score
    from captioner.metrics.significance import intervals

    own = {image: references.captions[image] for image in captions}
    scores = score(captions, own, chosen_metrics(options), options.corenlp)
    found = intervals(scores)
    print_scores(scores, found, options.json)
    if report:
        from captioner.report.overview import report_results

        named = {"results": options.results[0], "references": options.references}
        report_results(report, captions, references, scores, found, named, options.images)


def _compare(files: Sequence[Captions], references: References, options: Namespace) -> None:
    from captioner.metrics.scorer import ReferenceScorer

    own = {image: references.captions[image] for image in files[0]}
    scorer = ReferenceScorer(own)
    in_order = [{image: captions[image] for image in own} for captions in files]
    metrics = chosen_metrics(options)
    scores = [scorer.score(captions, metrics, options.corenlp) for captions in in_order]
    names = [Path(path).name for path in options.results]
    _print_comparison(names if names[0] != names[1] else options.results, scores, options.json)


def _print_comparison(names: Sequence[str], scores: Sequence[Scores], as_json: bool) -> None:
    from captioner.metrics.significance import compare
    from captioner.report.table import comparison_table

    found = compare(scores[0], scores[1])
    if not as_json:
        print(comparison_table(names, scores, found))
        for name, own in zip(names, scores, strict=True):
            for note in own.notes:
                print(f"{name}: {note}")
        return
    document = {
        "images": len(next(iter(scores[0].per_image.values()))),
        "scores": [{"results": n, **s.values} for n, s in zip(names, scores, strict=True)],
        "comparison": {name: dataclasses.asdict(value) for name, value in found.items()},
    }
    print(json.dumps(document))
