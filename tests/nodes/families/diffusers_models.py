"""Tiny models of diffusers' classes, and how one row of ComfyUI's model call is given to them.

A twin is a random diffusers model. Its weights are converted to ComfyUI's layout, by ComfyUI's converter where it has
one and by `diffusers_weights.py` for the rest. `reference` runs it with plain wrappers around its blocks; nothing of
this pack is used there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Row = SimpleNamespace  # of a model call: x, t [1], context [1, L, W], and the model's other inputs by ComfyUI's names


@dataclass(frozen=True)
class Change:
    """What plain wrappers do to one block.

    Fields: skip, its output is its input; text, the factor of its text input; attention and value, the factors of text
    keys' weights and of text values for image queries, None to leave the attention alone.
    """

    skip: bool = False
    text: float = 1.0
    attention: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class Layout:
    """Where the text is in a twin's blocks. Fields: lists, of blocks in order; image_first, in the joint attention and
    in what a joint block returns; cross, True if the image reads the text by cross-attention.
    """

    lists: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    image_first: bool = False
    cross: bool = False

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """All blocks, in order."""
        return [block for name in self.lists for block in getattr(model, name)]


def randomise(model: nn.Module, std: float) -> nn.Module:
    """Normal weights, the same in every run; the weights of norms are around 1."""
    source = torch.Generator().manual_seed(11)
    for name, parameter in model.named_parameters():
        values = std * torch.randn(parameter.shape, generator=source)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.requires_grad_(False).copy_(values + is_norm)
    return model.eval()


@contextmanager
def changed(model: nn.Module, layout: Layout, text: int, changes: Mapping[int, Change]) -> Iterator[None]:
    """Wrappers around some blocks. Args: text, the number of text tokens; changes, by a block's number."""
    blocks, factor = layout.blocks(model), 1.0
    wrapped = []
    for number, block in enumerate(blocks):
        change = changes.get(number, Change())
        own = change.text
        if layout.cross:  # every block is given the text as it was encoded; a change of it holds for later blocks, too
            factor *= 1.0 if change.skip else change.text
            own = factor
        if number in changes or own != 1.0:
            block.forward = _wrapper(block, layout, text, change, own)
            wrapped.append(block)
    try:
        yield
    finally:
        for block in wrapped:
            del block.forward


def _wrapper(block: nn.Module, layout: Layout, text: int, change: Change, factor: float) -> Callable[..., Any]:
    original = block.forward
    signature = inspect.signature(original)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        image = next(iter(given))  # hidden_states, or x
        txt = given.get("encoder_hidden_states")
        if change.skip:
            if txt is None or layout.cross:
                return given[image]
            return (given[image], txt) if layout.image_first else (txt, given[image])
        if txt is not None:
            given["encoder_hidden_states"] = txt * factor
        else:
            stream = given[image].clone()
            stream[:, _span(layout, text, stream.shape[1])] *= factor
            given[image] = stream
        weighed = nullcontext()
        if change.attention is not None or change.value is not None:
            weighed = mock.patch.object(F, "scaled_dot_product_attention", _dense(layout, text, change))
        with weighed:
            return original(*bound.args, **bound.kwargs)

    return forward


def _span(layout: Layout, text: int, total: int) -> slice:
    return slice(total - text, total) if layout.image_first else slice(0, text)


def _dense(layout: Layout, text: int, change: Change) -> Callable[..., Tensor]:
    """Attention written out, [B, heads, L, d], in which image queries weigh text keys and read text values."""

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **kwargs) -> Tensor:
        assert not dropout_p and not is_causal
        queries, keys = query.shape[-2], key.shape[-2]
        groups = query.shape[1] // key.shape[1]  # of query heads that share keys and values
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        logits = query @ key.transpose(-1, -2) * (scale or 1 / math.sqrt(query.shape[-1]))
        if attn_mask is not None:
            is_bool = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, -math.inf) if is_bool else logits + attn_mask
        weights, values = torch.ones(queries, keys), torch.ones(queries, keys)
        is_text = torch.zeros(keys, dtype=torch.bool)
        is_text[slice(0, keys) if layout.cross else _span(layout, text, keys)] = True
        image = torch.ones(queries, dtype=torch.bool) if layout.cross else ~is_text
        if not layout.cross or keys == text:  # an attention over the image alone is left as it is
            pairs = image[:, None] & is_text[None, :]
            weights[pairs] = 1.0 if change.attention is None else change.attention
            values[pairs] = 1.0 if change.value is None else change.value
        exponentials = weights * (logits - logits.amax(-1, keepdim=True)).exp()
        shares = (exponentials / exponentials.sum(-1, keepdim=True)).nan_to_num(0.0)
        return (shares * values) @ value

    return attention


def packed(x: Tensor, patch: int = 2) -> Tensor:
    """Image tokens [B, L, C * patch * patch] of a latent [B, C, H, W], as FLUX has them."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpacked(tokens: Tensor, like: Tensor, patch: int = 2) -> Tensor:
    """The inverse of `packed`, in the shape of a latent."""
    b, c, h, w = like.shape
    x = tokens.reshape(b, h // patch, w // patch, c, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def grid(height: int, width: int, axes: int = 3) -> Tensor:
    """Positions of image tokens [L, axes], row and column in axes 1 and 2."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return ids.reshape(-1, axes)


def text_ids(length: int, axes: int = 3, numbered: tuple[int, ...] = ()) -> Tensor:
    """Positions of text tokens [L, axes], zero but for the numbered axes."""
    ids = torch.zeros(length, axes)
    for axis in numbered:
        ids[:, axis] = torch.arange(length)
    return ids
