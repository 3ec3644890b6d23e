"""Linear layers for CPUs on which oneDNN's matmul is faster than the one that torch chooses.

In float32 torch chooses MKL, which is slow on processors by AMD. In bfloat16 torch chooses oneDNN, but writes the bias
first and adds the matmul to it; given the bias, oneDNN returns the same bits in less time. See docs/performance.md.
"""

from __future__ import annotations

import functools
import logging
import platform
from pathlib import Path
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

# A private function of torch; its own compiler calls it for linear layers on a CPU.
LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class onednn(comfy.ops.disable_weight_init):  # noqa: N801 - named as ComfyUI's own namespaces are
    """ComfyUI's layers, with the linear layer computed by oneDNN where nothing but a plain matmul is to be done."""

    class Linear(comfy.ops.disable_weight_init.Linear):
        """[..., in_features] -> [..., out_features]."""

        def forward(self, *args, **kwargs) -> Tensor:
            """As ComfyUI's layer."""
            if LINEAR is None or kwargs or len(args) != 1 or not _is_plain(self, args[0]):
                return super().forward(*args, **kwargs)
            comfy.ops.run_every_op()  # ends a cancelled run
            return LINEAR(args[0], self.weight, self.bias, "none", [], "")


def faster(operations: Any, device: torch.device) -> Any:
    """The namespace of layers to build a model with on a device: ComfyUI's choice, or `onednn` where it is faster."""
    if operations is not comfy.ops.disable_weight_init or device.type != "cpu" or not dtypes():
        return operations
    log.info("linear layers by oneDNN in %s", ", ".join(sorted(str(dtype) for dtype in dtypes())))
    return onednn


@functools.cache
def dtypes() -> frozenset[torch.dtype]:
    """Those in which oneDNN is faster on this processor."""
    found = set()
    if LINEAR is not None and torch.backends.mkldnn.is_available():
        if torch.ops.mkldnn._is_mkldnn_bf16_supported():
            found.add(torch.bfloat16)
        if torch.backends.mkl.is_available() and "AuthenticAMD" in _processor():
            found.add(torch.float32)
    return frozenset(found)


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return platform.processor()


def _is_plain(layer: nn.Linear, x: Tensor) -> bool:
    """True for dense tensors of one dtype on the CPU, in inference, with no function to apply to a weight."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    tensors = [tensor for tensor in (x, layer.weight, layer.bias) if tensor is not None]
    return (
        not (layer.comfy_cast_weights or layer.weight_function or layer.bias_function)
        and layer.weight is not None
        and layer.weight.dtype in dtypes()
        and all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
        and all(t.dtype == layer.weight.dtype and t.layout == torch.strided for t in tensors)
        and layer.weight.is_contiguous()
        and x.ndim > 0
        and x.shape[-1] == layer.in_features
    )
