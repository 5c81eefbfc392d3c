"""Products of a few rows with a large matrix, as in every step of a search.

With weights in oneDNN's own layout, products of 2 to 80 rows are 1.5-3x as fast on a CPU.
`PackedWeights` holds copies in that layout; `linear` uses them only inside `with packed(...)`.
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

_SMALL = 1 << 14  # elements; packing a smaller weight gains nothing
_ROWS = 16  # rows to pack for; any number of rows but one profits


class PackedWeights:
    """Packed copies of a network's weights, each made at its first use.

    One object serves many searches, each in a `packed` block of its own, also in several threads.
    """

    def __init__(self, network: nn.Module):
        self._network = network
        self._known: dict[int, Tensor] = {}  # the network's weights, by id
        self._copies: dict[int, _Copies] = {}

    def refresh(self) -> bool:
        """Drop the copies of weights that have changed; return whether there were any.

        Compares every bit: a weight's version or a sample of it does not show every change.
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
        return {
            "_network": self._network,
            "_known": {},
            "_copies": {},
        }  # not the copies


@dataclass(frozen=True)
class _Copies:
    """A weight at the time of packing, and its packed columns."""

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
    """Let `linear` use packed weights inside this block, in this thread.

    PackedWeights keep their copies for the next block, where they are compared with the weights.
    The copies of a network given itself are dropped at the end. Packing costs about as much as it
    saves in a search for 8 images, so give a network to a loop of many searches.

    Changes of a weight before the block are detected. Inside it the weights must not change. Raises
    RuntimeError at its end if those of a network did; a block with PackedWeights does not check
    this and should hold one search only.
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
            "packed weights: a weight changed inside the block, so some products used its old "
            "values; change weights outside of the block"
        )


def _same(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two weights are the same in every bit, NaN and the sign of zeros included."""
    if (ours.shape, ours.dtype, ours.device) != (theirs.shape, theirs.dtype, theirs.device):
        return False
    return torch.equal(ours.view(torch.int32), theirs.detach().view(torch.int32))


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b for x (..., K)."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, columns: slice = slice(None)
) -> Tensor:
    """Return x W^T + b for x (..., K) and W = weight[:, columns] (N, K), packed if `packed`."""
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
    """Whether this build of torch has the operators, which torch.compile uses on CPUs."""
    mkldnn = torch.backends.mkldnn
    return (
        mkldnn.is_available()
        and bool(mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
