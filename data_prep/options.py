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

SMALLEST_IMAGE = 32  # pixels; smaller images leave some networks without a cell


def parser() -> Parser:
    """Return the command line, with one sub-command per kind of data set (`command`)."""
    top = Parser(
        prog="python -m data_prep",
        description="Prepare a data set for training: examples, vocabulary and CNN features.",
        epilog="Each command has its own help, for example: python -m data_prep coco --help",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{karpathy,coco,csv,toy}")

    def add(name: str, what: str, example: str) -> Parser:
        return commands.add_parser(
            name,
            help=what,
            description=f"Prepare {what}.\nThe same command resumes an interrupted run.",
            epilog=f"example:\n  python -m data_prep {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    _add_karpathy(add(
        "karpathy",
        "Karpathy's version of COCO, Flickr8k or Flickr30k, with its splits",
        "--dataset dataset_flickr8k.json --images Flicker8k_Dataset --out data/flickr8k",
    ))  # fmt: skip
    _add_coco(add(
        "coco",
        "COCO's own captions files",
        "--annotations annotations/captions_train2017.json \\\n"
        "    annotations/captions_val2017.json --images . --out data/coco",
    ))  # fmt: skip
    _add_csv(add(
        "csv",
        "your own captions files, CSV, TSV or JSON",
        "--captions captions.txt --images Images --out data/mine",
    ))  # fmt: skip
    _add_toy(add("toy", "drawn images of coloured shapes", "--out data/toy"))
    return top


def _add_karpathy(karpathy: Parser) -> None:
    _add_file(karpathy, "--dataset", "dataset_coco.json, dataset_flickr8k.json or the like")
    _add_shares(karpathy)
    _add_shared(karpathy)


def _add_coco(coco: Parser) -> None:
    _add_file(coco, "--annotations", "one or more captions files", nargs="+")
    _add_splits(coco)
    _add_shares(coco)
    _add_shared(coco)


def _add_csv(csv: Parser) -> None:
    _add_file(
        csv,
        "--captions",
        "one or more files with one caption per line, image,caption or image,caption,split (CSV, "
        "semicolons, tabs), or JSON",
        nargs="+",
    )
    _add_splits(csv)
    _add_shares(csv)
    _add_shared(csv)


def _add_toy(toy: Parser) -> None:
    toy.add_argument("--images", type=_at_least(3), default=1000, metavar="N",
                     help="number of images to draw (%(default)s)")  # fmt: skip
    toy.add_argument("--seed", type=_at_least(0), default=0, metavar="N",
                     help="random seed of the images and their splits (%(default)s)")  # fmt: skip
    toy.set_defaults(val_share=0.1, test_share=0.1)
    # A small network on small images takes seconds. Mirroring would make "left" false.
    _add_shared(toy, encoder="efficientnet_lite0", image_size=128, mirror=False)


def _add_file(command: Parser, option: str, what: str, nargs: str | None = None) -> None:
    command.add_argument(option, type=Path, nargs=nargs, required=True, metavar="FILE", help=what)
    command.add_argument("--images", type=Path, required=True, metavar="DIR",
                         help="folder of the images")  # fmt: skip


def _add_splits(command: Parser) -> None:
    command.add_argument(
        "--splits",
        nargs="+",
        choices=SPLITS,
        help="split of each file (default: the split named in the file; else that in the name of "
        "each of several files, and train for a single file)",
    )


def _add_shares(command: Parser) -> None:
    add = command.add_argument
    add("--val-share", type=_share, metavar="S",
        help=f"share of the training images held out for validation (default: {VAL_SHARE}, but at "
        f"least {LEAST_VAL} images; 0 if the data has a val split)")  # fmt: skip
    add("--test-share", type=_share, default=0.0, metavar="S",
        help="share of the training images held out for testing (%(default)s)")  # fmt: skip
    add("--seed", type=_at_least(0), default=1, metavar="N",
        help="random seed of the images held out (%(default)s)")  # fmt: skip


def _add_shared(
    command: Parser,
    encoder: str = "efficientnet_lite2",
    image_size: int = 0,
    mirror: bool = True,
) -> None:
    """Add the options of every command, and --mirror if `mirror` is true."""
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder to write, such as data/mine")  # fmt: skip
    # No defaults here, so that options beside --encoder-of are noticed; they are in `defaults`.
    add("--encoder", metavar="NAME", help=f"pretrained CNN ({encoder})")
    add("--encoder-weights", metavar="W",
        help="weights of the CNN: default, none (random), a torchvision name or a file "
        "(default)")  # fmt: skip
    add("--resize", choices=("squash", "crop"),
        help="squash an image to a square, or crop it to its centre (squash)")  # fmt: skip
    add("--image-size", type=_image_size, metavar="N",
        help=f"side of that square in pixels; 0 is the CNN's own ({image_size})")  # fmt: skip
    add("--grid", type=_at_least(0), metavar="N",
        help="cells along each side of the feature grid; 0 is the CNN's own (0)")  # fmt: skip
    add("--encoder-of", metavar="CHECKPOINT",
        help="take the CNN of a checkpoint instead of the five options above, and its vocabulary "
        "if no image is in train")  # fmt: skip
    add("--min-count", type=_at_least(1), default=5, metavar="N",
        help="words with fewer occurrences in training are unknown (%(default)s)")  # fmt: skip
    add("--tokens", choices=("words", "characters"), default="words",
        help="unit of the vocabulary; choose characters for languages without spaces, such as "
        "Chinese, Japanese and Thai (%(default)s)")  # fmt: skip
    add("--batch-size", type=_at_least(1), default=16, metavar="N",
        help="images in a batch of the CNN (%(default)s)")  # fmt: skip
    if mirror:
        add("--mirror", action="store_true",
            help="also store features of mirrored images for training; doubles the "
            "size")  # fmt: skip
    command.set_defaults(mirror=False, defaults=EncoderConfig(name=encoder, image_size=image_size))


def encoder_config(args: argparse.Namespace) -> EncoderConfig | None:
    """Return the CNN that the options describe, or None with --encoder-of.

    Raises ConfigError for options of the CNN beside --encoder-of.
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
            f"{' and '.join(given)}: given beside --encoder-of, whose CNN has its own settings; "
            "remove one or the other"
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
