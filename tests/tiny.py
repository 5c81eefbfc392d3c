"""Tiny real parts for tests: a prepared data folder, settings, features, a checkpoint."""

from pathlib import Path

import numpy as np
import torch

from captioner.checkpoint import Checkpoint, save
from captioner.config import Config, DecodeConfig, EncoderConfig, ModelConfig, TrainConfig
from captioner.data.feature_store import FeatureStore
from captioner.data.vocabulary import Vocabulary
from captioner.files import write_json
from captioner.model import make_decoder

CAPTIONS = (
    "a red dog runs in the snow",
    "two boys play",
    "a woman rides a brown horse on the beach at night",
    "a cat sleeps",
    "people stand in front of an old house",
    "a man climbs a rock",
)
CELLS, DIM = 4, 12

MODEL = ModelConfig(embed_dim=24, hidden_dim=32, attention_dim=16, dropout=0.0)
TRAIN = TrainConfig(
    epochs=2, batch_images=4, learning_rate=5e-3, detach_prob=0.25, attention_penalty=0.1, threads=1
)


def make_data(folder: Path, pictures: int = 6, views: int = 1) -> Path:
    """Write a prepared data folder of images with random features and one caption each."""
    folder.mkdir(parents=True)
    keys = [f"{number}.jpg" for number in range(2 * pictures)]
    store = FeatureStore.create(
        folder, keys, (views, CELLS, DIM), EncoderConfig("efficientnet_lite0")
    )
    values = np.random.default_rng(0).normal(size=(pictures, views, CELLS, DIM))
    store.write(range(2 * pictures), np.concatenate([values, values]))
    examples = [
        {
            "image": key,
            "image_id": row,
            "split": "train" if row < pictures else "val",  # the same images: it can overfit
            "row": row,
            "captions": [CAPTIONS[row % len(CAPTIONS)]],
        }
        for row, key in enumerate(keys)
    ]
    write_json(folder / "examples.json", examples)
    Vocabulary.build(CAPTIONS, min_count=1).save(folder / "vocabulary.json")
    return folder


def make_config(data: Path, out: Path, **train: object) -> Config:
    """Return the settings of a tiny run."""
    settings = TrainConfig(**{**TRAIN.__dict__, **train})
    return Config(str(data), str(out), MODEL, settings, DecodeConfig(beam_size=2, max_words=12))


def random_features(pictures: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return features (pictures, CELLS, DIM)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(pictures, CELLS, DIM, generator=generator, dtype=dtype)


def write_checkpoint(folder: Path, decoder: str = "show_attend_tell") -> Path:
    """Write a checkpoint with random weights and a real CNN on small squares."""
    torch.manual_seed(0)
    words = Vocabulary.build(CAPTIONS, min_count=1)
    shape = ModelConfig(decoder, embed_dim=8, hidden_dim=8, attention_dim=8)
    made = make_decoder(shape, len(words), 1280)
    encoder = EncoderConfig("efficientnet_lite0", image_size=96)
    decode = DecodeConfig(beam_size=3, max_words=6)
    save(Checkpoint(made, shape, encoder, decode, words, feature_dim=1280, grid=3), folder)
    return folder
