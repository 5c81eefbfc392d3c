"""Train a decoder on prepared data: cross-entropy with h-detach, resumable at any step."""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from tqdm import tqdm

from captioner.checkpoint import Checkpoint, save
from captioner.config import Config, TrainConfig
from captioner.data.dataset import Batch, CaptionDataset
from captioner.errors import ConfigError
from captioner.evaluate import best_captions, caption_split, references
from captioner.metrics.scorer import ReferenceScorer
from captioner.model.decoder import Decoder, Teacher
from captioner.training.augmentation import ahead
from captioner.training.flow import gradient_flow, unroll
from captioner.training.log import Journal
from captioner.training.loss import caption_loss, cross_entropy, detach_probability, learning_rate
from captioner.training.run import Network, Progress, Run, prepare, save_run

log = logging.getLogger(__name__)

LEAST_GAIN = 1e-4  # share by which a validation loss must fall to count as better


@dataclass(frozen=True)
class Result:
    """What a training run gave."""

    best: Path  # checkpoint folder
    cider: float  # 0 where validation loss chose
    epochs: int
    seconds: float


def train(config: Config, *, resume: bool = False, show_progress: bool = True) -> Result:
    """Train as `config` says; checkpoints `best` and `last`, logs and curves go to `config.out`.

    Raises ConfigError when `out` holds another run, DataError for unusable data, CheckpointError
    when there is nothing to resume.
    """
    run = prepare(config, resume)
    settings, progress = config.train, run.progress
    scorers = [ReferenceScorer(references(split)) for split in run.validation]
    with (
        _stop_at_step_end() as stop,
        Journal(run.out, progress.log_bytes, progress.step) as journal,
    ):
        journal.changed(progress.step, run.changes)
        while progress.epoch < settings.epochs and not _out_of_patience(progress, settings):
            with tqdm(
                total=run.batches,
                initial=progress.batch,
                unit="batch",
                desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
                disable=not show_progress,
            ) as bar:
                _train_epoch(run, journal, stop, bar)
            _end_epoch(run, journal, scorers)
            if stop:
                raise KeyboardInterrupt
    return Result(run.out / "best", progress.best, progress.epoch, run.seconds())


def _train_epoch(run: Run, journal: Journal, stop: list[int], bar: tqdm[NoReturn]) -> None:
    """The rest of the current epoch; raises KeyboardInterrupt, saved, once `stop` is filled."""
    progress = run.progress
    run.decoder.train(run.critic is None)  # drawn captions are learnt as they were drawn
    for batch in epoch_batches(run):
        figures = train_step(run, batch)
        bar.update()
        bar.set_postfix(loss=f"{progress.mean_loss:.3f}")
        journal.step(progress.step, **figures)
        if _is_due(progress.step, run.config.train.gradient_flow_steps):
            journal.note(progress.step, **flow_figures(run, batch))
        if stop or progress.step % run.config.train.save_steps == 0:
            save_run(run, journal.flush())
            if stop:
                raise KeyboardInterrupt


def epoch_batches(run: Run) -> Iterator[Batch]:
    """The batches of the current epoch that are still to come, in their order."""
    settings, progress = run.config.train, run.progress
    seed = settings.seed * 1_000_003 + progress.epoch
    if run.photographs is not None:
        run.data.reader = run.photographs.augmented(seed)
    batches = run.data.batches(
        settings.batch_images,
        max_words=settings.max_words,
        captions_per_image=settings.captions_per_image,
        equal_images=settings.equal_images,
        weights=settings.data_weights,
        mirror=settings.mirror,
        seed=seed,
        skip=progress.batch,
    )
    return batches if run.photographs is None else ahead(batches)


def train_step(run: Run, batch: Batch) -> dict[str, float]:
    """One step of the optimizer: its loss, cross-entropy, gradient norm and learning rate.

    Where captions are drawn, they take the place of the batch's own, and their reward is told, too.
    Raises ConfigError if the gradient is not finite.
    """
    settings, progress = run.config.train, run.progress
    total_steps = run.batches * settings.epochs
    rate = learning_rate(settings, progress.step, total_steps) * progress.rate_factor
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["share"]
    low = settings.precision == "bfloat16"
    with torch.autocast(run.device.type, torch.bfloat16, enabled=low):
        batch = _features(run, batch)
        weights, reward = None, {}
        if run.critic is not None:
            seed = settings.seed * 1_000_003 + progress.step
            drawn = run.critic.draw(run.decoder, batch, seed=seed)
            batch, weights = drawn.batch, drawn.weights.to(run.device)
            reward = {"reward": drawn.reward}
        share_done = progress.step / total_steps
        prediction = run.decoder(
            batch.features,
            _teacher(batch, run.device),
            detach_prob=detach_probability(settings, share_done),
            detach_attention=settings.detach_attention,
            sampling_prob=settings.scheduled_sampling * share_done,
        )
    targets = batch.targets.to(run.device)
    loss, cross_entropy = caption_loss(prediction, targets, batch.batch_sizes, settings, weights)
    run.optimizer.zero_grad()
    loss.backward()
    norm = _clip(run.network, settings)
    if not math.isfinite(norm):
        saved = (run.out / "state.pt").exists()
        raise ConfigError(
            f"the gradient is {norm} at step {progress.step + 1}: training diverged; lower "
            "train.learning_rate or train.clip, and "
            + ("go on from the last save with --resume" if saved else "start again")
        )
    run.optimizer.step()
    if run.average is not None:
        run.average.update_parameters(run.network)
    progress.count(len(targets), cross_entropy.item())
    return {
        "loss": loss.item(),
        "cross_entropy": cross_entropy.item(),
        "gradient_norm": norm,
        "learning_rate": rate,
        **reward,
    }


def flow_figures(run: Run, batch: Batch) -> dict[str, float]:
    """What of the gradient comes along c and what through h, as `gradient_flow` defines it.

    Of the cross-entropy of the batch's own captions with the present weights, without dropout, and
    with h-detach in expectation. Draws nothing at random and leaves no gradient behind.
    """
    settings, progress = run.config.train, run.progress
    with torch.no_grad():
        features = _features(run, batch).features
    targets = batch.targets.to(run.device)
    unrolled = unroll(run.decoder, features, _teacher(batch, run.device), targets)
    share_done = (progress.step - 1) / (run.batches * settings.epochs)  # as in the step just done
    unrolled.expect(detach_probability(settings, share_done), settings.detach_attention)
    flow = gradient_flow(unrolled)
    return {"flow_c": flow.cell, "flow_h": flow.hidden, "flow_h_share": flow.share}


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _features(run: Run, batch: Batch) -> Batch:
    """The batch with the features (B, L, D) that the decoder takes."""
    features = batch.features.to(run.device)
    if run.network.encoder is not None:
        features = run.network.encoder.trained_part(features)
    return replace(batch, features=features)


def _end_epoch(run: Run, journal: Journal, scorers: Sequence[ReferenceScorer]) -> None:
    """Validate, log, keep the best and the last checkpoint, and save the place."""
    progress, settings = run.progress, run.config.train
    if (progress.epoch + 1) % settings.eval_epochs == 0 or progress.epoch + 1 == settings.epochs:
        _validate(run, journal, scorers)
    progress.next_epoch()
    save_run(run, journal.flush())


def _validate(run: Run, journal: Journal, scorers: Sequence[ReferenceScorer]) -> None:
    progress, network = run.progress, run.validated
    _read_validation(run, network)
    by_folder = [
        validation_cider(network.decoder, run, split, scorer)
        for split, scorer in zip(run.validation, scorers, strict=True)
    ]
    cider = sum(by_folder) / len(by_folder)
    several = {}
    if len(by_folder) > 1:
        names = (Path(folder).name for folder in run.config.folders)
        several = {f"cider_{name}": value for name, value in zip(names, by_folder, strict=True)}
    loss = validation_loss(network.decoder, run)
    journal.epoch(
        progress.epoch + 1,
        progress.step,
        train_loss=progress.mean_loss,
        val_loss=loss,
        cider=cider,
        **several,
        seconds=run.seconds(),
    )
    _note_score(progress, run.config.train, cider, loss)
    checkpoint = _checkpoint(run, network)
    if progress.since_best == 0:
        save(checkpoint, run.out / "best")
    save(checkpoint, run.out / "last")


def _read_validation(run: Run, network: Network) -> None:
    """Make the features of the validation images, where those of the folders do not serve."""
    for split, photographs in zip(run.validation, run.validation_photographs, strict=False):
        split.reader = photographs.encoded(network.encoder, progress=True)


@torch.inference_mode()
def validation_loss(decoder: Decoder, run: Run) -> float:
    """Cross-entropy a token (nats) of the validation captions."""
    decoder.eval()
    loss, tokens = 0.0, 0
    settings = run.config.train
    for split in run.validation:
        for batch in split.batches(settings.batch_images, max_words=settings.max_words):
            prediction = decoder(batch.features.to(run.device), _teacher(batch, run.device))
            targets = batch.targets.to(run.device)
            loss += cross_entropy(prediction, targets)[1].item() * len(targets)
            tokens += len(targets)
    return loss / tokens


def validation_cider(
    decoder: Decoder, run: Run, split: CaptionDataset, scorer: ReferenceScorer
) -> float:
    """CIDEr of the captions the decoder writes for the images of a validation split."""
    settings = run.config.train
    decode = replace(run.config.decode, beam_size=settings.eval_beam_size, captions=1, sample=False)
    size = 32 if run.device.type == "cpu" else 256
    found = caption_split(decoder, split, decode, batch_images=size, limit=settings.eval_images)
    captions = best_captions(found, run.data.vocabulary)
    return scorer.score(captions, ("CIDEr",)).values["CIDEr"]


def _teacher(batch: Batch, device: torch.device) -> Teacher:
    return Teacher(batch.inputs.to(device), batch.batch_sizes, batch.image.to(device))


def _clip(network: nn.Module, settings: TrainConfig) -> float:
    """Clip as set; returns the norm of all gradients before."""
    by_norm = settings.clip > 0 and settings.clip_by == "norm"
    bound = settings.clip if by_norm else math.inf
    norm = nn.utils.clip_grad_norm_(network.parameters(), bound)
    if settings.clip > 0 and not by_norm:
        nn.utils.clip_grad_value_(network.parameters(), settings.clip)
    return norm.item()


def _note_score(progress: Progress, settings: TrainConfig, cider: float, loss: float) -> None:
    """Note whether these are the best weights yet: by CIDEr, and by loss while that is 0."""
    by_loss = cider == 0 and progress.best <= 0
    if by_loss and math.isinf(progress.best):
        log.warning(
            "validation CIDEr is 0: the best epoch is chosen by validation loss until it is not "
            "(CIDEr of a single image, or of captions without a word sequence of the references, "
            "is always 0)"
        )
    if cider > progress.best or (by_loss and loss < progress.best_loss * (1 - LEAST_GAIN)):
        progress.best, progress.best_epoch = cider, progress.epoch
        progress.best_loss = loss
        progress.since_best = progress.plateau = 0
        return
    progress.since_best += 1
    progress.plateau += 1
    if settings.schedule == "plateau" and progress.plateau > settings.plateau_patience:
        progress.rate_factor *= settings.plateau_factor
        progress.plateau = 0


def _out_of_patience(progress: Progress, settings: TrainConfig) -> bool:
    return 0 < settings.patience <= progress.since_best


def _checkpoint(run: Run, network: Network) -> Checkpoint:
    encoder, state = run.data.store.encoder, run.encoder_state
    if run.encoder is not None:
        encoder = run.encoder.config
    if network.encoder is not None:
        encoder = replace(encoder, weights=network.encoder.fingerprint())
        state = network.encoder.state_dict()
    return Checkpoint(
        decoder=network.decoder,
        model=run.config.model,
        encoder=encoder,
        decode=run.config.decode,
        vocabulary=run.data.vocabulary,
        feature_dim=run.data.store.dim,
        grid=round(run.data.store.cells**0.5),
        trained={
            "settings": asdict(run.config.train),
            "epoch": run.progress.epoch + 1,
            "steps": run.progress.step,
            "val_cider": run.progress.best if run.progress.since_best == 0 else None,
            "data": run.fingerprints,
        },
        encoder_state=state,
    )


@contextmanager
def _stop_at_step_end() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that a step is never cut in the middle."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
