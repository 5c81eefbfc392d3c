"""The feature store: CNN features of many pictures in one memory-mapped file, written resumably."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from captioner.config import EncoderConfig, from_dict
from captioner.errors import DataError

PENDING, DONE, UNREADABLE = range(3)


class FeatureStore:
    """Features (N, views, L, D) in float16 on disk, a row a picture; view 1 is its mirror image.

    Three files: `features.json` (shape, encoder, keys of the rows), `features.f16` (the values) and
    `features.state` (a byte a row: PENDING, DONE or UNREADABLE). A row is marked only after its
    values are written, so an interrupted run goes on where it stopped.

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
    ) -> FeatureStore:
        """Open a store for writing: a new one, or the unfinished one of the same pictures.

        shape is (views, L, D). Raises DataError if the folder holds features of other pictures or
        of another encoder, cannot be written, or lies on a disk without room for them.
        """
        header = {"shape": list(shape), "encoder": asdict(encoder), "keys": list(keys)}
        if (folder / "features.json").exists():
            if _read_header(folder) != header:
                raise DataError(
                    f"{folder} holds features made from other pictures or with other encoder "
                    "settings; give another --out or remove it"
                )
            store = cls(folder, "r+")
            _check_space(folder, len(store.pending()) * store._row_bytes)
            return store
        _check_space(folder, len(keys) * _row_bytes(shape))
        try:
            with (folder / "features.f16").open("wb") as file:
                file.truncate(len(keys) * _row_bytes(shape))  # sparse: takes no space yet
            (folder / "features.state").write_bytes(bytes(len(keys)))
            partial = folder / "features.json.part"
            partial.write_text(json.dumps(header), "utf-8")
            partial.replace(folder / "features.json")  # last: what has a header is complete in form
        except OSError as error:
            raise DataError(f"cannot write features to {folder}: {error.strerror}") from None
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


def _row_bytes(shape: tuple[int, int, int]) -> int:
    return math.prod(shape) * 2


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
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
