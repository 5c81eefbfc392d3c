"""The captioning study's data: fewer images, and a coarser grid of features."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.trials import locked
from captioner.data.dataset import Example, read_examples
from captioner.data.feature_store import FeatureStore
from captioner.data.vocabulary import Vocabulary
from captioner.errors import ConfigError
from captioner.files import write_text

_AT_ONCE = 64  # images pooled


def make_data(
    source: Path,
    out: Path,
    *,
    images: int,
    validation: int,
    grid: int,
    mirror: bool,
    min_count: int = 5,
    label: str = "",
) -> Path:
    """Make data of the first images of two splits, features averaged down to grid x grid cells.

    `mirror` keeps the mirrored views; the vocabulary has the words that occur `min_count` times in
    these training captions. Returns the folder under `out`, as it is if it was finished before.
    Raises ConfigError if the source has fewer images or cells.
    """
    name = f"data-{images}-{validation}-{grid}x{grid}{'-mirror' * mirror}"
    folder = out / (f"{name}-{label}" if label else name)
    with locked(folder.with_suffix(".lock"), wait=True):
        if (folder / "examples.json").exists():
            return folder
        store, chosen = FeatureStore(source), first_images(source, images, validation)
        side = math.isqrt(store.cells)
        if side**2 != store.cells or grid > side:
            raise ConfigError(f"{source} has {store.cells} cells; no grid of {grid} x {grid} fits")
        views = store.views if mirror else 1
        folder.mkdir(exist_ok=True)
        small = FeatureStore.create(
            folder,
            [example.image for example in chosen],
            (views, grid**2, store.dim),
            replace(store.encoder, grid=grid),
        )
        for start in range(0, len(chosen), _AT_ONCE):
            rows = [example.row for example in chosen[start : start + _AT_ONCE]]
            features = torch.from_numpy(store.values[rows, :views]).float()  # (B, views, L, D)
            cells = features.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))
            pooled = F.adaptive_avg_pool2d(cells, grid).flatten(2).transpose(1, 2)
            small.write(
                range(start, start + len(rows)), pooled.unflatten(0, features.shape[:2]).numpy()
            )
        captions = [text for example in chosen[:images] for text in example.captions]
        Vocabulary.build(captions, min_count=min_count).save(folder / "vocabulary.json")
        examples = [asdict(replace(example, row=row)) for row, example in enumerate(chosen)]
        write_text(folder / "examples.json", json.dumps(examples))  # last: the folder is complete
    return folder


def first_images(source: Path, images: int, validation: int) -> list[Example]:
    """Return the first examples of train, then of val; raise ConfigError if there are fewer."""
    everything, chosen = read_examples(source), []
    for split, number in (("train", images), ("val", validation)):
        of_split = [example for example in everything if example.split == split]
        if len(of_split) < number:
            raise ConfigError(
                f"{source} has {len(of_split)} images of {split}, not {number}; ask for fewer"
            )
        chosen += of_split[:number]
    return chosen
