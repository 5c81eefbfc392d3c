"""Read a captions file with a line for each caption: CSV, tab-separated or JSON lines."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioner.errors import DataError
from captioner.files import read_text
from data_prep.records import Record

log = logging.getLogger(__name__)

# What a header, or the keys of a JSON line, may call the two columns.
IMAGE_NAMES = ("image", "image_name", "file_name", "filename")
CAPTION_NAMES = ("caption", "captions", "text", "comment")


def read(captions: Path, images: Path) -> list[Record]:
    """Records of a captions file, all in train; the lines of a picture need not stand together.

    Reads `image,caption` with or without a header, the same with tab or | as separator, Flickr's
    `name.jpg#0<tab>caption`, and JSON lines {"file_name": ..., "text": ...} whose text may be a
    list. image_id is the running number of the picture. A line that lacks the picture or the
    caption is reported and left out. Raises DataError naming a line that cannot be read.
    """
    text = read_text(captions)
    rows = _json_rows(text) if text.lstrip().startswith("{") else _table_rows(text)
    gathered: dict[str, list[str]] = {}
    try:
        for line, image, texts in rows:
            if image and texts:
                gathered.setdefault(image, []).extend(texts)
            else:
                log.warning("left out: line %d of %s has no picture or caption", line, captions)
    except ValueError as error:
        raise DataError(f"{captions}, {error}") from None
    if not gathered:
        raise DataError(
            f"{captions} holds no captions; expected lines such as `photo.jpg,A dog on a beach`, "
            'or {"file_name": "photo.jpg", "text": "A dog on a beach"}'
        )
    return [
        Record(key, images / key, "train", tuple(texts), number)
        for number, (key, texts) in enumerate(gathered.items())
    ]


def _json_rows(text: str) -> Iterator[tuple[int, str, list[str]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {line}: {error}") from None
        if not isinstance(entry, dict):
            raise ValueError(f"line {line}: expected a JSON object")
        image, found = _named(entry, IMAGE_NAMES), _named(entry, CAPTION_NAMES)
        texts = found if isinstance(found, list) else [found]
        yield line, str(image or ""), [text for text in texts if isinstance(text, str)]


def _named(entry: dict[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if name in entry), None)


def _table_rows(text: str) -> Iterator[tuple[int, str, list[str]]]:
    # The separator is the first one after the name of the first picture, which may be quoted.
    found = re.match(r'\s*(?:"[^"]*"|[^,|\t\n]*)([,|\t])', text)
    separator = found[1] if found else ","
    # Only CSV quotes; elsewhere a quotation mark belongs to the caption.
    table = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if separator == "," else csv.QUOTE_NONE,
        strict=True,
    )
    image, caption, last = 0, 1, 1
    try:
        for number, cells in enumerate(table):
            names = [cell.strip().lower() for cell in cells]
            if number == 0 and set(names) & {*IMAGE_NAMES}:
                image, caption, last = *_columns(names), len(names) - 1
            elif any(names):
                if caption == last:  # a separator in an unquoted caption made more cells of it
                    cells[last:] = [separator.join(cells[last:])]
                if len(cells) != last + 1 or not cells[caption].strip():
                    yield table.line_num, "", []
                else:
                    name = re.sub(r"#\d+$", "", cells[image].strip())  # Flickr's name.jpg#0
                    yield table.line_num, name, [cells[caption]]
    except csv.Error as error:
        raise ValueError(f"line {table.line_num}: {error}") from None


def _columns(names: Sequence[str]) -> tuple[int, int]:
    for caption in CAPTION_NAMES:
        if caption in names:
            image = next(index for index, name in enumerate(names) if name in IMAGE_NAMES)
            return image, names.index(caption)
    raise ValueError(
        f"line 1: the columns are {', '.join(names)}; one must be {' or '.join(CAPTION_NAMES)}"
    )
