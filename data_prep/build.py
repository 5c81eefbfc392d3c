"""Write one prepared data folder from records of pictures and captions."""

from __future__ import annotations

import json
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
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from captioner.config import EncoderConfig, TrainConfig
from captioner.data.feature_store import DONE, FeatureStore, Source, read_sources
from captioner.data.images import open_image
from captioner.data.vocabulary import Vocabulary, characters, lacks_spaces, tokenize
from captioner.errors import DataError
from captioner.files import write_text
from captioner.model.encoder import Encoder
from captioner.tokens import SPECIAL, UNK
from data_prep.names import Folder
from data_prep.records import SPLITS, WARNINGS, Record

log = logging.getLogger(__name__)

MAX_WORDS = TrainConfig.max_words  # where training cuts captions unless it is told otherwise


@dataclass
class Report:
    """What was found and what was left out; written as report.json."""

    images: Counter[str] = field(default_factory=Counter)
    captions: Counter[str] = field(default_factory=Counter)
    words: int = 0
    unknown_share: dict[str, float] = field(default_factory=dict)
    long_share: float = 0.0  # of the training captions: those of more than MAX_WORDS words
    longest: int = 0  # words of a training caption
    feature_bytes: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    without_captions: list[str] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)  # left out -> the same one in val or test
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
        if self.long_share:
            lines.append(
                f"long captions: {self.long_share:.2%} of train have more than {MAX_WORDS} words "
                f"(the longest {self.longest:,}); training cuts them there (train.max_words)"
            )
        for what, names in (
            ("pictures could not be read", list(self.unreadable)),
            ("pictures have no caption", self.without_captions),
            (
                "pictures are also in another split, byte for byte, and stay there",
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

    Can be interrupted at any moment and called again: pictures already encoded are kept as long as
    their files are the same, unreadable ones are tried again. Unreadable pictures, pictures without
    captions and, of the same picture in several splits, all but those of the last split are left
    out and reported. `encoder_state` holds the weights of a CNN that was trained here, which are
    kept in the folder; `vocabulary` is taken where nothing is in train; `sources` are what
    `identify` gives; `by_character` makes a word of each character of languages without spaces.
    Raises DataError when nothing is left to train on, `out` cannot be written or
    its disk is full; ConfigError for an unusable encoder.
    """
    report = Report(notes=list(notes))
    kept = _usable(records, report, by_character)
    _check_spaces(kept)
    _vocabulary(kept, min_count, vocabulary)  # what is wrong with it is better said at once
    if sources is None:
        sources = identify(kept, out)
    kept = _without_copies(kept, sources, report)
    present = [record for record in kept if sources.get(record.key)]
    _check_present(kept, present)
    _vocabulary(present, min_count, vocabulary)
    _make_folder(out)
    encoder = Encoder(encoder_config, encoder_state)
    keys, shape = [record.key for record in kept], (1 + mirror, encoder.cells, encoder.dim)
    incomplete = partial((out / "examples.json").unlink, missing_ok=True)
    store = FeatureStore.create(out, keys, shape, encoder_config, sources, incomplete)
    if encoder_state is not None:
        _keep_encoder(encoder_state, encoder_config.weights, out / "encoder.safetensors")
    rows = {key: row for row, key in enumerate(store.keys)}
    _encode({rows[record.key]: record for record in kept}, store, encoder, batch_size, report)
    for record in kept:  # those that are not there now, but were when they were encoded
        if not sources.get(record.key):
            report.unreadable.setdefault(record.key, f"no picture at {record.path}")
    readable = [
        (rows[record.key], record)
        for record in kept
        if store.state[rows[record.key]] == DONE and record.key not in report.unreadable
    ]
    vocabulary = _vocabulary([record for _, record in readable], min_count, vocabulary)
    report.feature_bytes = store.values.nbytes
    report.words = len(vocabulary) - len(SPECIAL)
    _count(readable, vocabulary, report)
    _write(out, readable, vocabulary, report)
    return report


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}; give another --out") from None


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
    try:
        vocabulary.save(out / "vocabulary.json")
        write_json(out / "report.json", vars(report))
        write_json(out / "examples.json", examples)  # last: it makes the folder complete
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}") from None


def identify(records: Sequence[Record], out: Path) -> dict[str, Source | None]:
    """The file of each record, by key: what it holds, None where it cannot be read.

    Files that the store in `out` knows are read only if they have changed since.
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
    """Write the weights of a trained CNN beside its features; in float16 if nothing is lost by it.

    The metadata `weights` is the name they have in EncoderConfig.
    """
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("weights") == name:
                return
    except (OSError, SafetensorError):
        pass
    half = all(torch.equal(value.half().float(), value.float()) for value in state.values())
    weights = {
        key: (value.half() if half else value).cpu().contiguous() for key, value in state.items()
    }
    part = path.with_name(path.name + ".part")
    try:
        save_file(weights, part, {"format": "pt", "weights": name})
        part.chmod(0o644)  # the library makes it its owner's alone
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {error}") from None


def _check_present(kept: Sequence[Record], present: Sequence[Record]) -> None:
    """Raise DataError if no picture is there, and say how many are missing if some are."""
    missing = len(kept) - len(present)
    if not missing:
        return
    there = {record.key for record in present}
    first = next(record for record in kept if record.key not in there)
    levels = min(len(Path(first.key).parts), len(first.path.parents))
    hint = Folder(first.path.parents[levels - 1]).suggestion(first.key)
    if not present:
        raise DataError(
            f"none of the {len(kept):,} pictures was found, for one {first.path}; "
            + (hint or "give the folder that holds them as --images")
        )
    log.warning(
        "%d of the %d pictures cannot be read and are left out, for one %s%s",
        missing, len(kept), first.path, f"; {hint}" if hint else "",
    )  # fmt: skip


def _without_copies(
    records: Sequence[Record], sources: Mapping[str, Source | None], report: Report
) -> list[Record]:
    """Records without those whose picture is, byte for byte, also in a later split.

    What is scored must not be trained on: of train, val and test the last keeps the picture.
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
    """Records with captions, each file once, each id once; captions without a word are dropped."""
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
    """One line of valid Unicode, composed: the scorers pair captions by their lines."""
    composed = unicodedata.normalize("NFC", " ".join(caption.split()))
    return composed.encode("utf-8", "replace").decode("utf-8")


def _check_spaces(records: Sequence[Record]) -> None:
    """Raise DataError for captions in which words cannot be told apart."""
    captions = [caption for record in records for caption in record.captions]
    if lacks_spaces(captions[:10_000]):
        raise DataError(
            f"the captions have no spaces between words, for one {captions[0][:30]!r}; give "
            "--tokens characters, or put spaces between the words of the captions file"
        )


def _vocabulary(
    records: Sequence[Record], min_count: int, otherwise: Vocabulary | None
) -> Vocabulary:
    """The words of the training captions, or `otherwise` where there are none."""
    training = [caption for r in records if r.split == "train" for caption in r.captions]
    if not training and otherwise is not None and records:
        return otherwise
    if not training:
        raise DataError(
            "no readable picture with a caption is in the train split; to evaluate a checkpoint on "
            "these pictures, give it as --encoder-of: its vocabulary is taken"
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
    """Fill the rows of the store that are pending; `records` are those of the rows."""
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
    """Features (B, views, L, D) of pixels (B, 3, S, S)."""
    try:
        batch = pixels.to(encoder.mean.device)
        each = [encoder(batch)] if views == 1 else [encoder(batch), encoder(batch.flip(-1))]
        features: npt.NDArray[np.float16] = torch.stack(each, 1).half().cpu().numpy()
    except torch.OutOfMemoryError:
        raise DataError(
            f"the GPU has no room for {len(pixels)} pictures at once; give a smaller --batch-size"
        ) from None
    return features


def _batches(
    records: Mapping[int, Record], pending: Sequence[int], encoder: Encoder, batch_size: int
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
    lengths = [
        len(tokenize(caption))
        for _, record in readable
        if record.split == "train"
        for caption in record.captions
    ]
    report.longest = max(lengths, default=0)
    long = sum(length > MAX_WORDS for length in lengths)
    report.long_share = long / len(lengths) if lengths else 0.0


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))
