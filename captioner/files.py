"""Read files with an error that helps, write them atomically, and lock a folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioner.errors import CaptionerError, ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor


def read_text(
    path: Path, *, missing: str = "", advice: str = "", error: type[CaptionerError] = DataError
) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises `error`: with the message `missing` if there is no file, else with what is wrong with
    the file and `advice`.
    """
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise error(missing or f"no file at {path}") from None
    except IsADirectoryError:
        raise error(f"{path}: it is a folder; give a file") from None
    except UnicodeDecodeError as reason:
        wrong = f"{path}: it is not UTF-8 text (byte {reason.start})"
        raise error(f"{wrong}; {advice or 'convert it'}") from None
    except (OSError, ValueError) as reason:  # ValueError: a null character in the name
        why = getattr(reason, "strerror", None) or reason
        raise error(f"{path}: it cannot be read: {why}") from None


def read_json(
    path: Path, *, missing: str = "", advice: str = "", error: type[CaptionerError] = DataError
) -> Any:
    """Parse a JSON file; raises `error` as `read_text` does, and if the text is not JSON."""
    text = read_text(path, missing=missing, advice=advice, error=error)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as reason:
        wrong = f"{path}: it is damaged or is not JSON ({reason})"
        raise error(f"{wrong}; {advice}" if advice else wrong) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a partial file, which is then synced and takes the place of `path`.

    If the block fails, the partial file is removed and `path` stays as it was. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        if partial.is_file():
            partial.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    r"""Write a UTF-8 file atomically; raises DataError if it cannot be written.

    A file name in the text may hold bytes that are not UTF-8. They are written as "\udc80", which
    is valid JSON and is read back as the same name.
    """
    try:
        with replacing(path) as partial:
            partial.write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write a value as JSON atomically; raises DataError if it cannot be written."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write a safetensors file atomically; raises OSError or SafetensorError."""
    from safetensors.torch import save_file  # imports torch

    dense = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as partial:
        save_file(dense, partial, {"format": "pt", **metadata})
        partial.chmod(0o644)  # the library lets only the owner read it


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep every other process from writing to it until the block ends.

    The operating system releases the lock when the process ends, however it ends. Raises
    ConfigError at once if another process holds the lock, or if the folder cannot be written.
    """
    from filelock import FileLock, Timeout  # needed only where something is written

    lock, note = FileLock(folder / ".lock"), folder / ".lock.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"{folder}: {_holder(note)} is writing to it; wait until it ends or give another --out"
        ) from None
    except OSError as error:
        reason = f"cannot write to {folder}: {error.strerror}"
        raise ConfigError(f"{reason}; give another --out") from None
    try:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        write_json(note, {"host": socket.gethostname(), "process": os.getpid(), "since": since})
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        found = read_json(note)
        return f"process {found['process']} on {found['host']} (since {found['since']})"
    except (DataError, KeyError, TypeError):  # the holder has not written it yet
        return "another process"
