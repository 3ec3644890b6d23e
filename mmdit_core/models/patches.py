"""The hooks, patches and residuals that a model call may bring for a model's input, its blocks and their attention.

A hook under options["patches_replace"] replaces a block. Patches are lists of functions under options["patches"],
called in order with what the one before returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

Options = dict[str, Any]  # a model call's transformer_options


def patches(options: Options, name: str) -> Sequence[Any]:
    """The patches of one kind."""
    return options.get("patches", {}).get(name, ())


def patch_input(
    img: Tensor, txt: Tensor, options: Options, ids: tuple[Any, Any] = (None, None)
) -> tuple[Tensor, Tensor, tuple[Any, Any]]:
    """post_input: img [B, Li, D] and txt [B, Lt, D] before the first block, and their positions.

    Args: ids, those of the image and of the text, [B, L, axes]; None for a model that has none.
    """
    args: dict[str, Any] = {"img": img, "txt": txt, "img_ids": ids[0], "txt_ids": ids[1]}
    for patch in patches(options, "post_input"):
        args = patch({**args, "transformer_options": options})
    return args["img"], args["txt"], (args.get("img_ids"), args.get("txt_ids"))


def block_hook(key: tuple[str, int], options: Options) -> Any | None:
    """dit: the hook that replaces a block; it is called with the block's arguments and {"original_block": ...}.

    Args: key, ("double_block" or "single_block", the number within the kind).
    """
    return options.get("patches_replace", {}).get("dit", {}).get(key)


def patch_block(
    img: Tensor, txt: Tensor | None, x: Tensor, index: int, options: Options, kind: str = "double_block"
) -> tuple[Tensor, Any]:
    """double_block: img [B, Li, D] and txt [B, Lt, D], or None, after a block. Args: x, the model's latent.

    single_block: img is [text; image], and txt None.
    """
    for patch in patches(options, kind):
        out = patch({"img": img, "txt": txt, "x": x, "block_index": index, "transformer_options": options})
        img, txt = out["img"], out.get("txt")
    return img, txt


def patch_qkv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    img_slice: list[int],
    options: Options,
    pe: Any = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Any, Tensor | None]:
    """attn1_patch: q, k, v [B, heads, L, d] of [text; image], their rotations and the attention mask -> the same.

    Args: img_slice, where the image's tokens begin and end; pe, with which q and k are not yet rotated.
    """
    for patch in patches(options, "attn1_patch"):
        out = patch(q, k, v, pe=pe, attn_mask=mask, extra_options={**options, "img_slice": img_slice})
        q, k, v = out.get("q", q), out.get("k", k), out.get("v", v)
        pe, mask = out.get("pe", pe), out.get("attn_mask", mask)
    return q, k, v, pe, mask


def patch_attention(attn: Tensor, img_slice: list[int], options: Options) -> Tensor:
    """attn1_output_patch: the output [B, L, D] of the attention over [text; image]."""
    for patch in patches(options, "attn1_output_patch"):
        attn = patch(attn, {**options, "img_slice": img_slice})
    return attn


def with_residual(img: Tensor, control: Mapping[str, Any] | None, kind: str, index: int, first: int = 0) -> Tensor:
    """img [B, L, D] plus a ControlNet's residual [B, n, D] on n of its tokens, for models with several lists of them.

    Args: control, of a model call; kind, the list, "input" or "output"; index, of the block; first, of the n tokens.
    """
    residuals = (control or {}).get(kind) or ()
    if index >= len(residuals) or residuals[index] is None:
        return img
    residual = residuals[index]
    return img + F.pad(residual, (0, 0, first, img.shape[1] - first - residual.shape[1]))
