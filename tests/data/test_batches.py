"""A batch teaches the end of a caption where the caption ends, and nowhere else."""

from __future__ import annotations

import torch

from captioner.data.dataset import CaptionDataset, pack
from captioner.data.vocabulary import BOS, EOS
from tests.tiny import make_data, random_features


def rows_of(batch) -> list[tuple[list[int], list[int]]]:
    """The inputs and targets of each row, in the order of the captions."""
    rows: list[tuple[list[int], list[int]]] = [([], []) for _ in batch.order]
    place = 0
    for size in batch.captions.batch_sizes:
        for row in range(size):
            rows[row][0].append(int(batch.captions.inputs[place + row]))
            rows[row][1].append(int(batch.targets[place + row]))
        place += size
    return [rows[batch.order.tolist().index(number)] for number in range(len(rows))]


def test_a_caption_cut_at_max_words_does_not_end_there():
    captions = [[[5, 6, 7], [5, 6]], [[8], [9, 9, 9, 9, 9]]]
    batch = pack(random_features(2), captions, max_words=2)
    assert rows_of(batch) == [
        ([BOS, 5], [5, 6]),
        ([BOS, 5, 6], [5, 6, EOS]),
        ([BOS, 8], [8, EOS]),
        ([BOS, 9], [9, 9]),
    ]
    assert batch.captions.batch_sizes == [4, 4, 1]  # longest first
    assert batch.captions.image.tolist() == [0, 0, 1, 1]


def test_without_a_bound_every_caption_ends():
    batch = pack(random_features(1), [[[5, 6, 7], [8]]])
    assert rows_of(batch) == [([BOS, 5, 6, 7], [5, 6, 7, EOS]), ([BOS, 8], [8, EOS])]


def test_the_batches_of_a_data_set_have_no_end_in_captions_that_are_cut(tmp_path):
    folder = make_data(tmp_path / "data")
    data = CaptionDataset(folder, "train")
    lengths = [len(own[0]) for own in data.tokens]
    (batch,) = data.batches(len(data), max_words=6)
    rows = rows_of(batch)
    assert [len(targets) for _, targets in rows] == [n + 1 if n <= 6 else 6 for n in lengths]
    assert [targets[-1] == EOS for _, targets in rows] == [n <= 6 for n in lengths]
    assert {n <= 6 for n in lengths} == {True, False}
    assert all(EOS not in targets[:-1] for _, targets in rows)
    assert torch.equal(batch.order.sort().values, torch.arange(len(data)))
