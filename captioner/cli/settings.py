"""The parser of settings: YAML files and an option for each field of a dataclass.

Only training needs it: jsonargparse takes long to import.
"""

from __future__ import annotations

import dataclasses
import re
from argparse import ArgumentError, Namespace
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from jsonargparse import ArgumentParser

from captioner.cli.parsing import hint
from captioner.config import from_dict
from captioner.errors import ConfigError

_Settings = TypeVar("_Settings")


class SettingsParser(ArgumentParser):
    """A parser of dataclasses and YAML files that raises ConfigError and names similar settings."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs = {"exit_on_error": False, "allow_abbrev": False, **kwargs}
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ConfigError with the message and a hint."""
        message = " ".join(message.replace("<class '", "").replace("'>", "").split())
        raise ConfigError(f"{message}; {hint(self, message)}") from None

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """Return the help without "default: null", which stands for an option not given."""
        text = re.sub(r",\s+default:\s+null\)", ")", super().format_help(*args, **kwargs))
        return re.sub(r"\s*\(default:\s+null\)", "", text)

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Parse a command line; raises ConfigError for whatever is wrong with it."""
        try:
            return super().parse_args(list(arguments))
        except (ArgumentError, TypeError, ValueError) as error:
            self.error(str(error))

    def made(self, kind: type[_Settings], options: Namespace) -> _Settings:
        """Return the dataclass whose arguments were added; see `settings_from`."""
        return settings_from(kind, options)


def settings_from(kind: type[_Settings], options: Namespace) -> _Settings:
    """Build a dataclass from the options that `add_class_arguments` added for it."""
    values = options.as_dict()
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return from_dict(kind, {name: values[name] for name in names})
