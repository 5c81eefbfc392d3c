"""Search for the best captions over any `step` function: beam (greedy is a beam of 1) and sampling.

Knows nothing of pictures or networks: `step(tokens, state, image)` takes the last token of n rows,
their state (tensors whose first dimension is n) and the picture each row belongs to, and returns
logits (n, V), the next state, and attention (n, L) or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from captioner.config import DecodeConfig
from captioner.vocabulary import BOS, EOS, PAD, UNK

State: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[Tensor, State, Tensor], tuple[Tensor, State, "Tensor | None"]]


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids, without BOS and EOS."""

    tokens: list[int]
    score: float  # log-probability / length ** length_norm; the order of a picture's captions
    log_prob: float  # natural logarithm, of all tokens and EOS
    attention: Tensor | None  # (len(tokens), L) on the CPU


def search(step: Step, state: State, config: DecodeConfig) -> list[list[Hypothesis]]:
    """Captions of every picture, best first, at most `config.captions` each.

    `state` has a row a picture. Sampling if `config.sample`, otherwise a beam search.
    """
    find = sample if config.sample else beam_search
    return [found[: config.captions] for found in find(step, state, config)]


@torch.inference_mode()
def beam_search(step: Step, state: State, config: DecodeConfig) -> list[list[Hypothesis]]:
    """The `beam_size` best captions of each picture, all pictures at once.

    A hypothesis is finished when EOS is among the `beam_size` best continuations. A picture is done
    when it has `beam_size` finished ones; at `max_words` the unfinished are taken as they are.
    Unknown words are never written, and a caption has at least one word.
    """
    pictures, beams = len(state[0]), config.beam_size
    device = state[0].device
    image = torch.arange(pictures, device=device).repeat_interleave(beams)
    state = tuple(part.repeat_interleave(beams, 0) for part in state)
    tokens = torch.full((pictures * beams,), BOS, device=device)
    scores = torch.full((pictures, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # all beams are equal at first: one of them counts
    history = _History()
    finished: list[list[Hypothesis]] = [[] for _ in range(pictures)]

    for length in range(config.max_words + 1):
        logits, state, attention = step(tokens, state, image)
        log_probs = _allowed(logits, first=length == 0).log_softmax(-1)  # (B * K, V)
        vocabulary = log_probs.shape[-1]
        totals = scores.view(-1, 1) + log_probs
        width = min(2 * beams, beams * vocabulary)
        best, flat = totals.view(pictures, -1).topk(width)  # (B, 2K)
        parent, word = flat // vocabulary, flat % vocabulary
        history.attention.append(attention)

        ends = word == EOS
        for b, k in ends[:, :beams].nonzero().tolist():  # EOS within the best K only
            if len(finished[b]) < beams and best[b, k] > -torch.inf:
                traced = history.trace(b * beams + int(parent[b, k]))
                finished[b].append(_hypothesis(traced, float(best[b, k]), 1, config))
        if all(len(found) >= beams for found in finished):
            break
        if length == config.max_words:
            for b, found in enumerate(finished):
                for k in range(beams):
                    if len(found) < beams and scores[b, k] > -torch.inf:
                        traced = history.trace(b * beams + k)
                        found.append(_hypothesis(traced, float(scores[b, k]), 0, config))
            break

        scores, alive = best.masked_fill(ends, -torch.inf).topk(beams)  # (B, K)
        parent, word = parent.gather(1, alive), word.gather(1, alive)
        rows = (parent + torch.arange(pictures, device=device).unsqueeze(1) * beams).flatten()
        state = tuple(part[rows] for part in state)
        tokens = word.flatten()
        history.parents.append(rows.tolist())
        history.words.append(tokens.tolist())
    return [sorted(found, key=lambda hypothesis: -hypothesis.score) for found in finished]


@torch.inference_mode()
def sample(step: Step, state: State, config: DecodeConfig) -> list[list[Hypothesis]]:
    """`captions` random captions of each picture, by temperature, top-k and top-p."""
    pictures, copies = len(state[0]), config.captions
    device = state[0].device
    generator = torch.Generator(device).manual_seed(config.seed)
    image = torch.arange(pictures, device=device).repeat_interleave(copies)
    state = tuple(part.repeat_interleave(copies, 0) for part in state)
    tokens = torch.full((pictures * copies,), BOS, device=device)
    totals = torch.zeros(pictures * copies, device=device)
    alive = torch.ones_like(tokens, dtype=torch.bool)
    words: list[list[int]] = [[] for _ in range(pictures * copies)]
    attentions: list[Tensor | None] = []
    for length in range(config.max_words + 1):
        logits, state, attention = step(tokens, state, image)
        logits = _allowed(logits, first=length == 0)
        if length == config.max_words:
            break
        kept = _truncate(logits / config.temperature, config.top_k, config.top_p)
        tokens = torch.multinomial(kept.softmax(-1), 1, generator=generator).squeeze(1)
        chosen = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        totals += chosen * alive
        attentions.append(attention)
        alive = alive & (tokens != EOS)
        for row in alive.nonzero().flatten().tolist():
            words[row].append(int(tokens[row]))
        if not alive.any():
            break
    ended = (~alive).tolist()
    found: list[list[Hypothesis]] = [[] for _ in range(pictures)]
    for row, written in enumerate(words):
        looked = [a[row].cpu() for a in attentions[: len(written)] if a is not None]
        traced = (written, torch.stack(looked) if looked else None)
        found[row // copies].append(_hypothesis(traced, float(totals[row]), ended[row], config))
    return [sorted(group, key=lambda hypothesis: -hypothesis.score) for group in found]


class _History:
    """Back pointers of a beam search: who came from where, with which word and which look."""

    def __init__(self) -> None:
        self.parents: list[list[int]] = []
        self.words: list[list[int]] = []
        self.attention: list[Tensor | None] = []

    def trace(self, row: int) -> tuple[list[int], Tensor | None]:
        """Words of the hypothesis in `row`, and what each of them looked at."""
        words, looks = [], []
        past = zip(self.parents, self.words, self.attention, strict=False)
        for parents, written, attention in reversed(list(past)):
            words.append(written[row])
            row = parents[row]
            if attention is not None:
                looks.append(attention[row].cpu())
        return words[::-1], torch.stack(looks[::-1]) if looks else None


def _hypothesis(
    traced: tuple[list[int], Tensor | None], log_prob: float, ended: int, config: DecodeConfig
) -> Hypothesis:
    words, attention = traced
    length = max(len(words) + ended, 1)
    return Hypothesis(words, log_prob / length**config.length_norm, log_prob, attention)


def _allowed(logits: Tensor, first: bool) -> Tensor:
    """Logits in float32 with the words that are never written, or not yet, set to -inf."""
    banned = [PAD, BOS, UNK, EOS] if first else [PAD, BOS, UNK]
    return logits.float().index_fill(-1, torch.tensor(banned, device=logits.device), -torch.inf)


def _truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` likeliest words, then the likeliest that hold `top_p` together."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits
