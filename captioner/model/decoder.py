"""What decoders share: packed captions, memory of an image, prediction, attention, attributes.

Captions of a batch are rows sorted by falling length and packed by time step, as in torch's
PackedSequence: `batch_sizes[t]` captions are alive at step t, so no padding is computed. Each
caption has the index of its image, so an image's features are projected once for all its captions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import ModelConfig
from captioner.model.attention import AdditiveScores
from captioner.model.fused.linear import Linear
from captioner.tokens import SPECIAL


@dataclass(frozen=True)
class PackedCaptions:
    """Captions packed by time step, longest first."""

    inputs: Tensor  # (tokens,) BOS w1 .. wn
    batch_sizes: list[int]  # captions alive at each step
    image: Tensor  # (captions,) index of each caption's image

    @property
    def image_of_token(self) -> Tensor:
        """The image index of each token: (tokens,)."""
        return torch.cat([self.image[:size] for size in self.batch_sizes])

    def to(self, device: torch.device) -> PackedCaptions:
        """Return the captions on `device`."""
        return PackedCaptions(self.inputs.to(device), self.batch_sizes, self.image.to(device))


@dataclass(frozen=True)
class Memory:
    """What a decoder keeps of each image while it writes; never copied per caption."""

    values: Tensor  # (B, L, D), in adaptive (B, L, H), in show_tell (B, E)
    keys: Tensor | None = None  # (B, L, A), doubled for AdditiveScores
    whole: Tensor | None = None  # (B, D) the image as a whole, in adaptive (B, E)
    detected: Tensor | None = None  # (B, K) logits of the attributes
    attributes: Tensor | None = None  # (B, E) added to the embedding of each word


@dataclass(frozen=True)
class Prediction:
    """What `forward` returns for every token of the captions.

    The loss applies `out` to pieces of `hidden`, so the logits of a whole batch never exist at
    once.
    """

    hidden: Tensor  # (tokens, X)
    out: nn.Linear  # to the vocabulary
    attention: Tensor | None  # (tokens, L), where the loss regularises it
    # (B, K) each: the logits of the attributes, and whether the captions hold the word
    attributes: tuple[Tensor, Tensor] | None = None

    @property
    def logits(self) -> Tensor:
        """Logits (tokens, V)."""
        logits: Tensor = self.out(self.hidden)
        return logits


class Attributes(nn.Module):
    """Detect which of the K most frequent words an image's captions hold.

    The embedded probabilities are added to the embedding of every word. Source: the attributes of
    You et al., CVPR 2016, and LSTM-A (Yao et al., ICCV 2017), which feed them at every step. Here
    the detector is a linear layer on the mean feature, and the attributes are the first words of
    the vocabulary.
    """

    def __init__(self, dim: int, count: int, embed_dim: int):
        super().__init__()
        self.detect = nn.Linear(dim, count)
        self.embed = nn.Linear(count, embed_dim, bias=False)
        nn.init.constant_(self.detect.bias, -3.0)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and embedding (B, E) of features (B, L, D)."""
        logits = self.detect(features.mean(1))
        return logits, self.embed(logits.sigmoid())

    def present(self, captions: PackedCaptions, images: int) -> Tensor:
        """Return which attributes the captions of each image hold: (B, K) of 0 and 1."""
        attribute = captions.inputs - len(SPECIAL)
        known = (attribute >= 0) & (attribute < self.detect.out_features)
        present = self.detect.weight.new_zeros(images, self.detect.out_features)
        present[captions.image_of_token[known], attribute[known]] = 1
        return present


class AttentionDecoder(nn.Module):
    """Base of decoders with additive attention over the projected grid, and attributes.

    A subclass adds `embed`, `dropout` and `attributes`.
    """

    embed: nn.Embedding
    dropout: nn.Dropout
    attributes: Attributes | None

    def __init__(self, config: ModelConfig, dim: int):
        super().__init__()
        self.config = config
        A, D = config.attention_dim, config.feature_dim or dim
        self.project = Linear(dim, D) if config.feature_dim else None
        self.key = Linear(D, A)
        self.query = Linear(config.hidden_dim, A, bias=False)
        self.score = nn.Parameter(torch.empty(A))

    def remember(self, features: Tensor) -> Memory:
        """Project features (B, L, D) once for all steps, and detect their attributes."""
        values = features if self.project is None else F.relu(self.project(features))
        values = self.dropout(values)
        whole = values.mean(1)
        detected = (None, None) if self.attributes is None else self.attributes(features)
        return Memory(values, 2 * self.key(values), whole, *detected)

    def embed_words(self, memory: Memory, tokens: Tensor, image: Tensor) -> Tensor:
        """Return embeddings (n, E) of tokens (n,), plus the attributes of their images if any."""
        words: Tensor = self.dropout(self.embed(tokens))
        return words if memory.attributes is None else words + memory.attributes[image]

    def attention(self, memory: Memory, h: Tensor, image: Tensor) -> Tensor:
        """Return the attention (n, L) of h (n, H) over the grids of the images `image` (n,)."""
        query = self.query(h)
        scores = AdditiveScores.apply(memory.keys, 2 * query, 2 * self.score, image)
        attention: Tensor = scores.softmax(-1)
        return attention

    def predict_attributes(
        self, memory: Memory, captions: PackedCaptions
    ) -> tuple[Tensor, Tensor] | None:
        """Return logits and targets (B, K) of the attributes, as `Prediction` holds them."""
        if self.attributes is None or memory.detected is None:
            return None
        return memory.detected, self.attributes.present(captions, len(memory.values))


def replace_words(tokens: Tensor, logits: Tensor | None, prob: float) -> Tensor:
    """Replace each token, with probability `prob`, by a sample from the last step's logits.

    This is scheduled sampling: Bengio et al., NIPS 2015. At the first step `logits` is None.
    """
    if logits is None:
        return tokens
    sampled = torch.multinomial(logits[: len(tokens)].detach().softmax(-1), 1).squeeze(1)
    return torch.where(torch.rand(len(tokens), device=tokens.device) < prob, sampled, tokens)
