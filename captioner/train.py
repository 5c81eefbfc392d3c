"""Train a decoder on prepared data: cross-entropy with h-detach, resumable at any step."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from captioner.checkpoint import Checkpoint, load_state, save, save_state
from captioner.config import Config, TrainConfig
from captioner.data import Batch, CaptionDataset
from captioner.decoder import Decoder, Prediction, Teacher, make_decoder
from captioner.errors import ConfigError
from captioner.evaluate import caption_split, references
from captioner.journal import Journal
from captioner.metrics import ReferenceScorer

# Settings that may differ when a run is resumed: they do not change what is computed.
FREE_TO_CHANGE = {"device", "threads", "save_steps", "patience"}


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # optimizer steps so far
    best: float = -math.inf  # validation CIDEr
    best_epoch: int = -1
    since_best: int = 0  # epochs
    plateau: int = 0  # epochs without a better CIDEr since the rate last fell
    rate_factor: float = 1.0
    loss_sum: float = 0.0  # of this epoch, over tokens
    tokens: int = 0
    seconds: float = 0.0  # spent so far, over all resumes
    log_bytes: int = 0


@dataclass
class Run:
    """The parts of one training run."""

    config: Config
    data: CaptionDataset
    validation: CaptionDataset
    decoder: Decoder
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    device: torch.device
    out: Path
    progress: Progress = field(default_factory=Progress)

    @property
    def validated(self) -> Decoder:
        """The decoder that is scored and kept: the running average where there is one."""
        return self.decoder if self.average is None else cast(Decoder, self.average.module)


@dataclass(frozen=True)
class Result:
    """What a training run gave."""

    best: Path  # checkpoint folder
    cider: float
    epochs: int
    seconds: float


def train(config: Config, *, resume: bool = False, show_progress: bool = True) -> Result:
    """Train as `config` says; checkpoints `best` and `last`, logs and curves go to `config.out`.

    Raises ConfigError when `out` holds another run, DataError for unusable data, CheckpointError
    when there is nothing to resume.
    """
    run = _prepare(config, resume)
    settings, progress = config.train, run.progress
    scorer = ReferenceScorer(references(run.validation))
    batches = run.data.number_of_batches(settings.batch_images)
    total_steps = batches * settings.epochs
    journal = Journal(run.out, progress.log_bytes, progress.step)
    started = time.monotonic() - progress.seconds

    with _stop_at_step_end() as stop, journal:
        while progress.epoch < settings.epochs and not _out_of_patience(progress, settings):
            bar = tqdm(
                total=batches,
                initial=progress.batch,
                unit="batch",
                desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
                disable=not show_progress,
            )
            epoch_batches = run.data.batches(
                settings.batch_images,
                max_words=settings.max_words,
                captions_per_image=settings.captions_per_image,
                mirror=settings.mirror,
                seed=settings.seed * 1_000_003 + progress.epoch,
                skip=progress.batch,
            )
            run.decoder.train()
            for batch in epoch_batches:
                rate = learning_rate(settings, progress.step, total_steps) * progress.rate_factor
                for group in run.optimizer.param_groups:
                    group["lr"] = rate
                share_done = progress.step / total_steps
                prediction, targets = _forward(run, batch, share_done)
                loss, cross_entropy = caption_loss(prediction, targets, batch.batch_sizes, settings)
                run.optimizer.zero_grad()
                loss.backward()
                norm = _clip(run.decoder, settings)
                run.optimizer.step()
                if run.average is not None:
                    run.average.update_parameters(run.decoder)

                progress.step += 1
                progress.batch += 1
                progress.tokens += len(targets)
                progress.loss_sum += cross_entropy.item() * len(targets)
                bar.update()
                bar.set_postfix(loss=f"{progress.loss_sum / progress.tokens:.3f}")
                journal.step(
                    progress.step,
                    loss=loss.item(),
                    cross_entropy=cross_entropy.item(),
                    gradient_norm=norm,
                    learning_rate=rate,
                )
                if stop or progress.step % settings.save_steps == 0:
                    _save_state(run, journal, time.monotonic() - started)
                    if stop:
                        raise KeyboardInterrupt
            bar.close()

            validated = run.validated
            cider = validation_cider(validated, run, scorer)
            journal.epoch(
                progress.epoch + 1,
                progress.step,
                train_loss=progress.loss_sum / progress.tokens,
                val_loss=validation_loss(validated, run),
                cider=cider,
                seconds=time.monotonic() - started,
            )
            _note_score(progress, settings, cider)
            checkpoint = _checkpoint(run, validated)
            if progress.since_best == 0:
                save(checkpoint, run.out / "best")
            save(checkpoint, run.out / "last")
            progress.epoch, progress.batch = progress.epoch + 1, 0
            progress.loss_sum, progress.tokens = 0.0, 0
            _save_state(run, journal, time.monotonic() - started)
            if stop:
                raise KeyboardInterrupt
    return Result(run.out / "best", progress.best, progress.epoch, time.monotonic() - started)


def caption_loss(
    prediction: Prediction, targets: Tensor, batch_sizes: list[int], settings: TrainConfig
) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the plain cross-entropy a token (nats) in it.

    With attention, adds `attention_penalty` times the mean over captions and cells of
    (1 - sum_t alpha)^2, the doubly stochastic penalty (Xu et al. 2015, equation 14).
    """
    logits = prediction.logits.float()
    cross_entropy = F.cross_entropy(logits, targets)
    loss = cross_entropy
    if settings.label_smoothing:
        loss = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
    if prediction.attention is not None and settings.attention_penalty:
        attention = prediction.attention.float()
        row = torch.cat([torch.arange(size) for size in batch_sizes]).to(attention.device)
        seen = attention.new_zeros(batch_sizes[0], attention.shape[1]).index_add(0, row, attention)
        loss = loss + settings.attention_penalty * ((1 - seen) ** 2).mean()
    return loss, cross_entropy.detach()


def learning_rate(settings: TrainConfig, step: int, total_steps: int) -> float:
    """The rate of one step: linear warm-up, then constant or cosine to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule != "cosine":
        return settings.learning_rate
    share = (step - settings.warmup_steps) / max(total_steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(share, 1)))


def detach_probability(settings: TrainConfig, share_done: float) -> float:
    """`detach_prob`, and 0 in the last `detach_anneal` share of training."""
    return 0.0 if share_done >= 1 - settings.detach_anneal else settings.detach_prob


@torch.inference_mode()
def validation_loss(decoder: Decoder, run: Run) -> float:
    """Cross-entropy a token (nats) of the validation captions."""
    decoder.eval()
    loss, tokens = 0.0, 0
    settings = run.config.train
    for batch in run.validation.batches(settings.batch_images, max_words=settings.max_words):
        prediction = decoder(batch.features.to(run.device), _teacher(batch, run.device))
        targets = batch.targets.to(run.device)
        loss += F.cross_entropy(prediction.logits, targets, reduction="sum").item()
        tokens += len(targets)
    return loss / tokens


def validation_cider(decoder: Decoder, run: Run, scorer: ReferenceScorer) -> float:
    """CIDEr of the captions the decoder writes for the validation pictures."""
    settings = run.config.train
    decode = replace(run.config.decode, beam_size=settings.eval_beam_size, captions=1, sample=False)
    found = caption_split(decoder, run.validation, decode, limit=settings.eval_images)
    captions = {
        image_id: " ".join(run.data.vocabulary.decode(hypotheses[0].tokens))
        for image_id, hypotheses in found.items()
    }
    return scorer.score(captions, ("CIDEr",)).values["CIDEr"]


def _prepare(config: Config, resume: bool) -> Run:
    settings, out = config.train, Path(config.out)
    state_file = out / "state.pt"
    if not resume and state_file.exists():
        raise ConfigError(f"{out} holds a run already; go on with --resume or give another --out")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = choose_device(settings.device)
    data, validation = CaptionDataset(config.data, "train"), CaptionDataset(config.data, "val")
    decoder = make_decoder(config.model, len(data.vocabulary), data.store.dim).to(device)
    average = None
    if settings.average:
        average = AveragedModel(decoder, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(
        decoder.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    run = Run(config, data, validation, decoder, average, optimizer, device, out)
    if resume:
        _load_state(run, load_state(state_file))
    else:
        _make_folder(out)
    return run


def choose_device(name: str) -> torch.device:
    """`auto` takes a GPU if there is one; raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used: {reason}") from None
    return device


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.jsonl").touch()
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --out") from None


def _forward(run: Run, batch: Batch, share_done: float) -> tuple[Prediction, Tensor]:
    settings = run.config.train
    low = settings.precision == "bfloat16"
    with torch.autocast(run.device.type, torch.bfloat16, enabled=low):
        prediction = run.decoder(
            batch.features.to(run.device),
            _teacher(batch, run.device),
            detach_prob=detach_probability(settings, share_done),
            detach_attention=settings.detach_attention,
            sampling_prob=settings.scheduled_sampling * share_done,
        )
    return prediction, batch.targets.to(run.device)


def _teacher(batch: Batch, device: torch.device) -> Teacher:
    return Teacher(batch.inputs.to(device), batch.batch_sizes, batch.image.to(device))


def _clip(decoder: nn.Module, settings: TrainConfig) -> float:
    """Clip as set; returns the norm of all gradients before."""
    by_norm = settings.clip > 0 and settings.clip_by == "norm"
    bound = settings.clip if by_norm else math.inf
    norm = nn.utils.clip_grad_norm_(decoder.parameters(), bound)
    if settings.clip > 0 and not by_norm:
        nn.utils.clip_grad_value_(decoder.parameters(), settings.clip)
    return norm.item()


def _note_score(progress: Progress, settings: TrainConfig, cider: float) -> None:
    if cider > progress.best:
        progress.best, progress.best_epoch = cider, progress.epoch
        progress.since_best = progress.plateau = 0
        return
    progress.since_best += 1
    progress.plateau += 1
    if settings.schedule == "plateau" and progress.plateau > settings.plateau_patience:
        progress.rate_factor *= settings.plateau_factor
        progress.plateau = 0


def _out_of_patience(progress: Progress, settings: TrainConfig) -> bool:
    return 0 < settings.patience <= progress.since_best


def _checkpoint(run: Run, decoder: Decoder) -> Checkpoint:
    return Checkpoint(
        decoder=decoder,
        model=run.config.model,
        encoder=run.data.store.encoder,
        decode=run.config.decode,
        vocabulary=run.data.vocabulary,
        feature_dim=run.data.store.dim,
        grid=round(run.data.store.cells**0.5),
        trained={
            "settings": asdict(run.config.train),
            "epoch": run.progress.epoch + 1,
            "steps": run.progress.step,
            "val_cider": run.progress.best if run.progress.since_best == 0 else None,
        },
    )


def _save_state(run: Run, journal: Journal, seconds: float) -> None:
    run.progress.seconds, run.progress.log_bytes = seconds, journal.flush()
    state = {
        "settings": _settings(run.config),
        "progress": asdict(run.progress),
        "decoder": run.decoder.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "optimizer": run.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state() if run.device.type == "cuda" else None,
    }
    save_state(state, run.out / "state.pt")


def _load_state(run: Run, state: dict[str, Any]) -> None:
    now, then = _settings(run.config), state["settings"]
    changed = sorted(key for key in now if now[key] != then.get(key))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{run.out} was begun with {key} = {then.get(key)}, now it is {now[key]}: resume with "
            "the same settings, or give another --out"
        )
    run.decoder.load_state_dict(state["decoder"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.progress = Progress(**state["progress"])
    torch.set_rng_state(state["random"])
    if run.device.type == "cuda" and state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"])


def _settings(config: Config) -> dict[str, Any]:
    """The settings that make a run what it is, flat."""
    tree = {"model": asdict(config.model), "train": asdict(config.train)}
    return {
        f"{part}.{name}": value
        for part, values in tree.items()
        for name, value in values.items()
        if name not in FREE_TO_CHANGE
    }


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
