"""The command lines beside `captioner`: wrong options are a ConfigError, like any wrong setting."""

from __future__ import annotations

import argparse
from typing import NoReturn

from captioner.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises ConfigError, one line, for wrong options."""

    def error(self, message: str) -> NoReturn:
        """Raise it, with the way to the help."""
        raise ConfigError(f"{message}; see {self.prog} --help")
