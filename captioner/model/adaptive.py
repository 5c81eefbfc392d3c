"""Adaptive attention: over the grid and a visual sentinel that stands for the LSTM's memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import ModelConfig
from captioner.model.attention import AdditiveScores, Places
from captioner.model.decoder import Memory, PackedCaptions, Prediction, replace_words
from captioner.model.fused.linear import Linear
from captioner.model.lstm import HDetachLSTM, State, draw_blocked


class Adaptive(nn.Module):
    """Attention over the grid and a visual sentinel, which stands for the LSTM's memory.

    Source: Lu et al., "Knowing When to Look", CVPR 2017, equations 3-13.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__()
        self.config = config
        E, H, A = config.embed_dim, config.hidden_dim, config.attention_dim
        self.project = Linear(dim, H)
        self.whole = Linear(dim, E)
        self.embed = nn.Embedding(vocabulary_size, E)
        self.core = HDetachLSTM(2 * E, H)
        self.sentinel_x = Linear(2 * E, H)
        self.sentinel_h = Linear(H, H, bias=False)
        self.key = Linear(H, A)
        self.sentinel_key = Linear(H, A)
        self.query = Linear(H, A, bias=False)
        self.score = nn.Parameter(torch.empty(A))
        self.out = Linear(H, vocabulary_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.score, -(A**-0.5), A**-0.5)

    def start(self, features: Tensor) -> tuple[Memory, State]:
        """Return the memory of features (B, L, D), and h and c (B, H) of zeros."""
        values = self.dropout(F.relu(self.project(features)))
        whole = self.dropout(F.relu(self.whole(features.mean(1))))
        zeros = values.new_zeros(len(values), self.config.hidden_dim)
        return Memory(values, 2 * self.key(values), whole), (zeros, zeros)

    def step(
        self,
        memory: Memory,
        tokens: Tensor,
        state: State,
        image: Tensor,
        attention_h: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """Return logits (n, V) after `tokens` (n,), the next state, and the attention (n, L).

        The attention is that over the grid alone: each row sums to 1, whatever the weight of the
        sentinel. `attention_h` (n, H) replaces h as the input of the sentinel's gate.
        """
        x = self._inputs(memory, tokens, image)
        h, c = self.core.step(self.core.input_gates(x), state, blocked=False)
        before = state[0] if attention_h is None else attention_h
        context, attention = self._attend(memory, x, before, h, c, image)
        logits = self.out(self.dropout(context + h))
        return logits, (h, c), attention

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
        effect here, since the attention is not part of the recurrence; sampling_prob is the share
        of input words replaced by the model's own (scheduled sampling).
        """
        memory, (h, c) = self.start(features)
        h, c = h[captions.image], c[captions.image]
        sizes = captions.batch_sizes
        blocked = draw_blocked(len(sizes), detach_prob)
        if sampling_prob == 0:
            image = captions.image_of_token
            x = self._inputs(memory, captions.inputs, image)
            output, cells, _ = self.core.run(x, sizes, (h[None], c[None]), blocked, with_cells=True)
            assert cells is not None
            steps = [h, *output.split(sizes)]
            before = torch.cat([h[:size] for h, size in zip(steps, sizes, strict=False)])
            context, _ = self._attend(memory, x, before, output, cells, image)
            return Prediction(self.dropout(context + output), self.out, None)

        hidden: list[Tensor] = []
        for t, tokens in enumerate(captions.inputs.split(sizes)):
            before, c, image = h[: len(tokens)], c[: len(tokens)], captions.image[: len(tokens)]
            tokens = replace_words(tokens, self.out(hidden[-1]) if hidden else None, sampling_prob)
            x = self._inputs(memory, tokens, image)
            h, c = self.core.step(self.core.input_gates(x), (before, c), bool(blocked[t]))
            context, _ = self._attend(memory, x, before, h, c, image)
            hidden.append(self.dropout(context + h))
        return Prediction(torch.cat(hidden), self.out, None)

    def _inputs(self, memory: Memory, tokens: Tensor, image: Tensor) -> Tensor:
        """Return x = [word, whole image] (n, 2E)."""
        assert memory.whole is not None
        return torch.cat([self.dropout(self.embed(tokens)), memory.whole[image]], 1)

    def _attend(
        self, memory: Memory, x: Tensor, before: Tensor, h: Tensor, c: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the context (n, H) of grid and sentinel, and the attention (n, L) over the grid.

        Takes h before the step, and h and c after it, each (n, H).
        """
        sentinel = (self.sentinel_x(x) + self.sentinel_h(before)).sigmoid() * c.tanh()
        sentinel = self.dropout(sentinel)
        query, score = 2 * self.query(h), 2 * self.score
        scores: Tensor = AdditiveScores.apply(memory.keys, query, score, image)  # (n, L)
        sentinel_score = (2 * self.sentinel_key(sentinel) + query).sigmoid() @ score  # (n,)
        shares = torch.cat([scores, sentinel_score.unsqueeze(1)], 1).softmax(-1)
        weights, beta = shares[:, :-1], shares[:, -1:]
        context = Places.of(image, len(memory.values)).weighted_sum(weights, memory.values)
        return context + beta * sentinel, scores.softmax(-1)
