"""The command `captioner`: train, evaluate, caption. The only module that prints."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import os
import re
import sys
import time
from argparse import ArgumentError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from captioner import __version__
from captioner.config import Config, DecodeConfig
from captioner.errors import CaptionerError, ConfigError, DataError
from captioner.metrics import METRICS

DESCRIPTION = """Image captions from a pretrained CNN and an LSTM trained with h-detach.

  captioner train --config configs/flickr8k.yaml
  captioner evaluate checkpoints/flickr8k --data data/flickr8k --split val
  captioner caption photo.jpg holiday/ --checkpoint checkpoints/flickr8k

`captioner COMMAND --help` tells more; `python -m data_prep` prepares data, `python -m app` opens
the web page."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except CaptionerError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output, `head` for instance, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        hint = "; `--resume` goes on from here" if arguments[0] == "train" else ""
        print(f"\nstopped{hint}", file=sys.stderr)
        return 130


def _run(arguments: Sequence[str]) -> int:
    commands = {"train": _train, "evaluate": _evaluate, "caption": _caption}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(DESCRIPTION)
        return 0
    if arguments[0] == "--version":
        print(__version__)
        return 0
    if arguments[0] not in commands:
        raise ConfigError(f"no command {arguments[0]!r}; choose from {', '.join(commands)}")
    return commands[arguments[0]](arguments[1:])


class _Parser(ArgumentParser):
    """A parser whose errors are one ConfigError, naming the nearest settings there are."""

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


def _train(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="captioner train", description="Train a decoder on data made by `python -m data_prep`."
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_class_arguments(Config)
    settings = parser.read(arguments)
    values = parser.instantiate(settings)
    config = Config(**{field.name: values[field.name] for field in dataclasses.fields(Config)})

    from captioner.train import train  # torch takes seconds to import; --help should not

    result = train(config, resume=settings.resume, show_progress=True)
    print(
        f"best validation CIDEr {result.cider:.3f} after {result.epochs} epochs in "
        f"{_duration(result.seconds)}"
    )
    print(f"checkpoint: {result.best}\ncurves: {result.best.parent / 'curves.png'}")
    return 0


def _evaluate(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="captioner evaluate",
        description="Caption a split of prepared data and score the captions. "
        "Search settings that are not given are the checkpoint's own.",
    )
    parser.add_argument("checkpoint", help="checkpoint folder or Hub id")
    parser.add_argument("--data", required=True, help="folder made by `python -m data_prep`")
    parser.add_argument("--split", default="val", help="train, val or test")
    parser.add_argument("--out", help="write the captions as a COCO result file")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, help="all of them by default")
    parser.add_argument("--limit", type=int, default=0, help="only the first so many pictures")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    _add_decode_arguments(parser)
    chosen = parser.read(arguments)

    from captioner.checkpoint import load
    from captioner.evaluate import evaluate

    started = time.monotonic()
    checkpoint = load(chosen.checkpoint)
    decode = _decode_settings(checkpoint.decode, chosen)
    out = _writable(chosen.out)
    result = evaluate(
        checkpoint,
        chosen.data,
        chosen.split,
        decode,
        metrics=tuple(chosen.metrics or METRICS),
        limit=chosen.limit,
        results=out,
        progress=True,
    )
    if chosen.json:
        print(json.dumps(result.scores.values))
        return 0
    for name, value in result.scores.values.items():
        print(f"{name:<8} {value:7.3f}")
    print(
        f"{len(result.captions):,} images of {chosen.split}, beam {decode.beam_size}, "
        f"in {_duration(time.monotonic() - started)}"
    )
    if out:
        print(f"captions: {out}")
    return 0


def _caption(arguments: Sequence[str]) -> int:
    parser = _Parser(
        prog="captioner caption",
        description="Caption pictures and folders of them. "
        "Search settings that are not given are the checkpoint's own.",
    )
    parser.add_argument("pictures", nargs="+", help="picture files and folders")
    parser.add_argument("--checkpoint", required=True, help="checkpoint folder or Hub id")
    parser.add_argument("--recursive", action="store_true", help="also folders inside folders")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    parser.add_argument(
        "--attention",
        help="draw where each word looked into this PNG; a folder when there are several pictures",
    )
    _add_decode_arguments(parser)
    parser.add_argument("--captions", type=int, help="captions for each picture, best first")
    parser.add_argument(
        "--sample",
        action="store_true",
        default=None,
        help="draw captions at random instead of searching the best",
    )
    parser.add_argument("--temperature", type=float, help="of the draw")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest words")
    parser.add_argument("--top-p", type=float, help="draw from words of this probability together")
    parser.add_argument("--seed", type=int, help="of the draw")
    chosen = parser.read(arguments)

    from captioner.images import find_pictures
    from captioner.pipeline import load

    paths = find_pictures(chosen.pictures, recursive=chosen.recursive)
    if not paths:
        raise DataError(f"no pictures in {', '.join(chosen.pictures)}")
    captioner = load(chosen.checkpoint)
    decode = _decode_settings(captioner.decode, chosen)
    attention = _writable(chosen.attention)
    failures = 0
    for path in paths:
        try:
            captions = captioner.search([path], decode)[0]
        except DataError as error:  # one bad picture does not cost the others
            print(f"error: {error}", file=sys.stderr)
            failures += 1
            continue
        for rank, caption in enumerate(captions):
            if chosen.json:
                print(
                    json.dumps(
                        {
                            "image": str(path),
                            "caption": caption.text,
                            "score": round(caption.score, 4),
                            "rank": rank + 1,
                        }
                    ),
                    flush=True,
                )
            else:
                label = "" if len(paths) == 1 else f"{path}: "
                shown = f"  ({caption.score:.3f})" if len(captions) > 1 else ""
                print(f"{label}{caption.text}{shown}", flush=True)
        if attention:
            from captioner.attention import draw

            one = len(paths) == 1
            target = attention if one else attention / f"{path.stem}.png"
            draw(captioner.seen(path), captions[0], target)
    return 1 if failures else 0


def _add_decode_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--beam-size", type=int, help="hypotheses kept; 1 is greedy")
    parser.add_argument("--max-words", type=int, help="a caption is cut here")
    parser.add_argument(
        "--length-norm", type=float, help="score = log-probability / length ** this"
    )


def _decode_settings(default: DecodeConfig, chosen: Namespace) -> DecodeConfig:
    """The checkpoint's own settings with what was asked for on the command line."""
    names = [field.name for field in dataclasses.fields(DecodeConfig)]
    asked = {name: getattr(chosen, name, None) for name in names}
    given = {name: value for name, value in asked.items() if value is not None}
    captions, beams = given.get("captions", default.captions), given.get("beam_size")
    if beams is None and not given.get("sample") and captions > default.beam_size:
        given["beam_size"] = captions  # as many beams as captions are asked for
    return dataclasses.replace(default, **given)


def _writable(path: str | None) -> Path | None:
    """Find out before the work is done that its result can be written."""
    if path is None:
        return None
    target = Path(path)
    parent = target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}") from None
    if not os.access(parent, os.W_OK):
        raise DataError(f"cannot write {target}: {parent} is not writable")
    return target


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


if __name__ == "__main__":
    sys.exit(main())
