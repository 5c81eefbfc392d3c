"""One training run: its parts, made new or restored exactly."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner.checkpoint import Checkpoint, load, load_state
from captioner.config import Config, EncoderConfig, TrainConfig
from captioner.device import choose_device
from captioner.errors import ConfigError
from captioner.model.decoder import Decoder, make_decoder
from captioner.model.encoder import Encoder
from captioner.training.checks import (
    check_splits,
    check_start,
    encoder_config,
    reads_images,
    stored_encoder,
)
from captioner.training.data import TrainingData
from captioner.training.network import KeptWeights, Network
from captioner.training.objective import CrossEntropy, Objective
from captioner.training.progress import Progress
from captioner.training.resume import restore
from captioner.training.self_critical import SelfCritical

OBJECTIVES = {"cross_entropy": CrossEntropy, "self_critical": SelfCritical}


@dataclass
class Run:
    """The parts of one training run."""

    config: Config
    data: TrainingData
    network: Network
    kept: KeptWeights
    optimizer: torch.optim.Optimizer
    objective: Objective
    encoder: EncoderConfig  # of the features
    encoder_state: Mapping[str, Tensor] | None  # of a frozen CNN whose name does not lead to it
    changes: dict[str, Any] = field(default_factory=dict)  # of settings, since the run was saved
    progress: Progress = field(default_factory=Progress)
    opened: float = field(default_factory=time.monotonic)

    @property
    def out(self) -> Path:
        """The folder of the run."""
        return Path(self.config.out)

    @property
    def decoder(self) -> Decoder:
        """The decoder in training."""
        return self.network.decoder

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.data.train.number_of_batches(self.config.train.batch_images)

    def seconds(self) -> float:
        """Return the time spent on the run, over all resumes."""
        return self.progress.seconds + time.monotonic() - self.opened

    def checkpoint(self, network: Network) -> Checkpoint:
        """Return a checkpoint with the weights of `network`."""
        encoder, state, store = self.encoder, self.encoder_state, self.data.train.store
        if network.encoder is not None:
            encoder = replace(encoder, weights=network.encoder.fingerprint())
            state = network.encoder.state_dict()
        return Checkpoint(
            decoder=network.decoder,
            model=self.config.model,
            encoder=encoder,
            decode=self.config.decode,
            vocabulary=self.data.train.vocabulary,
            feature_dim=store.dim,
            grid=round(store.cells**0.5),
            trained={
                "settings": asdict(self.config.train),
                "epoch": self.progress.epoch + 1,
                "steps": self.progress.step,
                "val_cider": self.progress.best if self.progress.since_best == 0 else None,
                "data": self.data.fingerprints,
            },
            encoder_state=state,
        )


def prepare(config: Config, resume: bool) -> Run:
    """Return the run that `config` describes, or the one saved in its folder."""
    settings, state_file = config.train, Path(config.out) / "state.pt"
    if not resume and state_file.exists():
        raise ConfigError(
            f"{config.out}: it holds a run already; go on with --resume or give another --out"
        )
    device = _set_up_torch(settings)
    data = TrainingData(config, device)
    start = load(settings.start) if settings.start else None
    if start is not None:
        check_start(start, config, data.train)
        check_splits(start, data.fingerprints, f"training cannot start from {settings.start}")
    encoder = encoder_config(data.train, start)
    encoder_state = stored_encoder(encoder, config.folders, start)
    decoder = make_decoder(config.model, len(data.train.vocabulary), data.train.store.dim)
    if start is not None:
        _start_from(start, decoder, settings.sharpen)
    reading = None
    if reads_images(settings):
        reading = Encoder(encoder, encoder_state)
        reading.unfreeze(settings.encoder_blocks)
        data.read_images([Path(folder) for folder in config.image_folders], reading.to(device))
    network = Network(decoder, reading if settings.encoder_blocks else None).to(device)
    run = Run(
        config, data, network,
        kept=KeptWeights(network, settings),
        optimizer=make_optimizer(settings, network),
        objective=OBJECTIVES[settings.objective](data.train, settings),
        encoder=encoder,
        encoder_state=encoder_state,
    )  # fmt: skip
    if resume:
        restore(run, load_state(state_file))
    else:
        _make_folder(run.out)
    return run


def _set_up_torch(settings: TrainConfig) -> torch.device:
    """Set threads, seed and precision of products; return the device."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return device


def _start_from(start: Checkpoint, decoder: Decoder, sharpen: float) -> None:
    """Load the weights of a checkpoint, and multiply its logits by `sharpen`."""
    decoder.load_state_dict(start.decoder.state_dict())
    with torch.no_grad():
        for part in decoder.out.parameters():
            part.mul_(sharpen)


def make_optimizer(settings: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return Adam or AdamW over all weights that learn, fused if torch can.

    An encoder among them is a group of its own; the `share` of a group is its part of the rate.
    """
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    encoder = getattr(network, "encoder", None)
    own = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]
    known = {id(parameter) for parameter in own}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": rest, "share": 1.0}]
    if own:
        groups.append({"params": own, "share": settings.encoder_rate / settings.learning_rate})
    return kind(
        groups,
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=rest[0].device.type in ("cpu", "cuda"),
    )


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.jsonl").touch()
    except OSError as error:
        raise ConfigError(
            f"{out}: cannot write to it ({error.strerror}); give another --out"
        ) from None
