"""Write a prepared data folder from records of images and captions."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from captioner.config import EncoderConfig, TrainConfig
from captioner.data.feature_store import DONE, FeatureStore, Source, read_sources
from captioner.data.images import open_image
from captioner.data.vocabulary import Vocabulary, characters, lacks_spaces, tokenize
from captioner.errors import DataError
from captioner.files import write_json, write_tensors
from captioner.model.encoder import Encoder
from captioner.tokens import SPECIAL, UNK
from data_prep.names import Folder
from data_prep.records import SPLITS, WARNINGS, Record

log = logging.getLogger(__name__)

MAX_WORDS = TrainConfig.max_words  # where training cuts captions by default


@dataclass
class Report:
    """What a data set contains and what was left out; written as report.json."""

    images: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    words: int = 0
    unknown_share: dict[str, float] = field(default_factory=dict)
    long_share: float = 0.0  # share of the training captions with more than MAX_WORDS words
    longest: int = 0  # words of the longest training caption
    feature_bytes: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    without_captions: list[str] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)  # left out -> copy in val or test
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the closing summary, one fact per line."""
        lines = [
            f"{split}: {self.images[split]:,} images, {self.captions[split]:,} captions, "
            f"{self.unknown_share[split]:.2%} of the words unknown"
            for split in SPLITS
            if self.images[split]
        ]
        lines.append(f"vocabulary: {self.words:,} words (and 4 special tokens)")
        lines.append(f"features: {self.feature_bytes / 1e6:,.1f} MB")
        if self.long_share:
            lines.append(
                f"long captions: {self.long_share:.2%} of train have more than {MAX_WORDS} words "
                f"(at most {self.longest:,}); training cuts them (train.max_words)"
            )
        for what, names in (
            ("images cannot be read", list(self.unreadable)),
            ("images have no caption", self.without_captions),
            (
                "images are also in another split, byte for byte, and stay there",
                [f"{copy} = {kept}" for copy, kept in self.copies.items()],
            ),
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
    vocabulary: Vocabulary | None = None,
    sources: Mapping[str, Source | None] | None = None,
    min_count: int = 5,
    by_character: bool = False,
    mirror: bool = False,
    batch_size: int = 16,
    notes: Sequence[str] = (),
) -> Report:
    """Write examples.json, vocabulary.json, report.json and the feature store into `out`.

    It can be interrupted at any time and called again: the features of unchanged files are kept,
    and unreadable images are tried again. Left out and reported are unreadable images, images
    without captions, and copies of an image of a later split. `encoder_state`, the weights of a
    fine-tuned CNN, is stored in the folder; `vocabulary` is used if no image is in train;
    `sources` is the result of `identify`; `by_character` makes each character of a language
    without spaces a word. Raises DataError if nothing is left to train on or `out` cannot be
    written, ConfigError for an unusable encoder.
    """
    report = Report(notes=list(notes))
    kept = _usable(records, report, by_character)
    _check_spaces(kept)
    _vocabulary(kept, min_count, vocabulary)  # raises its errors before anything is encoded
    if sources is None:
        sources = identify(kept, out)
    kept = _without_copies(kept, sources, report)
    present = [record for record in kept if sources.get(record.key)]
    _check_present(kept, present)
    _vocabulary(present, min_count, vocabulary)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}; give another --out") from None
    encoder = Encoder(encoder_config, encoder_state)
    keys, shape = [record.key for record in kept], (1 + mirror, encoder.cells, encoder.dim)
    incomplete = partial((out / "examples.json").unlink, missing_ok=True)
    store = FeatureStore.create(out, keys, shape, encoder_config, sources, incomplete)
    if encoder_state is not None:
        _keep_encoder(encoder_state, encoder_config.weights, out / "encoder.safetensors")
    rows = {key: row for row, key in enumerate(store.keys)}
    placed = [(rows[record.key], record) for record in kept]
    _encode(dict(placed), store, encoder, batch_size, report)
    readable = _readable(placed, store, sources, report)
    vocabulary = _vocabulary([record for _, record in readable], min_count, vocabulary)
    report.feature_bytes = store.values.nbytes
    report.words = len(vocabulary) - len(SPECIAL)
    _count(readable, vocabulary, report)
    _write(out, readable, vocabulary, report)
    return report


def _readable(
    placed: Sequence[tuple[int, Record]],
    store: FeatureStore,
    sources: Mapping[str, Source | None],
    report: Report,
) -> list[tuple[int, Record]]:
    """Return the records with features and their rows; report those whose file is missing now."""
    for _, record in placed:
        if not sources.get(record.key):
            report.unreadable.setdefault(record.key, f"no image at {record.path}")
    return [
        (row, record)
        for row, record in placed
        if store.state[row] == DONE and record.key not in report.unreadable
    ]


def _write(
    out: Path, readable: Sequence[tuple[int, Record]], vocabulary: Vocabulary, report: Report
) -> None:
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
    vocabulary.save(out / "vocabulary.json")
    write_json(out / "report.json", vars(report))
    write_json(out / "examples.json", examples)  # last: it completes the folder


def identify(records: Sequence[Record], out: Path) -> dict[str, Source | None]:
    """Return the source of each record by key, None if its file cannot be read.

    Files that the store in `out` knows are read only if they have changed.
    """
    known = read_sources(out) or {}

    def source(record: Record) -> Source | None:
        return Source.of(record.path, known.get(record.key))

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(records), unit="img", desc="looking for changes", delay=2) as bar,
    ):
        found = {}
        for record, its_own in zip(records, pool.map(source, records), strict=True):
            found[record.key] = its_own
            bar.update()
    return found


def _keep_encoder(state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Write the weights of a fine-tuned CNN beside its features, in float16 if that is exact.

    The metadata `weights` is their name in EncoderConfig.
    """
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("weights") == name:
                return
    except (OSError, SafetensorError):
        pass
    half = all(torch.equal(value.half().float(), value.float()) for value in state.values())
    weights = {key: value.half() if half else value for key, value in state.items()}
    try:
        write_tensors(path, weights, weights=name)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {error}") from None


def _check_present(kept: Sequence[Record], present: Sequence[Record]) -> None:
    """Raise DataError if every image is missing, and warn if some are."""
    missing = len(kept) - len(present)
    if not missing:
        return
    there = {record.key for record in present}
    first = next(record for record in kept if record.key not in there)
    levels = min(len(Path(first.key).parts), len(first.path.parents))
    hint = Folder(first.path.parents[levels - 1]).suggestion(first.key)
    if not present:
        raise DataError(
            f"none of the {len(kept):,} images was found, for example {first.path}; "
            + (hint or "give the folder of the images as --images")
        )
    log.warning(
        "left out: %d of the %d images cannot be read, for example %s%s",
        missing, len(kept), first.path, f"; {hint}" if hint else "",
    )  # fmt: skip


def _without_copies(
    records: Sequence[Record], sources: Mapping[str, Source | None], report: Report
) -> list[Record]:
    """Return the records without copies, byte for byte, of an image in a later split.

    A decoder must not be scored on its training images: of train, val and test the last split
    keeps the image.
    """
    last: dict[str, Record] = {}
    for record in records:
        source = sources.get(record.key)
        if source is not None:
            before = last.setdefault(source.sha256, record)
            if SPLITS.index(record.split) > SPLITS.index(before.split):
                last[source.sha256] = record
    kept = []
    for record in records:
        source = sources.get(record.key)
        other = record if source is None else last[source.sha256]
        if other.split == record.split:
            kept.append(record)
        else:
            report.copies[record.key] = other.key
    return kept


def _usable(records: Sequence[Record], report: Report, by_character: bool) -> list[Record]:
    """Return the records that have captions with words; raises DataError for duplicates."""
    kept: dict[str, Record] = {}
    ids: dict[int, str] = {}
    for record in records:
        captions = tuple(_clean(text) for text in record.captions if tokenize(text))
        if by_character:
            captions = tuple(map(characters, captions))
        if not captions:
            report.without_captions.append(record.key)
            continue
        if record.key in kept:
            raise DataError(f"{record.key}: the captions name it twice, as two images")
        if record.image_id in ids:
            raise DataError(
                f"{record.key}: its image id {record.image_id} is also that of "
                f"{ids[record.image_id]}; give each image its own"
            )
        if record.split not in SPLITS:
            raise DataError(f"{record.key}: its split is {record.split!r}; use {', '.join(SPLITS)}")
        kept[record.key] = replace(record, captions=captions)
        ids[record.image_id] = record.key
    if not kept:
        raise DataError("no image with a caption was found; check the captions file")
    return list(kept.values())


def _clean(caption: str) -> str:
    """Return a caption as one line of valid, composed Unicode; scorers pair captions by line."""
    composed = unicodedata.normalize("NFC", " ".join(caption.split()))
    return composed.encode("utf-8", "replace").decode("utf-8")


def _check_spaces(records: Sequence[Record]) -> None:
    """Raise DataError for captions without spaces between words."""
    captions = [caption for record in records for caption in record.captions]
    if lacks_spaces(captions[:10_000]):
        raise DataError(
            f"the captions have no spaces between words, for example {captions[0][:30]!r}; give "
            "--tokens characters, or put spaces between words"
        )


def _vocabulary(
    records: Sequence[Record], min_count: int, otherwise: Vocabulary | None
) -> Vocabulary:
    """Return the words of the training captions, or `otherwise` if there are none."""
    training = [caption for r in records if r.split == "train" for caption in r.captions]
    if not training and otherwise is not None and records:
        return otherwise
    if not training:
        raise DataError(
            "no readable image with a caption is in the train split; to evaluate a checkpoint on "
            "these images, give it as --encoder-of, which also takes its vocabulary"
        )
    vocabulary = Vocabulary.build(training, min_count)
    if len(vocabulary) == len(SPECIAL):
        raise DataError(
            f"no word occurs {min_count} times in the {len(training):,} training captions; "
            "give a smaller --min-count"
        )
    return vocabulary


def _encode(
    records: Mapping[int, Record],
    store: FeatureStore,
    encoder: Encoder,
    batch_size: int,
    report: Report,
) -> None:
    """Compute the features of the pending rows of the store; `records` are by row."""
    encoder.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
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
                store.write(rows, _features(encoder, torch.stack(pixels), store.views))
            bar.update(len(rows) + len(failed))


def _features(encoder: Encoder, pixels: Tensor, views: int) -> npt.NDArray[np.float16]:
    """Return the features (B, views, L, D) of pixels (B, 3, S, S)."""
    try:
        batch = pixels.to(encoder.mean.device)
        each = [encoder(batch)] if views == 1 else [encoder(batch), encoder(batch.flip(-1))]
        features: npt.NDArray[np.float16] = torch.stack(each, 1).half().cpu().numpy()
    except torch.OutOfMemoryError:
        raise DataError(
            f"the GPU is out of memory for {len(pixels)} images; give a smaller --batch-size"
        ) from None
    return features


def _batches(
    records: Mapping[int, Record], pending: Sequence[int], encoder: Encoder, batch_size: int
) -> Iterator[tuple[list[int], list[Tensor], dict[int, str]]]:
    """Yield batches: rows, pixels and errors by row. Threads read the next one in advance."""

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
    lengths = [
        len(tokenize(caption))
        for _, record in readable
        if record.split == "train"
        for caption in record.captions
    ]
    report.longest = max(lengths, default=0)
    long = sum(length > MAX_WORDS for length in lengths)
    report.long_share = long / len(lengths) if lengths else 0.0
