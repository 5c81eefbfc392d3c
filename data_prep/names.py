"""The names of photographs as people write them, and the files that they mean."""

from __future__ import annotations

import difflib
import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path


class Folder:
    """The folder of the photographs."""

    def __init__(self, path: Path):
        self.path = path
        self._keys: dict[str, str] = {}

    def key(self, name: str) -> str:
        """Return the name of a photograph below the folder, always the same one for a file.

        `./a.jpg`, `x/../a.jpg` and, inside the folder, an absolute path are `a.jpg`. Where there is
        no file of that name, one with slashes for its backslashes or in another Unicode form is
        taken.
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
        # None is there: the same name, all the same, however it was written.
        return unicodedata.normalize("NFC", key)

    def suggestion(self, key: str) -> str:
        """Return a hint on the photograph that a name may mean, else an empty string."""
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
        """The files of the folder itself, the first ones if there are very many."""

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
