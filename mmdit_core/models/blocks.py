"""The joint block: two streams, image and text, with their own weights and one attention over both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..config import MMDiTConfig
from .layers import NORM_EPS, AttentionProjections, Mlp, modulate, side_by_side

Attention = Callable[..., Tensor]


class BlockModulation(NamedTuple):
    """One block's AdaLN outputs, which depend on the timestep and the pooled text alone, never on the streams.

    img: 6 tensors [B, 1, D] (shift, scale, gate of attention; shift, scale, gate of the MLP), and 3 more for a second
    attention; txt: 6, or 2 (shift, scale) where the text's output is not used.
    """

    img: tuple[Tensor, ...]
    txt: tuple[Tensor, ...]


class Stream(nn.Module):
    """One stream's half of a joint block: what comes before the attention and what comes after it."""

    def __init__(
        self,
        config: MMDiTConfig,
        *,
        dual_attention: bool = False,
        pre_only: bool = False,
        device=None,
        dtype=None,
        operations: Any = nn,
    ):
        super().__init__()
        size = config.hidden_size
        factory = {"device": device, "dtype": dtype}
        norm = {"elementwise_affine": False, "eps": NORM_EPS, **factory}
        projections = {"qk_norm": config.qk_norm, "qkv_bias": config.qkv_bias, "operations": operations, **factory}
        self.pre_only = pre_only
        self.norm1 = operations.LayerNorm(size, **norm)
        self.attn = AttentionProjections(size, config.num_heads, with_projection=not pre_only, **projections)
        self.attn2 = AttentionProjections(size, config.num_heads, **projections) if dual_attention else None
        if not pre_only:
            self.norm2 = operations.LayerNorm(size, **norm)
            self.mlp = Mlp(size, config.mlp_ratio, operations=operations, **factory)
        self.modulations = 2 if pre_only else 9 if dual_attention else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(size, self.modulations * size, **factory))

    def modulation(self, vec: Tensor) -> tuple[Tensor, ...]:  # [B, D] -> each [B, 1, D]
        return self.adaLN_modulation(vec).unsqueeze(1).chunk(self.modulations, dim=-1)

    # Never in place: a block hook may hold on to x.

    def add_attention(self, x: Tensor, mod: tuple[Tensor, ...], attn: Tensor, attn2: Tensor | None = None) -> Tensor:
        """x, attn and, where the stream has a second attention, attn2 [B, L, D] -> [B, L, D]."""
        assert self.attn.proj is not None
        x = torch.addcmul(x, mod[2], self.attn.proj(side_by_side(attn)))
        if attn2 is None:
            return x
        assert self.attn2 is not None and self.attn2.proj is not None
        return torch.addcmul(x, mod[8], self.attn2.proj(attn2))

    def add_mlp(self, x: Tensor, mod: tuple[Tensor, ...]) -> Tensor:  # [B, L, D] -> [B, L, D]
        return torch.addcmul(x, mod[5], self.mlp(modulate(self.norm2(x), mod[3], mod[4])))


class JointBlock(nn.Module):
    """Source: Esser et al. 2024, figure 2b; the second attention is SD3.5 Medium's MMDiT-X."""

    def __init__(
        self,
        config: MMDiTConfig,
        index: int,
        *,
        attention: Attention,
        device=None,
        dtype=None,
        operations: Any = nn,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype, "operations": operations}
        # Nobody reads the text stream after the last block.
        self.context_block = Stream(config, pre_only=index == config.depth - 1, **factory)
        self.x_block = Stream(config, dual_attention=index in config.dual_attention, **factory)
        self.attention = attention

    def modulation(self, vec: Tensor) -> BlockModulation:
        """vec [B, D], the timestep's and pooled text's embedding; the seam where a cache can stand."""
        return BlockModulation(img=self.x_block.modulation(vec), txt=self.context_block.modulation(vec))

    def forward(
        self, img: Tensor, txt: Tensor, mod: BlockModulation, transformer_options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """img [B, Li, D], txt [B, Lt, D] -> the same; the text is None after a block whose text is not read."""
        # What attention needed is gone before the MLPs, where memory peaks.
        img, out = self._attend(img, txt, mod, transformer_options)
        return self.x_block.add_mlp(img, mod.img), None if out is None else self.context_block.add_mlp(out, mod.txt)

    def _attend(
        self, img: Tensor, txt: Tensor, mod: BlockModulation, transformer_options: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams after their attention."""
        img_normed = self.x_block.norm1(img)
        img_qkv = self.x_block.attn(modulate(img_normed, mod.img[0], mod.img[1]))
        second = None if self.x_block.attn2 is None else modulate(img_normed, mod.img[6], mod.img[7])
        del img_normed
        txt_qkv = self.context_block.attn(modulate(self.context_block.norm1(txt), mod.txt[0], mod.txt[1]))
        # One sequence, text first: that is what img_slice and every attention hook of the host expect. Each pair goes
        # as soon as it is joined, for these are the largest tensors of a block.
        pairs = list(zip(txt_qkv, img_qkv, strict=True))
        del img_qkv, txt_qkv
        joined: list[Tensor] = []
        if self.context_block.pre_only and not _hooked(transformer_options):
            joined.append(pairs.pop(0)[1])  # nobody reads what the text's queries find
        while pairs:
            joined.append(torch.cat(pairs.pop(0), dim=2))
        attn = self._joint_attention(joined, txt.shape[1], transformer_options)
        txt_attn, img_attn = attn.split((attn.shape[1] - img.shape[1], img.shape[1]), dim=1)
        img_attn2 = None
        if self.x_block.attn2 is not None and second is not None:
            q, k, v = map(side_by_side, self.x_block.attn2(second))
            img_attn2 = self.attention(q, k, v, q.shape[1], skip_reshape=True, transformer_options=transformer_options)
            del q, k, v, second
        img = self.x_block.add_attention(img, mod.img, img_attn, img_attn2)
        if self.context_block.pre_only:
            return img, None
        return img, self.context_block.add_attention(txt, mod.txt, txt_attn)

    def _joint_attention(self, joined: list[Tensor], txt_len: int, transformer_options: dict[str, Any]) -> Tensor:
        """Attention over [text; image], with the host's patches on its inputs and its output; empties `joined`."""
        q, k, v = joined
        joined.clear()
        patches = transformer_options.get("patches", {})
        before, after = patches.get("attn1_patch", ()), patches.get("attn1_output_patch", ())
        mask = None
        extra: dict[str, Any] = {}
        if before or after:
            extra = {**transformer_options, "img_slice": [txt_len, q.shape[2]]}
        for patch in before:
            out = patch(q, k, v, pe=None, attn_mask=mask, extra_options=extra)
            q, k, v, mask = out.get("q", q), out.get("k", k), out.get("v", v), out.get("attn_mask", mask)
        attn = self.attention(
            q, k, v, q.shape[1], mask=mask, skip_reshape=True, transformer_options=transformer_options
        )
        for patch in after:
            attn = patch(attn, extra)
        return attn


def _hooked(transformer_options: dict[str, Any]) -> bool:
    """Whether somebody looks into the attention, and so expects as many queries as keys."""
    patches = transformer_options.get("patches", {})
    return bool(
        patches.get("attn1_patch")
        or patches.get("attn1_output_patch")
        or transformer_options.get("optimized_attention_override") is not None
    )
