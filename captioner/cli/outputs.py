"""Decide where the outputs of a command go, and check that nothing is overwritten."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from captioner.errors import ConfigError, DataError


def writable(path: str | Path | None) -> Path | None:
    """Make the folder of a file and return its path; None stays None.

    Raises DataError if the file cannot be written.
    """
    if path is None:
        return None
    target = Path(path)
    parent = target.parent
    try:
        if os.path.isdir(target):
            raise DataError(f"cannot write {target}: it is a folder; give a file")
        with contextlib.suppress(FileNotFoundError):
            os.lstat(target.with_name(target.name + ".part"))  # is the name too long?
        parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"cannot write {target}: {parent} is not a folder") from None
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from None
    except ValueError as error:  # a null character in the name
        raise DataError(f"cannot write {str(target)!r}: {error}") from None
    if not os.access(parent, os.W_OK):
        raise DataError(f"cannot write {target}: {parent} is not writable")
    return target


def check_distinct(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[Path] = ()) -> None:
    """Raise ConfigError if an output (option, path) is also another output or an input."""
    taken = {_key(path): "an input" for path in inputs}
    for option, path in outputs:
        if path is None:
            continue
        key = _key(path)
        if key in taken:
            raise ConfigError(f"{option}: {path} is also {taken[key]}; give another file")
        taken[key] = f"the file of {option}"


def sheet_files(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Return the PNG for the attention of each image: `out`, or for several a PNG each in it.

    The PNGs are named after the images by the first of these forms in which no two are the same:
    without the suffix, with it, each with the folders above the image, and numbered.
    Raises DataError if a PNG cannot be written.
    """
    distinct = list(dict.fromkeys(images))
    if len(distinct) == 1 and not os.path.isdir(out):
        targets = {distinct[0]: out}
    else:
        targets = _named_apart(distinct, out)
    for target in targets.values():
        writable(target)
    return targets


def _named_apart(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    absolute = [Path(os.path.abspath(image)) for image in images]
    try:
        above = Path(os.path.commonpath([path.parent for path in absolute]))
    except ValueError:  # several drives
        above = None
    numbers = {path: number for number, path in enumerate(absolute, 1)}
    forms: list[Callable[[Path], Path]] = [
        lambda path: out / f"{path.stem}.png",
        lambda path: out / f"{path.name}.png",
    ]
    if above:
        forms += [
            lambda path: out / path.relative_to(above).with_name(f"{path.stem}.png"),
            lambda path: out / path.relative_to(above).with_name(f"{path.name}.png"),
        ]
    for form in forms:
        targets = [form(path) for path in absolute]
        if len({_folded(target) for target in targets}) == len(targets):
            break
    else:
        targets = [out / f"{numbers[path]}-{path.stem}.png" for path in absolute]
    return dict(zip(images, targets, strict=True))


def _key(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _folded(path: Path) -> str:
    """Return the same name for paths that some file systems do not tell apart."""
    return unicodedata.normalize("NFC", str(path)).casefold()
