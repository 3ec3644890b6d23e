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
# Attention functions, by name, that take the scale of the logits as the keyword `scale`: ours and ComfyUI's. Others,
# such as xformers in ComfyUI 0.24.0 or another node's kernel, may drop it, and the weights would be silently wrong. For
# them the queries are scaled, which in half precision rounds them once more.
TAKE_SCALE = {
    *("attention", "attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch"),
    "attention_sage",  # which hands over to attention_pytorch, unless low precision is allowed
}


def attention_override(
    text: int,
    total: int,
    *,
    attention: Tensor | None = None,
    value: Tensor | None = None,
    image_first: bool = False,
    previous: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """A function for `transformer_options["optimized_attention_override"]` of a joint attention.

    Args: text and total, tokens of the joint sequence, [text; image] or, image_first, [image; text]; attention over
        other lengths is left as it is; attention and value [B, text], factors >= 0 of text keys' weights and of text
        values; previous, an override that is already there.
    """
    image = total - text
    of_text, of_image = (slice(image, total), slice(0, image)) if image_first else (slice(0, text), slice(text, total))

    def override(func, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        run = func if previous is None else partial(previous, func)
        tokens = _token_axis(kwargs)
        if not q.shape[tokens] == k.shape[tokens] == total:
            return run(q, k, v, heads, *args, **kwargs)  # such as SD3.5 Medium's second attention
        q, k, v, mask, keep_heads = _by_head(q, k, v, heads, args, kwargs)
        txt = run(q[:, :, of_text], k, v, heads, mask=_query_rows(mask, of_text), **kwargs)
        width = q.shape[-1]
        keyword = _takes_scale(func, previous)
        q, k, v, kwargs = _for_image(q[:, :, of_image], k, v, kwargs, of_text, attention, value, keyword)
        img = run(q, k, v, heads, mask=_query_rows(mask, of_image), **kwargs)[..., :width]
        out = torch.cat((img, txt) if image_first else (txt, img), dim=2)
        return out if keep_heads else out.transpose(1, 2).flatten(2)

    return override


def cross_attention_override(
    text: int,
    image: int,
    *,
    attention: Tensor | None = None,
    value: Tensor | None = None,
    previous: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """As `attention_override`, for one block that first attends over the image and then from the image to the text.

    A row whose text keys all have the weight 0 reads nothing: its output is 0.
    """
    calls = 0

    def override(func, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal calls
        run = func if previous is None else partial(previous, func)
        calls += 1
        tokens = _token_axis(kwargs)
        # The number of the call tells an attention over as many image tokens from one over the text.
        if calls == 1 or (q.shape[tokens], k.shape[tokens]) != (image, text):
            return run(q, k, v, heads, *args, **kwargs)
        q, k, v, mask, keep_heads = _by_head(q, k, v, heads, args, kwargs)
        seen = value
        if attention is not None:
            is_seen = (attention > 0).any(dim=1, keepdim=True).to(attention.dtype).expand_as(attention)
            seen = is_seen if value is None else value * is_seen
        width = q.shape[-1]
        keyword = _takes_scale(func, previous)
        q, k, v, kwargs = _for_image(q, k, v, kwargs, slice(0, text), attention, seen, keyword)
        out = run(q, k, v, heads, mask=mask, **kwargs)[..., :width]
        return out if keep_heads else out.transpose(1, 2).flatten(2)

    return override


def _takes_scale(func: Callable[..., Tensor], previous: Callable[..., Tensor] | None) -> bool:
    """Whether an attention takes the keyword `scale`; of an override that is already there it is not known."""
    return previous is None and getattr(func, "__name__", "") in TAKE_SCALE


def _token_axis(kwargs: dict[str, Any]) -> int:
    return -2 if kwargs.get("skip_reshape", False) else 1


def _by_head(
    q: Tensor, k: Tensor, v: Tensor, heads: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Queries, keys and values [B, heads, L, d], the mask, and whether the caller wants the output so.

    Args: kwargs, of the attention, changed to those of a call in this layout.
    """
    if not kwargs.get("skip_reshape", False):
        # Some models give queries and keys as [B, L, heads * d] and values as [B, L, heads, d].
        q, k, v = (x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
    mask = args[0] if args else kwargs.pop("mask", None)
    keep_heads = kwargs.pop("skip_output_reshape", False)
    kwargs.update(skip_reshape=True, skip_output_reshape=True)
    return q, k, v, mask, keep_heads


def _for_image(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kwargs: dict[str, Any],
    of_text: slice,
    attention: Tensor | None,
    value: Tensor | None,
    takes_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """What image queries [B, heads, L, d] attend with: the factors are in the text's keys and values.

    The output has as many channels as the returned values; the first d of them count.
    """
    width = q.shape[-1]
    if value is not None:
        factors = value[:, None, :, None].to(v.dtype)
        v = torch.cat((v[:, :, : of_text.start], v[:, :, of_text] * factors, v[:, :, of_text.stop :]), dim=2)
    if attention is not None:
        # The widened keys span more than a quantised kernel resolves.
        kwargs = {**kwargs, "low_precision_attention": False}
        if takes_scale:
            kwargs["scale"] = 1.0 / math.sqrt(width)
            q, k, v = _with_logits(q, k, v, of_text, attention, math.sqrt(width))
        else:
            root = math.sqrt(width + EXTRA_CHANNELS)
            q, k, v = _with_logits(q * (root / math.sqrt(width)), k, v, of_text, attention, root)
    return q, k, v, kwargs


def _with_logits(
    q: Tensor, k: Tensor, v: Tensor, of_text: slice, factors: Tensor, root: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Widen each head so that q . k / root gains log(factor) at the text keys; v gains channels of zeros."""
    width = q.shape[-1]
    logits = torch.where(factors > 0, factors.float().clamp_min(1e-30).log() * root, HIDDEN)
    q, k, v = (F.pad(x, (0, EXTRA_CHANNELS)) for x in (q, k, v))
    q[..., width] = 1.0
    k[:, :, of_text, width] = logits[:, None, :].to(k.dtype)
    return q, k, v


def _query_rows(mask: Tensor | None, rows: slice) -> Tensor | None:
    """The part of an attention mask [..., Lq, Lk] for some queries; a mask for all queries alike stays."""
    if mask is None or mask.ndim < 2 or mask.shape[-2] == 1:
        return mask
    return mask[..., rows, :]
