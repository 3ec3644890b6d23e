"""Attention for training in bfloat16 on a CPU: the backward pass of the fused kernel is several times slower."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmdit_core.models.attention import attention


def plain_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, *, transformer_options=None, **more: Any
) -> Tensor:
    """Unfused attention: q, k, v [B, heads, L, D] -> [B, L, heads * D]; with a mask or an override, the core's own."""
    if mask is not None or (transformer_options or {}).get("optimized_attention_override"):
        return attention(q, k, v, heads, mask, transformer_options=transformer_options, **more)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (weights.softmax(-1) @ v).transpose(1, 2).flatten(2)
