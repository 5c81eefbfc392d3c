"""The command lines: their parsers, and how they end.

Wrong options are a ConfigError, like any wrong setting.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import io
import os
import re
import sys
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from captioner.config import from_dict
from captioner.errors import CaptionerError, ConfigError

_Settings = TypeVar("_Settings")


def exit_code(work: Callable[[], int | None], stopped: str = "") -> int:
    """Do a command's work: its own exit code (None is 0), or 1 after one line about what is wrong.

    Ctrl-C ends it with 130 and `stopped`, a word on how to go on.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may have no encoding there
            stream.reconfigure(errors="backslashreplace")
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except CaptionerError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, `head` for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nstopped" + (stopped and f"; {stopped}"), file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, one line, for wrong options."""

    def error(self, message: str) -> NoReturn:
        """Raise it, with the way to the help."""
        raise ConfigError(f"{message}; see {self.prog} --help")


def positive(text: str) -> int:
    """A whole number from 1, as an option's type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def number(holds: Callable[[float], bool], bound: str) -> Callable[[str], float]:
    """The type of an option whose number must hold to a bound, told in words."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bound}")
        return value

    return read


def picture(text: str) -> Path:
    """The path of a picture that can be written, as an option's type."""
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no .png, .svg or .pdf in a folder there is")
    return path


class SettingsParser(ArgumentParser):
    """A parser of dataclasses and YAML files; its errors name the nearest settings there are."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, exit_on_error=False, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = " ".join(message.replace("<class '", "").replace("'>", "").split())
        raise ConfigError(f"{message}; {self._hint(message)}") from None

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help without "default: null": what is not given is the checkpoint's own."""
        text = re.sub(r",\s+default:\s+null\)", ")", super().format_help(*args, **kwargs))
        return re.sub(r"\s*\(default:\s+null\)", "", text)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Parse, turning every complaint into a ConfigError."""
        try:
            return super().parse_args(list(arguments))
        except (ArgumentError, TypeError, ValueError) as error:
            self.error(str(error))

    def made(self, kind: type[_Settings], settings: Namespace) -> _Settings:
        """The dataclass whose arguments were added, of what was read."""
        values = settings.as_dict()
        names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
        return from_dict(kind, {name: values[name] for name in names})

    def _hint(self, message: str) -> str:
        known = {o for action in self._actions for o in action.option_strings if o[:2] == "--"}
        by_last = {option.split(".")[-1].lstrip("-"): option for option in sorted(known)}
        asked = message.replace("'", " ").split()
        names = [word.split("=")[0] for word in asked if word.startswith("--")] or asked[-1:]
        wanted = names[0].split(".")[-1].lstrip("-")
        near = difflib.get_close_matches(wanted, by_last, 3, 0.6)
        if near and ("unrecognized" in message or "does not accept" in message):
            return f"did you mean {' or '.join(by_last[name] for name in near)}?"
        return f"see `{self.prog} --help`"
