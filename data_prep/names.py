"""Match the image names of a captions file to the files of a folder."""

from __future__ import annotations

import difflib
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path


class Folder:
    """The folder of the images."""

    def __init__(self, path: Path):
        self.path = path
        self._keys: dict[str, str] = {}

    def key(self, name: str) -> str:
        """Return the path of an image relative to the folder, the same one for each spelling.

        `./a.jpg`, `x/../a.jpg` and an absolute path into the folder all become `a.jpg`. If there is
        no such file, backslashes are read as slashes, and other Unicode forms are tried.
        """
        if name not in self._keys:
            self._keys[name] = self._found(name)
        return self._keys[name]

    def _found(self, name: str) -> str:
        for written in (name, name.replace("\\", "/")):
            key = self._relative(posixpath.normpath(written))
            for form in (key, *(unicodedata.normalize(form, key) for form in ("NFC", "NFD"))):
                if self._is_file(form):
                    return form
        # There is no file; the result is still the same for each Unicode form.
        return unicodedata.normalize("NFC", key)

    def suggestion(self, key: str) -> str:
        """Return a hint on the file that a name may mean, or an empty string."""
        name = posixpath.basename(key)
        if key != name and self._is_file(name):
            return f"did you mean {name}?"
        if self._is_file(posixpath.join("..", key)):
            return f"did you mean --images {self.path.resolve().parent}?"
        alike = {found.casefold(): found for found in self._names}
        alike |= {Path(found).stem.casefold(): found for found in self._names}
        near = difflib.get_close_matches(name.casefold(), alike, 1, 0.75)
        return f"did you mean {alike[near[0]]}?" if near else ""

    @cached_property
    def _names(self) -> Sequence[str]:
        """The names of the first 10,000 files of the folder."""

        def found() -> Iterator[str]:
            for number, path in enumerate(self.path.iterdir()):
                if number == 10_000:
                    return
                yield path.name

        try:
            return sorted(found())
        except OSError:
            return []

    def _relative(self, name: str) -> str:
        if not Path(name).is_absolute():
            return name
        for root in (self.path.absolute(), self.path.resolve()):
            if Path(name).is_relative_to(root):
                return Path(name).relative_to(root).as_posix()
        return name

    def _is_file(self, key: str) -> bool:
        try:
            return (self.path / key).is_file()
        except (OSError, ValueError):  # too long for a name, or a null character in it
            return False
