"""Linear layers that on a CPU ask oneDNN for their product, where that is faster than the way that torch goes to it.

In bfloat16 torch asks oneDNN too, but first writes the bias into the result and has the product added: the same values,
bit for bit, in more time. In float32 torch asks MKL, which on AMD's processors needs more time than oneDNN for the same
sums in another order; on others that stands. Measured in docs/performance.md.
"""

from __future__ import annotations

import functools
import platform
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

# A linear layer by oneDNN, or None where this torch has none; torch's own compiler asks for it too.
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """input [..., K], weight [N, K], bias [N] -> [..., N], all of one dtype, on a CPU. No gradients."""
    assert ONEDNN is not None
    return ONEDNN(input, weight, bias, "none", [], "")


@functools.cache
def fast_dtypes() -> frozenset[torch.dtype]:
    """Those in which this machine's processor gains."""
    if ONEDNN is None or not torch.backends.mkldnn.is_available():
        return frozenset()
    found = set()
    if hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported") and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found.add(torch.bfloat16)
    if torch.backends.mkl.is_available() and "AuthenticAMD" in _processor():
        found.add(torch.float32)
    return frozenset(found)


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # no Linux, or one that does not tell
        return platform.processor()


def with_fast_products(operations: Any) -> Any:
    """This namespace of layers, for `MMDiT`, with a Linear that takes the faster product where it gives the same."""
    if not fast_dtypes() or not _is_known(operations.Linear):
        return operations
    names = [name for name in ("Conv2d", "LayerNorm", "RMSNorm") if hasattr(operations, name)]
    return SimpleNamespace(Linear=fast_linear(operations.Linear), **{name: getattr(operations, name) for name in names})


def _is_known(linear: Any) -> bool:
    """Whether it is torch's layer or one of ComfyUI's: of those it is known what else they may have to do."""
    if not (isinstance(linear, type) and issubclass(linear, nn.Linear)):
        return False
    return linear.forward is nn.Linear.forward or hasattr(linear, "comfy_cast_weights")


@functools.cache
def fast_linear(linear: type[nn.Linear]) -> type[nn.Linear]:
    """The layer with the faster product, whatever processor this is; the same class each time."""
    # What ComfyUI's layers do first: they end a run that was cancelled.
    before = getattr(sys.modules[linear.__module__], "run_every_op", None)

    class Linear(linear):  # type: ignore[misc, valid-type]
        def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            weight, bias = self.weight, self.bias
            if args or kwargs or not _is_plain(self, input, weight, bias):
                return super().forward(input, *args, **kwargs)
            if before is not None:
                before()
            return product(input, weight, bias)

        def __reduce__(self) -> Any:
            return _of_this_machine, (linear,), self.__dict__

    return Linear


def _of_this_machine(linear: type[nn.Linear]) -> nn.Module:
    """For pickle and copies: a layer without its state."""
    kind = fast_linear(linear) if fast_dtypes() else linear  # type: ignore[arg-type]
    return kind.__new__(kind)


def _is_plain(layer: nn.Module, input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the layer has nothing to do but a product on a CPU that is faster this way."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False
    # ComfyUI changes weights in the call, by these, where it has not changed them in place.
    if getattr(layer, "weight_function", ()) or getattr(layer, "bias_function", ()):
        return False
    given = (input, weight) if bias is None else (input, weight, bias)
    if weight is None or weight.dtype not in fast_dtypes() or not all(_is_dense(v, weight.dtype) for v in given):
        return False
    # What does not fit is left to the layer, whose error says so.
    return bool(input.ndim) and input.shape[-1] == weight.shape[-1] and all(v.is_contiguous() for v in given[1:])


def _is_dense(value: Tensor, dtype: torch.dtype) -> bool:
    known = type(value) in (Tensor, nn.Parameter)  # quantized weights come as other kinds of tensor
    return known and value.dtype == dtype and value.device.type == "cpu" and value.layout == torch.strided
