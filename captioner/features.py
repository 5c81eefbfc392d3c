"""The feature store: CNN features of many pictures in one memory-mapped file, written resumably."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captioner.config import EncoderConfig, from_dict
from captioner.errors import DataError

PENDING, DONE, UNREADABLE = range(3)


class FeatureStore:
    """Features (N, views, L, D) in float16 on disk, a row a picture; view 1 is the mirrored picture.

    Three files: `features.json` (shape, encoder, keys of the rows), `features.f16` (the values) and
    `features.state` (a byte a row: PENDING, DONE or UNREADABLE). A row is marked only after its
    values are written, so an interrupted run goes on where it stopped.
    """

    def __init__(self, folder: Path, mode: str = "r"):
        header = _read_header(folder)
        self.keys: list[str] = header["keys"]
        self.encoder = from_dict(EncoderConfig, header["encoder"], str(folder / "features.json"))
        rows = len(self.keys)
        self.shape: tuple[int, int, int] = tuple(header["shape"])
        self.views, self.cells, self.dim = self.shape
        expected = rows * int(np.prod(self.shape)) * 2
        path = folder / "features.f16"
        size = path.stat().st_size if path.is_file() else 0
        if size != expected:
            raise DataError(
                f"{path} has {size} bytes, expected {expected}: it is truncated; "
                "remove the folder and run data_prep again"
            )
        self.values: npt.NDArray[np.float16] = np.memmap(
            path, np.float16, mode, shape=(rows, *self.shape)  # type: ignore[call-overload]
        )
        self.state: npt.NDArray[np.uint8] = np.memmap(
            folder / "features.state", np.uint8, mode, shape=(rows,)  # type: ignore[call-overload]
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
        of another encoder.
        """
        header = {"shape": list(shape), "encoder": asdict(encoder), "keys": list(keys)}
        if (folder / "features.json").exists():
            if _read_header(folder) != header:
                raise DataError(
                    f"{folder} holds features made from other pictures or with other encoder "
                    "settings; give another --out or remove it"
                )
            return cls(folder, "r+")
        values = folder / "features.f16"
        with values.open("wb") as file:
            file.truncate(len(keys) * int(np.prod(shape)) * 2)  # sparse: takes no space yet
        (folder / "features.state").write_bytes(bytes(len(keys)))
        partial = folder / "features.json.part"
        partial.write_text(json.dumps(header), "utf-8")
        partial.replace(folder / "features.json")  # last: what has a header is complete in form
        return cls(folder, "r+")

    def pending(self) -> list[int]:
        """Rows not yet written, in order."""
        return [int(row) for row in np.flatnonzero(self.state == PENDING)]

    def write(self, rows: Sequence[int], features: npt.NDArray[np.floating[Any]]) -> None:
        """Store features (len(rows), views, L, D) and mark the rows as done."""
        for row, value in zip(rows, features, strict=True):
            self.values[row] = value
            self.state[row] = DONE

    def mark_unreadable(self, row: int) -> None:
        """Remember that this picture could not be read, so that it is not tried again."""
        self.state[row] = UNREADABLE


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / "features.json"
    try:
        header = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"no features at {folder}; make them with `python -m data_prep`") from None
    except ValueError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(header, dict) or not {"shape", "encoder", "keys"} <= set(header):
        raise DataError(f"{path} is not a feature store's header; run data_prep again")
    return header
