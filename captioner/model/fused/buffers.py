"""Large tensors whose memory is reused by the next training step.

New memory from the system costs a page fault every 4 KB, often more than the arithmetic in it. A
sequence of 320 steps needs some hundred megabytes each time. On other devices than the CPU, torch
reuses memory itself.
"""

from __future__ import annotations

import math
import weakref
from collections import defaultdict

import torch
from torch import Tensor, nn

_KEPT = 4  # spare pieces of each size
_SMALL = 1 << 17  # bytes; up to this size the allocator reuses memory itself

_spare: dict[int, list[Tensor]] = defaultdict(list)


def reused(*shape: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised tensor on the device of `like`; its memory is reused after it."""
    dtype = dtype or like.dtype
    size = math.prod(shape) * dtype.itemsize
    plain = type(like) in (Tensor, nn.Parameter)  # not a FakeTensor, for example
    if like.device.type != "cpu" or size <= _SMALL or not plain:
        return torch.empty(shape, dtype=dtype, device=like.device)
    capacity = 1 << (size - 1).bit_length()  # pages that are never touched cost nothing
    try:  # another thread may take the last one first
        memory = _spare[capacity].pop()
    except IndexError:
        memory = torch.empty(capacity, dtype=torch.uint8, device="cpu")
    lent = memory.numpy()[:size]
    # The tensor's storage holds this array, which is freed with the last view of the tensor.
    weakref.finalize(lent, _take_back, memory).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)


def _take_back(memory: Tensor) -> None:
    spare = _spare[len(memory)]
    if len(spare) < _KEPT:
        spare.append(memory)
