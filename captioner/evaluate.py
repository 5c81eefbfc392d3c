"""Caption a split of prepared data and score it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from captioner.checkpoint import Checkpoint, joint_decoder, members
from captioner.config import DecodeConfig
from captioner.data.coco import write_results
from captioner.data.dataset import CaptionDataset
from captioner.data.fingerprint import fingerprint, split_otherwise
from captioner.data.vocabulary import Vocabulary
from captioner.errors import CheckpointError
from captioner.metrics.scores import METRICS, Scores, check_metrics, score
from captioner.model import Decoder
from captioner.model.ensemble import Ensemble
from captioner.model.fused.linear import packed
from captioner.search import Hypothesis, search

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Captions of a split and what they scored, by image id."""

    captions: dict[int, str]
    attention: dict[int, Tensor | None]  # (words, L)
    scores: Scores
    dataset: CaptionDataset


def caption_split(
    decoder: Decoder | Ensemble,
    dataset: CaptionDataset,
    decode: DecodeConfig,
    *,
    vocabulary: Vocabulary | None = None,
    batch_images: int = 32,
    limit: int = 0,
    progress: bool = False,
) -> dict[int, list[Hypothesis]]:
    """Search captions for every picture of a split (the first `limit` if given), by image id.

    `vocabulary` is the decoder's, if it is not that of the data.
    """
    bad_endings = (vocabulary or dataset.vocabulary).bad_endings()
    device = next(decoder.parameters()).device
    training = decoder.training
    decoder.eval()
    found: dict[int, list[Hypothesis]] = {}
    indices = range(limit or len(dataset))[: len(dataset)]
    bar = tqdm(total=len(indices), unit="img", desc="captioning", disable=not progress)
    with torch.inference_mode(), packed(decoder), bar:
        for start in range(0, len(indices), batch_images):
            chosen = indices[start : start + batch_images]
            memory, state = decoder.start(dataset.features(chosen).to(device))
            seeds = [(decode.seed, dataset.examples[index].image_id) for index in chosen]
            results = search(partial(decoder.step, memory), state, decode, bad_endings, seeds=seeds)
            for index, hypotheses in zip(chosen, results, strict=True):
                found[dataset.examples[index].image_id] = hypotheses
            bar.update(len(chosen))
    decoder.train(training)
    return found


def evaluate(
    checkpoint: Checkpoint | Sequence[Checkpoint],
    data: Path | str,
    split: str,
    decode: DecodeConfig,
    *,
    metrics: Sequence[str] = METRICS,
    corenlp: Path | None = None,
    limit: int = 0,
    results: Path | None = None,
    progress: bool = False,
) -> Evaluation:
    """Caption a split with a checkpoint, or an ensemble, and score each picture's best caption.

    The captions are written to `results` before they are scored, so that nothing costs them.
    Raises CheckpointError when the data's features come from another encoder than the checkpoint's
    or the members of an ensemble have no common vocabulary, DataError when a picture of the split
    has no reference.
    """
    check_metrics(metrics, corenlp)
    dataset = CaptionDataset(data, split)
    _warn_of_other_splits(members(checkpoint), data, split)
    found = _caption_split(
        checkpoint, dataset, replace(decode, captions=1), limit=limit, progress=progress
    )
    captions = best_captions(found, members(checkpoint)[0].vocabulary)
    if results is not None:
        write_results(captions, results)
    return Evaluation(
        captions,
        {key: hypotheses[0].attention for key, hypotheses in found.items()},
        score(captions, references(dataset), metrics, corenlp),
        dataset,
    )


def _warn_of_other_splits(found: Sequence[Checkpoint], data: Path | str, split: str) -> None:
    """Warn if a checkpoint may have learnt the captions that are to judge it."""
    trained = [then for member in found for then in member.trained.get("data", ())]
    if trained and split != "train":
        now = fingerprint(data)
        if any(split_otherwise(then, now) for then in trained):
            log.warning(
                "the checkpoint was trained on another split of the captions of %s: it may have "
                "learnt those of %s, which makes its scores too good",
                data, split,
            )  # fmt: skip


def sampled_captions(
    checkpoint: Checkpoint | Sequence[Checkpoint],
    dataset: CaptionDataset,
    decode: DecodeConfig,
    *,
    limit: int = 0,
    progress: bool = False,
) -> dict[int, list[str]]:
    """The texts of several captions of each picture of a split, as `decode` draws them, by id."""
    found = _caption_split(checkpoint, dataset, decode, limit=limit, progress=progress)
    vocabulary = members(checkpoint)[0].vocabulary
    return {
        key: [" ".join(vocabulary.decode(hypothesis.tokens)) for hypothesis in hypotheses]
        for key, hypotheses in found.items()
    }


def _caption_split(
    checkpoint: Checkpoint | Sequence[Checkpoint],
    dataset: CaptionDataset,
    decode: DecodeConfig,
    *,
    limit: int,
    progress: bool,
) -> dict[int, list[Hypothesis]]:
    found = members(checkpoint)
    for member in found:
        check_encoder(member, dataset)
    return caption_split(
        joint_decoder(found),
        dataset,
        decode,
        vocabulary=found[0].vocabulary,
        limit=limit,
        progress=progress,
    )


def best_captions(
    found: Mapping[int, Sequence[Hypothesis]], vocabulary: Vocabulary
) -> dict[int, str]:
    """The text of each picture's best caption, by image id."""
    return {
        image_id: " ".join(vocabulary.decode(hypotheses[0].tokens))
        for image_id, hypotheses in found.items()
    }


def references(dataset: CaptionDataset) -> dict[int, list[str]]:
    """The written captions of a split, by image id."""
    return {example.image_id: list(example.captions) for example in dataset.examples}


def check_encoder(checkpoint: Checkpoint, dataset: CaptionDataset) -> None:
    """Raise CheckpointError unless the data's features are of the checkpoint's encoder."""
    ours, theirs = checkpoint.encoder, dataset.store.encoder
    if ours != theirs:
        raise CheckpointError(
            f"the checkpoint was trained on features of {ours}, but the data has features of "
            f"{theirs}; prepare the data with the checkpoint's encoder (data_prep --encoder-of)"
        )
