"""A checkpoint that the tests of several commands use."""

import pytest
import torch
from tiny import CAPTIONS, MODEL

from captioner.checkpoint import Checkpoint, save
from captioner.config import DecodeConfig, EncoderConfig
from captioner.data.vocabulary import Vocabulary
from captioner.model import make_decoder


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A checkpoint with random weights and a real encoder."""
    folder = tmp_path_factory.mktemp("checkpoint") / "untrained"
    words = Vocabulary.build(CAPTIONS, 1)
    torch.manual_seed(0)
    save(
        Checkpoint(
            make_decoder(MODEL, len(words), 1280),
            MODEL,
            EncoderConfig("efficientnet_lite0"),
            DecodeConfig(beam_size=3, max_words=6),
            words,
            feature_dim=1280,
            grid=7,
        ),
        folder,
    )
    return folder
