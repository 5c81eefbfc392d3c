"""Decoders: features of pictures to words, on an h-detach LSTM.

Captions of a batch are rows sorted by falling length and packed by time step, as in torch's
PackedSequence: `batch_sizes[t]` rows are alive at step t, so no padding is ever computed. Each row
names its picture (`image`), so a picture's features are projected once for all its captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captioner.config import ModelConfig
from captioner.data.vocabulary import SPECIAL
from captioner.model.attention import AdditiveScores, Places
from captioner.model.fused.attend_lstm import AttendRecurrence
from captioner.model.fused.linear import Linear, linear
from captioner.model.lstm import HDetachLSTM, State, draw_blocked


@dataclass(frozen=True)
class Memory:
    """What a decoder keeps of each picture while it writes; never copied per caption."""

    values: Tensor  # (B, L, D) show_attend_tell; (B, L, H) adaptive; (B, E) show_tell
    keys: Tensor | None = None  # (B, L, A), doubled as AdditiveScores wants them
    whole: Tensor | None = None  # (B, E) the image as a whole; adaptive; (B, D) up_down
    detected: Tensor | None = None  # (B, K) logits of the attributes
    attributes: Tensor | None = None  # (B, E) what they add to each word's embedding


@dataclass(frozen=True)
class PackedCaptions:
    """Captions packed by time step, longest first, as in torch's PackedSequence."""

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
class Prediction:
    """What `forward` returns for every real token of a batch.

    The loss takes `hidden` and `out`, piece by piece, so that no logits of a whole batch live.
    """

    hidden: Tensor  # (tokens, X)
    out: nn.Linear  # to the vocabulary
    attention: Tensor | None  # (tokens, L), where the loss should see it
    # (B, K) each: the logits of the attributes, and whether the captions hold the word
    attributes: tuple[Tensor, Tensor] | None = None

    @property
    def logits(self) -> Tensor:
        """Logits (tokens, V)."""
        logits: Tensor = self.out(self.hidden)
        return logits


class Attributes(nn.Module):
    """Detect which of the K most frequent words an image's captions hold, and tell the decoder.

    The probabilities, embedded, are added to every word's embedding. Source: the attributes of
    You et al., CVPR 2016, and LSTM-A (Yao et al., ICCV 2017), which feed them at every step; here
    the detector is a linear layer on the mean feature, and a vocabulary's first words are its own.
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
        image = captions.image_of_token
        attribute = captions.inputs - len(SPECIAL)
        known = (attribute >= 0) & (attribute < self.detect.out_features)
        present = self.detect.weight.new_zeros(images, self.detect.out_features)
        present[image[known], attribute[known]] = 1
        return present


class ShowTell(nn.Module):
    """The picture is the LSTM's first input; there is no attention.

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
        """Memory, and h and c (B, layers, H) after the LSTM has seen the picture."""
        memory = self._memory(features)
        _, (h, c) = self.core(memory.values.unsqueeze(0))
        return memory, (h.transpose(0, 1), c.transpose(0, 1))

    def step(
        self, memory: Memory, tokens: Tensor, state: State, image: Tensor
    ) -> tuple[Tensor, State, None]:
        """Logits (n, V) after `tokens` (n,) and the next state; there is no attention."""
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
        """Logits for every token of the captions.

        detach_prob blocks h in the LSTM (h-detach); detach_attention has no meaning here;
        sampling_prob is the share of input words replaced by the model's own (scheduled sampling).
        """
        rows = len(captions.image)
        sizes = [rows, *captions.batch_sizes]
        blocked = draw_blocked(len(sizes), detach_prob)
        picture = self._memory(features).values[captions.image]  # (rows, E)
        if sampling_prob == 0:
            x = torch.cat([picture, self.dropout(self.embed(captions.inputs))])
            output, _, _ = self.core.run(x, sizes, None, blocked)
            return Prediction(self.dropout(output[rows:]), self.out, None)

        _, (h, c) = self.core(picture.unsqueeze(0), blocked=blocked[:1])
        hidden: list[Tensor] = []
        for t, tokens in enumerate(captions.inputs.split(captions.batch_sizes)):
            size = len(tokens)
            tokens = _own_words(tokens, self.out(hidden[-1]) if hidden else None, sampling_prob)
            x = self.dropout(self.embed(tokens)).unsqueeze(0)
            output, (h, c) = self.core(x, (h[:, :size], c[:, :size]), blocked[t + 1 : t + 2])
            hidden.append(self.dropout(output[0]))
        return Prediction(torch.cat(hidden), self.out, None)

    def _memory(self, features: Tensor) -> Memory:
        return Memory(self.dropout(self.image(features.mean(1))))


class ShowAttendTell(nn.Module):
    """Soft attention over the grid, gated context, deep output.

    Source: Xu et al., "Show, Attend and Tell", ICML 2015, equations 1-7 and section 4.2.1. The
    attention scores use tanh, as in Bahdanau et al. 2015. `fused` = False trains by the definition,
    one step after another.
    """

    fused = True

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__()
        self.config = config
        E, H, A = config.embed_dim, config.hidden_dim, config.attention_dim
        D = config.feature_dim or dim
        self.project = Linear(dim, D) if config.feature_dim else None
        self.key = Linear(D, A)
        self.query = Linear(H, A, bias=False)
        self.score = nn.Parameter(torch.empty(A))
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
        """Project features (B, L, D) once; h and c (B, H) from their mean."""
        values = features
        if self.project is not None:
            values = F.relu(self.project(features))
        values = self.dropout(values)
        mean = values.mean(1)
        state = (self.init_h(mean).tanh(), self.init_c(mean).tanh())
        detected = (None, None) if self.attributes is None else self.attributes(features)
        return Memory(values, 2 * self.key(values), None, *detected), state

    def step(
        self,
        memory: Memory,
        tokens: Tensor,
        state: State,
        image: Tensor,
        asking: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """Logits (n, V) after `tokens` (n,), the next state, and the attention (n, L) it used.

        `asking` (n, H) takes the place of h on its way into the attention.
        """
        words = _words(self, memory, tokens, image)
        places = Places.of(image, len(memory.values))
        query = state[0] if asking is None else asking
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
        """Logits and attention for every token of the captions.

        detach_prob blocks h on its way into the LSTM (h-detach), and with detach_attention also on
        its way into the attention; sampling_prob is the share of input words replaced by the
        model's own (scheduled sampling).
        """
        memory, (h, c) = self.start(features)
        state = (h[captions.image], c[captions.image])
        blocked = draw_blocked(len(captions.batch_sizes), detach_prob).tolist()
        words = _words(self, memory, captions.inputs, captions.image_of_token)
        if self.fused and sampling_prob == 0 and _fusible(words):
            hidden, context, attention = self._fused(
                words, memory, state, captions, blocked, detach_attention
            )
        else:
            words, hidden, context, attention = self._define(
                words, memory, state, captions, blocked, detach_attention, sampling_prob
            )
        attributes = _attributes(self, memory, captions)
        return Prediction(self._deep(words, hidden, context), self.out, attention, attributes)

    def _fused(
        self,
        words: Tensor,
        memory: Memory,
        state: State,
        captions: PackedCaptions,
        blocked: list[bool],
        detach_attention: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        out: tuple[Tensor, Tensor, Tensor] = AttendRecurrence.apply(
            words, memory.keys, memory.values, *state, self.query.weight, self.gate.weight,
            self.gate.bias, self.score, self.core.weight_ih_l0, self.core.weight_hh_l0,
            self.core.bias_ih_l0 + self.core.bias_hh_l0, captions, blocked, detach_attention,
        )  # fmt: skip
        return out

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
        """The definition, step by step; also the words fed, the model's own among them."""
        sizes, (h, c) = captions.batch_sizes, state
        places = Places.of(captions.image, len(memory.values))
        gates = self._word_gates(words).split(sizes)
        tokens = captions.inputs.split(sizes)
        own: Tensor | None = None  # the last step's logits; computed for scheduled sampling only
        fed, hidden, contexts, attentions = [], [], [], []
        for t, (size, word) in enumerate(zip(sizes, words.split(sizes), strict=True)):
            h, c = h[:size], c[:size]
            gate = gates[t]
            if sampling_prob and t:
                fed_back = _own_words(tokens[t], own, sampling_prob)
                word = _words(self, memory, fed_back, captions.image[:size])
                gate = self._word_gates(word)
            query = h.detach() if blocked[t] and detach_attention else h
            context, attention = self._attend(
                memory, query, captions.image[:size], places.first(size)
            )
            h, c = self._recur(gate, context, (h, c), blocked[t])
            if sampling_prob:
                own = self.out(self._deep(word, h, context))
            fed.append(word)
            hidden.append(h)
            contexts.append(context)
            attentions.append(attention)
        return torch.cat(fed), torch.cat(hidden), torch.cat(contexts), torch.cat(attentions)

    def _attend(
        self, memory: Memory, h: Tensor, image: Tensor, places: Places
    ) -> tuple[Tensor, Tensor]:
        """Gated context z = beta * sum_i alpha_i a_i (n, D) and the attention alpha (n, L)."""
        query = self.query(h)
        scores = AdditiveScores.apply(memory.keys, 2 * query, 2 * self.score, image)
        attention: Tensor = scores.softmax(-1)
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
        """The deep output layer (n, E), Xu et al. 2015, equation 7, before the vocabulary."""
        deep = words + self.out_h(self.dropout(h)) + self.out_z(context)
        dropped: Tensor = self.dropout(deep.tanh())
        return dropped


class Adaptive(nn.Module):
    """Attention that may look away: over the grid and a visual sentinel, what the LSTM knows.

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
        """Project features (B, L, D) once; h and c (B, H) are zero."""
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
        asking: Tensor | None = None,
    ) -> tuple[Tensor, State, Tensor]:
        """Logits (n, V) after `tokens` (n,), the next state, and the attention (n, L) it used.

        The attention is that over the picture alone: each row sums to 1, whatever the sentinel got.
        `asking` (n, H) takes the place of h on its way into the sentinel.
        """
        x = self._inputs(memory, tokens, image)
        h, c = self.core.step(self.core.input_gates(x), state, blocked=False)
        before = state[0] if asking is None else asking
        seen, attention = self._look(memory, x, before, h, c, image)
        logits = self.out(self.dropout(seen + h))
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
        """Logits for every token of the captions.

        detach_prob blocks h in the LSTM (h-detach); detach_attention has no meaning here, since the
        attention is no part of the recurrence; sampling_prob is the share of input words replaced
        by the model's own (scheduled sampling).
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
            seen, _ = self._look(memory, x, before, output, cells, image)
            return Prediction(self.dropout(seen + output), self.out, None)

        hidden: list[Tensor] = []
        for t, tokens in enumerate(captions.inputs.split(sizes)):
            before, c, image = h[: len(tokens)], c[: len(tokens)], captions.image[: len(tokens)]
            tokens = _own_words(tokens, self.out(hidden[-1]) if hidden else None, sampling_prob)
            x = self._inputs(memory, tokens, image)
            h, c = self.core.step(self.core.input_gates(x), (before, c), bool(blocked[t]))
            seen, _ = self._look(memory, x, before, h, c, image)
            hidden.append(self.dropout(seen + h))
        return Prediction(torch.cat(hidden), self.out, None)

    def _inputs(self, memory: Memory, tokens: Tensor, image: Tensor) -> Tensor:
        """x = [word, whole picture] (n, 2E)."""
        assert memory.whole is not None
        return torch.cat([self.dropout(self.embed(tokens)), memory.whole[image]], 1)

    def _look(
        self, memory: Memory, x: Tensor, before: Tensor, h: Tensor, c: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the word sees (n, H), of picture and sentinel, and the attention (n, L).

        Takes h before the step, and h and c after it, each (n, H).
        """
        sentinel = (self.sentinel_x(x) + self.sentinel_h(before)).sigmoid() * c.tanh()
        sentinel = self.dropout(sentinel)
        query, score = 2 * self.query(h), 2 * self.score
        cells: Tensor = AdditiveScores.apply(memory.keys, query, score, image)  # (n, L)
        own = (2 * self.sentinel_key(sentinel) + query).sigmoid() @ score  # (n,)
        shares = torch.cat([cells, own.unsqueeze(1)], 1).softmax(-1)
        weights, beta = shares[:, :-1], shares[:, -1:]
        seen = Places.of(image, len(memory.values)).weighted_sum(weights, memory.values)
        return seen + beta * sentinel, cells.softmax(-1)


class UpDown(nn.Module):
    """Two LSTMs: one decides where to look, the other what to say.

    Source: Anderson et al., "Bottom-Up and Top-Down Attention", CVPR 2018, section 3.2, over the
    grid in place of detected regions. h-detach applies to both LSTMs, one draw for both.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__()
        self.config = config
        E, H, A = config.embed_dim, config.hidden_dim, config.attention_dim
        D = config.feature_dim or dim
        self.project = Linear(dim, D) if config.feature_dim else None
        self.key = Linear(D, A)
        self.query = Linear(H, A, bias=False)
        self.score = nn.Parameter(torch.empty(A))
        self.embed = nn.Embedding(vocabulary_size, E)
        self.attention_lstm = HDetachLSTM(H + D + E, H)  # [language h, whole image, word]
        self.language_lstm = HDetachLSTM(D + H, H)  # [context, attention h]
        self.out = Linear(H, vocabulary_size)
        self.attributes = Attributes(dim, config.attributes, E) if config.attributes else None
        self.dropout = nn.Dropout(config.dropout)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.score, -(A**-0.5), A**-0.5)

    def start(self, features: Tensor) -> tuple[Memory, State]:
        """Project features (B, L, D) once; h and c (B, 2, H) of both LSTMs are zero."""
        values = features
        if self.project is not None:
            values = F.relu(self.project(features))
        values = self.dropout(values)
        zeros = values.new_zeros(len(values), 2, self.config.hidden_dim)
        detected = (None, None) if self.attributes is None else self.attributes(features)
        return Memory(values, 2 * self.key(values), values.mean(1), *detected), (zeros, zeros)

    def step(
        self, memory: Memory, tokens: Tensor, state: State, image: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """Logits (n, V) after `tokens` (n,), the next state, and the attention (n, L) it used."""
        gates = self._known_gates(memory, tokens, image)
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
        """Logits and attention for every token of the captions.

        detach_prob blocks h on its way into each LSTM's own next step (h-detach), and with
        detach_attention also the language LSTM's h on its way into the attention LSTM;
        sampling_prob is the share of input words replaced by the model's own (scheduled sampling).
        """
        memory, (h, c) = self.start(features)
        sizes = captions.batch_sizes
        blocked = draw_blocked(len(sizes), detach_prob).tolist()
        places = Places.of(captions.image, len(memory.values))
        (h1, h2), (c1, c2) = (part[captions.image].unbind(1) for part in (h, c))
        gates = self._known_gates(memory, captions.inputs, captions.image_of_token).split(sizes)
        tokens = captions.inputs.split(sizes)
        hidden: list[Tensor] = []
        attentions: list[Tensor] = []
        for t, size in enumerate(sizes):
            image, gate = captions.image[:size], gates[t]
            if sampling_prob and t:
                fed_back = _own_words(tokens[t], self.out(hidden[-1]), sampling_prob)
                gate = self._known_gates(memory, fed_back, image)
            (h1, c1), (h2, c2), attention = self._recur(
                memory, gate, (h1[:size], c1[:size]), (h2[:size], c2[:size]), image,
                places.first(size), blocked[t], blocked[t] and detach_attention,
            )  # fmt: skip
            hidden.append(self.dropout(h2))
            attentions.append(attention)
        return Prediction(
            torch.cat(hidden),
            self.out,
            torch.cat(attentions),
            _attributes(self, memory, captions),
        )

    def _known_gates(self, memory: Memory, tokens: Tensor, image: Tensor) -> Tensor:
        """What the word and the whole image give the attention LSTM's gates (n, 4H)."""
        lstm, H = self.attention_lstm, self.config.hidden_dim
        D = memory.values.shape[2]
        assert memory.whole is not None
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        whole = linear(memory.whole, lstm.weight_ih_l0, bias, slice(H, H + D))
        words = _words(self, memory, tokens, image)
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
        """One step of both LSTMs (h and c each), and the attention (n, L) between them."""
        H, D = self.config.hidden_dim, memory.values.shape[2]
        first, second = self.attention_lstm, self.language_lstm
        before = writing[0].detach() if blocked_attention else writing[0]
        gates = gates + linear(before, first.weight_ih_l0, None, slice(0, H))
        attending = first.step(gates, attending, blocked)
        query = self.query(attending[0])
        scores = AdditiveScores.apply(memory.keys, 2 * query, 2 * self.score, image)
        attention: Tensor = scores.softmax(-1)
        context = places.weighted_sum(attention, memory.values)
        bias = second.bias_ih_l0 + second.bias_hh_l0
        gates = linear(context, second.weight_ih_l0, bias, slice(0, D))
        gates = gates + linear(attending[0], second.weight_ih_l0, None, slice(D, None))
        return attending, second.step(gates, writing, blocked), attention


Decoder: TypeAlias = ShowTell | ShowAttendTell | Adaptive | UpDown
DECODERS: dict[str, type[ShowTell] | type[ShowAttendTell] | type[Adaptive] | type[UpDown]] = {
    "show_tell": ShowTell,
    "show_attend_tell": ShowAttendTell,
    "adaptive": Adaptive,
    "up_down": UpDown,
}


def make_decoder(config: ModelConfig, vocabulary_size: int, dim: int) -> Decoder:
    """The decoder that `config.decoder` names, for features of size `dim`."""
    return DECODERS[config.decoder](config, vocabulary_size, dim)


def _fusible(words: Tensor) -> bool:
    """Whether `AttendRecurrence` pays: on a CPU, in full precision, not traced by a compiler."""
    return not (
        words.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )


def _words(
    decoder: ShowAttendTell | UpDown, memory: Memory, tokens: Tensor, image: Tensor
) -> Tensor:
    """Embeddings (n, E) of tokens (n,), with the attributes of their images where there are any."""
    words: Tensor = decoder.dropout(decoder.embed(tokens))
    return words if memory.attributes is None else words + memory.attributes[image]


def _attributes(
    decoder: ShowAttendTell | UpDown, memory: Memory, captions: PackedCaptions
) -> tuple[Tensor, Tensor] | None:
    if decoder.attributes is None or memory.detected is None:
        return None
    return memory.detected, decoder.attributes.present(captions, len(memory.values))


def _own_words(tokens: Tensor, logits: Tensor | None, prob: float) -> Tensor:
    """Replace each token, with probability `prob`, by a draw from the last step's logits."""
    if logits is None:
        return tokens
    drawn = torch.multinomial(logits[: len(tokens)].detach().softmax(-1), 1).squeeze(1)
    return torch.where(torch.rand(len(tokens), device=tokens.device) < prob, drawn, tokens)
