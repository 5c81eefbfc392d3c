"""Text files: read with an error that helps, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from captioner.errors import DataError


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; raises DataError saying why not."""
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"no file at {path}") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; give the file with the captions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); convert it") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises DataError when it is missing or broken."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that appears only when it is complete; raises DataError saying why not.

    A file name in the text may hold bytes that are not UTF-8; written "\\udc80" they are valid JSON
    and come back.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))
        partial.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None
