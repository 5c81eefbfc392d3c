"""Other decoders for the captioning study: that of the recipe with one change each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.memory.networks import zoneout
from captioner.config import ModelConfig
from captioner.errors import ConfigError
from captioner.model.decoder import DECODERS, PackedCaptions, Prediction, ShowAttendTell
from captioner.model.fused.linear import linear
from captioner.model.lstm import State
from captioner.strict import allow


@contextmanager
def known_variants() -> Iterator[None]:
    """Within the block, `model.decoder` may name one of VARIANTS."""
    DECODERS.update(VARIANTS)
    try:
        yield
    finally:
        for name in VARIANTS:
            DECODERS.pop(name, None)


class Tied(ShowAttendTell):
    """The output layer shares its weight with the embedding.

    Source: Press & Wolf, "Using the Output Embedding to Improve Language Models", EACL 2017.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__(config, vocabulary_size, dim)
        self.out.weight = self.embed.weight
        self.register_state_dict_post_hook(_stored_twice)  # type: ignore[no-untyped-call]


def _stored_twice(
    decoder: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: object
) -> None:
    """Copy the shared weight: a safetensors file cannot hold one memory twice."""
    state[f"{prefix}out.weight"] = state[f"{prefix}out.weight"].clone()


class Variational(ShowAttendTell):
    """Dropout keeps one mask per caption for all its words.

    At the places of the recipe's dropout: features, embeddings, h before the output layer, and that
    layer; not the recurrent connection. Source: Gal & Ghahramani, "A Theoretically Grounded
    Application of Dropout in Recurrent Neural Networks", NIPS 2016.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__(config, vocabulary_size, dim)
        self.dropout: CaptionDropout = CaptionDropout(config.dropout)

    def forward(
        self,
        features: Tensor,
        captions: PackedCaptions,
        *,
        detach_prob: float = 0.0,
        detach_attention: bool = False,
        sampling_prob: float = 0.0,
    ) -> Prediction:
        """Do ShowAttendTell.forward; raise ConfigError for scheduled sampling: no packed rows."""
        if sampling_prob:
            raise ConfigError(
                f"scheduled_sampling is {sampling_prob}; the variational decoder needs 0"
            )
        with self.dropout.of_rows(captions.batch_sizes):
            return super().forward(
                features, captions, detach_prob=detach_prob, detach_attention=detach_attention
            )


class CaptionDropout(nn.Dropout):
    """Dropout with one mask per caption on packed rows (tokens, X); else as nn.Dropout."""

    rows: Tensor | None = None  # (tokens,) caption of each row

    @contextmanager
    def of_rows(self, batch_sizes: list[int]) -> Iterator[None]:
        """Within the block, rows are packed by time step, `batch_sizes[t]` captions at step t."""
        self.rows = torch.cat([torch.arange(size) for size in batch_sizes])
        try:
            yield
        finally:
            self.rows = None

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of `input`, with new masks at each call."""
        if self.rows is None or input.dim() != 2 or not self.training:
            return super().forward(input)
        captions = int(self.rows.max()) + 1
        masks = F.dropout(input.new_ones(captions, input.shape[1]), self.p)
        return input * masks[self.rows]


class Zoneout(ShowAttendTell):
    """Values of h and c keep their previous value at random; evaluation takes the expectation.

    A blocked step detaches h both where it is kept and where it enters the gates. Source:
    Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", ICLR
    2017; its rates.
    """

    fused = False
    cell_rate, hidden_rate = 0.2, 0.1

    def _recur(self, gates: Tensor, context: Tensor, state: State, blocked: bool) -> State:
        h, c = state[0].detach() if blocked else state[0], state[1]
        next_h, next_c = super()._recur(gates, context, (h, c), blocked)
        return (
            zoneout(h, next_h, self.hidden_rate, self.training),
            zoneout(c, next_c, self.cell_rate, self.training),
        )


class LayerNorm(ShowAttendTell):
    """Layer normalisation of both products in the gates, and of c before it enters h.

    Source: Ba et al., "Layer Normalization", 2016, arXiv 1607.06450, equations 20-22. The shifts of
    its first two normalisations are the LSTM's bias.
    """

    fused = False

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__(config, vocabulary_size, dim)
        H = config.hidden_dim
        self.norm_x = nn.LayerNorm(4 * H, bias=False)
        self.norm_h = nn.LayerNorm(4 * H, bias=False)
        self.norm_c = nn.LayerNorm(H)

    def _word_gates(self, words: Tensor) -> Tensor:
        return linear(words, self.core.weight_ih_l0, None, slice(0, self.config.embed_dim))

    def _recur(self, gates: Tensor, context: Tensor, state: State, blocked: bool) -> State:
        h, c = state[0].detach() if blocked else state[0], state[1]
        columns = slice(self.config.embed_dim, None)
        from_x = gates + linear(context, self.core.weight_ih_l0, None, columns)
        from_h = linear(h, self.core.weight_hh_l0)
        bias = self.core.bias_ih_l0 + self.core.bias_hh_l0
        i, f, g, o = (self.norm_x(from_x) + self.norm_h(from_h) + bias).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * self.norm_c(c).tanh(), c


VARIANTS: dict[str, type[ShowAttendTell]] = {
    "tied": Tied,
    "variational": Variational,
    "zoneout": Zoneout,
    "layer_norm": LayerNorm,
}
allow(ModelConfig, "decoder", VARIANTS)
