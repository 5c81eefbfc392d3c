"""The options of `python -m data_prep`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from captioner.cli.parsing import Parser
from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from data_prep.records import LEAST_VAL, SPLITS, VAL_SHARE

SMALLEST_IMAGE = 32  # pixels; below this some networks have no cell left


def parser() -> Parser:
    """The command line, with one sub-command a kind of data set (`command` in the result)."""
    top = Parser(
        prog="python -m data_prep",
        description="Prepare a data set for training: examples, vocabulary and CNN features.",
        epilog="Each has its own help, such as: python -m data_prep coco --help",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{karpathy,coco,csv,toy}")

    def add(name: str, what: str, example: str) -> Parser:
        return commands.add_parser(
            name,
            help=what,
            description=f"Prepare {what}.\n"
            "A run that was stopped goes on where it stopped when it is called again.",
            epilog=f"example:\n  python -m data_prep {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    karpathy = add(
        "karpathy",
        "Karpathy's file of COCO, Flickr8k or Flickr30k, with its splits",
        "--dataset dataset_flickr8k.json --images Flicker8k_Dataset --out data/flickr8k",
    )
    _add_file(karpathy, "--dataset", "dataset_coco.json, dataset_flickr8k.json ...")
    _add_shares(karpathy)
    _add_shared(karpathy)

    coco = add(
        "coco",
        "COCO's own captions files",
        "--annotations annotations/captions_train2017.json \\\n"
        "    annotations/captions_val2017.json --images . --out data/coco",
    )
    _add_file(coco, "--annotations", "one or more captions files", nargs="+")
    _add_splits(coco)
    _add_shares(coco)
    _add_shared(coco)

    csv = add(
        "csv",
        "a file with a line for each caption",
        "--captions captions.txt --images Images --out data/mine",
    )
    _add_file(
        csv,
        "--captions",
        "one or more files: image,caption or image,caption,split (CSV, semicolons, tabs), or JSON",
        nargs="+",
    )
    _add_splits(csv)
    _add_shares(csv)
    _add_shared(csv)

    _add_toy(add("toy", "pictures of coloured shapes, drawn on the spot", "--out data/toy"))
    return top


def _add_toy(toy: Parser) -> None:
    toy.add_argument("--images", type=_at_least(3), default=1000, metavar="N",
                     help="pictures to draw (%(default)s)")  # fmt: skip
    toy.add_argument("--seed", type=_at_least(0), default=0, metavar="N",
                     help="decides what is drawn (%(default)s)")  # fmt: skip
    toy.set_defaults(val_share=0.1, test_share=0.1)
    # Small pictures and a small network take seconds; mirrored, left would be right.
    _add_shared(toy, encoder="efficientnet_lite0", image_size=128, mirror=False)


def _add_file(command: Parser, option: str, what: str, nargs: str | None = None) -> None:
    command.add_argument(option, type=Path, nargs=nargs, required=True, metavar="FILE", help=what)
    command.add_argument("--images", type=Path, required=True, metavar="DIR",
                         help="folder that holds the pictures")  # fmt: skip


def _add_splits(command: Parser) -> None:
    command.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        help="split of each file (default: what the file itself says; else several are what their "
        "names say, a single one is train)",
    )


def _add_shares(command: Parser) -> None:
    add = command.add_argument
    add("--val-share", type=_share, metavar="S",
        help=f"share of the training pictures held out for validation ({VAL_SHARE} and at least "
        f"{LEAST_VAL} pictures, or 0 where some are val)")  # fmt: skip
    add("--test-share", type=_share, default=0.0, metavar="S",
        help="share held out for test (%(default)s)")  # fmt: skip
    add("--seed", type=_at_least(0), default=1, metavar="N",
        help="decides which pictures are held out (%(default)s)")  # fmt: skip


def _add_shared(
    command: Parser,
    encoder: str = "efficientnet_lite2",
    image_size: int = 0,
    mirror: bool = True,
) -> None:
    """The options of every command; where `mirror` is False there is no --mirror."""
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write, as data/mine")
    # No defaults here, so that what is given beside --encoder-of is seen; they are in `defaults`.
    add("--encoder", metavar="NAME", help=f"pretrained CNN ({encoder})")
    add("--encoder-weights", metavar="W",
        help="default, none, a name of torchvision's or a file (default)")  # fmt: skip
    add("--resize", choices=("squash", "crop"),
        help="change the shape to a square, or cut out the middle (squash)")  # fmt: skip
    add("--image-size", type=_image_size, metavar="N",
        help=f"side of the square in pixels; 0 is the CNN's own ({image_size})")  # fmt: skip
    add("--grid", type=_at_least(0), metavar="N",
        help="cells along each side of the features; 0 is the CNN's own (0)")  # fmt: skip
    add("--encoder-of", metavar="CHECKPOINT",
        help="the CNN of a checkpoint, trained or not, instead of the five above; its vocabulary, "
        "too, where nothing is in train")  # fmt: skip
    add("--min-count", type=_at_least(1), default=5, metavar="N",
        help="words seen less often in training are unknown (%(default)s)")  # fmt: skip
    add("--tokens", choices=("words", "characters"), default="words",
        help="what counts as a word: characters is for languages without spaces, such as Chinese, "
        "Japanese and Thai (%(default)s)")  # fmt: skip
    add("--batch-size", type=_at_least(1), default=16, metavar="N",
        help="pictures the CNN sees at once (%(default)s)")  # fmt: skip
    if mirror:
        add("--mirror", action="store_true",
            help="store mirrored pictures too, for training; doubles the size")  # fmt: skip
    command.set_defaults(mirror=False, defaults=EncoderConfig(name=encoder, image_size=image_size))


def encoder_config(args: argparse.Namespace) -> EncoderConfig | None:
    """Return the CNN that the options name; None with --encoder-of.

    Raises ConfigError where they name another one beside --encoder-of.
    """
    options = {
        "--encoder": args.encoder,
        "--encoder-weights": args.encoder_weights,
        "--resize": args.resize,
        "--image-size": args.image_size,
        "--grid": args.grid,
    }
    given = [option for option, value in options.items() if value is not None]
    if args.encoder_of is None:
        names = ("name", "weights", "resize", "image_size", "grid")
        values = zip(names, options.values(), strict=True)
        defaults: EncoderConfig = args.defaults
        return replace(defaults, **{n: value for n, value in values if value is not None})
    if given:
        raise ConfigError(
            f"{' and '.join(given)}: given beside --encoder-of, whose CNN has settings of its own; "
            "give one or the other"
        )
    return None


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


def _image_size(text: str) -> int:
    return 0 if text == "0" else _at_least(SMALLEST_IMAGE)(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to below 1, such as 0.1")
    return share
