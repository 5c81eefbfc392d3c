"""Write one prepared data folder from records of pictures and captions."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.config import EncoderConfig
from captioner.encoder import Encoder
from captioner.errors import DataError
from captioner.features import DONE, FeatureStore
from captioner.files import write_text
from captioner.images import open_image
from captioner.vocabulary import SPECIAL, UNK, Vocabulary, tokenize
from data_prep.records import SPLITS, Record

log = logging.getLogger(__name__)

WARNINGS = 10  # pictures left out that are named on the way; all are in report.json


@dataclass
class Report:
    """What was found and what was left out; written as report.json."""

    images: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    words: int = 0
    unknown_share: dict[str, float] = field(default_factory=dict)
    feature_bytes: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    without_captions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The closing summary, one fact a line."""
        lines = [
            f"{split}: {self.images[split]:,} images, {self.captions[split]:,} captions, "
            f"{self.unknown_share[split]:.2%} of the words unknown"
            for split in SPLITS
            if self.images[split]
        ]
        lines.append(f"vocabulary: {self.words:,} words (and 4 special tokens)")
        lines.append(f"features: {self.feature_bytes / 1e6:,.1f} MB")
        for what, names in (
            ("pictures could not be read", list(self.unreadable)),
            ("pictures have no caption", self.without_captions),
        ):
            if names:
                some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
                lines.append(f"left out: {len(names):,} {what} ({some}); see report.json")
        return lines + self.notes


def build(
    records: Sequence[Record],
    out: Path,
    encoder_config: EncoderConfig,
    *,
    encoder_state: Mapping[str, Tensor] | None = None,
    min_count: int = 5,
    mirror: bool = False,
    batch_size: int = 16,
    notes: Sequence[str] = (),
) -> Report:
    """Write examples.json, vocabulary.json, report.json and the feature store into `out`.

    Can be interrupted at any moment and called again with the same arguments: pictures already
    encoded are kept, unreadable ones are tried again. Unreadable pictures and pictures without
    captions are left out and reported. `encoder_state` holds the weights of a CNN that was trained
    here. Raises DataError when nothing is left to train on, `out`
    cannot be written or its disk is full; ConfigError for an unusable encoder.
    """
    report = Report(notes=list(notes))
    kept = _usable(records, report)
    _vocabulary(kept, min_count)  # what is wrong with it is better said before hours of encoding
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}; give another --out") from None
    if not (out / "features.json").exists() and not any(r.path.is_file() for r in kept):
        raise DataError(
            f"none of the {len(kept):,} pictures was found, for one {kept[0].path}; "
            "give the folder that holds them as --images"
        )
    encoder = Encoder(encoder_config, encoder_state)
    shape = (1 + mirror, encoder.cells, encoder.dim)
    store = FeatureStore.create(out, [record.key for record in kept], shape, encoder_config)
    try:
        _encode(kept, store, encoder, batch_size, report)
    except torch.OutOfMemoryError:
        raise DataError(
            f"the GPU has no room for {batch_size} pictures at once; give a smaller --batch-size"
        ) from None

    readable = [(row, record) for row, record in enumerate(kept) if store.state[row] == DONE]
    vocabulary = _vocabulary([record for _, record in readable], min_count)
    report.feature_bytes = store.values.nbytes
    report.words = len(vocabulary) - len(SPECIAL)
    _count(readable, vocabulary, report)
    examples = [
        {
            "image": record.key,
            "image_id": record.image_id,
            "split": record.split,
            "row": row,
            "captions": record.captions,
        }
        for row, record in readable
    ]
    try:
        vocabulary.save(out / "vocabulary.json")
        write_json(out / "report.json", vars(report))
        write_json(out / "examples.json", examples)  # last: it makes the folder complete
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}") from None
    return report


def _usable(records: Sequence[Record], report: Report) -> list[Record]:
    """Records with captions, each file once, each id once; captions without a word are dropped."""
    kept: dict[str, Record] = {}
    ids: dict[int, str] = {}
    for record in records:
        captions = tuple(_clean(text) for text in record.captions if tokenize(text))
        if not captions:
            report.without_captions.append(record.key)
            continue
        if record.key in kept:
            raise DataError(f"the captions name {record.key} twice, as two pictures")
        if record.image_id in ids:
            raise DataError(
                f"image id {record.image_id} stands for {ids[record.image_id]} and {record.key}"
            )
        if record.split not in SPLITS:
            raise DataError(
                f"{record.key} is in split {record.split!r}; known are {', '.join(SPLITS)}"
            )
        kept[record.key] = replace(record, captions=captions)
        ids[record.image_id] = record.key
    if not kept:
        raise DataError("no picture with a caption was found")
    return list(kept.values())


def _clean(caption: str) -> str:
    """One line of valid Unicode: the scorers pair captions by their lines."""
    return " ".join(caption.split()).encode("utf-8", "replace").decode("utf-8")


def _vocabulary(records: Sequence[Record], min_count: int) -> Vocabulary:
    training = [caption for r in records if r.split == "train" for caption in r.captions]
    if not training:
        raise DataError("no readable picture with a caption is in the train split")
    vocabulary = Vocabulary.build(training, min_count)
    if len(vocabulary) == len(SPECIAL):
        raise DataError(
            f"no word occurs {min_count} times in the {len(training):,} training captions; "
            "give a smaller --min-count"
        )
    return vocabulary


def _encode(
    records: Sequence[Record],
    store: FeatureStore,
    encoder: Encoder,
    batch_size: int,
    report: Report,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder.to(device)
    pending = store.pending()
    with tqdm(total=len(records), initial=len(records) - len(pending), unit="img",
              desc="encoding", smoothing=0.1) as bar, torch.inference_mode():  # fmt: skip
        for rows, pixels, failed in _batches(records, pending, encoder, batch_size):
            for row, reason in failed.items():
                store.mark_unreadable(row)
                report.unreadable[records[row].key] = reason
                if len(report.unreadable) <= WARNINGS:
                    log.warning("left out: %s", reason)
            if rows:
                batch = torch.stack(pixels).to(device)  # (B, 3, S, S)
                views = [encoder(batch)]
                if store.views == 2:
                    views.append(encoder(batch.flip(-1)))
                store.write(rows, torch.stack(views, 1).half().cpu().numpy())
            bar.update(len(rows) + len(failed))


def _batches(
    records: Sequence[Record], pending: Sequence[int], encoder: Encoder, batch_size: int
) -> Iterator[tuple[list[int], list[Tensor], dict[int, str]]]:
    """Read and resize the next batch in threads while the CNN works on this one."""

    def read(row: int) -> Tensor | str:
        try:
            return encoder.preprocess(open_image(records[row].path))
        except DataError as error:
            return str(error)

    chunks = [pending[i : i + batch_size] for i in range(0, len(pending), batch_size)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(read, row) for row in chunks[0]] if chunks else []
        for number, rows in enumerate(chunks):
            results = [future.result() for future in waiting]
            following = chunks[number + 1] if number + 1 < len(chunks) else []
            waiting = [pool.submit(read, row) for row in following]
            good = {row: r for row, r in zip(rows, results, strict=True) if isinstance(r, Tensor)}
            failed = {row: r for row, r in zip(rows, results, strict=True) if isinstance(r, str)}
            yield list(good), list(good.values()), failed


def _count(readable: Sequence[tuple[int, Record]], vocabulary: Vocabulary, report: Report) -> None:
    words: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for _, record in readable:
        report.images[record.split] += 1
        for caption in record.captions:
            tokens = vocabulary.encode(caption)
            report.captions[record.split] += bool(tokens)
            words[record.split] += len(tokens)
            unknown[record.split] += tokens.count(UNK)
    report.unknown_share = {split: unknown[split] / words[split] for split in words}


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))
