"""The commands of `captioner`."""

from captioner.cli.commands import main

__all__ = ["main"]
