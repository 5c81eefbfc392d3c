"""How far a gradient reaches back in time: its norm k steps earlier, by path.

For captioning decoders and for any `HDetachLSTM`, in the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gradients.flow import (
    Flow,
    Keep,
    Unrolled,
    gradient_flow,
    gradients,
    unroll,
    unroll_lstm,
)
from captioner.data.dataset import CaptionDataset, pack
from captioner.model.decoder import Decoder
from captioner.model.lstm import HDetachLSTM

ALL, CELL, HIDDEN, SHARE = "all paths", "c alone", "through h", "share of h"
QUANTILES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Detach:
    """One setting of h-detach: its expectation, or `draws` samples for each sequence."""

    prob: float
    attention: bool = False  # also block the query of the attention
    draws: int = 0

    @property
    def name(self) -> str:
        """Its name in tables."""
        what = "drawn" if self.draws else "expected"
        return f"p = {self.prob:g}{', attention too' if self.attention else ''}, {what}"


@dataclass(frozen=True)
class Row:
    """Gradients `lag` steps back along one path.

    Over sequences, losses and samples: mean and 10, 50 and 90 % quantiles of the norm; the same
    quantiles of its ratio to the norm of all paths; the mean cosine with the part along c alone.
    For SHARE the norm is the part through h over the sum of both parts.
    """

    lag: int
    path: str
    count: int
    mean: float
    low: float
    median: float
    high: float
    ratio_low: float
    ratio: float
    ratio_high: float
    cosine: float


class Samples:
    """Collects the figures of single gradients, of any number of sequences, for rows."""

    def __init__(self) -> None:
        self._figures: dict[tuple[int, str], list[Tensor]] = {}  # each (3, n)

    def add(self, lag: int, path: str, norm: Tensor, ratio: Tensor, cosine: Tensor) -> None:
        """Add norms, ratios and cosines, each (n,)."""
        self._figures.setdefault((lag, path), []).append(torch.stack([norm, ratio, cosine]))

    def rows(self) -> list[Row]:
        """Return a row for each lag and path, in order of appearance."""
        return [self._row(lag, path) for lag, path in self._figures]

    def _row(self, lag: int, path: str) -> Row:
        figures = torch.cat(self._figures[lag, path], 1)
        norm, _, cosine = figures
        quantiles = figures[:2].quantile(norm.new_tensor(QUANTILES), dim=1).T
        (low, median, high), ratios = quantiles.tolist()
        mean = norm.mean().item()
        return Row(lag, path, len(norm), mean, low, median, high, *ratios, cosine.mean().item())


def add_parts(samples: Samples, lag: int, everything: Tensor, cell: Tensor) -> None:
    """Add gradients (n, X) of all paths and along c alone; the difference came through h."""
    hidden = everything - cell
    for path, part in ((ALL, everything), (CELL, cell), (HIDDEN, hidden)):
        add_detached(samples, lag, path, part, everything, cell)
    parts = hidden.norm(dim=1), cell.norm(dim=1)
    share = over(parts[0], parts[0] + parts[1])
    samples.add(lag, SHARE, share, share, torch.full_like(share, torch.nan))


def add_detached(
    samples: Samples, lag: int, path: str, part: Tensor, everything: Tensor, cell: Tensor
) -> None:
    """Add gradients (draws * m, X), to compare with those of all paths and along c (m, X)."""
    draws = part.view(-1, *cell.shape)  # (draws, m, X)
    norm = draws.norm(dim=2)
    cosine = over(torch.einsum("dmx,mx->dm", draws, cell), norm * cell.norm(dim=1))
    ratio = over(norm, everything.norm(dim=1))
    samples.add(lag, path, norm.flatten(), ratio.flatten(), cosine.flatten())


def over(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole, 0 where the whole is 0."""
    return torch.where(whole > 0, part / whole, 0.0)


def add_lags(
    samples: Samples,
    run: Unrolled,
    detached: Sequence[Detach] = (),
    generator: torch.Generator | None = None,
    at: Sequence[int] | None = None,
) -> None:
    """Add the gradient of each loss in c of every earlier step, total derivatives (n, H).

    `at` are the steps whose losses count; None means all. The initial state is left out. Blocked
    steps are sampled for each sequence and each loss.
    """
    steps = len(run.steps)
    for t in range(steps) if at is None else at:
        loss = run.losses[t]
        if loss is None:
            continue
        total = loss.sum()
        run.expect(0.0)
        everything = list(_backwards(run, t, total))
        run.expect(1.0, detach_attention=True)
        cell = list(_backwards(run, t, total))
        for lag, parts in enumerate(zip(everything, cell, strict=True)):
            add_parts(samples, lag, *parts)
        for detach in detached:
            found = []
            for _ in range(max(detach.draws, 1)):
                keep = _keep(detach, run, loss.dtype, generator)
                run.set_valves(keep, keep if detach.attention else [1.0] * steps)
                found.append(list(_backwards(run, t, total)))
            for lag, parts in enumerate(zip(*found, strict=True)):
                add_detached(
                    samples, lag, detach.name, torch.cat(parts), everything[lag], cell[lag]
                )


def _keep(
    detach: Detach, run: Unrolled, dtype: torch.dtype, generator: torch.Generator | None
) -> Sequence[Keep]:
    """Return what each step keeps: the expected share, or a sample for each sequence."""
    steps = len(run.steps)
    if not detach.draws:
        return [1 - detach.prob] * steps
    drawn = torch.rand(steps, run.batch_sizes[0], 1, generator=generator) >= detach.prob
    return list(drawn.to(dtype))


def _backwards(run: Unrolled, t: int, loss: Tensor) -> Iterator[Tensor]:
    """Yield the gradient in c (n, layers * H) of step t, ..., 0, in float64: some are tiny."""
    states = [step.c for step in run.steps[t::-1]]
    grads = iter(gradients(loss, [part for layers in states for part in layers]))
    rows = run.batch_sizes[t]
    for layers in states:
        yield torch.cat([next(grads)[:rows].double() for _ in layers], 1)


def lstm_lags(
    lstm: HDetachLSTM,
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    at: Sequence[int] | None = None,
    detached: Sequence[Detach] = (Detach(0.25), Detach(0.5)),
    seed: int = 0,
) -> list[Row]:
    """Return the rows of an LSTM on inputs (T, B, I), from the zero state.

    `loss` computes losses (T, B) from the outputs (T, B, H); those of the steps `at` are followed
    back, that of the last step if None. There is no dropout between layers.
    """
    samples, generator = Samples(), torch.Generator().manual_seed(seed)
    last = [len(inputs) - 1]
    add_lags(samples, unrolled(lstm, inputs, loss), detached, generator, last if at is None else at)
    return samples.rows()


def unrolled(lstm: HDetachLSTM, inputs: Tensor, loss: Callable[[Tensor], Tensor]) -> Unrolled:
    """Return an LSTM's pass over inputs (T, B, I) with its losses, as `add_lags` needs it."""
    steps, batch = inputs.shape[:2]
    run = unroll_lstm(lstm, inputs.flatten(0, 1), [batch] * steps)
    run.losses = list(loss(torch.stack([step.h[-1] for step in run.steps])).unbind())
    return run


@dataclass(frozen=True)
class CaptionLags:
    """Gradients of captions: over lags, and from one step to the one before."""

    rows: list[Row]
    captions: int
    words: float  # per caption, EOS included
    forget: float  # mean forget gate
    flow: Flow


def caption_lags(
    decoder: Decoder,
    data: CaptionDataset,
    images: int,
    *,
    detached: Sequence[Detach],
    seed: int = 0,
    batch_images: int = 8,
    max_words: int = 20,
) -> CaptionLags:
    """Return the rows of a decoder on the captions of the first images, with teacher forcing."""
    samples, generator = Samples(), torch.Generator().manual_seed(seed)
    captions = tokens = 0
    flows: list[Tensor] = []
    forgets: list[Tensor] = []
    last = min(images, len(data))
    for start in range(0, last, batch_images):
        indices = range(start, min(start + batch_images, last))
        words = [[caption[:max_words] for caption in data.tokens[index]] for index in indices]
        batch = pack(data.features(indices), words)
        run = unroll(decoder, batch.features, batch.captions, batch.targets)
        flow = gradient_flow(run)
        flows.append(torch.tensor([flow.cell, flow.hidden]) * len(batch.order))
        forgets += _forget_gates(run)
        add_lags(samples, run, detached, generator)
        captions, tokens = captions + len(batch.order), tokens + len(batch.targets)
    cell, hidden = (torch.stack(flows).sum(0) / captions).tolist()
    forget = torch.cat(forgets).mean().item()
    return CaptionLags(samples.rows(), captions, tokens / captions, forget, Flow(cell, hidden))


def _forget_gates(run: Unrolled) -> Iterator[Tensor]:
    """Yield the forget gates of each step: dc[t]/dc[t-1] along the cell-state path."""
    for step in run.steps:
        for after, before in zip(step.c, step.from_c, strict=True):
            yield gradients(after.sum(), [before])[0].flatten()


def singular_values(weight_hh: Tensor) -> dict[str, Tensor]:
    """Return those of W_hh (4H, H) and of each gate's block (H, H), in descending order."""
    parts = dict(zip("ifgo", weight_hh.detach().double().chunk(4), strict=True))
    whole = {"W_hh": weight_hh.detach().double()}
    return {name: torch.linalg.svdvals(part) for name, part in (whole | parts).items()}


def token_losses(readout: Callable[[Tensor], Tensor], targets: Tensor) -> Callable[..., Tensor]:
    """Return the cross-entropy (T, B) of `readout`'s logits, as the loss for `lstm_lags`."""

    def losses(outputs: Tensor) -> Tensor:
        logits = readout(outputs).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="none").view(targets.shape)

    return losses
