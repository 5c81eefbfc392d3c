"""Store the CNN features of many images in one memory-mapped file, written resumably."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from captioner.config import EncoderConfig, from_dict
from captioner.errors import DataError
from captioner.files import read_json, write_json, write_text

PENDING, DONE, UNREADABLE = range(3)


@dataclass(frozen=True)
class Source:
    """The image file whose features a row holds."""

    sha256: str  # of its bytes
    stamp: tuple[int, ...]  # size, mtime (ns), ctime (ns), inode; unchanged: same sha256

    @classmethod
    def of(cls, path: Path, known: Source | None = None) -> Source | None:
        """Return the source at `path`, or None if the file cannot be read.

        The file is hashed only if its stamp differs from that of `known`.
        """
        try:
            found = path.stat()
            stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            if known is not None and known.stamp == stamp:
                return known
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except (OSError, ValueError):  # ValueError: a name with a null character
            return None
        return cls(digest.hexdigest()[:32], stamp)


class FeatureStore:
    """Features (N, views, L, D), float16 on disk, one row per image; view 1 is mirrored.

    Three files: `features.json` (shape, encoder, keys of the rows), `features.f16` (the values) and
    `features.state` (one byte per row: PENDING, DONE or UNREADABLE). A row is marked only after its
    values are written, so an interrupted run resumes where it stopped. The optional
    `features.sources.json` holds the source of each row.

    Raises DataError if a file is missing, damaged or truncated.
    """

    def __init__(self, folder: Path, mode: Literal["r", "r+"] = "r"):
        header = _read_header(folder)
        self.folder = folder
        self.keys: list[str] = header["keys"]
        self.encoder = from_dict(EncoderConfig, header["encoder"], str(folder / "features.json"))
        rows = len(self.keys)
        self.shape: tuple[int, int, int] = tuple(header["shape"])
        self.views, self.cells, self.dim = self.shape
        self._row_bytes = _row_bytes(self.shape)
        _check_size(folder / "features.f16", rows * self._row_bytes)
        _check_size(folder / "features.state", rows)
        # The map is read-only in both modes; `write` says why.
        self.values: npt.NDArray[np.float16] = np.memmap(
            folder / "features.f16", np.float16, "r", shape=(rows, *self.shape)
        )
        self.state: npt.NDArray[np.uint8] = np.memmap(
            folder / "features.state", np.uint8, mode, shape=(rows,)
        )

    @classmethod
    def create(
        cls,
        folder: Path,
        keys: Sequence[str],
        shape: tuple[int, int, int],
        encoder: EncoderConfig,
        sources: Mapping[str, Source | None] | None = None,
        before_change: Callable[[], object] = lambda: None,
    ) -> FeatureStore:
        """Open a store for writing: a new one, or the one in the folder, finished or not.

        shape is (views, L, D). With `sources`, by key, an existing store is adapted to `keys`: the
        rows of unchanged sources are kept, though they may move, those of changed sources are
        pending again, and keys that are not given are dropped. The row of a key without a source
        (its file is missing now) stays as it is. `before_change` is called before any change.
        Without `sources` the keys must be those of the store.

        Raises DataError if the folder holds only features of other images, or those of another
        encoder, if it cannot be written, or if its disk is too small for the features.
        """
        header = {"shape": list(shape), "encoder": asdict(encoder), "keys": list(keys)}
        if (folder / "features.json").exists():
            _adapt(folder, header, sources, before_change)
            store = cls(folder, "r+")
            _check_space(folder, len(store.pending()) * store._row_bytes)
            return store
        _check_space(folder, len(keys) * _row_bytes(shape))
        try:
            with (folder / "features.f16").open("wb") as file:
                file.truncate(len(keys) * _row_bytes(shape))  # sparse: takes no space yet
            (folder / "features.state").write_bytes(bytes(len(keys)))
            if sources is not None:
                _write_sources(folder, sources)
            _write_header(folder, header)  # last: it completes the store
        except OSError as error:
            raise _unwritable(folder, error) from None
        return cls(folder, "r+")

    def pending(self) -> list[int]:
        """Return the rows without features, in order: pending ones and unreadable images."""
        return [int(row) for row in np.flatnonzero(self.state != DONE)]

    def write(self, rows: Sequence[int], features: npt.NDArray[np.floating[Any]]) -> None:
        """Store features (len(rows), views, L, D) and mark the rows as done.

        Raises DataError if the disk is full; rows marked before stay valid.
        """
        features = np.asarray(features, np.float16)
        assert features.shape == (len(rows), *self.shape)
        try:
            # Through the memory map, a full disk would kill the process (SIGBUS).
            with (self.folder / "features.f16").open("r+b") as file:
                for row, value in zip(rows, features, strict=True):
                    file.seek(row * self._row_bytes)
                    file.write(value.tobytes())
        except OSError as error:
            raise DataError(
                f"cannot write features to {self.folder}: {error.strerror}; solve that and run the "
                "same command: it resumes where it stopped"
            ) from None
        self.state[list(rows)] = DONE

    def mark_unreadable(self, row: int) -> None:
        """Mark the row of an image that cannot be read."""
        self.state[row] = UNREADABLE


def _adapt(
    folder: Path,
    header: dict[str, Any],
    sources: Mapping[str, Source | None] | None,
    before_change: Callable[[], object],
) -> None:
    """Change the store in a folder into one with the header's keys; raises DataError if it cannot.

    Without `sources` only check that it has these keys.
    """
    old, keys = _read_header(folder), header["keys"]
    others = old["keys"] != keys if sources is None else set(old["keys"]).isdisjoint(keys)
    if others or any(old[name] != header[name] for name in ("shape", "encoder")):
        raise DataError(
            f"{folder}: it holds features of other images or with other encoder settings; "
            "give another --out or remove the folder"
        )
    if sources is not None:
        try:
            _Change(folder, old, keys, sources).make(before_change)
        except OSError as error:
            raise _unwritable(folder, error) from None


class _Change:
    """The adaptation of a store to other keys or to changed files.

    It can be interrupted after every step and started again: a row becomes pending before its
    meaning changes, the files keep the length of the longer store until the header is replaced,
    and a row that moves is marked as done only after that.
    """

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        keys: Sequence[str],
        sources: Mapping[str, Source | None],
    ):
        self._folder, self._header, self._sources = folder, header, sources
        self._row_bytes = _row_bytes(tuple(header["shape"]))
        old: list[str] = header["keys"]
        for name, row_bytes in (("features.f16", self._row_bytes), ("features.state", 1)):
            path, size = folder / name, len(old) * row_bytes
            if path.is_file() and path.stat().st_size > size:  # a change that was interrupted
                os.truncate(path, size)
            _check_size(path, size)
        self._state = bytearray((folder / "features.state").read_bytes())
        self._keys, self._moves = _layout(old, keys)
        self._known = read_sources(folder)
        self._stale = self._changed(set(keys).intersection(old))

    def make(self, before_change: Callable[[], object]) -> None:
        """Adapt the store, if there is anything to change."""
        old, new, state = self._header["keys"], self._keys, self._state
        known = {} if self._known is None else self._known
        after = {key: self._sources.get(key) or known.get(key) for key in new}
        if new != old or self._stale:
            before_change()
        freed = [row for row, key in enumerate(old) if row >= len(new) or new[row] != key]
        stale = [row for row, key in enumerate(old) if key in self._stale]
        moved = {to: state[row] for row, to in self._moves.items() if old[row] not in self._stale}
        gone = [row for row in freed if row not in self._moves]
        self._write_state(dict.fromkeys([*gone, *stale], PENDING))
        longest = max(len(old), len(new))
        self._resize(longest)
        with (self._folder / "features.f16").open("r+b") as file:
            for row, to in self._moves.items():
                file.seek(row * self._row_bytes)
                values = file.read(self._row_bytes)
                file.seek(to * self._row_bytes)
                file.write(values)
        if after != self._known:
            _write_sources(self._folder, after)
        if new != old:
            _write_header(self._folder, self._header | {"keys": new})
        self._write_state(moved)
        self._resize(len(new))

    def _changed(self, keys: set[str]) -> set[str]:
        """Return the keys whose features were not computed from the present file."""
        if self._known is None:  # no sources: a file newer than the store has changed
            written = (self._folder / "features.f16").stat().st_mtime_ns
            return {
                key for key in keys
                if (source := self._sources.get(key)) and source.stamp[1] > written
            }  # fmt: skip
        return {
            key for key in keys
            if (source := self._sources.get(key))
            and ((old := self._known.get(key)) is None or old.sha256 != source.sha256)
        }  # fmt: skip

    def _write_state(self, states: Mapping[int, int]) -> None:
        with (self._folder / "features.state").open("r+b") as file:
            for row, state in states.items():
                file.seek(row)
                file.write(bytes([state]))

    def _resize(self, rows: int) -> None:
        for name, row_bytes in (("features.f16", self._row_bytes), ("features.state", 1)):
            if (self._folder / name).stat().st_size != rows * row_bytes:
                os.truncate(self._folder / name, rows * row_bytes)


def _layout(old: Sequence[str], keys: Sequence[str]) -> tuple[list[str], dict[int, int]]:
    """Return the keys of the new rows, and the new row of each old one that moves.

    Kept keys keep their rows. New keys take the rows of dropped ones, then rows at the end. Rows
    that are still free are filled from the end.
    """
    wanted, had = set(keys), set(old)
    rows: list[str | None] = [key if key in wanted else None for key in old]
    free = [row for row, key in enumerate(rows) if key is None]
    coming = [key for key in keys if key not in had]
    for row, key in zip(free, coming, strict=False):
        rows[row] = key
    rows += coming[len(free) :]
    moves = {}
    for row in free[len(coming) :]:
        while rows and rows[-1] is None:
            rows.pop()
        if row < len(rows):
            moves[len(rows) - 1] = row
            rows[row] = rows.pop()
    return [key for key in rows if key is not None], moves


def read_sources(folder: Path) -> dict[str, Source] | None:
    """Return the source of each key, or None if the folder has no store or no sources."""
    path = folder / "features.sources.json"
    if not path.exists():
        return None
    try:
        entries = read_json(path).items()
        return {
            key: Source(str(digest), tuple(map(int, stamp))) for key, (digest, *stamp) in entries
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: it is damaged ({error}); remove it to keep the features, or remove the "
            "folder to compute them again"
        ) from None


def _write_sources(folder: Path, sources: Mapping[str, Source | None]) -> None:
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps([source.sha256, *source.stamp])}"
        for key, source in sources.items()
        if source is not None
    )
    write_text(folder / "features.sources.json", "{\n" + lines + "\n}\n")


def _write_header(folder: Path, header: dict[str, Any]) -> None:
    write_json(folder / "features.json", header, indent=None)


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot write features to {folder}: {error.strerror}")


def _row_bytes(shape: tuple[int, int, int]) -> int:
    return math.prod(shape) * 2


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size > expected:
        raise DataError(
            f"{path}: it has {size} bytes instead of {expected}, as a run was interrupted; "
            "run data_prep again"
        )
    if size != expected:
        raise DataError(
            f"{path}: it is truncated ({size} bytes instead of {expected}); "
            "remove the folder and run data_prep again"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{folder}: the features need {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB are "
            "free; make room, give another --out, or store less: a smaller --grid, no --mirror"
        )


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "features.json"
    missing = f"no features at {folder}; make them with `python -m data_prep`"
    header = read_json(path, missing=missing, advice="run data_prep again")
    shape, encoder, keys = (
        header.get(name) if isinstance(header, dict) else None
        for name in ("shape", "encoder", "keys")
    )
    if (
        not (isinstance(shape, list) and isinstance(encoder, dict) and isinstance(keys, list))
        or len(shape) != 3
        or not all(isinstance(size, int) and size > 0 for size in shape)
        or not keys
    ):
        raise DataError(f"{path}: it is not the header of a feature store; run data_prep again")
    return cast(dict[str, Any], header)
