"""Read Karpathy's dataset_coco.json, dataset_flickr8k.json and dataset_flickr30k.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from data_prep.build import Record


def read(dataset: Path, images: Path) -> list[Record]:
    """Records of a Karpathy JSON; COCO's `restval` is training data, as everybody uses it.

    Captions of COCO lie in `filepath` folders (train2014, val2014) below `images`.
    Raises DataError naming the entry and the key that is missing.
    """
    content = read_json(dataset)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(f"{dataset} has no list 'images'; is it a Karpathy dataset file?")
    records = []
    for number, entry in enumerate(entries):
        try:
            key = str(Path(entry.get("filepath", ""), entry["filename"]))
            records.append(
                Record(
                    key=key,
                    path=images / key,
                    split="train" if entry["split"] == "restval" else entry["split"],
                    captions=tuple(str(sentence["raw"]) for sentence in entry["sentences"]),
                    image_id=int(entry.get("cocoid", entry.get("imgid", number))),
                )
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{dataset}: entry {number} of 'images' lacks {error}") from None
    return records


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises DataError when it is missing or broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"no file at {path}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
