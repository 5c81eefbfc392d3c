"""Find the image files among the files and folders that a person names."""

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
    """Image files in order, what was left out and why, and what could not be read."""

    images: list[Path] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # files of folders, by reason
    folders: int = 0  # inside folders, not searched
    problems: list[DataError] = field(default_factory=list)  # one for each path

    def summary(self) -> str:
        """One line about what was left out; empty if nothing was."""
        parts = []
        if self.skipped:
            total, shown = self.skipped.total(), self.skipped.most_common(REASONS_SHOWN)
            reasons = [f"{count:,} {reason}" for reason, count in shown]
            others = total - sum(count for _, count in shown)
            reasons += [f"{others:,} of other kinds"] if others else []
            parts.append(f"skipped {total:,} file{'s' * (total > 1)}: {', '.join(reasons)}")
        if self.folders:
            parts.append(f"folders inside were not searched: {self.folders:,}; give --recursive")
        return "; ".join(parts)


def find_images(sources: Sequence[str | Path], recursive: bool = False) -> Found:
    """Find the image files among `sources` and in the folders among them.

    A file that is named is taken as it is. Of a folder, in order of name, only visible files with
    an image's suffix are taken. With `recursive` the folders inside are searched, links to folders
    too; each folder once, so links may form a loop. "-" is the standard input.
    """
    found = Found()
    for source in sources:
        path = Path("/dev/stdin" if source == "-" else source)
        try:
            if source == "":
                raise FileNotFoundError
            path.stat()  # unlike is_dir it says why not
            if path.is_dir():
                found.images += sorted(_images(path, recursive, found))
            else:
                found.images.append(path)
        except FileNotFoundError:
            what = f"{path} is a broken link" if path.is_symlink() else ""
            missing = f"no picture or folder at {path if source else repr(source)}"
            found.problems.append(DataError(what or missing))
        except (OSError, ValueError) as error:  # ValueError: a null character in the name
            found.problems.append(_unreadable(path, error))
    return found


def _images(folder: Path, recursive: bool, found: Found) -> Iterator[Path]:
    """The image files of a folder; what is left out is noted in `found`."""
    folders, links, searched = [folder], list[Path](), set()
    while folders or links:
        directory = (folders or links).pop()  # links last: a folder goes by its own name
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
    """Why an entry of a folder is no image to caption, None if it is; "" is not worth a word."""
    hidden, suffix = entry.name.startswith("."), Path(entry.name).suffix.lower()
    try:
        if entry.is_dir():
            return "" if hidden else "folder"
        regular = entry.is_file()
    except OSError:  # links that lead to themselves
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
        return DataError(f"{path} may not be read: check its permissions")
    return DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
