"""Large buffers that one training step hands on to the next.

A buffer fresh from the system costs a page fault every 4 KB, several times the arithmetic done in
it; a sequence of 320 steps needs some hundred megabytes each time. On other devices than the CPU
torch keeps its memory itself.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

_KEPT = 4  # of a size
_SMALL = 1 << 15  # elements; the allocator keeps such pieces itself

_spare: dict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)


class Lease:
    """Buffers held by one forward or backward pass; they go back when the lease is dropped."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def take(self, *shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor on the device of `like`; valid as long as this lease."""
        dtype, numbers = dtype or like.dtype, math.prod(shape)
        if like.device.type != "cpu" or numbers <= _SMALL:
            return torch.empty(shape, dtype=dtype, device=like.device)
        size = 1 << (numbers - 1).bit_length()  # untouched pages of the surplus cost nothing
        spare = _spare[dtype, size]
        buffer = spare.pop() if spare else torch.empty(size, dtype=dtype)
        self._held.append(buffer)
        return buffer[:numbers].view(shape)

    def __del__(self) -> None:
        for buffer in self._held:
            spare = _spare[buffer.dtype, len(buffer)]
            if len(spare) < _KEPT:
                spare.append(buffer)
