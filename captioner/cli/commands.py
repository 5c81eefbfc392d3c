"""The command `captioner`: train, evaluate, score, caption. The only module that prints."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner import __version__
from captioner.cli.outputs import check_distinct, sheet_files, writable
from captioner.cli.parsing import SettingsParser, exit_code
from captioner.config import Config, DecodeConfig
from captioner.errors import ConfigError, DataError, printable
from captioner.metrics.scores import METRICS, SPICE, Scores

if TYPE_CHECKING:
    from PIL import Image

    from captioner.checkpoint import Checkpoint
    from captioner.data.collect import Found
    from captioner.data.dataset import CaptionDataset
    from captioner.metrics.significance import Interval
    from captioner.pipeline import Caption

DESCRIPTION = """Image captions from a pretrained CNN and an LSTM trained with h-detach.

  captioner train --config configs/flickr8k.yaml
  captioner evaluate checkpoints/flickr8k --data data/flickr8k --split val
  captioner score results.json --references captions_val2017.json
  captioner caption photo.jpg holiday/ --checkpoint checkpoints/flickr8k

Several checkpoints caption as an ensemble: `evaluate A B`, `caption --checkpoint A --checkpoint B`.
`captioner COMMAND --help` tells more; `python -m data_prep` prepares data, `python -m app` opens
the web page."""

CHECKPOINT_HELP = "checkpoint folder or Hub id; of several, the ensemble captions"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    hint = "`--resume` goes on from here" if arguments[:1] == ["train"] else ""
    return exit_code(lambda: _run(arguments), hint)


def _run(arguments: Sequence[str]) -> int:
    commands = {"train": _train, "evaluate": _evaluate, "score": _score, "caption": _caption}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DESCRIPTION)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in commands:
        raise ConfigError(f"no command {arguments[0]!r}; choose from {', '.join(commands)}")
    return commands[arguments[0]](arguments[1:])


def _train(arguments: Sequence[str]) -> int:
    parser = SettingsParser(
        prog="captioner train", description="Train a decoder on data made by `python -m data_prep`."
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_class_arguments(Config)
    settings = parser.read(arguments)
    config = parser.made(Config, settings)

    from captioner.training.loop import train  # torch takes seconds to import; --help should not

    result = train(config, resume=settings.resume, show_progress=True)
    best = f"best validation CIDEr {result.cider:.3f}"
    if result.cider == 0:
        best = "validation CIDEr stayed 0, so the best checkpoint is that of the lowest loss,"
    print(f"{best} after {result.epochs} epochs in {_duration(result.seconds)}")
    print(f"checkpoint: {result.best}\ncurves: {result.best.parent / 'curves.png'}")
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    parser = SettingsParser(
        prog="captioner evaluate",
        description="Caption a split of prepared data and score the captions. "
        "Search settings that are not given are the (first) checkpoint's own.",
    )
    parser.add_argument("checkpoint", nargs="+", help=CHECKPOINT_HELP)
    parser.add_argument("--data", required=True, help="folder made by `python -m data_prep`")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--out", help="write the captions as a COCO result file")
    _add_server_argument(parser, "--out")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many pictures")
    parser.add_argument(
        "--diversity", type=int, metavar="N", help="also draw N captions a picture: do they differ?"
    )
    _add_score_arguments(parser)
    _add_decode_arguments(parser)
    chosen = parser.read(arguments)
    if chosen.diversity is not None and chosen.diversity < 2:
        raise ConfigError(f"--diversity is {chosen.diversity}; it takes 2 captions or more")
    if chosen.limit < 0:
        raise ConfigError(f"--limit is {chosen.limit}; give a number of pictures, or 0 for all")
    _check_score_arguments(chosen)

    from captioner.evaluate import evaluate
    from captioner.metrics.significance import intervals
    from captioner.model.ensemble import load_members

    started = time.monotonic()
    report = writable(chosen.report)
    out = _result_file(chosen.out, chosen.server)
    check_distinct([("--out", out), ("--report", report)])
    members = load_members(chosen.checkpoint)
    decode = _decode_settings(members[0].decode, chosen)
    result = evaluate(
        members,
        chosen.data,
        chosen.split,
        decode,
        metrics=tuple(chosen.metrics or METRICS),
        corenlp=chosen.corenlp,
        limit=chosen.limit,
        results=out,
        progress=True,
    )
    variety = _diversity(members, result.dataset, chosen, decode) if chosen.diversity else {}
    found = intervals(result.scores)
    _print_scores(result.scores, found, chosen.json, variety)
    if report:
        from captioner.report.overview import report_evaluation

        named = {"checkpoint": ", ".join(chosen.checkpoint)}
        named |= {"data": chosen.data, "split": chosen.split}
        named |= {"beam": str(decode.beam_size), "length norm": f"{decode.length_norm:g}"}
        if decode.block_repeats:
            named["blocked repeats"] = f"of {decode.block_repeats} words"
        report_evaluation(report, result, found, members, chosen.data, named, chosen.images)
    if not chosen.json:
        print(
            f"{len(result.captions):,} images of {chosen.split}, beam {decode.beam_size}, "
            f"in {_duration(time.monotonic() - started)}"
        )
        _print_files(captions=out, report=report)
    return 0


def _score(arguments: Sequence[str]) -> int:
    parser = SettingsParser(
        prog="captioner score",
        description="Score COCO result files against a COCO captions file; no model is needed. "
        "Of two result files it says whether their difference is real.",
    )
    parser.add_argument("results", nargs="+", help="one or two files [{image_id, caption}, ...]")
    parser.add_argument("--references", required=True, help="COCO captions file")
    _add_score_arguments(parser)
    chosen = parser.read(arguments)
    if len(chosen.results) > 2:
        raise ConfigError(f"{len(chosen.results)} result files; give one, or two to compare")
    if chosen.report and len(chosen.results) == 2:
        raise ConfigError("--report is of one result file; score the two one after the other")
    _check_score_arguments(chosen)

    from captioner.data.coco import check_known, read_references, read_results
    from captioner.metrics.scorer import ReferenceScorer, score
    from captioner.metrics.significance import intervals

    started = time.monotonic()
    report = writable(chosen.report)
    check_distinct([("--report", report)], map(Path, [*chosen.results, chosen.references]))
    references = read_references(chosen.references)
    files = [read_results(path) for path in chosen.results]
    for path, captions in zip(chosen.results, files, strict=True):
        check_known(captions, references.captions, path)
    if files[0].keys() != files[-1].keys():
        raise DataError(
            f"{chosen.results[0]} and {chosen.results[1]} caption different images: "
            f"{len(files[0].keys() - files[1].keys()):,} are in the first alone, "
            f"{len(files[1].keys() - files[0].keys()):,} in the second alone"
        )
    metrics = tuple(chosen.metrics or METRICS)
    own = {key: references.captions[key] for key in files[0]}
    if len(files) == 1:
        scores = [score(files[0], own, metrics, chosen.corenlp)]
    else:
        scorer = ReferenceScorer(own)
        in_order = [{key: captions[key] for key in own} for captions in files]
        scores = [scorer.score(captions, metrics, chosen.corenlp) for captions in in_order]
    if len(scores) == 2:
        names = [Path(path).name for path in chosen.results]
        different = names[0] != names[1]
        _print_comparison(names if different else chosen.results, scores, chosen.json)
    else:
        found = intervals(scores[0])
        _print_scores(scores[0], found, chosen.json, {})
        if report:
            from captioner.report.overview import report_results

            named = {"results": chosen.results[0], "references": chosen.references}
            report_results(report, files[0], references, scores[0], found, named, chosen.images)
    if not chosen.json:
        print(
            f"{len(files[0]):,} of {len(references.captions):,} images of {chosen.references}, "
            f"in {_duration(time.monotonic() - started)}"
        )
        _print_files(report=report)
    return 0


def _print_scores(
    scores: Scores,
    found: Mapping[str, Interval],
    as_json: bool,
    diversity: Mapping[str, float],
) -> None:
    from captioner.report.table import diversity_table, score_table

    if not as_json:
        print(score_table(scores, found))
        if diversity:
            print(diversity_table(diversity))
        print(*scores.notes, sep="\n", end="\n" * bool(scores.notes))
        return
    document: dict[str, Any] = {
        "images": len(next(iter(scores.per_image.values()))),
        "scores": scores.values,
        "intervals": {name: [interval.low, interval.high] for name, interval in found.items()},
    }
    if scores.notes:
        document["notes"] = list(scores.notes)
    if diversity:
        document["diversity"] = dict(diversity)
    print(json.dumps(document))


def _print_comparison(names: Sequence[str], scores: Sequence[Scores], as_json: bool) -> None:
    from captioner.metrics.significance import compare
    from captioner.report.table import comparison_table

    found = compare(scores[0], scores[1])
    if not as_json:
        print(comparison_table(names, scores, found))
        for name, own in zip(names, scores, strict=True):
            print(*(f"{name}: {note}" for note in own.notes), sep="\n", end="\n" * bool(own.notes))
        return
    document = {
        "images": len(next(iter(scores[0].per_image.values()))),
        "scores": [{"results": n, **s.values} for n, s in zip(names, scores, strict=True)],
        "comparison": {name: dataclasses.asdict(value) for name, value in found.items()},
    }
    print(json.dumps(document))


def _print_files(**files: Path | None) -> None:
    for name, path in files.items():
        if path:
            print(f"{name}: {path}")


def _diversity(
    members: Sequence[Checkpoint],
    dataset: CaptionDataset,
    chosen: Namespace,
    decode: DecodeConfig,
) -> dict[str, float]:
    from captioner.evaluate import sampled_captions
    from captioner.metrics.diversity import diversity

    several = dataclasses.replace(decode, captions=chosen.diversity, sample=True)
    return diversity(sampled_captions(members, dataset, several, limit=chosen.limit, progress=True))


def _caption(arguments: Sequence[str]) -> int:
    parser = _caption_parser()
    chosen = parser.read(arguments)

    from captioner.data.coco import write_results
    from captioner.data.collect import find_images
    from captioner.data.images import open_image
    from captioner.pipeline import load

    found = find_images(chosen.pictures, recursive=chosen.recursive)
    _print_problems(found, chosen.pictures)
    results = _result_file(chosen.results, chosen.server)
    ids = _coco_ids(found.images) if results else {}
    sheets = sheet_files(found.images, Path(chosen.attention)) if chosen.attention else {}
    outputs = [("--results", results), *(("--attention", sheet) for sheet in sheets.values())]
    check_distinct(outputs, found.images)
    captioner = load(chosen.checkpoint)
    decode = _decode_settings(captioner.decode, chosen)
    if sheets and not captioner.attends:
        raise ConfigError("--attention: this checkpoint's decoder has no attention; leave it out")
    if found.summary():
        print(printable(found.summary()), file=sys.stderr)
    best: dict[int, str] = {}
    failures = len(found.problems)
    alone = len(found.images) == 1 and not failures
    try:
        for path in found.images:
            try:
                image = open_image(path)  # once: a pipe gives its content a single time
                captions = captioner.search([image], decode)[0]
                if results:
                    best[ids[path]] = captions[0].text
                _print_captions(path, captions, chosen.json, alone)
                if sheets:
                    _draw(captioner.seen(image), captions[0], sheets[path])
            except DataError as error:  # one bad picture does not cost the others
                _print_error(error)
                failures += 1
    finally:
        if results and best:  # also of a run that was stopped
            write_results(best, results)
    return 1 if failures else 0


def _caption_parser() -> SettingsParser:
    parser = SettingsParser(
        prog="captioner caption",
        description="Caption pictures and folders of them. "
        "Search settings that are not given are the (first) checkpoint's own.",
    )
    add = parser.add_argument
    add("pictures", nargs="+", help="picture files and folders; - is the standard input")
    add("--checkpoint", action="append", required=True, help=CHECKPOINT_HELP)
    add("--recursive", action="store_true", help="also folders inside folders")
    add("--json", action="store_true", help="a JSON object a line")
    add("--attention", metavar="PNG|DIR",
        help="draw where each word looked into this PNG; a folder when there are several "
        "pictures")  # fmt: skip
    add("--results",
        help="also write the best captions of COCO's photographs as a COCO result "
        "file")  # fmt: skip
    _add_server_argument(parser, "--results")
    _add_decode_arguments(parser)
    add("--captions", type=int, help="captions for each picture, best first")
    add("--sample", action=BooleanOptionalAction,
        help="sample captions at random instead of searching the best")  # fmt: skip
    add("--temperature", type=float,
        help="sampling temperature; below 1 is safer, above 1 more surprising")  # fmt: skip
    add("--top-k", type=int, help="sample from the k likeliest words")
    add("--top-p", type=float,
        help="sample from the likeliest words that hold this probability together")  # fmt: skip
    add("--seed", type=int, help="seed of the samples")
    return parser


def _print_problems(found: Found, sources: Sequence[str]) -> None:
    """Print what could not be read; raises the last of it if no image is left."""
    problems = list(found.problems)
    if not found.images:
        reason = f"; {found.summary()}" if found.summary() else ""
        none = DataError(f"no pictures in {', '.join(sources)}{reason}")
        last = problems.pop() if problems else none
    for problem in problems:
        _print_error(problem)
    if not found.images:
        raise last


def _coco_ids(paths: Sequence[Path]) -> dict[Path, int]:
    """The image id of each file; raises DataError where two files have one."""
    from captioner.data.coco import coco_image_id

    ids: dict[Path, int] = {}
    files: dict[int, Path] = {}
    for path in paths:
        number = ids[path] = coco_image_id(path)
        if files.setdefault(number, path) != path:
            raise DataError(
                f"{files[number]} and {path} have the same image id {number}; a result file holds "
                "one caption for each id, so caption them in two runs"
            )
    return ids


def _draw(seen: Image.Image, caption: Caption, sheet: Path) -> None:
    from captioner.report.attention_map import draw

    draw(seen, caption.words, caption.attention, sheet)


def _print_error(error: Exception) -> None:
    print(f"error: {error}", file=sys.stderr)


def _print_captions(path: Path, captions: Sequence[Caption], as_json: bool, alone: bool) -> None:
    for rank, caption in enumerate(captions, 1):
        if as_json:
            score = round(caption.score, 4)
            entry = {"image": str(path), "caption": caption.text, "score": score, "rank": rank}
            print(json.dumps(entry), flush=True)
        else:
            label = "" if alone else f"{printable(str(path))}: "
            shown = f"  ({caption.score:.3f})" if len(captions) > 1 else ""
            print(f"{label}{caption.text}{shown}", flush=True)


def _add_score_arguments(parser: SettingsParser) -> None:
    known = (*METRICS, SPICE)
    parser.add_argument("--metrics", nargs="+", choices=known, help=f"by default all but {SPICE}")
    parser.add_argument(
        "--corenlp",
        type=Path,
        help=f"folder of the jars of Stanford CoreNLP 3.6 and Nashorn, for {SPICE}",
    )
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("--report", help="write a page (HTML) with figures and photographs")
    parser.add_argument("--images", type=Path, help="folder of the photographs, for the report")


def _check_score_arguments(chosen: Namespace) -> None:
    """Refuse options that would do nothing."""
    if chosen.images and not chosen.report:
        raise ConfigError("--images is for the report; add --report or leave --images out")
    if chosen.corenlp and SPICE not in (chosen.metrics or ()):
        raise ConfigError(f"--corenlp is for {SPICE}; add it to --metrics or leave --corenlp out")


def _add_server_argument(parser: SettingsParser, out: str) -> None:
    parser.add_argument(
        "--server",
        nargs=2,
        metavar=("SET", "NAME"),
        help=f"{out} is a folder, and the file in it is named as COCO's evaluation server wants: "
        "captions_SET_NAME_results.json, SET val2014 or test2014",
    )


def _result_file(out: str | None, server: Sequence[str] | None) -> Path | None:
    if server is None:
        return writable(out)
    from captioner.data.coco import server_file

    name = server_file(*server)
    if out is None:
        raise ConfigError("--server names a file; say in which folder")
    return writable(str(Path(out) / name))


def _add_decode_arguments(parser: SettingsParser) -> None:
    parser.add_argument("--beam-size", type=int, help="hypotheses kept; 1 is greedy")
    parser.add_argument("--max-words", type=int, help="a caption is cut here")
    parser.add_argument(
        "--length-norm", type=float, help="score = log-probability / length ** this"
    )
    parser.add_argument(
        "--block-repeats", type=int, metavar="N", help="never the same N words twice; 0 is off"
    )
    parser.add_argument(
        "--whole-endings",
        action=BooleanOptionalAction,
        help='no caption ends with "a", "with" and the like',
    )


def _decode_settings(default: DecodeConfig, chosen: Namespace) -> DecodeConfig:
    """The checkpoint's own settings with what was asked for on the command line."""
    from captioner.pipeline import changed

    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    asked = {name: getattr(chosen, name, None) for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    captions, beams = given.get("captions", default.captions), given.get("beam_size")
    sample = given.get("sample", default.sample)
    if beams is None and not sample and captions > default.beam_size:
        given["beam_size"] = captions  # as many beams as captions are asked for
    return changed(default, given)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


if __name__ == "__main__":
    sys.exit(main())
