"""The steps of a joint block under the names and in the shapes of ComfyUI's SD3 blocks.

Node packs that rebuild a block from its parts (an IP-Adapter for SD3.5, Skip Layer Guidance variants) call these; this
model's own forward does not.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .layers import Modulation, gated, modulate

Intermediates = tuple[Tensor, ...]


class StreamMethods:
    """What ComfyUI's block offers of one stream; `x` is the stream [B, L, D], `c` AdaLN's vector [B, D]."""

    norm1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    attn: Any
    attn2: Any
    modulation: Any
    has_output: bool
    dual_attention: bool

    @property
    def pre_only(self) -> bool:
        """Whether the stream ends at the attention."""
        return not self.has_output

    @property
    def x_block_self_attn(self) -> bool:
        """Whether the stream has a second attention, over its own tokens."""
        return self.dual_attention

    def pre_attention(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], Intermediates | None]:
        """The attention's q, k and v, and what `post_attention` needs; None for a stream that ends here."""
        mod = self.modulation(c, {})
        qkv = self.attn.pre_attention(modulate(self.norm1(x), mod.attn))
        if self.pre_only:
            return qkv, None
        gates = (each.squeeze(1) for each in (mod.attn.gate, *mod.mlp))
        return qkv, (x, *gates)

    def post_attention(
        self, attn: Tensor, x: Tensor, gate_msa: Tensor, shift_mlp: Tensor, scale_mlp: Tensor, gate_mlp: Tensor
    ) -> Tensor:
        """The stream after the block, from the attention's output [B, L, D] and what `pre_attention` gave."""
        x = gated(x, gate_msa.unsqueeze(1), self.attn.post_attention(attn))
        return self._through_mlp(x, shift_mlp, scale_mlp, gate_mlp)

    def pre_attention_x(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Intermediates]:
        """As `pre_attention`, with q, k and v of the second attention in second place."""
        mod, normed = self.modulation(c, {}), self.norm1(x)
        qkv = self.attn.pre_attention(modulate(normed, mod.attn))
        qkv2 = self.attn2.pre_attention(modulate(normed, mod.attn2))
        gates = (each.squeeze(1) for each in (mod.attn.gate, *mod.mlp, mod.attn2.gate))
        return qkv, qkv2, (x, *gates)

    def post_attention_x(
        self,
        attn: Tensor,
        attn2: Tensor,
        x: Tensor,
        gate_msa: Tensor,
        shift_mlp: Tensor,
        scale_mlp: Tensor,
        gate_mlp: Tensor,
        gate_msa2: Tensor,
    ) -> Tensor:
        """As `post_attention`, with the output of the second attention."""
        x = gated(x, gate_msa.unsqueeze(1), self.attn.post_attention(attn))
        x = gated(x, gate_msa2.unsqueeze(1), self.attn2.post_attention(attn2))
        return self._through_mlp(x, shift_mlp, scale_mlp, gate_mlp)

    def _through_mlp(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        mod = Modulation(*(each.unsqueeze(1) for each in (shift, scale, gate)))
        return gated(x, mod.gate, self.mlp(modulate(self.norm2(x), mod)))
