"""Read Karpathy's dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.files import read_json
from data_prep.names import Folder
from data_prep.records import LeftOut, Record, caption_text, split_named, warn_ignored, whole_number

_KNOWN = {"filepath", "filename", "imgid", "cocoid", "split", "sentences", "sentids"}


def read(dataset: Path, images: Path) -> list[Record]:
    """Read the records of a Karpathy JSON; COCO's `restval` is training data, as is customary.

    COCO's images are in `filepath` folders (train2014, val2014) below `images`. Captions that are
    not text (null) are reported and left out. Raises DataError with the entry that is wrong.
    """
    content = read_json(dataset)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{dataset}: it has no list 'images'; give a Karpathy dataset file")
    records, left_out, folder, keys = [], LeftOut(dataset), Folder(images), set[str]()
    for number, entry in enumerate(entries):
        try:
            records.append(_record(entry, number, folder, left_out))
            keys |= entry.keys()
        except KeyError as error:
            raise DataError(f"{dataset}: entry {number} of 'images' lacks {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{dataset}: entry {number} of 'images' is wrong: {error}") from None
    left_out.close()
    warn_ignored(dataset, "keys of 'images'", keys - _KNOWN)
    return records


def _record(entry: dict[str, Any], number: int, folder: Folder, left_out: LeftOut) -> Record:
    key = folder.key(Path(entry.get("filepath") or "", entry["filename"]).as_posix())
    captions = [caption_text(sentence["raw"]) for sentence in entry["sentences"]]
    texts = tuple(text for text in captions if text is not None)
    if len(texts) < len(captions):
        left_out.add(f"entry {number}", "a caption that is not text (null, nan, a number)")
    return Record(
        key=key,
        path=folder.path / key,
        split=split_named(entry["split"]),
        captions=texts,
        image_id=whole_number(entry.get("cocoid", entry.get("imgid", number)), "the id"),
    )
