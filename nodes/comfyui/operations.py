"""A linear layer for processors by AMD, where oneDNN's matmul in float32 is faster than MKL's, which torch chooses.

ComfyUI computes in float32 on a CPU. A step of SD3.5 Medium takes a quarter less time; see docs/performance.md.
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


class onednn(comfy.ops.disable_weight_init):  # noqa: N801, named like ComfyUI's namespaces
    """ComfyUI's layers, with linear layers in float32 by oneDNN."""

    class Linear(comfy.ops.disable_weight_init.Linear):
        """[..., in_features] -> [..., out_features]."""

        def forward(self, *args, **kwargs) -> Tensor:
            """As ComfyUI's layer, which also computes all but the plain case."""
            if kwargs or len(args) != 1 or not _is_plain(self, args[0]):
                return super().forward(*args, **kwargs)
            comfy.ops.run_every_op()  # ends a cancelled run
            return LINEAR(args[0], self.weight, self.bias, "none", [], "")  # type: ignore[misc]


def faster(operations: Any, device: torch.device) -> Any:
    """The namespace of layers for a model on a device: ComfyUI's choice, or `onednn` where it is faster."""
    if operations is not comfy.ops.disable_weight_init or device.type != "cpu" or not is_faster():
        return operations
    log.info("linear layers in float32 by oneDNN")
    return onednn


@functools.cache
def is_faster() -> bool:
    """True on a processor by AMD with a torch that has both libraries."""
    backends = torch.backends
    both = LINEAR is not None and backends.mkldnn.is_available() and backends.mkl.is_available()
    return both and "AuthenticAMD" in _processor()


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return platform.processor()


def _is_plain(layer: nn.Linear, x: Tensor) -> bool:
    """True for inference with dense float32 tensors of fitting shapes on the CPU, and no function on the weights."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if layer.comfy_cast_weights or layer.weight_function or layer.bias_function or layer.weight is None:
        return False
    tensors = [tensor for tensor in (x, layer.weight, layer.bias) if tensor is not None]
    dense = all(type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided for t in tensors)
    float32 = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    return dense and float32 and layer.weight.is_contiguous() and x.ndim > 0 and x.shape[-1] == layer.in_features
