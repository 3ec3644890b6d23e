"""FLOPs by torch's own counter."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """A counter of what is executed inside it: matmuls and convolutions; it leaves out attention on a CPU."""
    return FlopCounterMode(display=False)
