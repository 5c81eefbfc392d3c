"""Read a captions file: CSV, TSV, JSON lines or a JSON array."""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.files import read_text
from data_prep.names import Folder
from data_prep.records import (
    LeftOut,
    Record,
    caption_text,
    file_splits,
    split_named,
    warn_ignored,
)

# The accepted names of the columns, in a header or as the keys of a JSON object.
IMAGE_NAMES = (
    "image", "image_name", "file_name", "filename", "image_path", "file_path", "filepath", "path",
    "img", "file", "photo", "picture",
)  # fmt: skip
CAPTION_NAMES = ("caption", "captions", "text", "comment", "description", "sentence", "sentences")
SPLIT_NAMES = ("split", "set", "subset", "partition")
# Ignored silently: Flickr30k's caption number, and the index that pandas writes.
_QUIET = ("comment_number", "", "unnamed:_0")

_OBJECT = '{"file_name": "photo.jpg", "text": "A dog on a beach"}'
_EXPECTED = f"expected lines such as `photo.jpg,A dog on a beach`, or {_OBJECT}"


@dataclass(frozen=True)
class _Row:
    """One line, or one entry of a JSON array, unchecked."""

    place: str  # "line 3"
    image: Any
    captions: Sequence[Any]
    split: Any = None


@dataclass
class _Gathered:
    """All lines of one image."""

    split: str | None
    captions: list[str]


def read(
    captions: Path | Sequence[Path], images: Path, splits: Sequence[str] | None = None
) -> list[Record]:
    """Read the records of captions files; the lines of an image may be anywhere in them.

    Accepts `image,caption` and `image,caption,split` with or without a header, also with semicolon,
    tab or | as separator, Flickr's `name.jpg#0<tab>caption`, JSON lines {"file_name": ...,
    "text": ...} whose text may be a list, an array of such objects, and {"photo.jpg": [caption,
    ...]}. The split is that of the line, else of `splits`, else, for several files, of the file
    name, else train. image_id is the running number of the image. Lines without an image or a
    caption are left out; they and ignored columns are reported. Raises DataError for a line that
    cannot be read and for an image in two splits.
    """
    files = [captions] if isinstance(captions, Path) else list(captions)
    folder, gathered = Folder(images), dict[str, _Gathered]()
    for file, split in zip(files, file_splits(files, splits, "captions"), strict=True):
        if not _gather(file, split, folder, gathered):
            raise DataError(f"{file}: it holds no captions; {_EXPECTED}")
    unsaid = next((key for key, found in gathered.items() if found.split is None), None)
    if unsaid is not None and any(found.split is not None for found in gathered.values()):
        raise DataError(
            f"{files[0]}: {unsaid} has no split, but other images have one; give each image its "
            "split, or give --splits"
        )
    return [
        Record(key, images / key, found.split or "train", tuple(found.captions), number)
        for number, (key, found) in enumerate(gathered.items())
    ]


def _gather(
    file: Path, file_split: str | None, folder: Folder, gathered: dict[str, _Gathered]
) -> int:
    """Add a file's captions by image; returns their number."""
    text = read_text(file)
    left_out, ignored, captions = LeftOut(file), set[str](), 0
    rows = _json_rows if text.lstrip().startswith(("{", "[")) else _table_rows
    try:
        for row in rows(text, ignored):
            name = caption_text(row.image)
            texts = [text for text in map(caption_text, row.captions) if text is not None]
            if name is None or not texts:
                left_out.add(row.place, "no image or no caption")
                continue
            if len(texts) < len(row.captions):
                left_out.add(row.place, "a caption that is not text (null, nan, a number)")
            split = file_split if row.split is None else _split_of(row)
            key = folder.key(re.sub(r"#\d+$", "", name.strip()))  # Flickr's name.jpg#0
            found = gathered.setdefault(key, _Gathered(split, []))
            if found.split != split:
                raise ValueError(
                    f"{row.place}: {key} is in {split}, but an earlier line has it in {found.split}"
                )
            found.captions += texts
            captions += len(texts)
    except ValueError as error:
        raise DataError(f"{file}, {error}") from None
    left_out.close()
    warn_ignored(file, "columns", ignored.difference(_QUIET))
    return captions


def _split_of(row: _Row) -> str:
    """Return the split of a row; raises ValueError with its place if it is unknown."""
    try:
        return split_named(row.split)
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from None


# --- JSON ------------------------------------------------------------------------------------


def _json_rows(text: str, ignored: set[str]) -> Iterator[_Row]:
    for place, entry in _json_entries(text):
        if not isinstance(entry, dict):
            raise ValueError(f"{place}: expected a JSON object such as {_OBJECT}")
        image, captions, split = (
            next((name for name in names if name in entry), None)
            for names in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_NAMES)
        )
        ignored |= entry.keys() - {image, captions, split}
        found = entry.get(captions) if captions else None
        yield _Row(
            place,
            entry.get(image) if image else None,
            found if isinstance(found, list) else [found],
            entry[split] if split else None,
        )


def _json_entries(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each entry of an array, a mapping or JSON lines."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            raise ValueError(f"it is not a JSON array: {error}") from None
        yield from _json_lines(text)
        return
    if isinstance(document, list):
        yield from ((f"entry {number}", entry) for number, entry in enumerate(document))
    elif "annotations" in document or "images" in document:
        kind = "coco" if "annotations" in document else "karpathy"
        raise ValueError(f"it is a file for `python -m data_prep {kind}`; see its --help")
    elif {*IMAGE_NAMES} & document.keys():
        yield "line 1", document
    else:
        for name, captions in document.items():
            yield repr(name), {"image": name, "captions": captions}


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                yield f"line {line}", json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {line}: {error}") from None


# --- tables ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """The indices of a table's columns."""

    image: int
    caption: int
    split: int | None
    count: int


def _table_rows(text: str, ignored: set[str]) -> Iterator[_Row]:
    # The separator is the first one after the first image name, which may be quoted.
    found = re.match(r'\s*(?:"[^"]*"|[^,;|\t\n]*)([,;|\t])', text)
    separator = found[1] if found else ","
    table = _cells(text, separator)
    if not table:
        return
    header = _header([_plain(cell) for cell in table[0][1]], [cells for _, cells in table[1:2]])
    if header is None:
        columns = _Columns(0, 1, *((2, 3) if _all_end_with_a_split(table) else (None, 2)))
    else:
        columns = header
        names = [_plain(cell) for cell in table.pop(0)[1]]
        read = {columns.image, columns.caption, columns.split}
        ignored |= {name for number, name in enumerate(names) if number not in read}
    for line, cells in table:
        if more := max(0, len(cells) - columns.count):  # a separator in an unquoted caption
            end = columns.caption + more + 1
            cells[columns.caption : end] = [separator.join(cells[columns.caption : end])]
        if len(cells) < columns.count:
            yield _Row(f"line {line}", None, [])
        else:
            split = None if columns.split is None else cells[columns.split]
            yield _Row(f"line {line}", cells[columns.image], [cells[columns.caption]], split)


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Return the rows that are not empty, with their line numbers."""
    # Only CSV has quoting; elsewhere a quotation mark belongs to the caption.
    table = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if separator in ",;" else csv.QUOTE_NONE,
        strict=True,
    )
    try:
        return [(table.line_num, cells) for cells in table if any(map(str.strip, cells))]
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}") from None


def _header(names: Sequence[str], following: Sequence[Sequence[str]]) -> _Columns | None:
    """Return the columns of a header, or None if the first line is not a header.

    Raises ValueError for a header that lacks a required column.
    """
    image, caption, split = (
        next((names.index(known) for known in several if known in names), None)
        for several in (IMAGE_NAMES, CAPTION_NAMES, SPLIT_NAMES)
    )
    if image is not None and caption is not None:
        return _Columns(image, caption, split, len(names))
    if image is None and caption is None:
        # Unknown names: it is a header only if the next line names a file and this one does not.
        if _names_a_file(names) or not any(map(_names_a_file, following)):
            return None
    elif image is None and _names_a_file(names):
        return None  # an image with the caption "text"
    wanted = IMAGE_NAMES[:4] if image is None else CAPTION_NAMES
    pairs = ((name, difflib.get_close_matches(name, wanted, 1, 0.7)) for name in names)
    hint = next((f"; did you mean {near[0]} by {name}?" for name, near in pairs if near), "")
    raise ValueError(
        f"line 1: the columns are {', '.join(names)}; one must be {' or '.join(wanted)}{hint}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _names_a_file(cells: Iterable[str]) -> bool:
    return any(re.search(r"\.[A-Za-z]\w{1,4}(#\d+)?$", cell.strip()) for cell in cells)


def _all_end_with_a_split(table: Sequence[tuple[int, Sequence[str]]]) -> bool:
    """Return whether every row has three cells or more and ends with a split."""
    for _, cells in table:
        try:
            split_named(cells[-1])
        except ValueError:
            return False
        if len(cells) < 3:
            return False
    return True
