"""Read and write COCO's caption files: results to be scored, and reference captions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from captioner.errors import ConfigError, DataError
from captioner.files import read_json, write_json

ImageId: TypeAlias = int | str

SERVER_SETS = ("val2014", "test2014")  # accepted by the evaluation server


@dataclass(frozen=True)
class References:
    """The captions of a COCO captions file, and the image files if it names them."""

    captions: dict[ImageId, list[str]]
    files: dict[ImageId, str]


def read_results(path: Path | str) -> dict[ImageId, str]:
    """Read a COCO result file, `[{"image_id": ..., "caption": ...}, ...]`, by image id.

    Raises DataError for another format and for an image with two captions.
    """
    entries = read_json(Path(path))
    if not isinstance(entries, list):
        raise DataError(
            f'{path}: it is not a COCO result file, a list of {{"image_id", "caption"}}'
        )
    found: dict[ImageId, str] = {}
    for number, entry in enumerate(entries):
        image, caption = _entry(entry, f"{path}: entry {number}")
        if image in found:
            raise DataError(f"{path}: entry {number} is a second caption of image {image!r}")
        found[image] = caption
    if not found:
        raise DataError(f"{path}: it holds no captions")
    return found


def read_references(path: Path | str) -> References:
    """Read a COCO captions file, `{"annotations": [{"image_id", "caption"}, ...], ...}`."""
    document = read_json(Path(path))
    entries = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise DataError(f'{path}: it is not a COCO captions file; it has no list "annotations"')
    captions: dict[ImageId, list[str]] = {}
    for number, entry in enumerate(entries):
        image, caption = _entry(entry, f"{path}: annotation {number}")
        captions.setdefault(image, []).append(caption)
    files = {
        image["id"]: image["file_name"]
        for image in document.get("images", ())
        if isinstance(image, dict) and {"id", "file_name"} <= image.keys()
    }
    return References(captions, files)


def check_known(
    results: Mapping[ImageId, str], references: Mapping[ImageId, object], path: Path | str
) -> None:
    """Raise DataError if an image of the results has no references."""
    unknown = [image for image in results if image not in references]
    if not unknown:
        return
    examples = ", ".join(map(repr, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
    problem = f"{path}: {len(unknown):,} of {len(results):,} images have no references: {examples}"
    if {type(image) for image in references}.isdisjoint(type(image) for image in unknown):
        problem += "; ids are numbers in one file and strings in the other"
    raise DataError(problem)


def write_results(captions: Mapping[Any, str], path: Path) -> None:
    """Write a COCO result file: [{"image_id": ..., "caption": ...}, ...]."""
    results = [{"image_id": key, "caption": caption} for key, caption in captions.items()]
    write_json(path, results, indent=0)


def server_file(dataset: str, name: str) -> str:
    """Return the file name for COCO's evaluation server: captions_SET_NAME_results.json."""
    if dataset not in SERVER_SETS:
        known = " and ".join(SERVER_SETS)
        raise ConfigError(f"server set {dataset!r}: the server accepts only {known}")
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ConfigError(f"server name {name!r}: it may hold only letters, digits, . _ and -")
    return f"captions_{dataset}_{name}_results.json"


def coco_image_id(path: Path) -> int:
    """Return the number in a COCO file name: 42 for COCO_val2014_000000000042.jpg."""
    found = re.fullmatch(r"(?:COCO_\w+_)?(\d+)", path.stem)
    if not found:
        raise DataError(
            f"{path.name}: it is not a COCO file name, such as COCO_val2014_000000000042.jpg"
        )
    return int(found[1])


def _entry(entry: Any, place: str) -> tuple[ImageId, str]:
    if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
        raise DataError(f'{place}: it lacks "image_id" or "caption"')
    image, caption = entry["image_id"], entry["caption"]
    if isinstance(image, bool) or not isinstance(image, int | str):
        raise DataError(f"{place}: image_id is {image!r}; it must be a number or a string")
    if not isinstance(caption, str):
        raise DataError(f"{place}: the caption of image {image!r} is not text: {caption!r}")
    return image, caption
