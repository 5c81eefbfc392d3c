"""Up-Down: one LSTM for the attention, one for the words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from captioner.config import ModelConfig
from captioner.model.attention import Places
from captioner.model.decoder import (
    AttentionDecoder,
    Attributes,
    Memory,
    PackedCaptions,
    Prediction,
    replace_words,
)
from captioner.model.fused.linear import Linear, linear
from captioner.model.lstm import HDetachLSTM, State, draw_blocked


class UpDown(AttentionDecoder):
    """Two LSTMs: one decides where to attend, the other what to write.

    Source: Anderson et al., "Bottom-Up and Top-Down Attention", CVPR 2018, section 3.2, over the
    grid in place of detected regions. h-detach blocks both LSTMs at the same steps.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__(config, dim)
        E, H, A = config.embed_dim, config.hidden_dim, config.attention_dim
        D = config.feature_dim or dim
        self.embed = nn.Embedding(vocabulary_size, E)
        self.attention_lstm = HDetachLSTM(H + D + E, H)  # [language h, whole image, word]
        self.language_lstm = HDetachLSTM(D + H, H)  # [context, attention h]
        self.out = Linear(H, vocabulary_size)
        self.attributes = Attributes(dim, config.attributes, E) if config.attributes else None
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.score, -(A**-0.5), A**-0.5)

    def start(self, features: Tensor) -> tuple[Memory, State]:
        """Return the memory of features (B, L, D), and zeros for both LSTMs: h and c (B, 2, H)."""
        memory = self.remember(features)
        zeros = memory.values.new_zeros(len(memory.values), 2, self.config.hidden_dim)
        return memory, (zeros, zeros)

    def step(
        self, memory: Memory, tokens: Tensor, state: State, image: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """Return logits (n, V) after `tokens` (n,), the next state, and the attention (n, L)."""
        gates = self._input_gates(memory, tokens, image)
        places = Places.of(image, len(memory.values))
        (h1, h2), (c1, c2) = (part.unbind(1) for part in state)
        (h1, c1), (h2, c2), attention = self._recur(
            memory, gates, (h1, c1), (h2, c2), image, places
        )
        logits = self.out(self.dropout(h2))
        return logits, (torch.stack([h1, h2], 1), torch.stack([c1, c2], 1)), attention

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

        detach_prob is the probability of blocking each LSTM's h as an input of its own next step
        (h-detach), and with detach_attention the language LSTM's h as an input of the attention
        LSTM as well; sampling_prob is the share of input words replaced by the model's own
        (scheduled sampling).
        """
        memory, (h, c) = self.start(features)
        sizes = captions.batch_sizes
        blocked = draw_blocked(len(sizes), detach_prob).tolist()
        places = Places.of(captions.image, len(memory.values))
        (h1, h2), (c1, c2) = (part[captions.image].unbind(1) for part in (h, c))
        gates = self._input_gates(memory, captions.inputs, captions.image_of_token).split(sizes)
        tokens = captions.inputs.split(sizes)
        hidden: list[Tensor] = []
        attentions: list[Tensor] = []
        for t, size in enumerate(sizes):
            image, gate = captions.image[:size], gates[t]
            if sampling_prob and t:
                mixed = replace_words(tokens[t], self.out(hidden[-1]), sampling_prob)
                gate = self._input_gates(memory, mixed, image)
            (h1, c1), (h2, c2), attention = self._recur(
                memory, gate, (h1[:size], c1[:size]), (h2[:size], c2[:size]), image,
                places.first(size), blocked[t], blocked[t] and detach_attention,
            )  # fmt: skip
            hidden.append(self.dropout(h2))
            attentions.append(attention)
        attributes = self.predict_attributes(memory, captions)
        return Prediction(torch.cat(hidden), self.out, torch.cat(attentions), attributes)

    def _input_gates(self, memory: Memory, tokens: Tensor, image: Tensor) -> Tensor:
        """Return the part of the attention LSTM's gates from word and whole image: (n, 4H)."""
        lstm, H = self.attention_lstm, self.config.hidden_dim
        D = memory.values.shape[2]
        assert memory.whole is not None
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        whole = linear(memory.whole, lstm.weight_ih_l0, bias, slice(H, H + D))
        words = self.embed_words(memory, tokens, image)
        return whole[image] + linear(words, lstm.weight_ih_l0, None, slice(H + D, None))

    def _recur(
        self,
        memory: Memory,
        gates: Tensor,
        attending: State,
        writing: State,
        image: Tensor,
        places: Places,
        blocked: bool = False,
        blocked_attention: bool = False,
    ) -> tuple[State, State, Tensor]:
        """Return the next state of the attention LSTM, of the language LSTM, and the attention."""
        H, D = self.config.hidden_dim, memory.values.shape[2]
        first, second = self.attention_lstm, self.language_lstm
        before = writing[0].detach() if blocked_attention else writing[0]
        gates = gates + linear(before, first.weight_ih_l0, None, slice(0, H))
        attending = first.step(gates, attending, blocked)
        attention = self.attention(memory, attending[0], image)
        context = places.weighted_sum(attention, memory.values)
        bias = second.bias_ih_l0 + second.bias_hh_l0
        gates = linear(context, second.weight_ih_l0, bias, slice(0, D))
        gates = gates + linear(attending[0], second.weight_ih_l0, None, slice(D, None))
        return attending, second.step(gates, writing, blocked), attention
