"""Show and Tell: the image is the LSTM's first input; there is no attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.model.decoder import Memory, PackedCaptions, Prediction, replace_words
from captioner.model.fused.linear import Linear
from captioner.model.lstm import HDetachLSTM, State, draw_blocked


class ShowTell(nn.Module):
    """The image is the LSTM's first input; there is no attention.

    Source: Vinyals et al., "Show and Tell", CVPR 2015.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__()
        self.config = config
        self.image = Linear(dim, config.embed_dim)
        self.embed = nn.Embedding(vocabulary_size, config.embed_dim)
        dropout = config.dropout if config.num_layers > 1 else 0.0  # between layers
        self.core = HDetachLSTM(
            config.embed_dim, config.hidden_dim, config.num_layers, dropout=dropout
        )
        self.out = Linear(config.hidden_dim, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)

    def start(self, features: Tensor) -> tuple[Memory, State]:
        """Return the memory, and h and c (B, layers, H) after the LSTM has read the image."""
        memory = self._memory(features)
        _, (h, c) = self.core(memory.values.unsqueeze(0))
        return memory, (h.transpose(0, 1), c.transpose(0, 1))

    def step(
        self, memory: Memory, tokens: Tensor, state: State, image: Tensor
    ) -> tuple[Tensor, State, None]:
        """Return logits (n, V) after `tokens` (n,), the next state, and no attention."""
        h, c = state
        x = self.dropout(self.embed(tokens)).unsqueeze(0)
        output, (h, c) = self.core(
            x, (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        )
        logits = self.out(self.dropout(output[0]))
        return logits, (h.transpose(0, 1), c.transpose(0, 1)), None

    def forward(
        self,
        features: Tensor,
        captions: PackedCaptions,
        *,
        detach_prob: float = 0.0,
        detach_attention: bool = False,
        sampling_prob: float = 0.0,
    ) -> Prediction:
        """Predict every token of the captions.

        detach_prob is the probability of blocking h in the LSTM (h-detach); detach_attention has no
        effect here; sampling_prob is the share of input words replaced by the model's own
        (scheduled sampling).
        """
        count = len(captions.image)
        sizes = [count, *captions.batch_sizes]
        blocked = draw_blocked(len(sizes), detach_prob)
        first = self._memory(features).values[captions.image]  # (captions, E)
        if sampling_prob == 0:
            x = torch.cat([first, self.dropout(self.embed(captions.inputs))])
            output, _, _ = self.core.run(x, sizes, None, blocked)
            return Prediction(self.dropout(output[count:]), self.out, None)

        _, (h, c) = self.core(first.unsqueeze(0), blocked=blocked[:1])
        hidden: list[Tensor] = []
        for t, tokens in enumerate(captions.inputs.split(captions.batch_sizes)):
            size = len(tokens)
            tokens = replace_words(tokens, self.out(hidden[-1]) if hidden else None, sampling_prob)
            x = self.dropout(self.embed(tokens)).unsqueeze(0)
            output, (h, c) = self.core(x, (h[:, :size], c[:, :size]), blocked[t + 1 : t + 2])
            hidden.append(self.dropout(output[0]))
        return Prediction(torch.cat(hidden), self.out, None)

    def _memory(self, features: Tensor) -> Memory:
        return Memory(self.dropout(self.image(features.mean(1))))
