"""Attention in which image queries weigh text keys, or read text values, by factors; text queries are untouched.

No mask is built, since a dense mask costs memory and shuts out fast kernels. The call is split by queries (the same
work), values are scaled, and keys get extra channels that carry the logarithm of the factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN = -1e4  # a logit that softmax turns into 0 in every dtype; minus infinity times zero would be NaN
EXTRA_CHANNELS = 8  # kernels need a multiple of 8


def attention_override(
    text: int,
    total: int,
    *,
    attention: Tensor | None = None,
    value: Tensor | None = None,
    previous: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """A function for `transformer_options["optimized_attention_override"]`.

    Args: text and total, tokens of the joint sequence [text; image]; attention over other lengths is left as it is;
        attention and value [B, text], factors >= 0 of text keys' weights and of text values; previous, an override
        that is already there.
    """

    def override(func, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        run = func if previous is None else partial(previous, func)
        by_head = kwargs.get("skip_reshape", False)
        tokens = -2 if by_head else 1
        if not q.shape[tokens] == k.shape[tokens] == total:
            return run(q, k, v, heads, *args, **kwargs)  # such as SD3.5 Medium's second attention
        if not by_head:
            # Some models give queries and keys as [B, L, heads * d] and values as [B, L, heads, d].
            q, k, v = (x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
        mask = args[0] if args else kwargs.pop("mask", None)
        keep_heads = kwargs.pop("skip_output_reshape", False)
        kwargs.update(skip_reshape=True, skip_output_reshape=True)
        width = q.shape[-1]
        txt = run(q[:, :, :text], k, v, heads, mask=_query_rows(mask, slice(0, text)), **kwargs)
        q = q[:, :, text:]
        if value is not None:
            v = torch.cat((v[:, :, :text] * value[:, None, :, None].to(v.dtype), v[:, :, text:]), dim=2)
        if attention is not None:
            q, k, v = _with_logits(q, k, v, attention)
            kwargs["scale"] = 1.0 / math.sqrt(width)
            # The widened keys span more than a quantised kernel resolves.
            kwargs["low_precision_attention"] = False
        img = run(q, k, v, heads, mask=_query_rows(mask, slice(text, total)), **kwargs)[..., :width]
        out = torch.cat((txt, img), dim=2)
        return out if keep_heads else out.transpose(1, 2).flatten(2)

    return override


def _with_logits(q: Tensor, k: Tensor, v: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Widen each head so that q . k / sqrt(d) gains log(factor) at the text keys; v gains channels of zeros."""
    width = q.shape[-1]
    logits = torch.where(factors > 0, factors.float().clamp_min(1e-30).log() * math.sqrt(width), HIDDEN)
    q, k, v = (F.pad(x, (0, EXTRA_CHANNELS)) for x in (q, k, v))
    q[..., width] = 1.0
    k[:, :, : factors.shape[1], width] = logits[:, None, :].to(k.dtype)
    return q, k, v


def _query_rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The part of an attention mask [..., Lq, Lk] for some queries; a mask for all queries alike stays."""
    if mask is None or mask.ndim < 2 or mask.shape[-2] == 1:
        return mask
    return mask[..., rows, :]
