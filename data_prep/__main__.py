"""The command `python -m data_prep karpathy|coco|csv|toy`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from torch import Tensor
from tqdm.contrib.logging import logging_redirect_tqdm

from captioner.cli.parsing import exit_code
from captioner.config import EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.files import locked
from data_prep import captions_file, coco, karpathy, toy
from data_prep.build import build, identify
from data_prep.options import encoder_config, parser
from data_prep.records import Record, held_out_note, hold_out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return exit_code(lambda: _prepare(argv), "run the same command to resume")


def _prepare(argv: Sequence[str] | None) -> None:
    started = time.monotonic()
    args = parser().parse_args(argv)
    encoder, encoder_state, vocabulary = _encoder(args)
    records = None if args.command == "toy" else _read(args)  # may fail: before a folder is made
    with locked(args.out), logging_redirect_tqdm():  # warnings do not break the progress bar
        if records is None:
            records = toy.draw(args.out / "images", args.images, args.seed)
        sources = identify(records, args.out)
        divided = hold_out(
            records,
            args.val_share,
            args.test_share,
            args.seed,
            {key: source.sha256 for key, source in sources.items() if source},
        )
        note = "" if args.command == "toy" else held_out_note(records, divided)
        report = build(
            divided,
            args.out,
            encoder,
            encoder_state=encoder_state,
            vocabulary=vocabulary,
            sources=sources,
            min_count=args.min_count,
            by_character=args.tokens == "characters",
            mirror=args.mirror,
            batch_size=args.batch_size,
            notes=[note] if note else [],
        )
    print(*report.lines(), sep="\n")
    print(f"written to {args.out} in {time.monotonic() - started:,.0f} s")


def _encoder(
    args: argparse.Namespace,
) -> tuple[EncoderConfig, Mapping[str, Tensor] | None, Vocabulary | None]:
    """Return the CNN that the options name, and of a checkpoint its weights and vocabulary."""
    config = encoder_config(args)
    if config is not None:
        return config, None, None
    from captioner.checkpoint import load

    checkpoint = load(args.encoder_of)
    return checkpoint.encoder, checkpoint.encoder_state, checkpoint.vocabulary


def _read(args: argparse.Namespace) -> list[Record]:
    if args.command == "karpathy":
        return karpathy.read(args.dataset, args.images)
    if args.command == "coco":
        return coco.read(args.annotations, args.images, args.splits)
    return captions_file.read(args.captions, args.images, args.splits)


if __name__ == "__main__":
    sys.exit(main())
