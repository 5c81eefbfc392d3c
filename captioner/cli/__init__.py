"""The command `captioner`. Only this package prints; the library returns or raises."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from captioner import __version__
from captioner.cli.parsing import exit_code
from captioner.errors import ConfigError

__all__ = ["main"]

DESCRIPTION = """Caption images with a pretrained CNN and an attention LSTM trained with h-detach.

  captioner train --config configs/toy.yaml
  captioner evaluate runs/toy/best --data data/toy --split val
  captioner score results.json --references captions_val2017.json
  captioner caption photo.jpg holiday/ --checkpoint checkpoints/coco_flickr8k

Several checkpoints caption as an ensemble: `evaluate A B`, `caption --checkpoint A --checkpoint B`.
`captioner COMMAND --help` lists the options of a command. `python -m data_prep` prepares data to
train on, and `python -m app` opens the web page."""

COMMANDS = ("train", "evaluate", "score", "caption")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    hint = "continue with --resume" if arguments[:1] == ["train"] else ""
    return exit_code(lambda: _run(arguments), hint)


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(DESCRIPTION)
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"no command {name!r}; choose from {', '.join(COMMANDS)}")
    command = import_module(f"captioner.cli.{name}")  # only this one: torch takes seconds to import
    parser = command.Parser(
        prog=f"captioner {name}", description=command.DESCRIPTION, allow_abbrev=False
    )
    command.add_arguments(parser)
    code: int = command.run(parser.read(arguments[1:]))
    return code
