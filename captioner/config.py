"""Every setting there is, as frozen dataclasses with the defaults in one place."""

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
    """The pretrained CNN and how a picture enters it; fixed when features are made.

    Args:
        name: efficientnet_lite0/1/2, or a torchvision network such as resnet101.
        weights: "default", "none" (random), a name of torchvision's enum, or a weights file.
        resize: "squash" changes the shape to a square; "crop" keeps it and cuts the middle.
        image_size: side of the square in pixels; 0 takes the size the network was trained at.
        grid: cells along each side of the feature grid; 0 takes the network's own.
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
    """Shape of the decoder.

    Args:
        decoder: show_tell (no attention), show_attend_tell (soft attention), adaptive (attention
            that may look away from the image) or up_down (two LSTMs, one for the attention).
        embed_dim: size E of a word embedding.
        hidden_dim: size H of the LSTM.
        attention_dim: size A of the attention space.
        feature_dim: project features to this size first; 0 uses them as they are
            (show_attend_tell).
        num_layers: stacked LSTM layers (show_tell).
        attributes: how many of the most frequent words a detector looks for in the image, for the
            decoder to know; 0 is none (show_attend_tell, up_down).
        dropout: on the features, the embeddings and the output layer.
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
    """How a decoder is trained.

    Args:
        objective: cross_entropy learns the written captions; self_critical draws captions and
            learns those that score better than usual (CIDEr-D), from a decoder trained before.
        start: checkpoint whose weights training starts from; none if empty.
        sharpen: factor on the logits of `start`. Label smoothing leaves a decoder that draws far
            worse captions than it finds; 2 brings its draws near them, and learning from there.
        keep_start: share of the weights of `start` in those that are validated and kept, the rest
            being the trained ones. The mean of two is often better than either.
        samples: captions drawn of each picture (self_critical).
        reward_bleu: weight of BLEU-4 beside CIDEr-D in what a drawn caption is worth.
        baseline: what is usual: the mean of a picture's other draws, or its greedy caption.
        epochs: passes over the training captions.
        batch_images: pictures in a batch, each with all its captions.
        captions_per_image: at most this many captions of a picture a batch; 0 takes all.
        equal_images: repeat the captions of an image that has fewer than captions_per_image, so
            that every image counts the same; otherwise every caption does.
        data_weights: how often images of each data folder are seen, relative to each other;
            empty sees each image once an epoch.
        min_count: with several data folders, words seen less often in all of them are unknown.
        max_words: longer captions are cut.
        optimizer: adam or adamw.
        learning_rate: the highest rate.
        weight_decay: of the optimizer.
        warmup_steps: steps of linear rise to the learning rate.
        schedule: constant, cosine (to zero over all epochs) or plateau (on validation CIDEr).
        plateau_factor: factor on the rate when CIDEr stands still (plateau).
        plateau_patience: epochs without a better CIDEr before that (plateau).
        clip: bound on the gradient, 0 for none.
        clip_by: norm (of all gradients together) or value (of each element).
        detach_prob: probability of BLOCKING the gradient through h at a time step (h-detach).
        detach_attention: also block it on the path h -> attention -> context -> LSTM.
        detach_anneal: share of training, at its end, in which nothing is blocked.
        label_smoothing: share of the target spread over all words.
        scheduled_sampling: probability at the end of training of feeding the model's own word.
        attention_penalty: weight of the doubly stochastic penalty (show_attend_tell, up_down).
        attribute_weight: weight of the attribute detector's loss (model.attributes).
        mirror: use the mirrored features, if the data has them, half of the time.
        average: decay of the running average of the weights that is validated and kept; 0 is off.
        augment: make the features anew at every step from augmented images in `images`, also where
            the CNN is frozen.
        encoder_blocks: last blocks of the CNN that learn, too, from the photographs in `images`;
            0 keeps it frozen and takes the prepared features. Batch statistics never change.
        encoder_rate: the highest learning rate of those blocks.
        precision: float32, or bfloat16 for mixed precision (GPU).
        seed: of weights, order, dropout and detach draws.
        eval_beam_size: beam for the validation captions; 1 is greedy.
        eval_images: validation pictures captioned each epoch; 0 takes all.
        eval_epochs: epochs between validations; the last one is always followed by one.
        patience: epochs without a better validation CIDEr before training stops; 0 never stops.
        save_steps: steps between saves of the training state inside an epoch.
        device: auto, cpu, cuda, cuda:1, mps ...
        threads: CPU threads; 0 leaves torch's choice.
    """

    objective: Literal["cross_entropy", "self_critical"] = "cross_entropy"
    start: str = ""
    sharpen: Positive = 1.0
    keep_start: Share = 0.0
    samples: Annotated[int, Interval(ge=2)] = 5
    reward_bleu: Amount = 0.0
    baseline: Literal["mean", "greedy"] = "mean"
    epochs: AtLeastOne = 30
    batch_images: AtLeastOne = 16
    captions_per_image: NotNegative = 5
    equal_images: bool = False
    data_weights: list[float] = field(default_factory=list)
    min_count: AtLeastOne = 5
    max_words: AtLeastOne = 20
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Positive = 4e-4
    weight_decay: Amount = 0.0
    warmup_steps: NotNegative = 0
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    plateau_factor: Annotated[float, Interval(gt=0, lt=1)] = 0.5
    plateau_patience: NotNegative = 2
    clip: Amount = 5.0
    clip_by: Literal["norm", "value"] = "norm"
    detach_prob: Probability = 0.25
    detach_attention: bool = False
    detach_anneal: Probability = 0.0
    label_smoothing: Share = 0.0
    scheduled_sampling: Probability = 0.0
    attention_penalty: Amount = 1.0
    attribute_weight: Amount = 0.02
    mirror: bool = True
    average: Share = 0.0
    augment: bool = False
    encoder_blocks: NotNegative = 0
    encoder_rate: Positive = 1e-4
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 1
    eval_beam_size: AtLeastOne = 1
    eval_images: NotNegative = 0
    eval_epochs: AtLeastOne = 1
    patience: NotNegative = 0
    save_steps: AtLeastOne = 500
    device: str = "auto"
    threads: NotNegative = 0

    def __post_init__(self) -> None:
        _check(self)
        if self.keep_start and not self.start:
            raise ConfigError(f"keep_start is {self.keep_start}, but there is no start to keep")
        if self.objective == "self_critical" and (self.label_smoothing or self.scheduled_sampling):
            raise ConfigError(
                "self_critical learns captions as they were drawn: label_smoothing and "
                "scheduled_sampling must be 0"
            )


@dataclass(frozen=True)
class DecodeConfig:
    """How a caption is searched.

    Args:
        beam_size: hypotheses kept a step; 1 is greedy.
        max_words: a caption is cut here.
        length_norm: a finished caption's score is its log-probability / length ** length_norm.
        sample: draw captions instead of searching.
        temperature: of the draw; below 1 is safer, above 1 more surprising.
        top_k: draw from the k likeliest words only; 0 is off.
        top_p: draw from the likeliest words that hold this probability together; 1 is off.
        seed: of the draw.
        captions: captions returned for each picture, best first.
        block_repeats: no sequence of so many words occurs twice in a caption; 0 is off.
        whole_endings: no caption ends with a word that wants another, such as "a" or "with".
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
                f"captions is {self.captions} but beam_size is {self.beam_size}: a beam search "
                "gives at most one caption for each of its beams; raise beam_size or set sample"
            )


@dataclass(frozen=True)
class Config:
    """One training run: `captioner train --config FILE` reads this tree.

    Args:
        data: folder made by `python -m data_prep`, or a list of them, to train on together.
        out: folder for checkpoints, logs and the state to resume from.
        model: shape of the decoder.
        train: how it is trained.
        decode: how it captions when nothing else is asked for; travels in the checkpoint.
        images: folder of the photographs, where they are read (train.encoder_blocks,
            train.augment); a list, one for each of several data folders.
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
                f"images names {len(self.image_folders)} folders and data {len(self.folders)}; "
                "give the folder of images of each data folder, in the same order"
            )
        weights = self.train.data_weights
        if weights and (len(weights) != len(self.folders) or min(weights) <= 0):
            raise ConfigError(
                f"train.data_weights is {weights}; give a number above 0 for each of the "
                f"{len(self.folders)} data folders"
            )

    @property
    def folders(self) -> list[str]:
        """The data folders."""
        return [self.data] if isinstance(self.data, str) else list(self.data)

    @property
    def image_folders(self) -> list[str]:
        """The folders of images, one for each data folder."""
        return [self.images] if isinstance(self.images, str) else list(self.images)


def from_dict(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Build settings of `kind` from a JSON object, objects in it included.

    Raises ConfigError, one line for all keys and values that are wrong; `where` begins it.
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
    """Settings of `kind`, or None, and what is wrong with `values` added to `found`."""
    if not isinstance(values, Mapping):
        found.append(f"{place.rstrip('.') or 'it'} is {values!r} but must hold settings by name")
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
    except ConfigError as error:  # settings that do not go together
        found.append(f"{place.rstrip('.')}: {error}" if place else str(error))
        return None


def _is_needed(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _check(settings: Any) -> None:
    """Raise ConfigError, one line for all fields whose value has the wrong type or range."""
    wrong = problems(type(settings), vars(settings))
    if wrong:
        raise ConfigError("; ".join(f"{name} {problem}" for name, problem in wrong.items()))
