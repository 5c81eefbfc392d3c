"""Train a decoder on prepared data with h-detach, resumable at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import torch
from torch import nn
from tqdm import tqdm

from captioner.config import Config, TrainConfig
from captioner.data.dataset import Batch
from captioner.errors import DivergenceError
from captioner.evaluate import references
from captioner.metrics.scorer import ReferenceScorer
from captioner.training.log import TrainingLog
from captioner.training.resume import save_run
from captioner.training.run import Run, prepare
from captioner.training.schedule import detach_probability, learning_rate
from captioner.training.validation import validate

AfterStep: TypeAlias = Callable[[Run, Batch], None]


@dataclass(frozen=True)
class Result:
    """How a training run ended."""

    best: Path  # checkpoint folder
    cider: float  # of the best checkpoint; 0 if validation loss chose it
    epochs: int
    seconds: float


def train(
    config: Config,
    *,
    resume: bool = False,
    show_progress: bool = True,
    stop: Callable[[], bool] | None = None,
    after_step: AfterStep | None = None,
) -> Result:
    """Train as `config` says; checkpoints `best` and `last`, logs and curves go to `config.out`.

    `stop` is asked after every step: once it is true, the run is saved and KeyboardInterrupt
    raised. `after_step` gets the run and its batch after every step, to measure something; it must
    leave weights and random state alone.
    Raises ConfigError if `out` holds another run, DataError for unusable data, CheckpointError if
    there is nothing to resume, DivergenceError if the gradient is not finite.
    """
    run = prepare(config, resume)
    settings, progress = config.train, run.progress
    scorers = [ReferenceScorer(references(split)) for split in run.data.validation]
    stop = stop or (lambda: False)
    with TrainingLog(run.out, progress.log_bytes, progress.step) as log:
        log.changed(progress.step, run.changes)
        while not progress.is_over(settings):
            with _progress_bar(run, show_progress) as bar:
                _train_epoch(run, log, stop, after_step, bar)
            _end_epoch(run, log, scorers)
            if stop():
                raise KeyboardInterrupt
    return Result(run.out / "best", progress.best, progress.epoch, run.seconds())


def _progress_bar(run: Run, shown: bool) -> tqdm[NoReturn]:
    progress = run.progress
    return tqdm(
        total=run.batches,
        initial=progress.batch,
        unit="batch",
        desc=f"epoch {progress.epoch + 1}/{run.config.train.epochs}",
        disable=not shown,
    )


def _train_epoch(
    run: Run,
    log: TrainingLog,
    stop: Callable[[], bool],
    after_step: AfterStep | None,
    bar: tqdm[NoReturn],
) -> None:
    """Train the rest of the epoch; raise KeyboardInterrupt, with the run saved, on `stop`."""
    progress = run.progress
    run.decoder.train(run.objective.dropout)
    for batch in epoch_batches(run):
        figures = train_step(run, batch)
        log.step(progress.step, **figures)
        bar.update()
        bar.set_postfix(loss=f"{progress.mean_loss:.3f}")
        if after_step is not None:
            after_step(run, batch)
        stopping = stop()
        if stopping or progress.step % run.config.train.save_steps == 0:
            save_run(run, log.flush())
        if stopping:
            raise KeyboardInterrupt


def epoch_batches(run: Run) -> Iterator[Batch]:
    """Return the batches of the current epoch that are still to come, in their order."""
    seed = run.config.train.seed * 1_000_003 + run.progress.epoch
    return run.data.epoch(seed, skip=run.progress.batch)


def train_step(run: Run, batch: Batch) -> dict[str, float]:
    """Take one step of the optimizer; return its figures for the log.

    These are loss, cross-entropy, gradient norm, learning rate, and the objective's own.
    Raises DivergenceError if the gradient is not finite.
    """
    settings, progress = run.config.train, run.progress
    total_steps = run.batches * settings.epochs
    share_done = progress.step / total_steps

    rate = learning_rate(settings, progress.step, total_steps) * progress.rate_factor
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["share"]

    with torch.autocast(run.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        target = run.objective.target(run.decoder, run.network.encode(batch), progress.step)
        prediction = run.decoder(
            target.batch.features,
            target.batch.captions,
            detach_prob=detach_probability(settings, share_done),
            detach_attention=settings.detach_attention,
            sampling_prob=settings.scheduled_sampling * share_done,
        )
    loss, cross_entropy = run.objective.loss(prediction, target)

    run.optimizer.zero_grad()
    loss.backward()
    norm = _clip(run.network, settings)
    if not math.isfinite(norm):
        raise _divergence(run, norm)
    run.optimizer.step()
    run.kept.update()

    progress.count(len(target.batch.targets), cross_entropy.item())
    return {
        "loss": loss.item(),
        "cross_entropy": cross_entropy.item(),
        "gradient_norm": norm,
        "learning_rate": rate,
        **target.figures,
    }


def _clip(network: nn.Module, settings: TrainConfig) -> float:
    """Clip the gradient as set; return the norm it had."""
    by_norm = settings.clip > 0 and settings.clip_by == "norm"
    bound = settings.clip if by_norm else math.inf
    norm = nn.utils.clip_grad_norm_(network.parameters(), bound)
    if settings.clip > 0 and not by_norm:
        nn.utils.clip_grad_value_(network.parameters(), settings.clip)
    return norm.item()


def _divergence(run: Run, norm: float) -> DivergenceError:
    saved = (run.out / "state.pt").exists()
    return DivergenceError(
        f"training diverged: the gradient is {norm} at step {run.progress.step + 1}; lower "
        "train.learning_rate or train.clip, and "
        + ("go on from the last save with --resume" if saved else "start again")
    )


def _end_epoch(run: Run, log: TrainingLog, scorers: Sequence[ReferenceScorer]) -> None:
    """Validate if it is time to, and save the run at the start of the next epoch."""
    settings, done = run.config.train, run.progress.epoch + 1
    if done % settings.eval_epochs == 0 or done == settings.epochs:
        validate(run, log, scorers)
    run.progress.next_epoch()
    save_run(run, log.flush())
