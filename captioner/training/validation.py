"""Validate after an epoch: the loss of the written captions, and CIDEr of generated ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from captioner.checkpoint import save
from captioner.data.dataset import CaptionDataset
from captioner.evaluate import best_captions, caption_split
from captioner.metrics.scorer import ReferenceScorer
from captioner.model import Decoder
from captioner.training.log import TrainingLog
from captioner.training.loss import cross_entropy
from captioner.training.run import Run


def validate(run: Run, log: TrainingLog, scorers: Sequence[ReferenceScorer]) -> None:
    """Score the kept weights, log the scores, and save the checkpoint `last`, if better `best`."""
    network, progress, data = run.kept.network(), run.progress, run.data
    data.encode_validation(network.encoder)
    by_folder = [
        validation_cider(network.decoder, run, split, scorer)
        for split, scorer in zip(data.validation, scorers, strict=True)
    ]
    cider = sum(by_folder) / len(by_folder)
    several = {}
    if len(by_folder) > 1:
        several = {f"cider_{n}": value for n, value in zip(data.names, by_folder, strict=True)}
    loss = validation_loss(network.decoder, run)
    log.epoch(
        progress.epoch + 1,
        progress.step,
        train_loss=progress.mean_loss,
        val_loss=loss,
        cider=cider,
        **several,
        seconds=run.seconds(),
    )
    progress.score(cider, loss, run.config.train)
    checkpoint = run.checkpoint(network)
    if progress.since_best == 0:
        save(checkpoint, run.out / "best")
    save(checkpoint, run.out / "last")


@torch.inference_mode()
def validation_loss(decoder: Decoder, run: Run) -> float:
    """Return the cross-entropy per token (nats) of the validation captions."""
    decoder.eval()
    loss, tokens = 0.0, 0
    for batch in run.data.validation_batches():
        prediction = decoder(batch.features, batch.captions)
        loss += cross_entropy(prediction, batch.targets)[1].item() * len(batch.targets)
        tokens += len(batch.targets)
    return loss / tokens


def validation_cider(
    decoder: Decoder, run: Run, split: CaptionDataset, scorer: ReferenceScorer
) -> float:
    """Return CIDEr of the captions that the decoder generates for a validation split."""
    settings = run.config.train
    decode = replace(run.config.decode, beam_size=settings.eval_beam_size, captions=1, sample=False)
    size = 32 if run.device.type == "cpu" else 256
    found = caption_split(decoder, split, decode, batch_images=size, limit=settings.eval_images)
    captions = best_captions(found, run.data.train.vocabulary)
    return scorer.score(captions, ("CIDEr",)).values["CIDEr"]
