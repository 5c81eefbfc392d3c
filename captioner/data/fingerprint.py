"""Compare prepared data folders by their content, part by part."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from captioner.errors import DataError
from captioner.files import read_json

Fingerprint: TypeAlias = dict[str, str]  # part -> digest; "" if unknown

PARTS = ("captions", "splits", "vocabulary", "encoder", "features")


def fingerprint(folder: Path | str) -> Fingerprint:
    """Return a digest of each part of a prepared folder, independent of its path and order.

    The features themselves are not read. The images they were computed from stand for them, if
    `features.sources.json` lists those. Raises DataError for a missing or damaged file.
    """
    folder = Path(folder)
    entries, header = read_json(folder / "examples.json"), read_json(folder / "features.json")
    try:
        entries = sorted(entries, key=lambda entry: str(entry["image"]))
        images = [entry["image"] for entry in entries]
        return {
            "captions": _digest([[e["image"], e["image_id"], e["captions"]] for e in entries]),
            "splits": _digest([[entry["image"], entry["split"]] for entry in entries]),
            "vocabulary": _digest(read_json(folder / "vocabulary.json")),
            "encoder": _digest([header["encoder"], header["shape"]]),
            "features": _sources(folder, images),
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: it is damaged ({error!r}); run data_prep again") from None


def fingerprints(folders: Sequence[Path | str]) -> list[Fingerprint]:
    """Return the fingerprint of each of several folders."""
    return [fingerprint(folder) for folder in folders]


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Return the parts in which two folders differ, of those that are known of both."""
    return [
        part for part in PARTS if one.get(part) and other.get(part) and one[part] != other[part]
    ]


def split_otherwise(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Return whether two folders hold the same captions in other splits.

    The val split of one may then be in the train split of the other.
    """
    parts = differences(one, other)
    return bool(one.get("captions")) and "captions" not in parts and "splits" in parts


def _sources(folder: Path, images: Sequence[str]) -> str:
    path = folder / "features.sources.json"
    if not path.exists():
        return ""
    known = read_json(path)
    digests = [known.get(image) for image in images]
    # An entry is the digest alone, or the digest followed by the file's size and times.
    return _digest([own[0] if isinstance(own, list) and own else own for own in digests])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
