"""Search for the best captions over any `step` function: beam (greedy is a beam of 1) and sampling.

Knows nothing of pictures or networks: `step(tokens, state, image)` takes the last token of n rows,
their state (tensors whose first dimension is n) and the picture each row belongs to, and returns
logits (n, V), which the search may overwrite, the next state, and attention (n, L) or None. Rows of
a picture stand together, in the order of the pictures; those of a finished picture are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.config import DecodeConfig
from captioner.vocabulary import BOS, EOS, PAD, UNWRITTEN

State: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[Tensor, State, Tensor], tuple[Tensor, State, "Tensor | None"]]


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids, without BOS and EOS."""

    tokens: list[int]
    score: float  # log-probability / length ** length_norm; the order of a picture's captions
    log_prob: float  # natural logarithm, of all tokens and EOS
    attention: Tensor | None  # (len(tokens), L) on the CPU


def search(
    step: Step, state: State, config: DecodeConfig, bad_endings: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """Captions of every picture, best first, at most `config.captions` each.

    `state` has a row a picture. Sampling if `config.sample`, otherwise a beam search. No caption
    ends with a word of `bad_endings` if `config.whole_endings`, unless it is cut at `max_words` or
    `block_repeats` leaves it no other word. What a caption may not go on with costs its
    log-probability nothing and gives it nothing: the other words keep their probabilities.
    """
    find = sample if config.sample else beam_search
    return [found[: config.captions] for found in find(step, state, config, bad_endings)]


@torch.inference_mode()
def beam_search(
    step: Step, state: State, config: DecodeConfig, bad_endings: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """The `beam_size` best captions of each picture, all pictures at once.

    A hypothesis is finished when EOS is among the `beam_size` best continuations. A picture is done
    when it has `beam_size` finished ones; at `max_words` the unfinished are taken as they are.
    Unknown words are never written, and a caption has at least one word.
    """
    pictures, beams = len(state[0]), config.beam_size
    device = state[0].device
    open_ = image = torch.arange(pictures, device=device)  # pictures not done; that of each row
    tokens = torch.full((pictures,), BOS, device=device)
    scores = torch.zeros(pictures, 1, device=device)  # one row a picture at first, then `beams`
    history = _History()
    rules = _Rules(tokens, config, bad_endings)
    finished: list[list[_Finished]] = [[] for _ in range(pictures)]

    for length in range(config.max_words + 1):
        logits, state, attention = step(tokens, state, image)
        history.attention.append(attention)
        best, parent, word = _continuations(
            _allowed(logits, first=length == 0), scores, beams, rules.barred(tokens)
        )

        ends = word == EOS
        numbers = open_.tolist()
        for p, k in ends[:, :beams].nonzero().tolist():  # EOS within the best K only
            found = finished[numbers[p]]
            if len(found) < beams and best[p, k] > -torch.inf:
                found.append(_Finished(float(best[p, k]), length, int(parent[p, k]), ended=True))
        if length == config.max_words:
            for p, number in enumerate(numbers):
                for k, score in enumerate(scores[p].tolist()):
                    if len(finished[number]) < beams and score > -torch.inf:
                        row = p * scores.shape[1] + k
                        finished[number].append(_Finished(score, length, row, ended=False))
            break
        left = [p for p, number in enumerate(numbers) if len(finished[number]) < beams]
        if not left:
            break

        scores, alive = best.masked_fill(ends, -torch.inf).topk(beams)  # (P, K)
        parent, word = parent.gather(1, alive), word.gather(1, alive)
        if len(left) < len(numbers):
            scores, parent, word, open_ = scores[left], parent[left], word[left], open_[left]
        rows, tokens = parent.flatten(), word.flatten()
        image = open_.repeat_interleave(beams)
        if beams > 1 or len(left) < len(numbers):  # otherwise each row is its own parent
            state = tuple(part[rows] for part in state)
        rules.follow(rows, tokens)
        history.parents.append(rows.tolist())
        history.words.append(tokens.tolist())
    captions = [[history.hypothesis(end, config) for end in found] for found in finished]
    return [sorted(found, key=lambda hypothesis: -hypothesis.score) for found in captions]


def _continuations(
    logits: Tensor, scores: Tensor, beams: int, barred: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The best ways on of each picture: log-probability, parent row and word, each (P, >= beams).

    logits (P k, V), overwritten, of rows with log-probabilities `scores` (P, k). The `beams` + 1
    best words of a row are enough: one may be EOS, and no more than `beams` others can be needed;
    and as many more as it has words in `barred` (P k, m).
    """
    pictures, k = scores.shape
    more = 0 if barred is None else int((barred > EOS).sum(1).max())
    top, words = logits.topk(min(beams + 1 + more, logits.shape[1]))
    most = top[:, :1]
    all_words = logits.sub_(most).exp_().sum(-1, keepdim=True).log()
    log_probs = top - most - all_words  # (P k, >= beams + 1)
    if barred is not None:
        left = log_probs.masked_fill((words.unsqueeze(2) == barred.unsqueeze(1)).any(2), -torch.inf)
        log_probs = torch.where(_dead_end(left) & (words == EOS), log_probs, left)
    totals = scores.view(-1, 1) + log_probs
    totals, words = totals.view(pictures, -1), words.view(pictures, -1)
    best, at = totals.topk(min(2 * beams, totals.shape[1]))
    first_row = torch.arange(0, pictures * k, k, device=logits.device).unsqueeze(1)
    parent = first_row + at // top.shape[1]
    lack = max(beams - best.shape[1], 0)  # fewer words than beams: some beams stay empty
    return (
        F.pad(best, (0, lack), value=-torch.inf),
        F.pad(parent, (0, lack)),
        F.pad(words.gather(1, at), (0, lack)),
    )


@torch.inference_mode()
def sample(
    step: Step, state: State, config: DecodeConfig, bad_endings: Sequence[int] = ()
) -> list[list[Hypothesis]]:
    """`captions` random captions of each picture, by temperature, top-k and top-p."""
    pictures, copies = len(state[0]), config.captions
    device = state[0].device
    generator = torch.Generator(device).manual_seed(config.seed)
    image = torch.arange(pictures, device=device).repeat_interleave(copies)
    state = tuple(part.repeat_interleave(copies, 0) for part in state)
    tokens = torch.full((pictures * copies,), BOS, device=device)
    totals = torch.zeros(pictures * copies, device=device)
    history = _History()
    rules = _Rules(tokens, config, bad_endings)
    finished: list[list[_Finished]] = [[] for _ in range(pictures)]
    for length in range(config.max_words):
        logits, state, attention = step(tokens, state, image)
        history.attention.append(attention)
        logits = allowed = _allowed(logits, first=length == 0)
        barred = rules.barred(tokens)
        if barred is not None:
            allowed = logits.scatter(1, barred, -torch.inf)
            ends_all = _dead_end(allowed).squeeze(1)
            allowed[ends_all, EOS] = logits[ends_all, EOS]
        kept = _truncate(allowed / config.temperature, config.top_k, config.top_p)
        tokens = torch.multinomial(kept.softmax(-1), 1, generator=generator).squeeze(1)
        chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
        totals = totals + chosen - logits.logsumexp(-1)
        ends = tokens == EOS
        for row in ends.nonzero().flatten().tolist():
            found = _Finished(float(totals[row]), length, row, ended=True)
            finished[int(image[row])].append(found)
        rows = (~ends).nonzero().flatten()
        tokens, totals, image = tokens[rows], totals[rows], image[rows]
        if not len(rows):
            break
        state = tuple(part[rows] for part in state)
        rules.follow(rows, tokens)
        history.parents.append(rows.tolist())
        history.words.append(tokens.tolist())
    for row, (number, total) in enumerate(zip(image.tolist(), totals.tolist(), strict=True)):
        finished[number].append(_Finished(total, config.max_words, row, ended=False))
    captions = [[history.hypothesis(end, config) for end in found] for found in finished]
    return [sorted(found, key=lambda hypothesis: -hypothesis.score) for found in captions]


class _Rules:
    """What a caption may not go on with: a word that would repeat, or its end after some words."""

    def __init__(self, start: Tensor, config: DecodeConfig, bad_endings: Sequence[int]):
        endings = bad_endings if config.whole_endings else ()
        self._endings = torch.tensor(endings, device=start.device) if endings else None
        self._repeats = config.block_repeats
        self._written = start.new_empty(len(start), 0)  # (n, t), kept if repeats are blocked

    def barred(self, tokens: Tensor) -> Tensor | None:
        """The words (n, m) that may not follow `tokens` (n,), EOS and PAD among them, if any."""
        found = []
        if self._endings is not None:
            found.append(torch.isin(tokens, self._endings).unsqueeze(1) * EOS)  # PAD is 0
        if 0 < self._repeats <= self._written.shape[1]:
            size = self._repeats - 1
            before = self._written.unfold(1, size + 1, 1)  # (n, t - size, size + 1)
            now = self._written[:, self._written.shape[1] - size :].unsqueeze(1)
            found.append(before[..., -1].where((before[..., :-1] == now).all(2), PAD))
        return torch.cat(found, 1) if found else None

    def follow(self, rows: Tensor, tokens: Tensor) -> None:
        """Go on with `tokens`, the next words of `rows`."""
        if self._repeats:
            self._written = torch.cat([self._written[rows], tokens.unsqueeze(1)], 1)


def _dead_end(log_probs: Tensor) -> Tensor:
    """Which rows (n, 1) may go on with no word at all."""
    return log_probs.isneginf().all(1, keepdim=True)


@dataclass(frozen=True)
class _Finished:
    """Where a caption ended: after `length` words, in `row` of the step that came next."""

    log_prob: float
    length: int
    row: int
    ended: bool  # by EOS


class _History:
    """Back pointers: which row came from which, with which word and which look."""

    def __init__(self) -> None:
        self.parents: list[list[int]] = []
        self.words: list[list[int]] = []
        self.attention: list[Tensor | None] = []

    def hypothesis(self, end: _Finished, config: DecodeConfig) -> Hypothesis:
        """The caption that ended at `end`, and what each of its words looked at."""
        row, words, looks = end.row, [], []
        for t in reversed(range(end.length)):
            words.append(self.words[t][row])
            row = self.parents[t][row]
            attention = self.attention[t]
            if attention is not None:
                looks.append(attention[row])
        score = end.log_prob / max(end.length + end.ended, 1) ** config.length_norm
        attention = torch.stack(looks[::-1]).cpu() if looks else None
        return Hypothesis(words[::-1], score, end.log_prob, attention)


def _allowed(logits: Tensor, first: bool) -> Tensor:
    """Logits in float32 with the words that are never written, or not yet, set to -inf in place."""
    logits = logits.float()
    logits[:, [*UNWRITTEN, EOS] if first else UNWRITTEN] = -torch.inf
    return logits


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
