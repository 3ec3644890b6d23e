"""Which product a linear layer asks torch for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

ONEDNN = "mkldnn::_linear_pointwise"


def taken(work: Callable[[], Any]) -> list[str]:
    """The products among what torch is asked for."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return [event.key for event in profile.key_averages() if event.key in (ONEDNN, "aten::linear")]
