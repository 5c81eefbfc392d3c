"""Read COCO's own captions files, captions_train2017.json and the like."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from captioner.errors import ConfigError, DataError
from captioner.files import read_json
from data_prep.records import SPLITS, Record

log = logging.getLogger(__name__)

T = TypeVar("T")


def read(
    annotations: Sequence[Path], images: Path, splits: Sequence[str] | None = None
) -> list[Record]:
    """Records of captions files, a split for each file; image_id is COCO's.

    Without splits a single file is train, and several are what their names say (train, val, test).
    `images` holds the pictures themselves, or folders named as the files are: the pictures of
    captions_train2017.json may lie in images/train2017.

    Raises DataError naming the entry and the key that is missing, or the file of which no picture
    was found; ConfigError when there is not one split for each file.
    """
    if splits is None:
        splits = [_split_in(path.stem) for path in annotations] if annotations[1:] else ["train"]
    if len(splits) != len(annotations):
        raise ConfigError(
            f"--splits has {len(splits)} names for {len(annotations)} annotation files; "
            "give one for each file, in the same order"
        )
    return [
        record
        for path, split in zip(annotations, splits, strict=True)
        for record in _read_file(path, images, split)
    ]


def _read_file(path: Path, images: Path, split: str) -> list[Record]:
    content = read_json(path)
    captions: dict[int, list[str]] = defaultdict(list)
    for image_id, caption in _entries(
        path, content, "annotations", lambda entry: (int(entry["image_id"]), str(entry["caption"]))
    ):
        captions[image_id].append(caption)
    names = _entries(
        path, content, "images", lambda entry: (int(entry["id"]), str(entry["file_name"]))
    )
    strays = len(captions.keys() - dict(names).keys())
    if strays:
        log.warning("%s: left out the captions of %d images that it does not list", path, strays)
    own = path.stem.rpartition("_")[2]  # captions_train2017 -> train2017
    folder = own if (images / own).is_dir() else "."
    records = []
    for image_id, name in names:
        key = Path(folder, name).as_posix()
        records.append(Record(key, images / key, split, tuple(captions[image_id]), image_id))
    if records and not any(record.path.is_file() for record in records):
        raise DataError(
            f"no picture of {path} is in {images / folder}; give the folder that holds the "
            "pictures, or its parent, as --images"
        )
    return records


def _entries(path: Path, content: Any, name: str, take: Callable[[Any], T]) -> list[T]:
    """What `take` gets from each entry of the list `name`."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path} has no list '{name}'; is it a COCO captions file?")
    taken = []
    for number, entry in enumerate(entries):
        try:
            taken.append(take(entry))
        except KeyError as error:
            raise DataError(
                f"{path}: entry {number} of '{name}' lacks {error}; is it a COCO captions file?"
            ) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path}: entry {number} of '{name}' is odd: {error}") from None
    return taken


def _split_in(name: str) -> str:
    return next((split for split in SPLITS if split in name.lower()), "train")
