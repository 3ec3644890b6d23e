"""The attention function of a model, which ComfyUI may replace by its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    *,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """Scaled dot-product attention.

    Args: q, k, v [B, L, heads * d], or [B, heads, L, d] with skip_reshape; mask [B, Lq, Lk], or broadcast to
        [B, heads, Lq, Lk], added to the logits or, if boolean, False where a query does not read a key;
        transformer_options may hold "optimized_attention_override", a function g(attention, q, k, v, heads, ...) that
        is called instead; kwargs may hold the scale of the logits.
    Returns: [B, Lq, heads * d], or [B, heads, Lq, d] with skip_output_reshape.
    """
    options = dict(transformer_options or {})
    override = options.pop("optimized_attention_override", None)
    if override is not None:
        kwargs.update(skip_reshape=skip_reshape, skip_output_reshape=skip_output_reshape, transformer_options=options)
        return override(attention, q, k, v, heads, mask=mask, **kwargs)
    if not skip_reshape:
        q, k, v = (s.unflatten(-1, (heads, -1)).transpose(1, 2) for s in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask.unsqueeze(1)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=kwargs.get("scale"))
    return out if skip_output_reshape else out.transpose(1, 2).flatten(2)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to logits. Args: mask, floating-point: one already; else its zeros are keys to ignore."""
    if mask.is_floating_point():
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask == 0, torch.finfo(dtype).min)
