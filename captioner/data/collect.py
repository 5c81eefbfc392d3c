"""Find the image files among the files and folders that a user names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captioner.data.images import SUFFIXES
from captioner.errors import DataError

REASONS_SHOWN = 6


@dataclass
class Found:
    """Image files in order, files left out by reason, and errors."""

    images: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # files in folders, by reason
    folders: int = 0  # subfolders that were not searched
    problems: list[DataError] = field(default_factory=list)  # one per path

    def summary(self) -> str:
        """Return one line about what was left out; empty if nothing was."""
        parts = []
        if self.skipped:
            total, shown = self.skipped.total(), self.skipped.most_common(REASONS_SHOWN)
            reasons = [f"{count:,} {reason}" for reason, count in shown]
            others = total - sum(count for _, count in shown)
            reasons += [f"{others:,} of other kinds"] if others else []
            parts.append(f"skipped {total:,} file{'s' * (total > 1)}: {', '.join(reasons)}")
        if self.folders:
            parts.append(f"subfolders not searched: {self.folders:,}; give --recursive")
        return "; ".join(parts)


def find_images(sources: Sequence[str | Path], recursive: bool = False) -> Found:
    """Find the image files among `sources` and in the folders among them.

    A named file is taken whatever its suffix. Of a folder, visible files with an image suffix are
    taken, sorted by name. With `recursive` its subfolders are searched, also through links, each
    folder once, so links may form a loop. "-" is the standard input.
    """
    found = Found()
    for source in sources:
        path = Path("/dev/stdin" if source == "-" else source)
        try:
            if source == "":
                raise FileNotFoundError
            path.stat()  # unlike is_dir it raises the reason
            if path.is_dir():
                found.images += sorted(_images(path, recursive, found))
            else:
                found.images.append(path)
        except FileNotFoundError:
            what = f"{path}: it is a broken link" if path.is_symlink() else ""
            missing = f"no image or folder at {path if source else repr(source)}"
            found.problems.append(DataError(what or missing))
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            found.problems.append(_unreadable(path, error))
    return found


def _images(folder: Path, recursive: bool, found: Found) -> Iterator[Path]:
    """Yield the image files of a folder and note in `found` what is left out."""
    folders, links, searched = [folder], list[Path](), set()
    while folders or links:
        directory = (folders or links).pop()  # links last: a folder keeps its own name
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in searched:
                continue
            searched.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                for entry in entries:
                    path = directory / entry.name
                    reason = _left_out(entry)
                    if reason == "folder":
                        (links if entry.is_symlink() else folders).append(path)
                    elif reason:
                        found.skipped[reason] += 1
                    elif reason is None:
                        yield path
        except OSError as error:
            found.problems.append(_unreadable(directory, error))
        if not recursive:
            found.folders += len(folders) + len(links)
            return


def _left_out(entry: os.DirEntry[str]) -> str | None:
    """Return why an entry of a folder is left out: None if it is not, "" to leave it unsaid."""
    hidden, suffix = entry.name.startswith("."), Path(entry.name).suffix.lower()
    try:
        if entry.is_dir():
            return "" if hidden else "folder"
        regular = entry.is_file()
    except OSError:  # a link to itself
        regular = False
    if hidden:
        return "hidden" if suffix in SUFFIXES else ""
    if suffix not in SUFFIXES:
        return suffix or "without a suffix"
    if not regular:
        return "broken links" if entry.is_symlink() else "not regular files"
    return None


def _unreadable(path: Path, error: OSError | ValueError) -> DataError:
    if isinstance(error, PermissionError):
        return DataError(f"{path}: permission denied; make it readable")
    return DataError(f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}")
