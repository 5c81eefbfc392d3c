"""The command `captioner`: train, evaluate, score, caption. The only module that prints."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner import __version__
from captioner.arguments import SettingsParser, exit_code
from captioner.config import Config, DecodeConfig
from captioner.errors import ConfigError, DataError
from captioner.metrics import METRICS, SPICE, Scores

if TYPE_CHECKING:
    from captioner.checkpoint import Checkpoint
    from captioner.data import CaptionDataset
    from captioner.pipeline import Caption
    from captioner.significance import Interval

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

    from captioner.train import train  # torch takes seconds to import; --help should not

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

    from captioner.ensemble import load_members
    from captioner.evaluate import evaluate
    from captioner.significance import intervals

    started = time.monotonic()
    report = _writable(chosen.report)
    out = _result_file(chosen.out, chosen.server)
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
        from captioner.overview import report_evaluation

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

    from captioner.metrics import ReferenceScorer, score
    from captioner.results import check_known, read_references, read_results
    from captioner.significance import intervals

    started = time.monotonic()
    report = _writable(chosen.report)
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
            from captioner.overview import report_results

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
    from captioner.table import score_table

    if not as_json:
        print(score_table(scores, found))
        for name, value in diversity.items():
            print(f"{name:<17} {value:g}" if name == "words" else f"{name:<17} {value:.3f}")
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
    from captioner.significance import compare
    from captioner.table import comparison_table

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
    from captioner.diversity import diversity
    from captioner.evaluate import sampled_captions

    several = dataclasses.replace(decode, captions=chosen.diversity, sample=True)
    return diversity(sampled_captions(members, dataset, several, limit=chosen.limit, progress=True))


def _caption(arguments: Sequence[str]) -> int:
    parser = SettingsParser(
        prog="captioner caption",
        description="Caption pictures and folders of them. "
        "Search settings that are not given are the (first) checkpoint's own.",
    )
    parser.add_argument("pictures", nargs="+", help="picture files and folders")
    parser.add_argument("--checkpoint", action="append", required=True, help=CHECKPOINT_HELP)
    parser.add_argument("--recursive", action="store_true", help="also folders inside folders")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument(
        "--attention",
        help="draw where each word looked into this PNG; a folder when there are several pictures",
    )
    parser.add_argument(
        "--results", help="also write the best captions of COCO's photographs as a COCO result file"
    )
    _add_server_argument(parser, "--results")
    _add_decode_arguments(parser)
    parser.add_argument("--captions", type=int, help="captions for each picture, best first")
    parser.add_argument(
        "--sample",
        action="store_true",
        default=None,
        help="draw captions at random instead of searching the best",
    )
    parser.add_argument("--temperature", type=float, help="of the draw")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest words")
    parser.add_argument("--top-p", type=float, help="draw from words of this probability together")
    parser.add_argument("--seed", type=int, help="of the draw")
    chosen = parser.read(arguments)

    from captioner.images import find_pictures
    from captioner.pipeline import load
    from captioner.results import coco_image_id, write_results

    paths = find_pictures(chosen.pictures, recursive=chosen.recursive)
    if not paths:
        raise DataError(f"no pictures in {', '.join(chosen.pictures)}")
    results = _result_file(chosen.results, chosen.server)
    ids = {path: coco_image_id(path) for path in paths} if results else {}
    captioner = load(chosen.checkpoint)
    decode = _decode_settings(captioner.decode, chosen)
    attention = _writable(chosen.attention)
    best: dict[int, str] = {}
    failures = 0
    try:
        for path in paths:
            try:
                captions = captioner.search([path], decode)[0]
            except DataError as error:  # one bad picture does not cost the others
                print(f"error: {error}", file=sys.stderr)
                failures += 1
                continue
            if results:
                best[ids[path]] = captions[0].text
            _print_captions(path, captions, chosen.json, alone=len(paths) == 1)
            if attention:
                from captioner.attention import draw

                target = attention if len(paths) == 1 else attention / f"{path.stem}.png"
                draw(captioner.seen(path), captions[0].words, captions[0].attention, target)
    finally:
        if results and best:  # also of a run that was stopped
            write_results(best, results)
    return 1 if failures else 0


def _print_captions(path: Path, captions: Sequence[Caption], as_json: bool, alone: bool) -> None:
    for rank, caption in enumerate(captions, 1):
        if as_json:
            score = round(caption.score, 4)
            entry = {"image": str(path), "caption": caption.text, "score": score, "rank": rank}
            print(json.dumps(entry), flush=True)
        else:
            label = "" if alone else f"{path}: "
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
        return _writable(out)
    from captioner.results import server_file

    name = server_file(*server)
    if out is None:
        raise ConfigError("--server names a file; say in which folder")
    return _writable(str(Path(out) / name))


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
    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    asked = {name: getattr(chosen, name, None) for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    captions, beams = given.get("captions", default.captions), given.get("beam_size")
    if beams is None and not given.get("sample") and captions > default.beam_size:
        given["beam_size"] = captions  # as many beams as captions are asked for
    return dataclasses.replace(default, **given)


def _writable(path: str | None) -> Path | None:
    """Find out before the work is done that its result can be written."""
    if path is None:
        return None
    target = Path(path)
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from None
    if not os.access(parent, os.W_OK):
        raise DataError(f"cannot write {target}: {parent} is not writable")
    return target


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


if __name__ == "__main__":
    sys.exit(main())
