"""FLOPs by torch's own counter, with the one matmul that it lacks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # of nodes/comfyui/operations.py


def flop_counter() -> FlopCounterMode:
    """A counter of what is executed inside it: matmuls and convolutions; it leaves out attention on a CPU."""
    return FlopCounterMode(display=False, custom_mapping={} if ONEDNN is None else {ONEDNN: _linear})


def _linear(x: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size | None = None, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]  # a multiplication and an addition
