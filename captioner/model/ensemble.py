"""Several checkpoints that write one caption together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioner import checkpoint as checkpoints
from captioner.checkpoint import Checkpoint
from captioner.errors import CheckpointError
from captioner.model import Decoder, ShowTell
from captioner.model.decoder import Memory


class Ensemble(nn.Module):
    """Decoders as one: the probability of a word is the mean of its probabilities in each.

    The mean is the arithmetic one, of the softmaxes. It writes like a decoder, by `start` and
    `step`, and does not learn. With `attention` it looks where its members look on average, those
    without attention aside: their grids must then be the same.
    Source: ensembles of decoders in Sutskever et al. 2014; of captions, Vinyals et al. 2016.
    """

    def __init__(self, decoders: Sequence[Decoder], attention: bool = True):
        super().__init__()
        self._decoders = tuple(decoders)
        self._members = nn.ModuleList(decoders)  # so that all of them move to a device
        self._attention = attention
        self.eval()

    def start(self, *features: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """A memory each, and all their states in a row.

        features (B, L, D): one for all members, or one for each.
        """
        own = features if len(features) > 1 else features * len(self._decoders)
        started = [d.start(seen) for d, seen in zip(self._decoders, own, strict=True)]
        return tuple(memory for memory, _ in started), tuple(t for _, hc in started for t in hc)

    def step(
        self, memory: Any, tokens: Tensor, state: tuple[Tensor, ...], image: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Log-probabilities (n, V) after `tokens` (n,), next states, and the mean attention (n, L).

        `memory` is what `start` gave.
        """
        memories: tuple[Memory, ...] = memory
        log_probs: list[Tensor] = []
        after: list[Tensor] = []
        looks: list[Tensor] = []
        pairs = zip(state[::2], state[1::2], strict=True)  # h and c
        for decoder, own, pair in zip(self._decoders, memories, pairs, strict=True):
            logits, hc, attention = decoder.step(own, tokens, pair, image)
            log_probs.append(logits.float().log_softmax(-1))
            after += hc
            if attention is not None:
                looks.append(attention)
        mean = torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))
        looked = torch.stack(looks).mean(0) if looks and self._attention else None
        return mean, tuple(after), looked


def load_members(paths: Sequence[Path | str]) -> list[Checkpoint]:
    """Read the checkpoints of an ensemble; raises CheckpointError if they do not go together."""
    return members([checkpoints.load(path) for path in paths], paths)


def members(
    checkpoint: Checkpoint | Sequence[Checkpoint], names: Sequence[object] = ()
) -> list[Checkpoint]:
    """The members of an ensemble, be it of one checkpoint alone.

    Raises CheckpointError, with their `names` if given, unless they have the same vocabulary.
    """
    found = [checkpoint] if isinstance(checkpoint, Checkpoint) else list(checkpoint)
    if not found:
        raise CheckpointError("no checkpoint is given; an ensemble takes one or more")
    names = names or [f"checkpoint {number}" for number in range(1, len(found) + 1)]
    for name, member in zip(names, found, strict=True):
        ours, theirs = found[0].vocabulary.words, member.vocabulary.words
        if ours != theirs:
            same = "in another order" if set(ours) == set(theirs) else "other words"
            raise CheckpointError(
                f"{name} has another vocabulary than {names[0]} ({len(theirs):,} words, "
                f"{len(ours):,}; {same}); the members of an ensemble must share one"
            )
    return found


def writer(found: Sequence[Checkpoint]) -> Decoder | Ensemble:
    """What writes the captions: the decoder of one checkpoint, or the ensemble of several."""
    if len(found) == 1:
        return found[0].decoder
    return Ensemble([member.decoder for member in found], attention=attends(found))


def attends(found: Sequence[Checkpoint]) -> bool:
    """Whether their captions come with attention: some have it, all over the same view."""
    return len({(member.encoder.resize, member.grid) for member in found if _attends(member)}) == 1


def looking(found: Sequence[Checkpoint]) -> Checkpoint:
    """The member whose view of a picture the attention lies over."""
    return next((member for member in found if _attends(member)), found[0])


def _attends(member: Checkpoint) -> bool:
    return not isinstance(member.decoder, ShowTell)
