"""Show, Attend and Tell: soft attention over the grid, gated context, deep output."""

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
from captioner.model.fused.attend_lstm import AttendRecurrence
from captioner.model.fused.linear import Linear, linear
from captioner.model.lstm import HDetachLSTM, State, draw_blocked


class ShowAttendTell(AttentionDecoder):
    """Soft attention over the grid, gated context, deep output.

    Source: Xu et al., "Show, Attend and Tell", ICML 2015, equations 1-7 and section 4.2.1. The
    attention scores use tanh, as in Bahdanau et al. 2015. `fused` = False trains by the definition,
    step by step.
    """

    fused = True

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__(config, dim)
        E, H, A = config.embed_dim, config.hidden_dim, config.attention_dim
        D = config.feature_dim or dim
        self.gate = Linear(H, D)
        self.init_h = Linear(D, H)
        self.init_c = Linear(D, H)
        self.embed = nn.Embedding(vocabulary_size, E)
        self.core = HDetachLSTM(E + D, H)
        self.out_h = Linear(H, E)
        self.out_z = Linear(D, E, bias=False)
        self.out = Linear(E, vocabulary_size)
        self.attributes = Attributes(dim, config.attributes, E) if config.attributes else None
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.score, -(A**-0.5), A**-0.5)

    def start(self, features: Tensor) -> tuple[Memory, State]:
        """Return the memory of features (B, L, D), and h and c (B, H) from their mean."""
        memory = self.remember(features)
        assert memory.whole is not None
        return memory, (self.init_h(memory.whole).tanh(), self.init_c(memory.whole).tanh())

    def step(
        self,
        memory: Memory,
        tokens: Tensor,
        state: State,
        image: Tensor,
        attention_h: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """Return logits (n, V) after `tokens` (n,), the next state, and the attention (n, L).

        `attention_h` (n, H) replaces h as the input of the attention.
        """
        words = self.embed_words(memory, tokens, image)
        places = Places.of(image, len(memory.values))
        query = state[0] if attention_h is None else attention_h
        context, attention = self._attend(memory, query, image, places)
        h, c = self._recur(self._word_gates(words), context, state, blocked=False)
        logits = self.out(self._deep(words, h, context))
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

        detach_prob is the probability of blocking h as an input of the LSTM (h-detach), and with
        detach_attention of the attention as well; sampling_prob is the share of input words
        replaced by the model's own (scheduled sampling).
        """
        memory, (h, c) = self.start(features)
        state = (h[captions.image], c[captions.image])
        blocked = draw_blocked(len(captions.batch_sizes), detach_prob).tolist()
        words = self.embed_words(memory, captions.inputs, captions.image_of_token)
        if self.fused and sampling_prob == 0 and _can_fuse(words):
            hidden, context, attention = AttendRecurrence.apply(
                words, memory.keys, memory.values, *state, self.query.weight, self.gate.weight,
                self.gate.bias, self.score, self.core.weight_ih_l0, self.core.weight_hh_l0,
                self.core.bias_ih_l0 + self.core.bias_hh_l0, captions, blocked, detach_attention,
            )  # fmt: skip
        else:
            words, hidden, context, attention = self._define(
                words, memory, state, captions, blocked, detach_attention, sampling_prob
            )
        attributes = self.predict_attributes(memory, captions)
        return Prediction(self._deep(words, hidden, context), self.out, attention, attributes)

    def _define(
        self,
        words: Tensor,
        memory: Memory,
        state: State,
        captions: PackedCaptions,
        blocked: list[bool],
        detach_attention: bool,
        sampling_prob: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The definition of `AttendRecurrence`, step by step.

        Returns the words used as well: with scheduled sampling, some are the model's own.
        """
        sizes, (h, c) = captions.batch_sizes, state
        places = Places.of(captions.image, len(memory.values))
        gates = self._word_gates(words).split(sizes)
        tokens = captions.inputs.split(sizes)
        logits: Tensor | None = None  # of the last step; for scheduled sampling only
        used, hidden, contexts, attentions = [], [], [], []
        for t, (size, word) in enumerate(zip(sizes, words.split(sizes), strict=True)):
            image, h, c = captions.image[:size], h[:size], c[:size]
            gate = gates[t]
            if sampling_prob and t:
                mixed = replace_words(tokens[t], logits, sampling_prob)
                word = self.embed_words(memory, mixed, image)
                gate = self._word_gates(word)
            query = h.detach() if blocked[t] and detach_attention else h
            context, attention = self._attend(memory, query, image, places.first(size))
            h, c = self._recur(gate, context, (h, c), blocked[t])
            if sampling_prob:
                logits = self.out(self._deep(word, h, context))
            used.append(word)
            hidden.append(h)
            contexts.append(context)
            attentions.append(attention)
        return torch.cat(used), torch.cat(hidden), torch.cat(contexts), torch.cat(attentions)

    def _attend(
        self, memory: Memory, h: Tensor, image: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Return the gated context z = beta * sum_i alpha_i a_i (n, D) and alpha (n, L)."""
        attention = self.attention(memory, h, image)
        context = places.weighted_sum(attention, memory.values)
        return self.gate(h).sigmoid() * context, attention

    def _word_gates(self, words: Tensor) -> Tensor:
        bias = self.core.bias_ih_l0 + self.core.bias_hh_l0
        return linear(words, self.core.weight_ih_l0, bias, slice(0, self.config.embed_dim))

    def _recur(self, gates: Tensor, context: Tensor, state: State, blocked: bool) -> State:
        columns = slice(self.config.embed_dim, None)
        gates = gates + linear(context, self.core.weight_ih_l0, None, columns)
        return self.core.step(gates, state, blocked)

    def _deep(self, words: Tensor, h: Tensor, context: Tensor) -> Tensor:
        """Return the deep output (n, E) before the vocabulary: Xu et al. 2015, equation 7."""
        deep = words + self.out_h(self.dropout(h)) + self.out_z(context)
        dropped: Tensor = self.dropout(deep.tanh())
        return dropped


def _can_fuse(words: Tensor) -> bool:
    """Whether `AttendRecurrence` is faster: on a CPU, in full precision, not compiled."""
    return not (
        words.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
