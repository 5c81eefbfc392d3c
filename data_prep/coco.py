"""Read COCO's own captions files, such as captions_train2017.json."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from captioner.errors import DataError
from captioner.files import read_json
from data_prep.names import Folder
from data_prep.records import (
    LeftOut,
    Record,
    caption_text,
    file_splits,
    split_named,
    warn_ignored,
    whole_number,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

# The keys of COCO's own files.
_KNOWN = {
    "images": {
        "id", "file_name", "split", "width", "height", "license", "coco_url", "flickr_url",
        "date_captured",
    },
    "annotations": {"id", "image_id", "caption"},
}  # fmt: skip


def read(
    annotations: Sequence[Path], images: Path, splits: Sequence[str] | None = None
) -> list[Record]:
    """Read the records of captions files, each of one split; image_id is COCO's.

    Without `splits` an image's own key `split` is used; else a single file is train, and several
    are train, val or test by their names. `images` holds the images themselves, or folders named
    after the files: those of captions_train2017.json may be in images/train2017. Captions that are
    not text are reported and left out.

    Raises DataError with the entry and the missing key, or with the file none of whose images was
    found; ConfigError unless there is one split per file.
    """
    return [
        record
        for path, split in zip(
            annotations, file_splits(annotations, splits, "annotation"), strict=True
        )
        for record in _read_file(path, images, split or "train", splits is not None)
    ]


def _read_file(path: Path, images: Path, split: str, split_is_given: bool) -> list[Record]:
    content = read_json(path)
    captions = _captions(path, content)
    listed = _entries(path, content, "images", _image)
    strays = len(captions.keys() - {image_id for image_id, _, _ in listed})
    if strays:
        log.warning("left out: %s has captions of %d images that it does not list", path, strays)
    own = path.stem.rpartition("_")[2]  # captions_train2017 -> train2017
    inside = own if (images / own).is_dir() else "."
    folder, records = Folder(images), []
    for image_id, name, its_own in listed:
        key = folder.key(Path(inside, name).as_posix())
        chosen = split if split_is_given or its_own is None else its_own
        records.append(Record(key, images / key, chosen, tuple(captions[image_id]), image_id))
    if records and not any(record.path.is_file() for record in records):
        raise DataError(
            f"{path}: none of its images is in {images / inside}; give the folder of the images, "
            "or its parent, as --images"
        )
    return records


def _captions(path: Path, content: Any) -> dict[int, list[str]]:
    """Return the captions by image id."""
    captions: dict[int, list[str]] = defaultdict(list)
    left_out = LeftOut(path)
    for number, (image_id, caption) in enumerate(
        _entries(
            path,
            content,
            "annotations",
            lambda entry: (whole_number(entry["image_id"], "image_id"), entry["caption"]),
        )
    ):
        text = caption_text(caption)
        if text is None:
            left_out.add(f"annotation {number}", "a caption that is not text (null, a list)")
        else:
            captions[image_id].append(text)
    left_out.close()
    return captions


def _image(entry: Any) -> tuple[int, str, str | None]:
    """Return the id, the file name and the split, if it has one, of an entry of 'images'."""
    name, split = entry["file_name"], entry.get("split")
    if not isinstance(name, str) or not name:
        raise ValueError(f"file_name is {name!r}, not text")
    return whole_number(entry["id"], "id"), name, None if split is None else split_named(split)


def _entries(path: Path, content: Any, name: str, take: Callable[[Any], T]) -> list[T]:
    """Return the result of `take` for each entry of the list `name`."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{path}: it has no list '{name}'; give a COCO captions file")
    taken, keys = [], set[str]()
    for number, entry in enumerate(entries):
        try:
            taken.append(take(entry))
            keys |= entry.keys()
        except KeyError as error:
            raise DataError(
                f"{path}: entry {number} of '{name}' lacks {error}; give a COCO captions file"
            ) from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: entry {number} of '{name}' is wrong: {error}") from None
    warn_ignored(path, f"keys of '{name}'", keys - _KNOWN[name])
    return taken
