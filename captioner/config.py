"""All settings with their defaults, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Interval

from captioner.errors import ConfigError
from captioner.strict import (
    Amount,
    AtLeastOne,
    NotNegative,
    Positive,
    Probability,
    Share,
    problems,
)

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class EncoderConfig:
    """The pretrained CNN and its input; fixed when the features are made.

    Args:
        name: efficientnet_lite0/1/2, or a torchvision network such as resnet101.
        weights: "default", "none" (random), a torchvision name, or a weights file.
        resize: squash an image to a square, or crop it to its central square.
        image_size: side of the square in pixels; 0 is the size the CNN was trained with.
        grid: cells along each side of the feature grid; 0 is the CNN's own.
    """

    name: str = "efficientnet_lite2"
    weights: str = "default"
    resize: Literal["squash", "crop"] = "squash"
    image_size: NotNegative = 0
    grid: NotNegative = 0

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of the decoder.

    Args:
        decoder: show_tell (no attention), show_attend_tell (soft attention), adaptive (attention
            with a sentinel) or up_down (two LSTMs, one for the attention).
        embed_dim: size E of the word embeddings.
        hidden_dim: size H of the LSTM's hidden state.
        attention_dim: size A of the attention layer.
        feature_dim: size to which the features are projected first; 0 is no projection
            (show_attend_tell).
        num_layers: number of stacked LSTM layers (show_tell).
        attributes: number of frequent words that an attribute detector predicts from the image as
            input of the decoder; 0 is no detector (show_attend_tell, up_down).
        dropout: dropout of the features, the embeddings and the output layer.
    """

    decoder: Literal["show_tell", "show_attend_tell", "adaptive", "up_down"] = "show_attend_tell"
    embed_dim: AtLeastOne = 512
    hidden_dim: AtLeastOne = 512
    attention_dim: AtLeastOne = 512
    feature_dim: NotNegative = 0
    num_layers: AtLeastOne = 1
    attributes: NotNegative = 0
    dropout: Share = 0.5

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class TrainConfig:
    """The training of a decoder.

    Args:
        objective: cross_entropy learns the reference captions; self_critical samples captions and
            reinforces those that beat the baseline in CIDEr-D, and needs a trained decoder.
        start: checkpoint whose weights are the initial ones; empty is random weights.
        keep_start: share of the initial weights in the mean of initial and trained weights that is
            validated and kept; the mean is often better than either.
        sharpen: factor on the output logits of `start`. 2 makes samples of a decoder trained with
            label smoothing nearly as good as its searched captions.
        samples: captions sampled per image (self_critical).
        reward_bleu: weight of BLEU-4 beside CIDEr-D in the reward (self_critical).
        baseline: baseline of the reward: the mean of the image's other samples, or its greedy
            caption (self_critical).
        epochs: passes over the training images.
        batch_images: images in a batch, each with its captions.
        captions_per_image: maximum number of captions of an image in a batch; 0 is all.
        equal_images: repeat captions of images with fewer than captions_per_image, so that every
            image has the same weight; otherwise every caption has.
        data_weights: relative frequency of the images of each data folder; if empty, every image
            occurs once an epoch.
        min_count: words with fewer occurrences are unknown (several data folders).
        max_words: maximum length of a training caption; longer ones are cut.
        mirror: use mirrored features half of the time, if the data has them.
        optimizer: adam or adamw.
        learning_rate: maximum learning rate of the decoder.
        weight_decay: weight decay of the optimizer.
        warmup_steps: steps of linear warm-up to the learning rate.
        schedule: learning rate schedule: constant, cosine (to zero after all epochs) or plateau (on
            validation CIDEr).
        plateau_factor: factor on the learning rate at a plateau.
        plateau_patience: epochs without a better CIDEr before a plateau.
        clip: maximum of the gradient; 0 is no clipping.
        clip_by: clip the norm of all gradients together, or the value of each element.
        detach_prob: probability of blocking the gradient through h at a time step (h-detach).
        detach_attention: also block the path h -> attention -> context -> LSTM (h-detach).
        detach_anneal: share of training, at its end, in which nothing is blocked (h-detach).
        label_smoothing: share of the target probability that is spread over all words.
        scheduled_sampling: probability, at the end of training, of an input word that the decoder
            predicted itself.
        attention_penalty: weight of the doubly stochastic attention loss (show_attend_tell,
            up_down).
        attribute_weight: weight of the attribute detector's loss (model.attributes).
        average: decay of the running average of the weights, which is validated and kept; 0 is no
            average.
        augment: compute the features at every step from augmented images, read from `images`.
        encoder_blocks: last blocks of the CNN to fine-tune on the images in `images`; 0 is a frozen
            CNN and stored features. Batch statistics stay frozen.
        encoder_rate: maximum learning rate of the CNN.
        eval_beam_size: beam size of the validation captions; 1 is greedy.
        eval_images: validation images captioned at each validation; 0 is all.
        eval_epochs: epochs between validations; the last epoch is always validated.
        patience: epochs without a better validation CIDEr before training stops; 0 never stops.
        save_steps: steps between saves of the training state within an epoch.
        device: auto, cpu, cuda, cuda:1, mps or another torch device.
        precision: float32, or bfloat16 for mixed precision (GPU).
        threads: number of CPU threads; 0 is torch's default.
        seed: random seed of weights, order, dropout and h-detach.
    """

    # Objective
    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    start: str = ""
    keep_start: Share = 0.0
    sharpen: Positive = 1.0
    samples: Annotated[int, Interval(ge=2)] = 5
    reward_bleu: Amount = 0.0
    baseline: Literal["mean", "greedy"] = "mean"
    # Data
    epochs: AtLeastOne = 30
    batch_images: AtLeastOne = 16
    captions_per_image: NotNegative = 5
    equal_images: bool = False
    data_weights: list[float] = field(default_factory=list)
    min_count: AtLeastOne = 5
    max_words: AtLeastOne = 20
    mirror: bool = True
    # Optimizer
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Positive = 4e-4
    weight_decay: Amount = 0.0
    warmup_steps: NotNegative = 0
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    plateau_factor: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    plateau_patience: NotNegative = 2
    clip: Amount = 5.0
    clip_by: Literal["norm", "value"] = "norm"
    # h-detach
    detach_prob: Probability = 0.25
    detach_attention: bool = False
    detach_anneal: Probability = 0.0
    # Loss and regularization
    label_smoothing: Share = 0.0
    scheduled_sampling: Probability = 0.0
    attention_penalty: Amount = 1.0
    attribute_weight: Amount = 0.02
    average: Share = 0.0
    # Encoder
    augment: bool = False
    encoder_blocks: NotNegative = 0
    encoder_rate: Positive = 1e-4
    # Validation, saves and log
    eval_beam_size: AtLeastOne = 1
    eval_images: NotNegative = 0
    eval_epochs: AtLeastOne = 1
    patience: NotNegative = 0
    save_steps: AtLeastOne = 500
    # Computation
    device: str = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: NotNegative = 0
    seed: int = 1

    def __post_init__(self) -> None:
        _check(self)
        if self.keep_start and not self.start:
            raise ConfigError(f"keep_start is {self.keep_start}, but start is empty; set start")
        if self.objective == "self_critical" and (self.label_smoothing or self.scheduled_sampling):
            raise ConfigError(
                "objective is self_critical, which learns captions exactly as sampled; set "
                "label_smoothing and scheduled_sampling to 0"
            )


@dataclass(frozen=True)
class DecodeConfig:
    """The search for a caption.

    Args:
        beam_size: number of hypotheses in the beam search; 1 is greedy.
        max_words: maximum number of words in a caption.
        length_norm: exponent n of the score log-probability / length ** n of a finished caption.
        sample: sample captions instead of searching.
        temperature: sampling temperature; below 1 is safer, above 1 more surprising.
        top_k: sample from the k likeliest words only; 0 is all words.
        top_p: sample from the fewest words that together have this probability; 1 is all words.
        seed: random seed of the samples.
        captions: number of captions per image, best first.
        block_repeats: length of the n-grams that may occur only once in a caption; 0 is no limit.
        whole_endings: forbid captions that end with a word such as "a" or "with".
    """

    beam_size: AtLeastOne = 5
    max_words: AtLeastOne = 20
    length_norm: Amount = 0.7
    sample: bool = False
    temperature: Positive = 1.0
    top_k: NotNegative = 0
    top_p: Annotated[float, Interval(gt=0, le=1)] = 1.0
    seed: int = 0
    captions: AtLeastOne = 1
    block_repeats: NotNegative = 0
    whole_endings: bool = True

    def __post_init__(self) -> None:
        _check(self)
        if not self.sample and self.captions > self.beam_size:
            raise ConfigError(
                f"captions is {self.captions}, but beam_size is {self.beam_size}: a beam search "
                "finds at most one caption per beam; raise beam_size or set sample"
            )


@dataclass(frozen=True)
class Config:
    """All settings of a training run, as `captioner train --config FILE` reads them.

    Args:
        data: folder made by `python -m data_prep`, or a list of folders to train on together.
        out: folder for checkpoints, the log and the state for --resume.
        model: architecture of the decoder.
        train: training of the decoder.
        decode: default search of the checkpoint.
        images: folder of the images, needed for train.encoder_blocks and train.augment; a list
            with one folder per data folder if there are several.
    """

    data: str | list[str]
    out: str
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    images: str | list[str] = ""

    def __post_init__(self) -> None:
        _check(self)
        if not self.folders:
            raise ConfigError("data is empty; give a folder made by `python -m data_prep`")
        reads = self.train.augment or self.train.encoder_blocks
        if reads and len(self.image_folders) != len(self.folders):
            raise ConfigError(
                f"images: {len(self.image_folders)} folders for {len(self.folders)} data folders; "
                "give the image folder of each data folder, in the same order"
            )
        weights = self.train.data_weights
        if weights and (len(weights) != len(self.folders) or min(weights) <= 0):
            raise ConfigError(
                f"train.data_weights is {weights}; give a number above 0 for each of the "
                f"{len(self.folders)} data folders"
            )

    @property
    def folders(self) -> list[str]:
        """Return the data folders."""
        return [self.data] if isinstance(self.data, str) else list(self.data)

    @property
    def image_folders(self) -> list[str]:
        """Return the image folders, one per data folder."""
        return [self.images] if isinstance(self.images, str) else list(self.images)


def from_dict(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Make settings of `kind` from a JSON object, nested objects included.

    Raises ConfigError with all wrong keys and values in one line, which begins with `where`.
    """
    found: list[str] = []
    made = _made(kind, values, "", found)
    if found:
        raise ConfigError((f"{where}: " if where else "") + "; ".join(found))
    assert made is not None
    return made


def _made(
    kind: type[Settings], values: Mapping[str, Any], place: str, found: list[str]
) -> Settings | None:
    """Return settings of `kind`, or None after adding what is wrong to `found`."""
    if not isinstance(values, Mapping):
        found.append(f"{place.rstrip('.') or 'it'} is {values!r} but must map names to settings")
        return None
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in values if name not in fields)
    wrong = [f"unknown setting {place + name!r}; known are {', '.join(fields)}" for name in unknown]
    needed = [name for name, item in fields.items() if name not in values and _is_needed(item)]
    wrong += [f"{place}{name} is missing" for name in needed]
    own = {name: value for name, value in values.items() if name in fields}
    for name, part in get_type_hints(kind).items():
        if isinstance(part, type) and dataclasses.is_dataclass(part) and name in own:
            value = own.pop(name)
            made = (
                value if isinstance(value, part) else _made(part, value, place + name + ".", wrong)
            )
            if made is not None:
                own[name] = made
    wrong += [f"{place}{name} {problem}" for name, problem in problems(kind, own).items()]
    found += wrong
    if wrong:
        return None
    try:
        return kind(**own)
    except ConfigError as error:  # incompatible settings
        found.append(f"{place.rstrip('.')}: {error}" if place else str(error))
        return None


def _is_needed(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _check(settings: Any) -> None:
    """Raise ConfigError with all fields of the wrong type or range in one line."""
    wrong = problems(type(settings), vars(settings))
    if wrong:
        raise ConfigError("; ".join(f"{name} {problem}" for name, problem in wrong.items()))
