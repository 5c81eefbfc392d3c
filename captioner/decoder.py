"""Decoders: features of pictures to words, on an h-detach LSTM.

Captions of a batch are rows sorted by falling length and packed by time step, as in torch's
PackedSequence: `batch_sizes[t]` rows are alive at step t, so no padding is ever computed. Each row
names its picture (`image`), so a picture's features are projected once for all its captions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from captioner.config import ModelConfig
from captioner.lstm import HDetachLSTM, State, draw_blocked


@dataclass(frozen=True)
class Memory:
    """What a decoder keeps of each picture while it writes; never copied per caption."""

    values: Tensor  # (B, L, D) show_attend_tell; (B, E) show_tell
    keys: Tensor | None = None  # (B, L, A)


@dataclass(frozen=True)
class Teacher:
    """Captions to learn, packed by time step, longest first."""

    inputs: Tensor  # (tokens,) BOS w1 .. wn
    batch_sizes: list[int]  # rows alive at each step
    image: Tensor  # (rows,) picture of each row


@dataclass(frozen=True)
class Prediction:
    """What `forward` returns for every real token of a batch."""

    logits: Tensor  # (tokens, V)
    attention: Tensor | None  # (tokens, L)


class ShowTell(nn.Module):
    """The picture is the LSTM's first input; there is no attention.

    Source: Vinyals et al., "Show and Tell", CVPR 2015.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__()
        self.config = config
        self.image = nn.Linear(dim, config.embed_dim)
        self.embed = nn.Embedding(vocabulary_size, config.embed_dim)
        self.core = HDetachLSTM(
            config.embed_dim, config.hidden_dim, config.num_layers, dropout=config.dropout
        )
        self.out = nn.Linear(config.hidden_dim, vocabulary_size)
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
        teacher: Teacher,
        *,
        detach_prob: float = 0.0,
        detach_attention: bool = False,
        sampling_prob: float = 0.0,
    ) -> Prediction:
        """Logits for every token of the teacher's captions.

        detach_prob blocks h in the LSTM (h-detach); detach_attention has no meaning here;
        sampling_prob is the share of input words replaced by the model's own (scheduled sampling).
        """
        rows = len(teacher.image)
        sizes = [rows, *teacher.batch_sizes]
        blocked = draw_blocked(len(sizes), detach_prob)
        picture = self._memory(features).values[teacher.image]  # (rows, E)
        if sampling_prob == 0:
            x = torch.cat([picture, self.dropout(self.embed(teacher.inputs))])
            packed, _ = self.core(PackedSequence(x, torch.tensor(sizes)), blocked=blocked)
            return Prediction(self.out(self.dropout(packed.data[rows:])), None)

        _, (h, c) = self.core(picture.unsqueeze(0), blocked=blocked[:1])
        logits: list[Tensor] = []
        for t, tokens in enumerate(teacher.inputs.split(teacher.batch_sizes)):
            size = len(tokens)
            tokens = _own_words(tokens, logits[-1] if logits else None, sampling_prob)
            x = self.dropout(self.embed(tokens)).unsqueeze(0)
            output, (h, c) = self.core(x, (h[:, :size], c[:, :size]), blocked[t + 1 : t + 2])
            logits.append(self.out(self.dropout(output[0])))
        return Prediction(torch.cat(logits), None)

    def _memory(self, features: Tensor) -> Memory:
        return Memory(self.dropout(self.image(features.mean(1))))


class _AdditiveScores(torch.autograd.Function):
    """Scores (n, L) of additive attention, without a graph of (n, L, A) intermediates.

    score . tanh(x) equals 2 score . sigmoid(2x) less a constant, which the softmax cancels, and
    sigmoid is several times faster than tanh: keys (B, L, A), query (n, A) and score (A,) come
    already doubled.
    """

    @staticmethod
    def forward(ctx: Any, keys: Tensor, query: Tensor, score: Tensor, image: Tensor) -> Tensor:
        mixed = keys[image].add_(query.unsqueeze(1)).sigmoid_()  # (n, L, A)
        ctx.save_for_backward(mixed, score, image)
        ctx.pictures = len(keys)
        return mixed @ score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        mixed, score, image = ctx.saved_tensors
        grad_score = grad.flatten() @ mixed.flatten(0, 1)
        # sigmoid' = s - s^2; d score is multiplied last, on the sums.
        slope = torch.addcmul(mixed, mixed, mixed, value=-1).mul_(grad.unsqueeze(-1))
        grad_query = slope.sum(1) * score
        grad_keys = slope.new_zeros(ctx.pictures, *slope.shape[1:])
        grad_keys = grad_keys.index_add_(0, image, slope).mul_(score)
        return grad_keys, grad_query, grad_score, None


class ShowAttendTell(nn.Module):
    """Soft attention over the grid, gated context, deep output.

    Source: Xu et al., "Show, Attend and Tell", ICML 2015, equations 1-7 and section 4.2.1. The
    attention scores use tanh, as in Bahdanau et al. 2015.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, dim: int):
        super().__init__()
        self.config = config
        E, H, A = config.embed_dim, config.hidden_dim, config.attention_dim
        D = config.feature_dim or dim
        self.project = nn.Linear(dim, D) if config.feature_dim else None
        self.key = nn.Linear(D, A)
        self.query = nn.Linear(H, A, bias=False)
        self.score = nn.Parameter(torch.empty(A))
        self.gate = nn.Linear(H, D)
        self.init_h = nn.Linear(D, H)
        self.init_c = nn.Linear(D, H)
        self.embed = nn.Embedding(vocabulary_size, E)
        self.core = HDetachLSTM(E + D, H)
        self.out_h = nn.Linear(H, E)
        self.out_z = nn.Linear(D, E, bias=False)
        self.out = nn.Linear(E, vocabulary_size)
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
        return Memory(values, 2 * self.key(values)), state  # doubled for _AdditiveScores

    def step(
        self, memory: Memory, tokens: Tensor, state: State, image: Tensor
    ) -> tuple[Tensor, State, Tensor]:
        """Logits (n, V) after `tokens` (n,), the next state, and the attention (n, L) it used."""
        words = self.dropout(self.embed(tokens))
        context, attention = self._attend(memory, state[0], image)
        h, c = self._recur(self._word_gates(words), context, state, blocked=False)
        return self._logits(words, h, context), (h, c), attention

    def forward(
        self,
        features: Tensor,
        teacher: Teacher,
        *,
        detach_prob: float = 0.0,
        detach_attention: bool = False,
        sampling_prob: float = 0.0,
    ) -> Prediction:
        """Logits and attention for every token of the teacher's captions.

        detach_prob blocks h on its way into the LSTM (h-detach), and with detach_attention also on
        its way into the attention; sampling_prob is the share of input words replaced by the
        model's own (scheduled sampling).
        """
        memory, (h, c) = self.start(features)
        h, c = h[teacher.image], c[teacher.image]
        sizes = teacher.batch_sizes
        blocked = draw_blocked(len(sizes), detach_prob).tolist()
        words = self.dropout(self.embed(teacher.inputs))
        gates = self._word_gates(words).split(sizes)
        tokens = teacher.inputs.split(sizes)
        own: Tensor | None = None  # the last step's logits; computed for scheduled sampling only
        fed, hidden, contexts, attentions = [], [], [], []
        for t, (size, word) in enumerate(zip(sizes, words.split(sizes), strict=True)):
            h, c, image = h[:size], c[:size], teacher.image[:size]
            gate = gates[t]
            if sampling_prob and t:
                word = self.dropout(self.embed(_own_words(tokens[t], own, sampling_prob)))
                gate = self._word_gates(word)
            query = h.detach() if blocked[t] and detach_attention else h
            context, attention = self._attend(memory, query, image)
            h, c = self._recur(gate, context, (h, c), blocked[t])
            if sampling_prob:
                own = self._logits(word, h, context)
            fed.append(word)
            hidden.append(h)
            contexts.append(context)
            attentions.append(attention)
        logits = self._logits(torch.cat(fed), torch.cat(hidden), torch.cat(contexts))
        return Prediction(logits, torch.cat(attentions))

    def _attend(self, memory: Memory, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Gated context z = beta * sum_i alpha_i a_i (n, D) and the attention alpha (n, L)."""
        assert memory.keys is not None
        pictures, cells, _ = memory.values.shape
        scores = _AdditiveScores.apply(memory.keys, 2 * self.query(h), 2 * self.score, image)
        attention = scores.softmax(-1)
        # One product with all pictures' cells, zeros for the pictures of other rows, is faster than
        # a copy of the features for every row.
        spread = attention.new_zeros(len(h), pictures, cells)
        spread = spread.index_put((torch.arange(len(h), device=h.device), image), attention)
        context = spread.flatten(1) @ memory.values.flatten(0, 1)  # (n, D)
        return self.gate(h).sigmoid() * context, attention

    def _word_gates(self, words: Tensor) -> Tensor:
        weight = self.core.weight_ih_l0[:, : words.shape[-1]]
        return F.linear(words, weight, self.core.bias_ih_l0 + self.core.bias_hh_l0)

    def _recur(self, gates: Tensor, context: Tensor, state: State, blocked: bool) -> State:
        weight = self.core.weight_ih_l0[:, self.config.embed_dim :]
        return self.core.step(gates + F.linear(context, weight), state, blocked)

    def _logits(self, words: Tensor, h: Tensor, context: Tensor) -> Tensor:
        deep: Tensor = words + self.out_h(self.dropout(h)) + self.out_z(context)
        logits: Tensor = self.out(self.dropout(deep.tanh()))
        return logits


Decoder: TypeAlias = ShowTell | ShowAttendTell
DECODERS: dict[str, type[ShowTell] | type[ShowAttendTell]] = {
    "show_tell": ShowTell,
    "show_attend_tell": ShowAttendTell,
}


def make_decoder(config: ModelConfig, vocabulary_size: int, dim: int) -> Decoder:
    """The decoder that `config.decoder` names, for features of size `dim`."""
    return DECODERS[config.decoder](config, vocabulary_size, dim)


def _own_words(tokens: Tensor, logits: Tensor | None, prob: float) -> Tensor:
    """Replace each token, with probability `prob`, by a draw from the last step's logits."""
    if logits is None:
        return tokens
    drawn = torch.multinomial(logits[: len(tokens)].detach().softmax(-1), 1).squeeze(1)
    return torch.where(torch.rand(len(tokens), device=tokens.device) < prob, drawn, tokens)
