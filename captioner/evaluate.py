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
from captioner.metrics.scorer import check_metrics, score
from captioner.metrics.scores import METRICS, Scores
from captioner.model import Decoder
from captioner.model.ensemble import Ensemble
from captioner.model.fused.linear import packed
from captioner.search import Hypothesis, search

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The captions of a split by image id, and their scores."""

    captions: dict[int, str]
    attention: dict[int, Tensor | None]  # (words, L)
    scores: Scores
    dataset: CaptionDataset


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
    """Caption a split with a checkpoint or an ensemble, and score each image's best caption.

    The captions are written to `results` before they are scored, so a scoring error keeps them.
    Raises CheckpointError when the data's features come from another encoder than the checkpoint's
    or the members of an ensemble do not share a vocabulary, DataError when an image of the split
    has no reference.
    """
    check_metrics(metrics, corenlp)
    checkpoints = members(checkpoint)
    dataset = CaptionDataset(data, split)
    _warn_of_other_splits(checkpoints, data, split)
    vocabulary = checkpoints[0].vocabulary
    found = caption_split(
        _decoder(checkpoints, dataset),
        dataset,
        replace(decode, captions=1),
        vocabulary=vocabulary,
        limit=limit,
        progress=progress,
    )
    captions = best_captions(found, vocabulary)
    if results is not None:
        write_results(captions, results)
    return Evaluation(
        captions,
        {image_id: hypotheses[0].attention for image_id, hypotheses in found.items()},
        score(captions, references(dataset), metrics, corenlp),
        dataset,
    )


def sampled_captions(
    checkpoint: Checkpoint | Sequence[Checkpoint],
    dataset: CaptionDataset,
    decode: DecodeConfig,
    *,
    limit: int = 0,
    progress: bool = False,
) -> dict[int, list[str]]:
    """Return the texts of all captions that `decode` asks for, by image id."""
    checkpoints = members(checkpoint)
    vocabulary = checkpoints[0].vocabulary
    found = caption_split(
        _decoder(checkpoints, dataset),
        dataset,
        decode,
        vocabulary=vocabulary,
        limit=limit,
        progress=progress,
    )
    return {
        image_id: [" ".join(vocabulary.decode(hypothesis.tokens)) for hypothesis in hypotheses]
        for image_id, hypotheses in found.items()
    }


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
    """Search captions for every image of a split, or the first `limit`; return them by image id.

    `vocabulary` is the decoder's, if it differs from the data's.
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
            batch = indices[start : start + batch_images]
            memory, state = decoder.start(dataset.features(batch).to(device))
            image_ids = [dataset.examples[index].image_id for index in batch]
            seeds = [(decode.seed, image_id) for image_id in image_ids]
            results = search(partial(decoder.step, memory), state, decode, bad_endings, seeds=seeds)
            found.update(zip(image_ids, results, strict=True))
            bar.update(len(batch))
    decoder.train(training)
    return found


def best_captions(
    found: Mapping[int, Sequence[Hypothesis]], vocabulary: Vocabulary
) -> dict[int, str]:
    """Return the text of each image's best caption, by image id."""
    return {
        image_id: " ".join(vocabulary.decode(hypotheses[0].tokens))
        for image_id, hypotheses in found.items()
    }


def references(dataset: CaptionDataset) -> dict[int, list[str]]:
    """Return the references of a split, by image id."""
    return {example.image_id: list(example.captions) for example in dataset.examples}


def check_encoder(checkpoint: Checkpoint, dataset: CaptionDataset) -> None:
    """Raise CheckpointError unless the data's features come from the checkpoint's encoder."""
    ours, theirs = checkpoint.encoder, dataset.store.encoder
    if ours != theirs:
        raise CheckpointError(
            f"the checkpoint was trained on features of {ours}, but the data has features of "
            f"{theirs}; prepare the data with the checkpoint's encoder (data_prep --encoder-of)"
        )


def _decoder(checkpoints: Sequence[Checkpoint], dataset: CaptionDataset) -> Decoder | Ensemble:
    """Return the decoder or the ensemble, once the data's features are known to suit it."""
    for checkpoint in checkpoints:
        check_encoder(checkpoint, dataset)
    return joint_decoder(checkpoints)


def _warn_of_other_splits(checkpoints: Sequence[Checkpoint], data: Path | str, split: str) -> None:
    """Warn if a checkpoint may have been trained on the references of this split."""
    trained = [then for member in checkpoints for then in member.trained.get("data", ())]
    if trained and split != "train":
        now = fingerprint(data)
        if any(split_otherwise(then, now) for then in trained):
            log.warning(
                "the checkpoint was trained on another split of the captions of %s: it may have "
                "seen those of %s, which makes its scores too high",
                data, split,
            )  # fmt: skip
