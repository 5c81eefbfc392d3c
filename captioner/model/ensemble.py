"""Several decoders that write one caption together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from captioner.model import Decoder
from captioner.model.decoder import Memory


class Ensemble(nn.Module):
    """Decoders as one: the probability of a word is the mean of its probabilities in each.

    The mean is the arithmetic mean of the softmaxes. An ensemble writes like a decoder, by `start`
    and `step`, and does not train. With `attention` it returns the mean attention of the members
    that have one; their grids must then be the same.
    Source: ensembles of decoders in Sutskever et al. 2014; of captions, Vinyals et al. 2016.
    """

    def __init__(self, decoders: Sequence[Decoder], attention: bool = True):
        super().__init__()
        self._decoders = tuple(decoders)
        self._members = nn.ModuleList(decoders)  # so that all of them move to a device
        self._attention = attention
        self.eval()

    def start(self, *features: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        """Return the memory of each member, and h and c of all members in a row.

        features (B, L, D): one tensor for all members, or one for each.
        """
        by_member = features if len(features) > 1 else features * len(self._decoders)
        started = [d.start(own) for d, own in zip(self._decoders, by_member, strict=True)]
        return tuple(memory for memory, _ in started), tuple(t for _, hc in started for t in hc)

    def step(
        self, memory: Any, tokens: Tensor, state: tuple[Tensor, ...], image: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Return log-probabilities (n, V) after `tokens` (n,), next states and attention (n, L).

        `memory` is what `start` returned.
        """
        memories: tuple[Memory, ...] = memory
        log_probs: list[Tensor] = []
        next_state: list[Tensor] = []
        attentions: list[Tensor] = []
        pairs = zip(state[::2], state[1::2], strict=True)  # h and c
        for decoder, own, pair in zip(self._decoders, memories, pairs, strict=True):
            logits, hc, attention = decoder.step(own, tokens, pair, image)
            log_probs.append(logits.float().log_softmax(-1))
            next_state += hc
            if attention is not None:
                attentions.append(attention)
        mean = torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))
        averaged = torch.stack(attentions).mean(0) if attentions and self._attention else None
        return mean, tuple(next_state), averaged
