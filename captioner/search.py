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

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.config import DecodeConfig
from captioner.tokens import BOS, EOS, PAD, UNWRITTEN

State: TypeAlias = tuple[Tensor, ...]
Step: TypeAlias = Callable[[Tensor, State, Tensor], tuple[Tensor, State, "Tensor | None"]]
Seed: TypeAlias = "int | Sequence[int]"

_LOOK_EVERY = 4  # see `sample`


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids, without BOS and EOS."""

    tokens: list[int]
    score: float  # log-probability / length ** length_norm; the order of a picture's captions
    log_prob: float  # natural logarithm, of all tokens and EOS
    attention: Tensor | None  # (len(tokens), L) on the CPU


def search(
    step: Step,
    state: State,
    config: DecodeConfig,
    bad_endings: Sequence[int] = (),
    *,
    seeds: Sequence[Seed] | None = None,
    distinct: bool = False,
    attention: bool = True,
) -> list[list[Hypothesis]]:
    """Return the captions of every image, best first, at most `config.captions` each.

    `state` has a row an image. Samples if `config.sample`, otherwise a beam search. No caption
    ends with a word of `bad_endings` if `config.whole_endings`, unless it is cut at `max_words` or
    `block_repeats` leaves it no other word. Blocked words are masked without renormalising, so
    scores stay comparable.

    No two captions of a beam search are equal. Samples are independent, so a likely caption may
    come more than once; with `distinct` they are drawn without replacement, and an image has fewer
    than `captions` if as many further samples gave no new one. They depend on the image and on its
    seed, not on the other images: `seeds` has one for each image; by default each has
    `config.seed`. Without `attention` none is kept, which is faster.
    """
    if not config.sample:
        found = beam_search(step, state, config, bad_endings, attention=attention)
        return [hypotheses[: config.captions] for hypotheses in found]
    seeds = [config.seed] * len(state[0]) if seeds is None else seeds

    def draw(images: Sequence[int], block: int) -> list[list[Hypothesis]]:
        rows = torch.tensor(images, device=state[0].device)
        every = len(images) == len(state[0])
        return sample(
            step if every else lambda tokens, now, image: step(tokens, now, rows[image]),
            state if every else tuple(part[rows] for part in state),
            config,
            bad_endings,
            uniforms=draw_uniforms([seeds[image] for image in images], config, block),
            attention=attention,
        )

    everything = range(len(state[0]))
    found = _distinct(draw, everything, config.captions) if distinct else draw(everything, 0)
    return [_best_first(hypotheses) for hypotheses in found]


def _distinct(
    draw: Callable[[Sequence[int], int], list[list[Hypothesis]]], images: range, captions: int
) -> list[list[Hypothesis]]:
    """Draw captions of `images` until each has `captions` different ones, or a block has no new."""
    found: list[dict[tuple[int, ...], Hypothesis]] = [{} for _ in images]
    lacking, block = list(images), 0
    while lacking:
        before = [len(own) for own in found]
        for image, hypotheses in zip(lacking, draw(lacking, block), strict=True):
            for hypothesis in hypotheses:
                if len(found[image]) < captions:
                    found[image].setdefault(tuple(hypothesis.tokens), hypothesis)
        lacking = [i for i in lacking if before[i] < len(found[i]) < captions]
        block += 1
    return [list(own.values()) for own in found]


def _best_first(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda hypothesis: -hypothesis.score)


@torch.inference_mode()
def beam_search(
    step: Step,
    state: State,
    config: DecodeConfig,
    bad_endings: Sequence[int] = (),
    *,
    attention: bool = True,
) -> list[list[Hypothesis]]:
    """The `beam_size` best captions of each image, all images at once.

    A hypothesis is finished when EOS is among the `beam_size` best continuations. An image is done
    when it has `beam_size` finished ones; at `max_words` the unfinished are taken as they are.
    Unknown words are never written, and a caption has at least one word. No two captions of an
    image are equal: what both ends at `max_words` and is cut there has the better of its scores.
    """
    pictures, beams = len(state[0]), config.beam_size
    device = state[0].device
    open_ = image = torch.arange(pictures, device=device)  # pictures not done; that of each row
    tokens = torch.full((pictures,), BOS, device=device)
    scores = torch.zeros(pictures, 1, device=device)  # one row a picture at first, then `beams`
    unwritten = torch.tensor([*UNWRITTEN, EOS], device=device)
    history = _History()
    rules = _Rules(tokens, config, bad_endings)
    finished: list[list[_Finished]] = [[] for _ in range(pictures)]

    for length in range(config.max_words + 1):
        logits, state, looked = step(tokens, state, image)
        history.attention.append(looked if attention else None)
        best, parent, word = _continuations(
            _allowed(logits, unwritten[: 4 if length == 0 else 3]),
            scores,
            beams,
            rules.barred(tokens),
        )

        ends = word == EOS
        numbers = open_.tolist()
        for p, k in ends[:, :beams].nonzero().tolist():  # EOS within the best K only
            found = finished[numbers[p]]
            if len(found) < beams and best[p, k] > -torch.inf:
                found.append(_Finished(float(best[p, k]), length, int(parent[p, k]), ended=True))
        if length == config.max_words:
            for p, number in enumerate(numbers):
                _cut(finished[number], scores[p].tolist(), p * scores.shape[1], length, config)
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
    return [_best_first(found) for found in captions]


def _cut(
    found: list[_Finished],
    log_probs: Sequence[float],
    first_row: int,
    length: int,
    config: DecodeConfig,
) -> None:
    """Add the unfinished hypotheses of an image to its finished ones, up to `beam_size`."""
    ended = {end.row: at for at, end in enumerate(found) if end.length == length}
    for k, log_prob in enumerate(log_probs):
        if len(found) == config.beam_size or log_prob == -torch.inf:
            break
        cut = _Finished(log_prob, length, first_row + k, ended=False)
        if cut.row not in ended:
            found.append(cut)
        elif cut.score(config) > found[ended[cut.row]].score(config):
            found[ended[cut.row]] = cut


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
    step: Step,
    state: State,
    config: DecodeConfig,
    bad_endings: Sequence[int] = (),
    *,
    uniforms: Tensor | None = None,
    attention: bool = True,
    look_every: int = 0,
) -> list[list[Hypothesis]]:
    """Sample `captions` captions of each image, by temperature, top-k and top-p, in order drawn.

    The samples of an image are independent: a likely caption may come more than once. Word t of
    sample k is the inverse of the cumulative probabilities at uniforms[image, k, t], a number in
    [0, 1); by default all images have the same numbers, those of `config.seed`. Without `attention`
    none is kept. Every `look_every` steps the rows of finished samples are dropped, which waits for
    the device and changes nothing in the result; 0: at every step on a CPU, else at every 4th.
    """
    images, copies, most = len(state[0]), config.captions, config.max_words
    device = state[0].device
    if uniforms is None:
        uniforms = draw_uniforms([config.seed], config).expand(images, -1, -1)
    uniforms = uniforms.reshape(-1, most).to(device)  # (N, max_words), N = images * copies
    written = torch.full_like(uniforms, PAD, dtype=torch.long)
    totals = torch.zeros(len(uniforms), device=device)
    sample_of = torch.arange(len(uniforms), device=device)  # the sample of each row
    image = torch.arange(images, device=device)
    tokens = torch.full_like(image, BOS)
    unwritten = torch.tensor([*UNWRITTEN, EOS], device=device)
    rules = _Rules(tokens.repeat_interleave(copies), config, bad_endings)
    kept: list[tuple[Tensor, Tensor]] = []
    look_every = look_every or (1 if device.type == "cpu" else _LOOK_EVERY)
    for t in range(most):
        logits, state, looked = step(tokens, state, image)
        if t == 0:  # the samples of an image have had their first step together
            logits, tokens, image = (
                part.repeat_interleave(copies, 0) for part in (logits, tokens, image)
            )
            state = tuple(part.repeat_interleave(copies, 0) for part in state)
            looked = looked if looked is None else looked.repeat_interleave(copies, 0)
        if attention and looked is not None:
            kept.append((sample_of, looked))
        log_probs = _allowed(logits, unwritten[: 4 if t == 0 else 3]).log_softmax(-1)
        probs = _truncated(log_probs, rules.barred(tokens), config)
        drawn = _inverse(probs, uniforms[sample_of, t])
        over = (tokens == EOS) | (tokens == PAD)
        chosen = log_probs.gather(1, drawn.unsqueeze(1)).squeeze(1)
        totals.index_add_(0, sample_of, chosen.masked_fill(over, 0))
        tokens = drawn.masked_fill(over, PAD)
        written[sample_of, t] = tokens
        rows = None
        if (t + 1) % look_every == 0:
            rows = ((tokens != EOS) & (tokens != PAD)).nonzero().squeeze(1)
            if not len(rows):
                break
            if len(rows) < len(tokens):
                tokens, image, sample_of = tokens[rows], image[rows], sample_of[rows]
                state = tuple(part[rows] for part in state)
            else:
                rows = None
        rules.follow(rows, tokens)
    found = _samples(written, totals, kept, config)
    return [found[first : first + copies] for first in range(0, len(found), copies)]


def draw_uniforms(seeds: Sequence[Seed], config: DecodeConfig, block: int = 0) -> Tensor:
    """Draw numbers in [0, 1) from each seed: (seeds, captions, max_words), on the CPU.

    Every `block` of a seed has numbers of its own; they do not depend on the other seeds.
    """
    shape = (block + 1, config.captions, config.max_words)
    blocks = [np.random.default_rng(_entropy(seed)).random(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack([drawn[block] for drawn in blocks]))


def _entropy(seed: Seed) -> list[int]:
    """What numpy takes for a seed: numbers that are not negative."""
    return [part % (1 << 64) for part in ([seed] if isinstance(seed, int) else seed)]


def _inverse(probs: Tensor, uniforms: Tensor) -> Tensor:
    """The word (n,) at which the cumulative sum of `probs` (n, V) passes that share of it (n,)."""
    sums = probs.cumsum(-1)
    at = torch.searchsorted(sums, uniforms.unsqueeze(1) * sums[:, -1:], right=True)
    at.clamp_(max=probs.shape[1] - 1)
    possible = probs.gather(1, at) > 0  # rounding may lead to a neighbour that is not
    return torch.where(possible, at, probs.argmax(-1, keepdim=True)).squeeze(1)


def _samples(
    written: Tensor, totals: Tensor, kept: Sequence[tuple[Tensor, Tensor]], config: DecodeConfig
) -> list[Hypothesis]:
    """Hypotheses from samples: words and EOS `written` (N, max_words), log-probabilities (N,)."""
    looks = None
    if kept:
        cells = kept[0][1].shape[1]
        looks = torch.zeros(len(written), len(kept), cells, dtype=kept[0][1].dtype)
        for t, (sample_of, looked) in enumerate(kept):
            looks[sample_of.cpu(), t] = looked.cpu()
    found = []
    for number, (words, total) in enumerate(zip(written.tolist(), totals.tolist(), strict=True)):
        ended = EOS in words
        length = words.index(EOS) if ended else len(words)
        score = total / (length + ended) ** config.length_norm
        own = None if looks is None else looks[number, :length].clone()
        found.append(Hypothesis(words[:length], score, total, own))
    return found


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

    def follow(self, rows: Tensor | None, tokens: Tensor) -> None:
        """Go on with `tokens`, the next words of `rows`; None: of all rows."""
        if self._repeats:
            before = self._written if rows is None else self._written[rows]
            self._written = torch.cat([before, tokens.unsqueeze(1)], 1)


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

    def score(self, config: DecodeConfig) -> float:
        return float(self.log_prob / max(self.length + self.ended, 1) ** config.length_norm)


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
        score = end.score(config)
        attention = torch.stack(looks[::-1]).cpu() if looks else None
        return Hypothesis(words[::-1], score, end.log_prob, attention)


def _allowed(logits: Tensor, never: Tensor) -> Tensor:
    """Logits in float32 with the words that may not be written set to -inf in place."""
    return logits.float().index_fill_(1, never, -torch.inf)


def _truncated(log_probs: Tensor, barred: Tensor | None, config: DecodeConfig) -> Tensor:
    """The probabilities (n, V) to sample from.

    Without the words `barred` (n, m) and by temperature, then the `top_k` likeliest words, then the
    likeliest that hold `top_p` together.
    """
    if barred is None and config.temperature == 1 and config.top_p == 1 and not config.top_k:
        return log_probs.exp()
    left = log_probs
    if barred is not None:
        left = log_probs.scatter(1, barred, -torch.inf)
        left[:, EOS] = torch.where(_dead_end(left).squeeze(1), log_probs[:, EOS], left[:, EOS])
    left = left / config.temperature
    if 0 < config.top_k < left.shape[-1]:
        left = left.masked_fill(left < left.topk(config.top_k).values[:, -1:], -torch.inf)
    if config.top_p < 1:
        ordered, order = left.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= config.top_p)
        left = left.masked_fill(drop, -torch.inf)
    return left.softmax(-1)
