"""What every reader hands over: records of pictures with their captions."""

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
VAL_SHARE = 0.1  # held out where nothing else gives validation pictures
LEAST_VAL = 5  # photographs: CIDEr of one is always 0, of a few it hardly moves
WARNINGS = 10  # of one kind that are shown one by one

# What else the splits are called; restval is training data, as everybody uses Karpathy's files.
_SPLIT_NAMES = {
    "train": ("train", "training", "restval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# What programs write where there is no text.
_NO_TEXT = frozenset({"", "nan", "null", "none", "na", "n/a", "<na>", "#n/a"})


@dataclass(frozen=True)
class Record:
    """One picture of a raw data set, with its captions as they were written."""

    key: str  # file name relative to the images folder; unique
    path: Path
    split: str
    captions: tuple[str, ...]
    image_id: int


class LeftOut:
    """What a reader leaves out of a file: the first ones are shown, then their number."""

    def __init__(self, file: Path):
        self._file, self._counts = file, dict[str, int]()

    def add(self, place: str, reason: str) -> None:
        """Note one place, as "line 3", and what is wrong with it."""
        self._counts[reason] = self._counts.get(reason, 0) + 1
        if self._counts[reason] <= WARNINGS:
            log.warning("left out: %s of %s %s", place, self._file, reason)

    def close(self) -> None:
        """Show how many there were, where not all of them were shown."""
        for reason, count in self._counts.items():
            if count > WARNINGS:
                log.warning("left out: %d in all of %s that %s", count, self._file, reason)


def warn_ignored(file: Path, what: str, names: Iterable[str]) -> None:
    """Name, once, the columns or keys of a file that are not read."""
    if several := ", ".join(sorted({str(name) for name in names})):
        log.warning("%s: ignored the %s %s", file, what, several)


def caption_text(value: Any) -> str | None:
    """Return a caption as it was written, None for what is not text: null, nan, a number."""
    return value if isinstance(value, str) and value.strip().lower() not in _NO_TEXT else None


def split_named(value: Any) -> str:
    """Return the split that a name means; raises ValueError saying which names there are."""
    if isinstance(value, str):
        for split, names in _SPLIT_NAMES.items():
            if value.strip().lower() in names:
                return split
    raise ValueError(f"the split is {value!r}; known are {', '.join(SPLITS)}")


def file_splits(
    files: Sequence[Path], splits: Sequence[str] | None, option: str
) -> list[str | None]:
    """Return the split of each file: as given, or of several what their names say.

    None where nothing says it. Raises ConfigError unless there is one split for each file.
    """
    if splits is None:
        if len(files) == 1:
            return [None]
        names = [file.stem.lower() for file in files]
        return [next((split for split in SPLITS if split in name), None) for name in names]
    if len(splits) != len(files):
        raise ConfigError(
            f"--splits has {len(splits)} names for {len(files)} {option} files; "
            "give one for each file, in the same order"
        )
    return list(splits)


def whole_number(value: Any, what: str) -> int:
    """Return a number or a string of digits as an int; raises ValueError for anything else."""
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
    """Move a share of the training pictures into val and test; the seed decides which ones.

    val_share None stands for VAL_SHARE, but at least LEAST_VAL pictures as long as that is no more
    than half of them, if no picture is in val yet, else for 0. A share above 0 takes at least one
    picture, and at least one stays in train. Pictures of the same digest stay together.
    """
    least = 1
    if val_share is None:
        given = any(record.split == "val" for record in records)
        val_share, least = (0.0, 1) if given else (VAL_SHARE, LEAST_VAL)
    if val_share + test_share >= 1:
        raise ConfigError(
            f"the val share {val_share} and the test share {test_share} leave nothing to train on; "
            "their sum must be below 1"
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
    """Say what `hold_out` moved into val, and whether a score of that can move; may be empty."""
    was, now = (sum(r.split == "val" for r in records) for records in (before, after))
    notes = []
    if now > was:
        notes.append(
            f"held out: {now - was:,} of {len(before):,} images for validation (--val-share)"
        )
    if now == 1:
        notes.append(
            "CIDEr of one validation image is always 0, so it cannot choose the best epoch; "
            "give more captions or a larger --val-share"
        )
    return "; ".join(notes)
