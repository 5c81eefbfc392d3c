"""Encoders: every family gives a grid, with its own size and normalisation."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torch import nn
from torchvision import models

from captioner.config import EncoderConfig
from captioner.errors import ConfigError
from captioner.model.encoder import LITE, Encoder, _grid_part

FAMILIES = {  # name: (D, grid at 64 pixels)
    "resnet18": (512, 2),
    "densenet121": (1024, 2),
    "efficientnet_b0": (1280, 2),
    "convnext_tiny": (768, 2),
    "mobilenet_v3_large": (960, 2),
    "regnet_y_400mf": (440, 2),
    "efficientnet_lite0": (1280, 2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_returns_a_grid_of_features(name):
    encoder = Encoder(EncoderConfig(name, weights="none", image_size=64))
    dim, grid = FAMILIES[name]
    features = encoder(torch.zeros(2, 3, 64, 64))
    assert features.shape == (2, grid * grid, dim)
    assert (encoder.cells, encoder.dim, encoder.grid) == (grid * grid, dim, grid)


def test_features_are_pooled_to_the_chosen_grid():
    encoder = Encoder(EncoderConfig("resnet18", weights="none", image_size=96, grid=2))
    assert encoder.cells == 4


def test_cells_are_in_rows_from_the_top_left():
    encoder = Encoder(EncoderConfig("resnet18", weights="none", image_size=96))
    encoder.body = torch.nn.Sequential(torch.nn.AvgPool2d(32))
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[:32, 64:] = 255  # top right corner
    features = encoder(encoder.preprocess(Image.fromarray(pixels)).unsqueeze(0))
    assert features[0, :, 0].argmax() == 2


def test_the_shipped_weights_know_a_cat_from_a_cup():
    """The ImageNet features of two cats' images are nearer than those of a cat and a cup."""
    from pathlib import Path

    samples = Path(__file__).resolve().parents[2] / "checkpoints" / "samples"
    encoder = Encoder(EncoderConfig("efficientnet_lite0"))
    cat, cup = (Image.open(samples / name).convert("RGB") for name in ("chelsea.jpg", "coffee.jpg"))
    other_cat = cat.crop((40, 20, 400, 290)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.stack([encoder.preprocess(image) for image in (cat, other_cat, cup)])
    with torch.inference_mode():
        a, b, c = encoder(pixels).mean(1)
    likeness = torch.nn.functional.cosine_similarity
    assert likeness(a, b, dim=0) > likeness(a, c, dim=0) + 0.2


def test_squash_keeps_the_whole_image_and_crop_keeps_its_shape():
    wide = np.zeros((60, 120, 3), np.uint8)
    wide[:, :24] = 255  # a fifth, at the left
    image = Image.fromarray(wide)
    squash = Encoder(EncoderConfig("resnet18", weights="none", image_size=64))
    crop = Encoder(EncoderConfig("resnet18", weights="none", image_size=64, resize="crop"))
    assert squash.preprocess(image).float().mean() == pytest.approx(255 / 5, rel=0.05)
    assert crop.preprocess(image).float().mean() == 0


def test_batch_statistics_never_change():
    encoder = Encoder(EncoderConfig("resnet18", weights="none", image_size=64)).train()
    assert not any(module.training for module in encoder.body.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def a_trained_network(name, path):
    """A whole network that is not at its initial values, with its weights saved at `path`."""
    torch.manual_seed(3)
    if name in LITE:
        network = EfficientNet.from_name(name.replace("_", "-"), image_size=64)
    else:
        network = models.get_model(name)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (module.bias, module.running_mean):
                nn.init.normal_(values, 0, 0.2)
    torch.save(network.state_dict(), path)
    return network.eval()


@pytest.mark.parametrize("name", [*FAMILIES, "efficientnet_lite2", "efficientnet_v2_s", "resnet50"])
def test_weights_from_a_file_have_the_features_of_their_network(name, tmp_path):
    network = a_trained_network(name, tmp_path / "weights.pth")
    encoder = Encoder(EncoderConfig(name, str(tmp_path / "weights.pth"), image_size=64))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    layers = network.extract_features if name in LITE else _grid_part(network)
    with torch.no_grad():
        expected = layers((pixels / 255 - encoder.mean) / encoder.std).flatten(2).transpose(1, 2)
        difference = (encoder(pixels) - expected).norm() / expected.norm()
    assert difference < 1e-5


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "efficientnet_lite0"])
def test_no_batch_normalisation_is_computed_after_a_convolution(name):
    encoder = Encoder(EncoderConfig(name, weights="none", image_size=64))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_lite0"])
def test_gradients_reach_every_weight_if_it_is_trained(name):
    encoder = Encoder(EncoderConfig(name, weights="none", image_size=64)).requires_grad_(True)
    encoder.train()(torch.rand(1, 3, 64, 64) * 255).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_images_of_another_size_give_another_grid(name):
    encoder = Encoder(EncoderConfig(name, weights="none", image_size=64))
    assert encoder(torch.zeros(1, 3, 96, 128)).shape[1] == 3 * 4


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet_18", "none", "no encoder 'resnet_18'; choose from efficientnet_lite0"),
        ("resnet18", "nowhere.pth", "IMAGENET1K_V1"),
        ("efficientnet_lite0", "nowhere.pth", "no encoder weights at nowhere.pth"),
    ],
)
def test_a_wrong_name_or_file_is_named_with_the_choices(name, weights, message):
    with pytest.raises(ConfigError, match=message):
        Encoder(EncoderConfig(name, weights))


def test_a_damaged_weights_file_is_named(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="does not hold weights"):
        Encoder(EncoderConfig("resnet18", str(tmp_path / "bad.pth")))
