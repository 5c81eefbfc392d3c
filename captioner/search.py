"""Search captions with any `step` function: by beam (greedy is a beam of 1) or by sampling.

The search knows no images and no networks. `step(tokens, state, image)` takes the last token of n
rows, their state (tensors whose first dimension is n) and the image index of each row. It returns
logits (n, V), which the search may overwrite, the next state, and attention (n, L) or None. Rows of
an image are adjacent, in the order of the images; those of a finished image are dropped.
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

_CHECK_EVERY = 4  # steps on a GPU; see `sample`


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids, without BOS and EOS."""

    tokens: list[int]
    score: float  # log-probability / length ** length_norm; orders the captions of an image
    log_prob: float  # natural logarithm; of all tokens and EOS
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

    `state` has a row for each image. Samples if `config.sample`, otherwise runs a beam search. If
    `config.whole_endings`, no caption ends with a word of `bad_endings`, unless it is cut at
    `max_words` or `block_repeats` leaves no other word. Blocked words are masked without
    renormalising, so scores stay comparable.

    The captions of a beam search are distinct. Samples are independent, so a likely caption may be
    repeated. With `distinct` repeated samples are replaced, and an image has fewer than `captions`
    if `captions` further samples are all repeated. Samples depend on the image and its seed, not on
    the other images: `seeds` has one for each image; by default all have `config.seed`. Without
    `attention` none is kept, which is faster.
    """
    if not config.sample:
        found = beam_search(step, state, config, bad_endings, attention=attention)
        return [hypotheses[: config.captions] for hypotheses in found]
    seeds = [config.seed] * len(state[0]) if seeds is None else seeds

    def draw(images: Sequence[int], block: int) -> list[list[Hypothesis]]:
        rows = torch.tensor(images, device=state[0].device)
        whole = len(images) == len(state[0])
        return sample(
            step if whole else lambda tokens, state, image: step(tokens, state, rows[image]),
            state if whole else tuple(part[rows] for part in state),
            config,
            bad_endings,
            uniforms=draw_uniforms([seeds[image] for image in images], config, block),
            attention=attention,
        )

    images = range(len(state[0]))
    found = _distinct(draw, images, config.captions) if distinct else draw(images, 0)
    return [_best_first(hypotheses) for hypotheses in found]


def _distinct(
    draw: Callable[[Sequence[int], int], list[list[Hypothesis]]], images: range, captions: int
) -> list[list[Hypothesis]]:
    """Draw blocks of samples until each image has `captions` distinct ones or no new one comes."""
    found: list[dict[tuple[int, ...], Hypothesis]] = [{} for _ in images]
    incomplete, block = list(images), 0
    while incomplete:
        before = [len(own) for own in found]
        for image, hypotheses in zip(incomplete, draw(incomplete, block), strict=True):
            for hypothesis in hypotheses:
                if len(found[image]) < captions:
                    found[image].setdefault(tuple(hypothesis.tokens), hypothesis)
        incomplete = [i for i in incomplete if before[i] < len(found[i]) < captions]
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
    """Return the `beam_size` best captions of each image, best first; all images at once.

    A hypothesis is finished if EOS is among the `beam_size` best continuations. An image is
    finished with `beam_size` finished hypotheses; at `max_words` the others are cut. Unknown words
    are never written, and a caption has at least one word. The captions of an image are distinct: a
    caption that both ends at `max_words` and is cut there has the better of the two scores.
    """
    images, beams = len(state[0]), config.beam_size
    device = state[0].device
    unfinished = image = torch.arange(images, device=device)  # images; the image of each row
    tokens = torch.full((images,), BOS, device=device)
    scores = torch.zeros(images, 1, device=device)  # one row for each image, later `beams` rows
    unwritten = torch.tensor([*UNWRITTEN, EOS], device=device)
    history = _History()
    rules = _Rules(tokens, config, bad_endings)
    finished: list[list[_Finished]] = [[] for _ in range(images)]

    for length in range(config.max_words + 1):
        logits, state, step_attention = step(tokens, state, image)
        history.attention.append(step_attention if attention else None)
        logits = _mask(logits, unwritten[: 4 if length == 0 else 3])
        best, parent, word = _continuations(logits, scores, beams, rules.blocked(tokens))

        ends = word == EOS
        own = [finished[index] for index in unfinished.tolist()]
        for i, k in ends[:, :beams].nonzero().tolist():  # EOS within the best K only
            if len(own[i]) < beams and best[i, k] > -torch.inf:
                own[i].append(_Finished(float(best[i, k]), length, int(parent[i, k]), ended=True))
        if length == config.max_words:
            for i, found in enumerate(own):
                _cut(found, scores[i].tolist(), i * scores.shape[1], length, config)
            break
        left = [i for i, found in enumerate(own) if len(found) < beams]
        if not left:
            break

        scores, alive = best.masked_fill(ends, -torch.inf).topk(beams)  # (images, K)
        parent, word = parent.gather(1, alive), word.gather(1, alive)
        if len(left) < len(own):
            scores, parent, word = scores[left], parent[left], word[left]
            unfinished = unfinished[left]
        rows, tokens = parent.flatten(), word.flatten()
        image = unfinished.repeat_interleave(beams)
        if beams > 1 or len(left) < len(own):  # otherwise each row is its own parent
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
    logits: Tensor, scores: Tensor, beams: int, blocked: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best continuations of each of B images: log-probability, parent row and word.

    Each is (B, >= beams). `logits` (B k, V) are overwritten; `scores` (B, k) are the
    log-probabilities of their rows. The `beams` + 1 best words of a row suffice, since one may be
    EOS and at most `beams` others are needed; plus one for each word of the row in `blocked`
    (B k, m).
    """
    images, k = scores.shape
    more = 0 if blocked is None else int((blocked > EOS).sum(1).max())
    top, words = logits.topk(min(beams + 1 + more, logits.shape[1]))
    most = top[:, :1]
    all_words = logits.sub_(most).exp_().sum(-1, keepdim=True).log()
    log_probs = top - most - all_words  # (B k, >= beams + 1)
    if blocked is not None:
        masked = (words.unsqueeze(2) == blocked.unsqueeze(1)).any(2)
        left = log_probs.masked_fill(masked, -torch.inf)
        log_probs = torch.where(_dead_end(left) & (words == EOS), log_probs, left)
    totals = scores.view(-1, 1) + log_probs
    totals, words = totals.view(images, -1), words.view(images, -1)
    best, at = totals.topk(min(2 * beams, totals.shape[1]))
    first_row = torch.arange(0, images * k, k, device=logits.device).unsqueeze(1)
    parent = first_row + at // top.shape[1]
    lack = max(beams - best.shape[1], 0)  # with fewer words than beams, some beams stay empty
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
    check_every: int = 0,
) -> list[list[Hypothesis]]:
    """Sample `captions` captions of each image by temperature, top-k and top-p; in sampled order.

    The samples of an image are independent, so a likely caption may be repeated. Word t of sample k
    is the inverse of the cumulative probabilities at uniforms[image, k, t], a number in [0, 1). By
    default all images have the numbers of `config.seed`. Without `attention` none is kept. Every
    `check_every` steps the rows of finished samples are dropped, which waits for the device and
    does not change the result; 0 is every step on a CPU, every 4th elsewhere.
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
    check_every = check_every or (1 if device.type == "cpu" else _CHECK_EVERY)
    for t in range(most):
        logits, state, step_attention = step(tokens, state, image)
        if t == 0:  # all samples of an image share the first step
            tokens, image = (part.repeat_interleave(copies) for part in (tokens, image))
            logits, state, step_attention = _repeated(logits, state, step_attention, copies)
        if attention and step_attention is not None:
            kept.append((sample_of, step_attention))
        log_probs = _mask(logits, unwritten[: 4 if t == 0 else 3]).log_softmax(-1)
        probs = _truncate(log_probs, rules.blocked(tokens), config)
        sampled = _inverse(probs, uniforms[sample_of, t])
        over = (tokens == EOS) | (tokens == PAD)
        log_prob = log_probs.gather(1, sampled.unsqueeze(1)).squeeze(1)
        totals.index_add_(0, sample_of, log_prob.masked_fill(over, 0))
        tokens = sampled.masked_fill(over, PAD)
        written[sample_of, t] = tokens
        rows = None
        if (t + 1) % check_every == 0:
            alive = ((tokens != EOS) & (tokens != PAD)).nonzero().squeeze(1)
            if not len(alive):
                break
            if len(alive) < len(tokens):
                rows = alive
                tokens, image, sample_of = tokens[rows], image[rows], sample_of[rows]
                state = tuple(part[rows] for part in state)
        rules.follow(rows, tokens)
    found = _samples(written, totals, kept, config)
    return [found[first : first + copies] for first in range(0, len(found), copies)]


def _repeated(
    logits: Tensor, state: State, attention: Tensor | None, copies: int
) -> tuple[Tensor, State, Tensor | None]:
    """Return what a step returned, with `copies` rows for each row."""
    return (
        logits.repeat_interleave(copies, 0),
        tuple(part.repeat_interleave(copies, 0) for part in state),
        attention if attention is None else attention.repeat_interleave(copies, 0),
    )


def draw_uniforms(seeds: Sequence[Seed], config: DecodeConfig, block: int = 0) -> Tensor:
    """Return random numbers in [0, 1) for each seed: (seeds, captions, max_words), on the CPU.

    Each `block` of a seed has its own numbers, which do not depend on the other seeds.
    """
    shape = (block + 1, config.captions, config.max_words)
    blocks = [np.random.default_rng(_entropy(seed)).random(shape, np.float32) for seed in seeds]
    return torch.from_numpy(np.stack([numbers[block] for numbers in blocks]))


def _entropy(seed: Seed) -> list[int]:
    """Return a seed as numpy takes it: numbers that are not negative."""
    return [part % (1 << 64) for part in ([seed] if isinstance(seed, int) else seed)]


def _inverse(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Return the word (n,) where the cumulative sum of `probs` (n, V) passes that share of it."""
    sums = probs.cumsum(-1)
    at = torch.searchsorted(sums, uniforms.unsqueeze(1) * sums[:, -1:], right=True)
    at.clamp_(max=probs.shape[1] - 1)
    possible = probs.gather(1, at) > 0  # rounding may select an impossible neighbour
    return torch.where(possible, at, probs.argmax(-1, keepdim=True)).squeeze(1)


def _samples(
    written: Tensor, totals: Tensor, kept: Sequence[tuple[Tensor, Tensor]], config: DecodeConfig
) -> list[Hypothesis]:
    """Return hypotheses of samples: words and EOS (N, max_words), log-probabilities (N,)."""
    attention = None
    if kept:
        cells = kept[0][1].shape[1]
        attention = torch.zeros(len(written), len(kept), cells, dtype=kept[0][1].dtype)
        for t, (sample_of, step_attention) in enumerate(kept):
            attention[sample_of.cpu(), t] = step_attention.cpu()
    found = []
    for index, (words, total) in enumerate(zip(written.tolist(), totals.tolist(), strict=True)):
        ended = EOS in words
        length = words.index(EOS) if ended else len(words)
        score = total / (length + ended) ** config.length_norm
        own = None if attention is None else attention[index, :length].clone()
        found.append(Hypothesis(words[:length], score, total, own))
    return found


class _Rules:
    """Words that may not come next: a repetition, or EOS after a bad ending."""

    def __init__(self, start: Tensor, config: DecodeConfig, bad_endings: Sequence[int]):
        endings = bad_endings if config.whole_endings else ()
        self._endings = torch.tensor(endings, device=start.device) if endings else None
        self._repeats = config.block_repeats
        self._written = start.new_empty(len(start), 0)  # (n, t), kept if repeats are blocked

    def blocked(self, tokens: Tensor) -> Tensor | None:
        """Return the words (n, m) that may not follow `tokens` (n,); PAD where there is none."""
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
        """Append `tokens`, the next words of `rows`; None is all rows."""
        if self._repeats:
            before = self._written if rows is None else self._written[rows]
            self._written = torch.cat([before, tokens.unsqueeze(1)], 1)


def _dead_end(log_probs: Tensor) -> Tensor:
    """Return the rows (n, 1) that have no possible word."""
    return log_probs.isneginf().all(1, keepdim=True)


@dataclass(frozen=True)
class _Finished:
    """The end of a caption: after `length` words, in `row` of the next step."""

    log_prob: float
    length: int
    row: int
    ended: bool  # by EOS

    def score(self, config: DecodeConfig) -> float:
        return float(self.log_prob / max(self.length + self.ended, 1) ** config.length_norm)


class _History:
    """Back pointers of a beam search: the parent, word and attention of each row."""

    def __init__(self) -> None:
        self.parents: list[list[int]] = []
        self.words: list[list[int]] = []
        self.attention: list[Tensor | None] = []

    def hypothesis(self, end: _Finished, config: DecodeConfig) -> Hypothesis:
        """Return the caption that ends at `end`, with the attention of each word."""
        row, words, attentions = end.row, [], []
        for t in reversed(range(end.length)):
            words.append(self.words[t][row])
            row = self.parents[t][row]
            attention = self.attention[t]
            if attention is not None:
                attentions.append(attention[row])
        score = end.score(config)
        attention = torch.stack(attentions[::-1]).cpu() if attentions else None
        return Hypothesis(words[::-1], score, end.log_prob, attention)


def _mask(logits: Tensor, never: Tensor) -> Tensor:
    """Return logits in float32 with the words `never` set to -inf, in place if possible."""
    return logits.float().index_fill_(1, never, -torch.inf)


def _truncate(log_probs: Tensor, blocked: Tensor | None, config: DecodeConfig) -> Tensor:
    """Return the probabilities (n, V) to sample from.

    Masks the words `blocked` (n, m), applies the temperature, then keeps the `top_k` likeliest
    words, then the likeliest whose probabilities add up to `top_p`.
    """
    if blocked is None and config.temperature == 1 and config.top_p == 1 and not config.top_k:
        return log_probs.exp()
    left = log_probs
    if blocked is not None:
        left = log_probs.scatter(1, blocked, -torch.inf)
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
