"""A prepared data folder as examples, and batches of pictures with all their captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.data.feature_store import FeatureStore
from captioner.data.vocabulary import BOS, EOS, Vocabulary, tokenize
from captioner.errors import DataError
from captioner.model.decoder import PackedCaptions

# Features of the examples at some indices, mirrored where it says so.
Reader: TypeAlias = Callable[[Sequence[int], Sequence[bool]], Tensor]

_SIDES = frozenset({"left", "right"})  # a caption with these is untrue of the mirrored picture


@dataclass(frozen=True)
class Example:
    """One picture with its captions as text."""

    image: str  # file name relative to the images folder
    image_id: int
    split: str
    row: int  # in the feature store
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """Pictures and their captions, packed by time step, longest caption first."""

    features: Tensor  # (B, L, D) float32, or what else the data set's reader gives
    captions: PackedCaptions
    targets: Tensor  # (tokens,) w1 .. wn EOS
    order: Tensor  # (captions,) number of each packed caption, counted image by image
    examples: Sequence[int] = ()  # of the data set, one for each picture

    def to(self, device: torch.device) -> Batch:
        """Return the batch with features, captions and targets on `device`."""
        return replace(
            self,
            features=self.features.to(device),
            captions=self.captions.to(device),
            targets=self.targets.to(device),
        )


class CaptionDataset:
    """One split of a prepared folder, or of several; raises DataError if one is unusable.

    `vocabulary` is the folder's own unless given; several folders need one, and features of the
    same encoder. `reader` gives the features: at first those of the folders.
    """

    def __init__(
        self,
        folder: Path | str | Sequence[Path | str],
        split: str,
        vocabulary: Vocabulary | None = None,
    ):
        folders = [Path(f) for f in ([folder] if isinstance(folder, Path | str) else folder)]
        if vocabulary is None:
            assert len(folders) == 1, "several folders need a vocabulary"
            vocabulary = Vocabulary.load(folders[0] / "vocabulary.json")
        self.vocabulary = vocabulary
        self.stores = [FeatureStore(folder) for folder in folders]
        self.store = self.stores[0]
        self.reader: Reader = self._stored
        self.split = split
        self.examples: list[Example] = []
        self.folder_of: list[int] = []  # for each example the number of its folder
        for number, folder in enumerate(folders):
            own = _examples_of_split(folder, split, self.stores[number])
            self.examples += own
            self.folder_of += [number] * len(own)
            ours, theirs = self.store.encoder, self.stores[number].encoder
            if ours != theirs:
                raise DataError(
                    f"{folder} has features of {theirs}, {folders[0]} of {ours}; prepare both with "
                    "the same encoder"
                )
        self.tokens: list[list[list[int]]] = []
        for example in self.examples:
            encoded = [self.vocabulary.encode(caption) for caption in example.captions]
            self.tokens.append([caption for caption in encoded if caption])

    def __len__(self) -> int:
        return len(self.examples)

    def features(self, indices: Sequence[int], mirrored: Sequence[bool] | None = None) -> Tensor:
        """Features (B, L, D) in float32 of the examples at `indices`, as `reader` gives them.

        Where a caption tells left from right, the picture is never mirrored.
        """
        flips = mirrored if mirrored is not None else [False] * len(indices)
        true_of = [
            flip and not _names_a_side(self.examples[index])
            for index, flip in zip(indices, flips, strict=True)
        ]
        return self.reader(indices, true_of)

    def _stored(self, indices: Sequence[int], mirrored: Sequence[bool]) -> Tensor:
        picks = []
        for index, flip in zip(indices, mirrored, strict=True):
            store, row = self.stores[self.folder_of[index]], self.examples[index].row
            view = int(flip and store.views == 2)
            picks.append(torch.from_numpy(store.values[row, view].copy()))
        return torch.stack(picks).float()

    def batches(
        self,
        batch_images: int,
        *,
        max_words: int,
        captions_per_image: int = 0,
        equal_images: bool = False,
        weights: Sequence[float] = (),
        mirror: bool = False,
        seed: int | None = None,
        skip: int = 0,
    ) -> Iterator[Batch]:
        """All pictures once, shuffled by `seed` (None: in order), without the first `skip` batches.

        With `weights`, one for each folder, as many images, but those of a folder more or less
        often than once. With `equal_images` an image with fewer captions than `captions_per_image`
        repeats its own. The same seed gives the same batches, wherever one begins.
        """
        generator = torch.Generator().manual_seed(seed or 0)
        order = list(range(len(self)))
        if seed is not None:
            order = torch.randperm(len(self), generator=generator).tolist()
        if weights:
            order = self._weighted(order, weights, generator)
        flips = (torch.rand(len(self), generator=generator) < 0.5).tolist()
        picks = torch.rand(len(self), generator=generator).tolist()
        for start in range(skip * batch_images, len(order), batch_images):
            indices = order[start : start + batch_images]
            captions = []
            for index in indices:
                own = self.tokens[index]
                if captions_per_image and (equal_images or len(own) > captions_per_image):
                    first = int(picks[index] * len(own))  # a different window each epoch
                    own = [own[(first + k) % len(own)] for k in range(captions_per_image)]
                captions.append(own)
            features = self.features(indices, [mirror and flips[index] for index in indices])
            yield pack(features, captions, indices, max_words)

    def _weighted(
        self, order: Sequence[int], weights: Sequence[float], generator: torch.Generator
    ) -> list[int]:
        """As many indices as in `order`, each folder's in proportion to its size and weight."""
        by_folder: list[list[int]] = [[] for _ in weights]
        for index in order:
            by_folder[self.folder_of[index]].append(index)
        shares = [len(own) * weight for own, weight in zip(by_folder, weights, strict=True)]
        mixed: list[int] = []
        for own, share in zip(by_folder, shares, strict=True):
            count = round(len(order) * share / sum(shares))
            whole, rest = divmod(count, len(own))
            mixed += own * whole + own[:rest]
        mixed = (mixed + list(order))[: len(order)]  # rounding may lack one
        return [mixed[k] for k in torch.randperm(len(mixed), generator=generator).tolist()]

    def number_of_batches(self, batch_images: int) -> int:
        """How many batches an epoch has."""
        return -(-len(self) // batch_images)


def pack(
    features: Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    examples: Sequence[int] = (),
    max_words: int | None = None,
) -> Batch:
    """Pack the captions (picture, caption, token) of pictures with features (B, L, D).

    A caption of more than `max_words` tokens is cut there and has no EOS: it does not end there.
    """
    unsorted = [
        (caption[:max_words], image, max_words is None or len(caption) <= max_words)
        for image, group in enumerate(captions)
        for caption in group
    ]
    steps = [len(caption) + ends for caption, _, ends in unsorted]
    order = sorted(range(len(unsorted)), key=lambda number: -steps[number])  # stable
    rows = [unsorted[number] for number in order]
    lengths = [steps[number] for number in order]
    width = max(lengths)
    batch_sizes = [0] * width
    for length in lengths:
        batch_sizes[length - 1] += 1
    batch_sizes = list(accumulate(reversed(batch_sizes)))[::-1]
    inputs = [
        (rows[r][0][t - 1] if t else BOS) for t, n in enumerate(batch_sizes) for r in range(n)
    ]
    targets = [
        (rows[r][0][t] if t < len(rows[r][0]) else EOS)
        for t, n in enumerate(batch_sizes)
        for r in range(n)
    ]
    return Batch(
        features=features,
        captions=PackedCaptions(
            inputs=torch.tensor(inputs),
            batch_sizes=batch_sizes,
            image=torch.tensor([image for _, image, _ in rows]),
        ),
        targets=torch.tensor(targets),
        order=torch.tensor(order),
        examples=examples,
    )


def _names_a_side(example: Example) -> bool:
    return any(not _SIDES.isdisjoint(tokenize(caption)) for caption in example.captions)


def _examples_of_split(folder: Path, split: str, store: FeatureStore) -> list[Example]:
    everything = read_examples(folder)
    examples = [example for example in everything if example.split == split]
    if not examples:
        splits = sorted({example.split for example in everything})
        raise DataError(f"{folder} has no split {split!r}; it has {', '.join(splits)}")
    if max(example.row for example in examples) >= len(store.keys):
        raise DataError(
            f"{folder}: examples.json names rows that the features lack; run data_prep again"
        )
    return examples


def joint_vocabulary(folders: Sequence[Path | str], min_count: int) -> Vocabulary:
    """Return the vocabulary of a prepared folder, or that of all training captions of several."""
    if len(folders) == 1:
        return Vocabulary.load(Path(folders[0]) / "vocabulary.json")
    captions = (
        caption
        for folder in folders
        for example in read_examples(Path(folder))
        if example.split == "train"
        for caption in example.captions
    )
    return Vocabulary.build(captions, min_count)


def read_examples(folder: Path) -> list[Example]:
    """The examples of every split of a prepared folder; raises DataError if there are none."""
    path = folder / "examples.json"
    try:
        entries = json.loads(path.read_text("utf-8"))
        return [Example(**{**entry, "captions": tuple(entry["captions"])}) for entry in entries]
    except FileNotFoundError:
        raise DataError(
            f"no prepared data at {folder}; make it with `python -m data_prep` (see README)"
        ) from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; give the folder that data_prep made") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); run data_prep again") from None
