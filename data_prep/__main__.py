"""The command `python -m data_prep karpathy|coco|csv|toy`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from captioner.arguments import exit_code
from captioner.config import EncoderConfig
from data_prep import coco, csv_file, karpathy, toy
from data_prep.build import build
from data_prep.options import parser
from data_prep.records import Record, hold_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: _prepare(argv), "the same command goes on where it stopped")


def _prepare(argv: Sequence[str] | None) -> None:
    started = time.monotonic()
    args = parser().parse_args(argv)
    encoder, encoder_state = _encoder(args)
    with logging_redirect_tqdm():  # a warning does not tear the progress bar
        report = build(
            _records(args),
            args.out,
            encoder,
            encoder_state=encoder_state,
            min_count=args.min_count,
            mirror=args.mirror,
            batch_size=args.batch_size,
        )
    print(*report.lines(), sep="\n")
    print(f"written to {args.out} in {time.monotonic() - started:,.0f} s")


def _encoder(args: argparse.Namespace) -> tuple[EncoderConfig, Mapping[str, Tensor] | None]:
    """The CNN that the options name, and its weights where a checkpoint brings them."""
    if args.encoder_of:
        from captioner.checkpoint import load

        checkpoint = load(args.encoder_of)
        return checkpoint.encoder, checkpoint.encoder_state
    return EncoderConfig(
        args.encoder, args.encoder_weights, args.resize, args.image_size, args.grid
    ), None


def _records(args: argparse.Namespace) -> list[Record]:
    if args.command == "karpathy":
        return karpathy.read(args.dataset, args.images)
    if args.command == "toy":
        drawn = toy.draw(args.out / "images", args.images, args.seed)
        return hold_out(drawn, val_share=0.1, test_share=0.1, seed=args.seed)
    if args.command == "coco":
        records = coco.read(args.annotations, args.images, args.splits)
    else:
        records = csv_file.read(args.captions, args.images)
    return hold_out(records, args.val_share, args.test_share, args.seed)


if __name__ == "__main__":
    sys.exit(main())
