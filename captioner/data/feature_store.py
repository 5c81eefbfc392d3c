"""The feature store: CNN features of many pictures in one memory-mapped file, written resumably."""

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
from captioner.files import read_json, write_text

PENDING, DONE, UNREADABLE = range(3)


@dataclass(frozen=True)
class Source:
    """The file that a row was made from."""

    sha256: str  # of its bytes
    stamp: tuple[int, ...]  # size, times of change (ns) and inode: while they stay, so does sha256

    @classmethod
    def of(cls, path: Path, known: Source | None = None) -> Source | None:
        """Return the source at `path`, None where no file can be read.

        The file is read only if its stamp is not that of `known`.
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
    """Features (N, views, L, D) in float16 on disk, a row a picture; view 1 is its mirror image.

    Three files: `features.json` (shape, encoder, keys of the rows), `features.f16` (the values) and
    `features.state` (a byte a row: PENDING, DONE or UNREADABLE). A row is marked only after its
    values are written, so an interrupted run goes on where it stopped. A fourth one,
    `features.sources.json`, knows the file of each row; a store without it is usable all the same.

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
        # Only read through the map, in either mode: `write` says why.
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

        shape is (views, L, D). With `sources`, by key, a store of other pictures becomes one of
        these: rows of the same source are kept, wherever they stand then, those of a changed one
        are pending again, and pictures that are not among the keys are forgotten. The row of a
        picture without a source (it is not there now) stays as it is. `before_change` is called
        before any of that. Without `sources` the keys must be those of the store.

        Raises DataError if the folder holds features of other pictures only or of another encoder,
        cannot be written, or lies on a disk without room for them.
        """
        header = {"shape": list(shape), "encoder": asdict(encoder), "keys": list(keys)}
        if (folder / "features.json").exists():
            old = _read_header(folder)
            others = old["keys"] != header["keys"]
            if sources is not None:
                others = set(old["keys"]).isdisjoint(keys)
            if others or any(old[name] != header[name] for name in ("shape", "encoder")):
                raise DataError(
                    f"{folder} holds features made from other pictures or with other encoder "
                    "settings; give another --out or remove it"
                )
            if sources is not None:
                try:
                    _Change(folder, old, keys, sources).make(before_change)
                except OSError as error:
                    raise _unwritable(folder, error) from None
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
            _write_header(folder, header)  # last: what has a header is complete in form
        except OSError as error:
            raise _unwritable(folder, error) from None
        return cls(folder, "r+")

    def pending(self) -> list[int]:
        """Rows without features, in order: those not reached yet and the unreadable pictures."""
        return [int(row) for row in np.flatnonzero(self.state != DONE)]

    def write(self, rows: Sequence[int], features: npt.NDArray[np.floating[Any]]) -> None:
        """Store features (len(rows), views, L, D) and mark the rows as done.

        Raises DataError when the disk is full; what was marked before stays good.
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
                f"cannot write features to {self.folder}: {error.strerror}; when that is mended, "
                "the same command goes on where it stopped"
            ) from None
        self.state[list(rows)] = DONE

    def mark_unreadable(self, row: int) -> None:
        """Remember that this picture could not be read when it was tried last."""
        self.state[row] = UNREADABLE


class _Change:
    """How the store in a folder becomes one of other keys or of files that have changed.

    Every step leaves a store that the next attempt can begin with: a row is pending before its
    meaning changes, the files are as long as the longer of both stores until the header has told
    which one it is, and a row that moves is done only after that.
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
        """Carry it out, if there is anything to change."""
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
        """Those of the keys whose features are not of the file that is there now."""
        if self._known is None:  # a store that knows no sources: what is newer than it has changed
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
    """The keys of the new rows, and which old rows move where.

    What stays keeps its row; new pictures take the rows of those that are gone, then further ones;
    rows still free are filled from the end.
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
    """Return the file of each key; None for a store that does not know them, or no store."""
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
            f"{path}: it is damaged ({error}); remove it to keep the features as they are, or the "
            "folder to make them anew"
        ) from None


def _write_sources(folder: Path, sources: Mapping[str, Source | None]) -> None:
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps([source.sha256, *source.stamp])}"
        for key, source in sources.items()
        if source is not None
    )
    write_text(folder / "features.sources.json", "{\n" + lines + "\n}\n")


def _write_header(folder: Path, header: dict[str, Any]) -> None:
    partial = folder / "features.json.part"
    partial.write_text(json.dumps(header), "utf-8")
    partial.replace(folder / "features.json")


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(f"cannot write features to {folder}: {error.strerror}")


def _row_bytes(shape: tuple[int, int, int]) -> int:
    return math.prod(shape) * 2


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size > expected:
        raise DataError(
            f"{path} has {size} bytes, expected {expected}: a change of it was interrupted; "
            "run data_prep again"
        )
    if size != expected:
        raise DataError(
            f"{path} has {size} bytes, expected {expected}: it is truncated; "
            "remove the folder and run data_prep again"
        )


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"the features need {needed / 1e9:,.1f} GB but {folder} has {free / 1e9:,.1f} GB free; "
            "make room, give another --out, or store less: a smaller --grid, no --mirror"
        )


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "features.json"
    try:
        header = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"no features at {folder}; make them with `python -m data_prep`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
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
        raise DataError(f"{path} is not a feature store's header; run data_prep again")
    return cast(dict[str, Any], header)
