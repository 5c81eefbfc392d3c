"""The command line: its parser, the types of options, and the exit code of a command."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from captioner.errors import CaptionerError, ConfigError


def exit_code(work: Callable[[], int | None], stopped: str = "") -> int:
    """Run a command and return its exit code; None counts as 0.

    Print one line and return 1 for a CaptionerError. Ctrl-C returns 130 and prints `stopped`, which
    says how to continue.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may have no encoding there
            stream.reconfigure(errors="backslashreplace")
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except CaptionerError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nstopped" + (stopped and f"; {stopped}"), file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, one line, for wrong options."""

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; raises ConfigError for whatever is wrong with it."""
        return self.parse_args(list(arguments))

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with the message and a hint."""
        raise ConfigError(f"{message}; {hint(self, message)}")


def hint(parser: argparse.ArgumentParser, message: str) -> str:
    """Return the options that an unknown one in `message` may stand for, or the way to the help."""
    known = {o for action in parser._actions for o in action.option_strings if o[:2] == "--"}
    by_last = {option.split(".")[-1].lstrip("-"): option for option in sorted(known)}
    asked = message.replace("'", " ").split()
    names = [word.split("=")[0] for word in asked if word.startswith("--")] or asked[-1:]
    wanted = names[0].split(".")[-1].lstrip("-")
    near = difflib.get_close_matches(wanted, by_last, 3, 0.6)
    if near and ("unrecognized" in message or "does not accept" in message):
        return f"did you mean {' or '.join(by_last[name] for name in near)}?"
    return f"see `{parser.prog} --help`"


def positive(text: str) -> int:
    """Return a whole number from 1; the type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def number(holds: Callable[[float], bool], bound: str) -> Callable[[str], float]:
    """Return the type of an option whose number satisfies `holds`; `bound` describes it."""

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
    """Return the path of a figure to write; the type of an option."""
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf") or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a .png, .svg or .pdf file in an existing folder"
        )
    return path
