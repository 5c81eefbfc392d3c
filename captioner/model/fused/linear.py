"""Products of a few rows with a large matrix, as a search makes them at every word.

oneDNN has a layout of its own for weights: products of 2 to 80 rows are 1.5-3x as fast on a CPU.
`PackedWeights` keeps copies in that layout; `linear` uses them inside `with packed(...)` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALL = 1 << 14  # elements of a weight, below which packing gains nothing
_ROWS = 16  # the packing suits any number of rows but one alone


class PackedWeights:
    """Packed copies of a network's weights, each made when it is first needed.

    To be kept for many searches, each in a `packed` of its own, also in several threads.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._known: dict[int, Tensor] = {}  # the network's weights, by id
        self._copies: dict[int, _Copies] = {}

    def refresh(self) -> bool:
        """Forget the copies of weights that have changed since; return whether there were any.

        Compares every bit: versions and samples of a weight do not tell of every change.
        """
        self._known = {id(weight): weight for weight in self._network.parameters()}
        stale = [
            key
            for key, copies in list(self._copies.items())
            if key not in self._known or not _same(copies.source, self._known[key])
        ]
        for key in stale:
            self._copies.pop(key, None)
        return bool(stale)

    def of(self, weight: Tensor, columns: slice) -> Tensor | None:
        """Return weight[:, columns], packed; None if the weight is not the network's."""
        key = id(weight)
        if self._known.get(key) is not weight:
            return None
        copies = self._copies.get(key)
        if copies is None:
            copies = self._copies[key] = _Copies(weight.detach().clone())
        return copies.of(columns)

    def __getstate__(self) -> dict[str, Any]:
        return {"_network": self._network, "_known": {}, "_copies": {}}  # oneDNN's do not travel


@dataclass(frozen=True)
class _Copies:
    """A weight as it was when it was packed, and what was packed of it."""

    source: Tensor
    packed: dict[tuple[int | None, int | None], Tensor] = field(default_factory=dict)

    def of(self, columns: slice) -> Tensor:
        key = (columns.start, columns.stop)
        if key not in self.packed:
            part = self.source[:, columns].contiguous()
            self.packed[key] = torch.ops.mkldnn._reorder_linear_weight(part, _ROWS)
        return self.packed[key]


_in_use: ContextVar[PackedWeights | None] = ContextVar("packed weights in use", default=None)


@contextmanager
def packed(weights: PackedWeights | nn.Module) -> Iterator[None]:
    """Let `linear` use packed weights of a network inside this block, in this thread.

    PackedWeights keep their copies for the next block, after a comparison with the weights. Those
    of a network itself are made anew and forgotten at the end; packing costs about as much as it
    saves in a search for 8 images, so this is for the loop around many searches.

    Every change of a weight before the block is seen. Inside it the weights must not change:
    RuntimeError at its end if those of a network did; a block with PackedWeights, where this is not
    checked, should hold one search only.
    """
    copies = weights if isinstance(weights, PackedWeights) else PackedWeights(weights)
    copies.refresh()
    token = _in_use.set(copies)
    try:
        yield
    finally:
        _in_use.reset(token)
    if copies is not weights and copies.refresh():
        raise RuntimeError(
            "packed weights: a weight has changed inside the block, so that some products were "
            "those of its old values; change weights outside of it"
        )


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two weights are the same in every bit, be they NaN or zeros of another sign."""
    if (ours.shape, ours.dtype, ours.device) != (theirs.shape, theirs.dtype, theirs.device):
        return False
    return torch.equal(ours.view(torch.int32), theirs.detach().view(torch.int32))


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b for x (..., K)."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, columns: slice = slice(None)
) -> Tensor:
    """x W^T + b for x (..., K) and W = weight[:, columns] (N, K); with W packed inside `packed`."""
    copies = _in_use.get()
    copy = copies.of(weight, columns) if copies is not None and _packs(x, weight) else None
    if copy is None:
        return F.linear(x, weight[:, columns], bias)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, copy, bias, "none", [], "")
    return product


def _packs(x: Tensor, weight: Tensor) -> bool:
    return not (
        torch.is_grad_enabled()
        or weight.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.shape[:-1].numel() == 1
        or weight.numel() < _SMALL
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or not _available()
    )


def _available() -> bool:
    """Whether this build of torch has the operators; torch.compile's CPU backend uses them, too."""
    mkldnn = torch.backends.mkldnn
    return (
        mkldnn.is_available()
        and bool(mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
