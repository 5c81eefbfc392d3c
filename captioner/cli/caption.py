"""`captioner caption`: caption images and folders of them."""

from __future__ import annotations

import json
import sys
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from captioner.cli.options import (
    CHECKPOINT_HELP,
    add_decode_arguments,
    add_server_argument,
    decode_settings,
    result_file,
)
from captioner.cli.outputs import check_distinct, sheet_files
from captioner.cli.parsing import Parser
from captioner.config import DecodeConfig
from captioner.errors import ConfigError, DataError, printable

if TYPE_CHECKING:
    from PIL import Image

    from captioner.data.collect import Found
    from captioner.pipeline import Caption, Captioner

DESCRIPTION = (
    "Caption images and folders of images. "
    "Search settings default to those of the (first) checkpoint."
)


@dataclass(frozen=True)
class Outputs:
    """The files to write: one for the results, and a sheet for the attention of each image."""

    results: Path | None
    ids: dict[Path, int]  # image -> its COCO id, for the results
    sheets: dict[Path, Path]  # image -> the PNG of its attention


def add_arguments(parser: Parser) -> None:
    """Add the images, the checkpoints, the outputs and the settings of search and sampling."""
    add = parser.add_argument
    add("images", nargs="+", help="image files and folders; - is the standard input")
    add("--checkpoint", action="append", required=True, metavar="DIR",
        help=f"{CHECKPOINT_HELP} (repeat the option)")  # fmt: skip
    add("--recursive", action="store_true", help="also search folders inside folders")
    add("--json", action="store_true", help="print a JSON object for each caption")
    add("--attention", metavar="PNG|DIR",
        help="show the attention of each word in this PNG; for several images in a PNG each, "
        "in this folder")  # fmt: skip
    add("--results", metavar="JSON",
        help="write the best captions as a COCO result file; the images need COCO's file "
        "names")  # fmt: skip
    add_server_argument(parser, "--results")
    add("--captions", type=int, metavar="N", help="print N captions for each image, best first")
    add_decode_arguments(parser)
    add("--sample", action=BooleanOptionalAction,
        help="sample captions at random instead of searching for the likeliest")  # fmt: skip
    add("--temperature", type=float, metavar="X",
        help="sampling temperature; below 1 is safer, above 1 more surprising")  # fmt: skip
    add("--top-k", type=int, metavar="K", help="sample only from the K likeliest words; 0 is off")
    add("--top-p", type=float, metavar="P",
        help="sample only from the likeliest words whose probabilities add up to P; 1 is "
        "off")  # fmt: skip
    add("--seed", type=int, help="seed of the sampling")


def run(options: Namespace) -> int:
    """Caption every image found and return 1 if one of them failed."""
    from captioner.data.collect import find_images
    from captioner.pipeline import load

    found = find_images(options.images, recursive=options.recursive)
    _print_problems(found, options.images)
    outputs = _outputs(found.images, options)
    captioner = load(options.checkpoint)
    decode = decode_settings(captioner.decode, options)
    if outputs.sheets and not captioner.attends:
        raise ConfigError("--attention: this checkpoint's decoder has no attention; leave it out")
    if found.summary():
        print(printable(found.summary()), file=sys.stderr)
    alone = len(found.images) == 1 and not found.problems
    failed = _caption_images(captioner, found.images, decode, outputs, options.json, alone)
    return 1 if failed or found.problems else 0


def _outputs(images: Sequence[Path], options: Namespace) -> Outputs:
    """Return the files to write; raises unless each is distinct and can be written."""
    results = result_file(options.results, options.server)
    ids = _coco_ids(images) if results else {}
    sheets = sheet_files(images, Path(options.attention)) if options.attention else {}
    attention = [("--attention", sheet) for sheet in sheets.values()]
    check_distinct([("--results", results), *attention], images)
    return Outputs(results, ids, sheets)


def _coco_ids(paths: Sequence[Path]) -> dict[Path, int]:
    """Return the image id of each file; raises DataError where two files have the same one."""
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


def _caption_images(
    captioner: Captioner,
    images: Sequence[Path],
    decode: DecodeConfig,
    outputs: Outputs,
    as_json: bool,
    alone: bool,
) -> int:
    """Caption, print and write image by image; return how many failed."""
    from captioner.data.coco import write_results
    from captioner.data.images import open_image

    best: dict[int, str] = {}
    failed = 0
    try:
        for path in images:
            try:
                image = open_image(path)  # once: a pipe can be read a single time
                captions = captioner.search([image], decode)[0]
                if outputs.results:
                    best[outputs.ids[path]] = captions[0].text
                _print_captions(path, captions, as_json, alone)
                if path in outputs.sheets:
                    _draw(captioner.seen(image), captions[0], outputs.sheets[path])
            except DataError as error:  # one bad image does not cost the others
                _print_error(error)
                failed += 1
    finally:
        if outputs.results and best:  # also when the run is stopped
            write_results(best, outputs.results)
    return failed


def _draw(seen: Image.Image, caption: Caption, sheet: Path) -> None:
    from captioner.report.attention_map import draw

    draw(seen, caption.words, caption.attention, sheet)


def _print_problems(found: Found, sources: Sequence[str]) -> None:
    """Print what could not be read; raises the last of it if no image is left."""
    problems: list[DataError] = list(found.problems)
    if not found.images and not problems:
        reason = f"{found.summary()}; " if found.summary() else ""
        problems.append(DataError(f"no images in {', '.join(sources)}; {reason}give image files"))
    last = None if found.images else problems.pop()
    for problem in problems:
        _print_error(problem)
    if last:
        raise last


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
