"""Records of images with their captions, which every reader returns, and their splits."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captioner.errors import ConfigError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
VAL_SHARE = 0.1  # held out if a data set has no val split
LEAST_VAL = 5  # images: CIDEr of one is always 0, of a few it hardly varies
WARNINGS = 10  # of one kind that are shown in full

# Other names of the splits; restval of Karpathy's files is training data, as is customary.
_SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# What programs write for missing text.
_NO_TEXT = frozenset({"", "nan", "null", "none", "na", "n/a", "<na>", "#n/a"})


@dataclass(frozen=True)
class Record:
    """One image of a raw data set, with its captions as written."""

    key: str  # file name relative to the images folder; unique
    path: Path
    split: str
    captions: tuple[str, ...]
    image_id: int


class LeftOut:
    """Warnings of what a reader leaves out of a file: the first few, then their number."""

    def __init__(self, file: Path):
        self._file, self._counts = file, dict[str, int]()

    def add(self, place: str, reason: str) -> None:
        """Count one place, such as "line 3", and warn of what is wrong with it."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if self._counts[reason] <= WARNINGS:
            log.warning("left out: %s of %s: %s", place, self._file, reason)

    def close(self) -> None:
        """Log the number of places for each reason that was not shown in full."""
        for reason, count in self._counts.items():
            if count > WARNINGS:
                log.warning("left out: %s: %s, %d times", self._file, reason, count)


def warn_ignored(file: Path, what: str, names: Iterable[str]) -> None:
    """Log once the columns or keys of a file that are not read."""
    if several := ", ".join(sorted({str(name) for name in names})):
        log.warning("%s: ignored the %s %s", file, what, several)


def caption_text(value: Any) -> str | None:
    """Return a caption as written, or None if it is not text: null, nan, a number."""
    return value if isinstance(value, str) and value.strip().lower() not in _NO_TEXT else None


def split_named(value: Any) -> str:
    """Return the split that a name stands for; raises ValueError for an unknown name."""
    if isinstance(value, str):
        for split, names in _SPLIT_NAMES.items():
            if value.strip().lower() in names:
                return split
    raise ValueError(f"the split is {value!r}; use {', '.join(SPLITS)}")


def file_splits(
    files: Sequence[Path], splits: Sequence[str] | None, option: str
) -> list[str | None]:
    """Return the split of each file: as given, or, for several files, as named in the file name.

    A file without a split has None. Raises ConfigError unless there is one split per file.
    """
    if splits is None:
        if len(files) == 1:
            return [None]
        names = [file.stem.lower() for file in files]
        return [next((split for split in SPLITS if split in name), None) for name in names]
    if len(splits) != len(files):
        raise ConfigError(
            f"--splits: {len(splits)} names for {len(files)} {option} files; "
            "give one for each file, in the same order"
        )
    return list(splits)


def whole_number(value: Any, what: str) -> int:
    """Return an int or a string of digits as an int; raises ValueError for anything else."""
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{what} is {value!r}, not a whole number")
    return value


def hold_out(
    records: Sequence[Record],
    val_share: float | None = None,
    test_share: float = 0.0,
    seed: int = 1,
    digests: Mapping[str, str] | None = None,
) -> list[Record]:
    """Move a random share of the training images into val and test.

    If val_share is None it is 0 for data with a val split, else VAL_SHARE, but at least LEAST_VAL
    images or half of them. A share above 0 moves at least one image, and at least one stays in
    train. Images of the same digest stay together.
    """
    least = 1
    if val_share is None:
        given = any(record.split == "val" for record in records)
        val_share, least = (0.0, 1) if given else (VAL_SHARE, LEAST_VAL)
    if val_share + test_share >= 1:
        raise ConfigError(
            f"the val share {val_share} and the test share {test_share} leave nothing to train on; "
            "give shares with a sum below 1"
        )
    groups: dict[str, list[str]] = {}
    for key in sorted(record.key for record in records if record.split == "train"):
        groups.setdefault((digests or {}).get(key, key), []).append(key)
    order, total = list(groups.values()), sum(map(len, groups.values()))
    random.Random(seed).shuffle(order)
    moved: dict[str, str] = {}
    for split, share, enough in (("val", val_share, least), ("test", test_share, 1)):
        wanted = max(1, min(enough, total // 2), round(share * total)) if share else 0
        while wanted > 0 and len(order) > 1:
            group = order.pop(0)
            moved |= dict.fromkeys(group, split)
            wanted -= len(group)
    return [replace(record, split=moved.get(record.key, record.split)) for record in records]


def held_out_note(before: Sequence[Record], after: Sequence[Record]) -> str:
    """Return a note on what `hold_out` moved into val and on a val split of one image, or ""."""
    was, now = (sum(r.split == "val" for r in records) for records in (before, after))
    notes = []
    if now > was:
        notes.append(
            f"held out: {now - was:,} of {len(before):,} images for validation (--val-share)"
        )
    if now == 1:
        notes.append(
            "CIDEr of one validation image is always 0, so it cannot select the best epoch; "
            "give more images or a larger --val-share"
        )
    return "; ".join(notes)
