"""One training run: its parts, made anew or restored exactly, and its place in time."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from captioner.checkpoint import Checkpoint, load, load_state, save_state
from captioner.config import Config, DecodeConfig, EncoderConfig, ModelConfig, TrainConfig
from captioner.data.dataset import CaptionDataset, joint_vocabulary
from captioner.data.fingerprint import Fingerprint, differences, fingerprints, split_otherwise
from captioner.device import choose_device
from captioner.errors import CheckpointError, ConfigError, DataError
from captioner.model import Decoder, make_decoder
from captioner.model.encoder import TRAINED, Encoder, names_a_file
from captioner.training.augmentation import Photographs
from captioner.training.self_critical import SelfCritical

log = logging.getLogger(__name__)

# Settings of training that may differ when a run is resumed: these do not change what is computed,
UNSEEN = {"device", "threads", "save_steps", "gradient_flow_steps"}
# and a change of these is noted in the log.
NOTED = {"learning_rate", "encoder_rate", "clip", "clip_by", "epochs", "patience"}


@dataclass
class Progress:
    """Where a run stands; saved with the weights."""

    epoch: int = 0
    batch: int = 0  # next batch of the epoch
    step: int = 0  # optimizer steps so far
    best: float = -math.inf  # validation CIDEr
    best_loss: float = math.inf  # of validation; it judges while CIDEr is 0
    best_epoch: int = -1
    since_best: int = 0  # epochs
    plateau: int = 0  # epochs without a better CIDEr since the rate last fell
    rate_factor: float = 1.0
    loss_sum: float = 0.0  # of this epoch, over tokens
    tokens: int = 0
    seconds: float = 0.0  # spent so far, over all resumes
    log_bytes: int = 0

    def count(self, tokens: int, loss: float) -> None:
        """Note one step: its tokens and their mean loss."""
        self.step += 1
        self.batch += 1
        self.tokens += tokens
        self.loss_sum += loss * tokens

    @property
    def mean_loss(self) -> float:
        """Training loss a token in this epoch so far."""
        return self.loss_sum / self.tokens

    def next_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.tokens = 0.0, 0


class Network(nn.Module):
    """What a run trains: the decoder, and the encoder where that learns, too."""

    def __init__(self, decoder: Decoder, encoder: Encoder | None):
        super().__init__()
        self.decoder, self.encoder = decoder, encoder


@dataclass
class Run:
    """The parts of one training run."""

    config: Config
    data: CaptionDataset
    validation: list[CaptionDataset]  # one for each data folder
    network: Network
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    device: torch.device
    out: Path
    critic: SelfCritical | None  # where captions are drawn
    start: Checkpoint | None  # where training began
    encoder: Encoder | None  # what photographs are read with; learns where `network` has it
    photographs: Photographs | None  # of `data`, where they are read
    validation_photographs: list[Photographs]  # of `validation`, likewise
    origin: Mapping[str, Tensor] | None  # weights at the start, where some of them is kept
    encoder_state: Mapping[str, Tensor] | None  # of a frozen CNN whose name does not lead to it
    fingerprints: list[Fingerprint]  # of the data folders
    changes: dict[str, Any] = field(default_factory=dict)  # of settings, since the run was saved
    progress: Progress = field(default_factory=Progress)
    opened: float = field(default_factory=time.monotonic)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return self.data.number_of_batches(self.config.train.batch_images)

    def seconds(self) -> float:
        """Time spent on the run, over all resumes."""
        return self.progress.seconds + time.monotonic() - self.opened

    @property
    def decoder(self) -> Decoder:
        """The decoder in training."""
        return self.network.decoder

    @property
    def validated(self) -> Network:
        """What is scored and kept: the running average where there is one, mixed with the start.

        The mean of the weights before and after: Wortsman et al., "Robust fine-tuning", CVPR 2022.
        """
        network = self.network if self.average is None else cast(Network, self.average.module)
        if self.origin is None:
            return network
        mixed, keep = copy.deepcopy(network), self.config.train.keep_start
        weights = network.state_dict().items()
        mixed.load_state_dict({name: w.lerp(self.origin[name], keep) for name, w in weights})
        return mixed


def prepare(config: Config, resume: bool) -> Run:
    """Make the run that `config` describes, or restore the one in its folder."""
    settings, out = config.train, Path(config.out)
    state_file = out / "state.pt"
    if not resume and state_file.exists():
        raise ConfigError(f"{out} holds a run already; go on with --resume or give another --out")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    device = choose_device(settings.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    vocabulary = joint_vocabulary(config.folders, settings.min_count)
    data = CaptionDataset(config.folders, "train", vocabulary)
    validation = [CaptionDataset(folder, "val", vocabulary) for folder in config.folders]
    start = load(settings.start) if settings.start else None
    known = fingerprints(config.folders)
    if start is not None:
        _check_start(start, config, data)
        check_splits(start, known, f"training cannot start from {settings.start}")
    encoder_state = stored_encoder(_encoder_config(data, start), config.folders, start)
    decoder = make_decoder(config.model, len(data.vocabulary), data.store.dim)
    if start is not None:
        _start_from(start, decoder, settings.sharpen)
    encoder = photographs = None
    validation_photographs: list[Photographs] = []
    if _reads_photographs(settings):
        encoder = Encoder(_encoder_config(data, start), encoder_state)
        encoder.unfreeze(settings.encoder_blocks)
        encoder.to(device)
        folders = [Path(folder) for folder in config.image_folders]
        leave_out_missing(data, folders)
        for split, folder in zip(validation, folders, strict=True):
            leave_out_missing(split, [folder])
        photographs = Photographs(folders, data, encoder)
        validation_photographs = [
            Photographs(folder, split, encoder)
            for folder, split in zip(folders, validation, strict=True)
        ]
    network = Network(decoder, encoder if settings.encoder_blocks else None).to(device)
    average = None
    if settings.average:
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    optimizer = make_optimizer(settings, network)
    critic = SelfCritical(data, settings) if settings.objective == "self_critical" else None
    origin = None
    if settings.keep_start:
        origin = {name: weight.clone() for name, weight in network.state_dict().items()}
    run = Run(
        config, data, validation, network, average, optimizer, device, out, critic, start,
        encoder, photographs, validation_photographs, origin, encoder_state, known,
    )  # fmt: skip
    if resume:
        _restore(run, load_state(state_file))
    else:
        _make_folder(out)
    return run


def _reads_photographs(settings: TrainConfig) -> bool:
    return settings.augment or settings.encoder_blocks > 0


def _encoder_config(data: CaptionDataset, start: Checkpoint | None) -> EncoderConfig:
    """That of the data, with the weights of the checkpoint that training starts from."""
    if start is None or start.encoder_state is None:
        return data.store.encoder
    return replace(data.store.encoder, weights=start.encoder.weights)


def _check_start(start: Checkpoint, config: Config, data: CaptionDataset) -> None:
    """Raise ConfigError unless a checkpoint has the shape, words and encoder of this run."""
    encoder = data.store.encoder
    if _reads_photographs(config.train):  # then the data's features are not used
        encoder = replace(_encoder_config(data, start), image_size=start.encoder.image_size)
    for name, ours, theirs in (
        ("model", config.model, start.model),
        ("encoder", encoder, start.encoder),
        ("vocabulary", data.vocabulary, start.vocabulary),
    ):
        same = ours == theirs
        if name == "model":  # another dropout has the same weights
            same = replace(config.model, dropout=0) == replace(start.model, dropout=0)
        if not same:
            raise ConfigError(
                f"training cannot start from {config.train.start}: its {name} is not that of the "
                + ("data" if name == "vocabulary" else f"config ({theirs} instead of {ours})")
            )


def check_splits(start: Checkpoint, known: Sequence[Fingerprint], problem: str) -> None:
    """Raise ConfigError if a checkpoint was trained on the same captions, split otherwise.

    Then it may have learnt what now validates. Other captions may be what it is to learn.
    """
    for now in known:
        for then in start.trained.get("data", ()):
            if split_otherwise(then, now):
                raise ConfigError(
                    f"{problem}: it was trained on another split of the same captions, and may "
                    "have learnt those that validate now; prepare the data with the same splits"
                )


def stored_encoder(
    config: EncoderConfig, folders: Sequence[str], start: Checkpoint | None
) -> Mapping[str, Tensor] | None:
    """The weights of a CNN that `config` alone does not lead to; None for those it leads to.

    They are those of the checkpoint that training starts from, those that data_prep left in a data
    folder, or those of a file. Raises ConfigError if they are in none of these: a checkpoint
    without them cannot caption.
    """
    if start is not None and start.encoder_state is not None:
        return start.encoder_state
    for folder in folders:
        path = Path(folder) / "encoder.safetensors"
        try:
            with safe_open(path, "pt") as file:
                named = (file.metadata() or {}).get("weights", config.weights)
                if named == config.weights:
                    return {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            continue
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path}: it is damaged ({error}); run data_prep again") from None
    if config.weights.startswith(TRAINED):
        raise ConfigError(
            f"{folders[0]}: its features are of a trained {config.name}, {config.weights}, whose "
            "weights the folder does not hold; run data_prep on it again with --encoder-of "
            "CHECKPOINT, or give a checkpoint that holds them as train.start"
        )
    if names_a_file(config):
        return Encoder(config).state_dict()
    return None


def leave_out_missing(dataset: CaptionDataset, folders: Sequence[Path]) -> None:
    """Leave out the examples whose image is missing, and warn with their number and names.

    Raises DataError where all images of a folder are missing: then it is the wrong folder.
    """
    places = [
        folders[number] / example.image
        for example, number in zip(dataset.examples, dataset.folder_of, strict=True)
    ]
    there = [path.is_file() for path in places]
    for number in range(len(folders)):
        own = [k for k, of in enumerate(dataset.folder_of) if of == number]
        if not any(there[k] for k in own):
            raise DataError(
                f"no photograph at {places[own[0]]}, nor at any other place of the {len(own):,} "
                f"{dataset.split} images; give the folder that holds the photographs as --images"
            )
    missing = [str(path) for path, found in zip(places, there, strict=True) if not found]
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        log.warning(
            "left out: %s of %s %s images are missing (%s)",
            f"{len(missing):,}", f"{len(there):,}", dataset.split, some,
        )  # fmt: skip
        for name in ("examples", "folder_of", "tokens"):
            kept = [v for v, found in zip(getattr(dataset, name), there, strict=True) if found]
            setattr(dataset, name, kept)


def _start_from(start: Checkpoint, decoder: Decoder, sharpen: float) -> None:
    decoder.load_state_dict(start.decoder.state_dict())
    with torch.no_grad():
        for part in decoder.out.parameters():
            part.mul_(sharpen)


def make_optimizer(settings: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW over all weights that learn, in torch's fused form where there is one.

    An encoder among them is a group of its own; each group's `share` is its part of the rate.
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
        raise ConfigError(f"cannot write to {out}: {error.strerror}; give another --out") from None


def save_run(run: Run, log_bytes: int) -> None:
    """Save everything that `prepare` needs to go on exactly from here."""
    progress = replace(run.progress, seconds=run.seconds(), log_bytes=log_bytes)
    state = {
        "settings": _settings(run),
        "data": run.fingerprints,
        "progress": asdict(progress),
        "network": run.network.state_dict(),
        "average": run.average.state_dict() if run.average is not None else None,
        "optimizer": run.optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state() if run.device.type == "cuda" else None,
    }
    save_state(state, run.out / "state.pt")


def _restore(run: Run, state: dict[str, Any]) -> None:
    try:
        _check_unchanged(run, state)
        _take_up(run, state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{run.out}/state.pt: it does not hold this run ({reason}); give another --out, and "
            f"{run.out}/last as train.start to go on from its weights"
        ) from None


def _take_up(run: Run, state: Mapping[str, Any]) -> None:
    shares = [group["share"] for group in run.optimizer.param_groups]
    run.network.load_state_dict(state["network"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    run.optimizer.load_state_dict(state["optimizer"])
    for group, share in zip(run.optimizer.param_groups, shares, strict=True):
        group["share"] = share  # of the rates as they are set now
    run.progress = Progress(**state["progress"])
    torch.set_rng_state(state["random"])
    if run.device.type == "cuda" and state["random_cuda"] is not None:
        torch.cuda.set_rng_state(state["random_cuda"])


def _check_unchanged(run: Run, state: Mapping[str, Any]) -> None:
    """Raise ConfigError if the data or a setting is another; note the changes that may be.

    What an older state does not know is taken to be as it is now, or at its default.
    """
    known = state.get("data", [])
    if known and len(known) != len(run.fingerprints):
        raise ConfigError(
            f"{run.out}: it was begun with {len(known)} data folders, now there are "
            f"{len(run.fingerprints)}; resume with the same ones, or give another --out"
        )
    for folder, now, then in zip(run.config.folders, run.fingerprints, known, strict=False):
        parts = differences(now, then)
        if parts:
            raise ConfigError(
                f"{run.out}: it was begun with other data; {' and '.join(parts)} of {folder} are "
                "not those of then; "
                "prepare the folder as it was, or give another --out"
            )
    now, defaults = _settings(run), _flat(ModelConfig(), TrainConfig())
    then = {**{key: defaults.get(key, value) for key, value in now.items()}, **state["settings"]}
    free = {f"train.{name}" for name in NOTED}
    changed = sorted(key for key in now if now[key] != then[key])
    wrong = [f"{key} = {then[key]}, now it is {now[key]}" for key in changed if key not in free]
    if wrong:
        raise ConfigError(
            f"{run.out}: it was begun with {'; '.join(wrong)}; resume with the same settings, or "
            "give another --out"
        )
    told = [key for key in changed if key in state["settings"]]
    run.changes = {key: [then[key], now[key]] for key in told}


def _settings(run: Run) -> dict[str, Any]:
    """What makes a run what it is, flat: its settings and the size of its data."""
    tree = _flat(run.config.model, run.config.train, run.config.decode)
    return tree | {
        "data.images": len(run.data),
        "data.words": len(run.data.vocabulary),
        "data.encoder": asdict(run.data.store.encoder),
    }


def _flat(*parts: ModelConfig | TrainConfig | DecodeConfig) -> dict[str, Any]:
    names = {ModelConfig: "model", TrainConfig: "train", DecodeConfig: "decode"}
    return {
        f"{names[type(part)]}.{name}": value
        for part in parts
        for name, value in asdict(part).items()
        if not (isinstance(part, TrainConfig) and name in UNSEEN)
    }
