"""FLOPs by torch's own counter, which is told of the one product that it does not know."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mmdit_core.models.products import ONEDNN


def flop_counter() -> FlopCounterMode:
    """A counter of what is executed inside it: matrix products and convolutions; attention on a CPU it leaves out."""
    known = {} if ONEDNN is None else {ONEDNN: _linear}
    return FlopCounterMode(display=False, custom_mapping=known)


def _linear(x: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size | None = None, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]  # a multiplication and an addition
