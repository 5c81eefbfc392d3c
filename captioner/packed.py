"""Products of a few rows with a large matrix, as a search makes them at every word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

_SMALL = 1 << 14  # elements of a weight, below which packing gains nothing
_ROWS = 16  # the packing suits any number of rows but one alone

_packed: Any = WeakIdKeyDictionary()  # weight: {columns: (its mark, packed copy)}


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """x W^T + b for x (..., K)."""
        return linear(input, self.weight, self.bias)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, columns: slice = slice(None)
) -> Tensor:
    """x W^T + b for x (..., K) and W = weight[:, columns] (N, K).

    On a CPU and without gradients, oneDNN packs W once and the copy is kept until the weight
    changes or dies: products of 2 to 80 rows are 1.5 to 3 times as fast so.
    """
    if not _packs(x, weight):
        return F.linear(x, weight[:, columns], bias)
    kept = _packed.setdefault(weight, {})
    mark, key = _mark(weight), (columns.start, columns.stop)
    if key not in kept or kept[key][0] != mark:
        part = weight.detach()[:, columns].contiguous()
        kept[key] = (mark, torch.ops.mkldnn._reorder_linear_weight(part, _ROWS))
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, kept[key][1], bias, "none", [], "")
    return product


def _packs(x: Tensor, weight: Tensor) -> bool:
    return not (
        torch.is_grad_enabled()
        or weight.device.type != "cpu"
        or x.dtype != torch.float32
        or weight.dtype != torch.float32
        or x.shape[:-1].numel() == 1
        or weight.numel() < _SMALL
        or weight.is_inference()  # without a version, a change would not be seen
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


def _mark(weight: Tensor) -> tuple[int, int, float]:
    """What changes with the weight, be it in place, by its `.data` or by another storage.

    The version alone would not do: torch's fused optimizers leave it as it is.
    """
    values = weight.detach().flatten()
    some = values[:: max(1, len(values) // 64)].double()
    return weight._version, weight.data_ptr(), float(some.sum())
