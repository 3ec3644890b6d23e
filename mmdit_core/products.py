"""Linear layers whose products in float32 are fast on AMD's processors too.

torch leaves these to MKL. oneDNN, which torch has as well and takes for bfloat16, needs less time on an AMD processor
(measured in docs/performance.md) for the same sums in another order. On others torch's own choice stands.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


@functools.cache
def has_fast_products() -> bool:
    """Whether this machine's processor is one that gains, and torch has what it takes."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    listed = Path("/proc/cpuinfo")
    processor = listed.read_text(errors="replace") if listed.exists() else platform.processor()
    return "AuthenticAMD" in processor


def with_fast_products(operations: Any) -> Any:
    """This namespace of layers, for `MMDiT`, with a Linear that takes the faster product where it gives the same."""
    if not has_fast_products() or not issubclass(operations.Linear, nn.Linear):
        return operations
    names = ("Conv2d", "LayerNorm", "RMSNorm")
    return SimpleNamespace(Linear=_fast(operations.Linear), **{name: getattr(operations, name) for name in names})


@functools.cache
def _fast(linear: type[nn.Linear]) -> type[nn.Linear]:
    class Linear(linear):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args or kwargs or not _is_plain(self, x):
                return super().forward(x, *args, **kwargs)
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    return Linear


def _is_plain(layer: nn.Linear, x: Tensor) -> bool:
    """Whether the layer has nothing to do but this product of float32 on a CPU."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    # A host changes weights in the call, by these, where it has not changed them in place.
    if getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ()):
        return False
    for value in (x, layer.weight, layer.bias):
        if value is None and value is layer.bias:
            continue
        if type(value) not in (Tensor, nn.Parameter) or value.dtype != torch.float32 or value.device.type != "cpu":
            return False
        if value.requires_grad and torch.is_grad_enabled():
            return False
    return True
