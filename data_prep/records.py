"""What every reader hands over: records of pictures with their captions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from captioner.errors import ConfigError

SPLITS = ("train", "val", "test")
VAL_SHARE = 0.1  # held out where nothing else gives validation pictures


@dataclass(frozen=True)
class Record:
    """One picture of a raw data set, with its captions as they were written."""

    key: str  # file name relative to the images folder; unique
    path: Path
    split: str
    captions: tuple[str, ...]
    image_id: int


def hold_out(
    records: Sequence[Record],
    val_share: float | None = None,
    test_share: float = 0.0,
    seed: int = 1,
) -> list[Record]:
    """Move a share of the training pictures into val and test; the seed decides which ones.

    val_share None stands for VAL_SHARE if no picture is in val yet, else for 0. A share above 0
    takes at least one picture, and at least one stays in train.
    """
    if val_share is None:
        val_share = 0.0 if any(record.split == "val" for record in records) else VAL_SHARE
    if val_share + test_share >= 1:
        raise ConfigError(
            f"the val share {val_share} and the test share {test_share} leave nothing to train on; "
            "their sum must be below 1"
        )
    keys = sorted(record.key for record in records if record.split == "train")
    random.Random(seed).shuffle(keys)
    moved: dict[str, str] = {}
    for split, share in (("val", val_share), ("test", test_share)):
        wanted = max(1, round(share * len(keys))) if share else 0
        begin, end = len(moved), min(len(moved) + wanted, len(keys) - 1)
        moved |= dict.fromkeys(keys[begin:end], split)
    return [replace(record, split=moved.get(record.key, record.split)) for record in records]
