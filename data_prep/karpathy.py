"""Read Karpathy's dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.files import read_json
from data_prep.records import Record


def read(dataset: Path, images: Path) -> list[Record]:
    """Records of a Karpathy JSON; COCO's `restval` is training data, as everybody uses it.

    Pictures of COCO lie in `filepath` folders (train2014, val2014) below `images`.
    Raises DataError naming the entry and what is wrong with it.
    """
    content = read_json(dataset)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{dataset} has no list 'images'; is it a Karpathy dataset file?")
    records = []
    for number, entry in enumerate(entries):
        try:
            records.append(_record(entry, number, images))
        except KeyError as error:
            raise DataError(f"{dataset}: entry {number} of 'images' lacks {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{dataset}: entry {number} of 'images' is odd: {error}") from None
    return records


def _record(entry: dict[str, Any], number: int, images: Path) -> Record:
    key = Path(entry.get("filepath") or "", entry["filename"]).as_posix()
    return Record(
        key=key,
        path=images / key,
        split="train" if entry["split"] == "restval" else str(entry["split"]),
        captions=tuple(str(sentence["raw"]) for sentence in entry["sentences"]),
        image_id=int(entry.get("cocoid", entry.get("imgid", number))),
    )
