"""The SD3 family of multimodal diffusion transformers (SD3, SD3.5 Medium and Large).

Parameters carry the names of the published single-file checkpoints, so that weights and LoRAs load without renaming.
Source: Esser et al. 2024, "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis", figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import MMDiTConfig
from . import adaln
from .attention import attention as plain_attention
from .block_methods import StreamMethods
from .checks import VAE_FACTOR, LatentTooLarge, check_inputs
from .layers import (
    ABSENT,
    NORM_EPS,
    TIME_FEATURES,
    AttentionProjections,
    Embedder,
    FinalLayer,
    Mlp,
    Modulation,
    PatchEmbed,
    gated,
    modulate,
    timestep_embedding,
)
from .patches import Options, block_hook, patch_attention, patch_block, patch_input, patch_qkv


class StreamModulation(NamedTuple):
    """AdaLN's vectors for the sublayers of one stream, in the checkpoints' order.

    The last block's text has an attention alone; only some blocks have a second one.
    """

    attn: Modulation
    mlp: Modulation = ABSENT
    attn2: Modulation = ABSENT


class Stream(StreamMethods, nn.Module):
    """The layers of one stream, image or text, of a joint block.

    Args: dual_attention, a second attention over the stream's own tokens; has_output, False if the stream ends at the
        attention; operations, a namespace with the layers' classes; factory, their device and dtype.
    """

    def __init__(
        self, config: MMDiTConfig, *, dual_attention=False, has_output=True, operations: Any = nn, **factory: Any
    ):
        super().__init__()
        size, norm = config.hidden_size, {"elementwise_affine": False, "eps": NORM_EPS}
        self.has_output, self.dual_attention = has_output, dual_attention
        self.norm1 = operations.LayerNorm(size, **norm, **factory)
        self.attn = AttentionProjections(config, has_output=has_output, operations=operations, **factory)
        if dual_attention:
            self.attn2 = AttentionProjections(config, operations=operations, **factory)
        if has_output:
            self.norm2 = operations.LayerNorm(size, **norm, **factory)
            self.mlp = Mlp(size, config.mlp_ratio, operations=operations, **factory)
        # shift, scale and gate of attention, MLP and second attention; a stream without output has no gate
        self.num_vectors = 9 if dual_attention else 6 if has_output else 2
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(size, self.num_vectors * size, **factory))

    def modulation(self, vec: Tensor, options: Options) -> StreamModulation:
        """vec [B, D] -> the vectors of each sublayer."""
        vectors = adaln.modulation(self.adaLN_modulation, vec, options).unsqueeze(1).chunk(self.num_vectors, dim=-1)
        return StreamModulation(*(Modulation(*vectors[i : i + 3]) for i in range(0, self.num_vectors, 3)))


def joined(img_qkv: Iterable[Tensor], txt_qkv: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """q, k, v [B, heads, Lt + Li, d] of [text; image]."""
    return tuple(torch.cat(both, dim=2) for both in zip(txt_qkv, img_qkv, strict=True))


class JointBlock(nn.Module):
    """Two streams, image and text, with weights of their own and one attention over both.

    Source: Esser et al. 2024, figure 2b; the second attention over the image is that of SD3.5 Medium (MMDiT-X).
    """

    def __init__(
        self, config: MMDiTConfig, index: int, *, attention: Callable[..., Tensor], operations: Any = nn, **factory: Any
    ):
        super().__init__()
        self.dual_attention = index in config.dual_attention
        self.has_text_output = index < config.depth - 1  # the text is unused after the last block
        self.num_heads = config.num_heads
        self.attention = attention
        self.context_block = Stream(config, has_output=self.has_text_output, operations=operations, **factory)
        self.x_block = Stream(config, dual_attention=self.dual_attention, operations=operations, **factory)

    def forward(
        self, context: Tensor, x: Tensor, c: Tensor, transformer_options: Options | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, Tensor]:
        """One step of both streams, called as ComfyUI calls its own SD3 blocks, which others wrap.

        Args: context [B, Lt, D]; x [B, Li, D]; c [B, D], the vector of AdaLN; kwargs, what else ComfyUI's takes, is not
            read.
        Returns: (context, x); context is None after the last block.
        """
        img, txt, vec = x, context, c
        options = {} if transformer_options is None else transformer_options
        img_stream, txt_stream = self.x_block, self.context_block  # the checkpoints' names
        img_mod = img_stream.modulation(vec, options)
        txt_mod = txt_stream.modulation(vec, options)
        img_slice = [txt.shape[1], txt.shape[1] + img.shape[1]]

        # attention over [text; image]
        q, k, v = joined(
            img_stream.attn.to_qkv(modulate(img_stream.norm1(img), img_mod.attn)),
            txt_stream.attn.to_qkv(modulate(txt_stream.norm1(txt), txt_mod.attn)),
        )
        q, k, v, _, mask = patch_qkv(q, k, v, img_slice, options)
        attn = self.attention(q, k, v, self.num_heads, mask=mask, skip_reshape=True, transformer_options=options)
        txt_attn, img_attn = patch_attention(attn, img_slice, options).tensor_split([txt.shape[1]], dim=1)
        img_in, img = img, gated(img, img_mod.attn.gate, img_stream.attn.proj(img_attn))
        if self.has_text_output:
            txt = gated(txt, txt_mod.attn.gate, txt_stream.attn.proj(txt_attn))
        del q, k, v, attn, txt_attn, img_attn  # memory peaks in the MLP

        # second attention, over the image alone, as it entered the block
        if self.dual_attention:
            q, k, v = img_stream.attn2.to_qkv(modulate(img_stream.norm1(img_in), img_mod.attn2))
            attn2 = self.attention(q, k, v, self.num_heads, skip_reshape=True, transformer_options=options)
            img = gated(img, img_mod.attn2.gate, img_stream.attn2.proj(attn2))
            del q, k, v, attn2

        # MLP of each stream
        img = gated(img, img_mod.mlp.gate, img_stream.mlp(modulate(img_stream.norm2(img), img_mod.mlp)))
        if not self.has_text_output:
            return None, img
        txt = gated(txt, txt_mod.mlp.gate, txt_stream.mlp(modulate(txt_stream.norm2(txt), txt_mod.mlp)))
        return txt, img


def original_block(block: nn.Module, args: Mapping[str, Any]) -> dict[str, Any]:
    """A block as a block hook calls it: a dictionary in, a dictionary out."""
    txt, img = block(args["txt"], args["img"], c=args["vec"], transformer_options=args["transformer_options"])
    return {"img": img, "txt": txt}


class MMDiT(adaln.WithAdaLNCache, nn.Module):
    """The velocity of a rectified flow, given a noisy latent, a timestep and a text.

    Args: config; device and dtype of the parameters; operations, a namespace with Linear, Conv2d, LayerNorm and
        RMSNorm; attention, a function with the signature of `mmdit_core.models.attention.attention`.
    """

    pos_embed: Tensor  # [1, pos_embed_max_size ** 2, hidden_size], fixed

    def __init__(
        self,
        config: MMDiTConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
        attention: Callable[..., Tensor] = plain_attention,
    ):
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = {"operations": operations, **factory}
        size, positions = config.hidden_size, config.pos_embed_max_size**2
        self.config = config
        self.dtype = dtype  # ComfyUI reads it
        self.x_embedder = PatchEmbed(config.in_channels, size, config.patch_size, **layers)
        self.t_embedder = Embedder(TIME_FEATURES, size, **layers)
        self.y_embedder = Embedder(config.pooled_dim, size, **layers)
        self.guidance_embedder = Embedder(TIME_FEATURES, size, **layers) if config.guidance_embed else None
        self.context_embedder = operations.Linear(config.context_dim, size, **factory)
        self.register_buffer("pos_embed", torch.zeros(1, positions, size, **factory))
        self.joint_blocks = nn.ModuleList(
            JointBlock(config, index, attention=attention, **layers) for index in range(config.depth)
        )
        self.final_layer = FinalLayer(size, config.patch_size**2 * config.channels_out, **layers)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        control: Mapping[str, Any] | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The velocity dx/dsigma = noise - data.

        Args: x [B, C, H, W] latent of any size the position grid covers; timesteps [B] in 0..1000 (1000 * sigma);
            context [B, L, context_dim] text tokens; y [B, pooled_dim] pooled text, None for none; guidance [B], read
            only by models with a guidance embedding; control, {"output": [residual [B, Li, D] or None, ...]}, added
            to the image stream after each block; transformer_options, hooks and settings, never changed:
            patches (post_input, double_block, attn1_patch, attn1_output_patch), patches_replace (dit),
            optimized_attention_override, and what `adaln_cache` gives; kwargs, what else ComfyUI passes, is not read.
        Returns: [B, C, H, W], the dtype of x.
        Raises: ValueError for inputs whose shapes or dtypes do not fit; LatentTooLarge.
        """
        check_inputs("MMDiT", self.config, self.context_embedder, x, context, y)
        # Patches read the kind and the number of blocks.
        options = {**(transformer_options or {}), "block_type": "double", "total_blocks": len(self.joint_blocks)}
        vec, txt = adaln.embedded(self, x, timesteps, context, y, guidance, options)
        img = self.embed_latent(x)
        img, txt, _ = patch_input(img, txt, options)
        residuals = (control or {}).get("output", ())
        for index, block in enumerate(self.joint_blocks):
            options["block_index"] = index
            hook = block_hook(("double_block", index), options)
            if hook is None:
                txt, img = block(txt, img, c=vec, transformer_options=options)
            else:
                args = {"img": img, "txt": txt, "vec": vec, "transformer_options": options}
                out = hook(args, {"original_block": partial(original_block, block)})
                img, txt = out["img"], out["txt"]
            img, txt = patch_block(img, txt, x, index, options)
            if index < len(residuals) and residuals[index] is not None:
                img = img + residuals[index]
        return self.unpatchify(self.final_layer(img, vec, options), *x.shape[-2:])

    def adaln_layers(self) -> list[tuple[nn.Module, int]]:
        """Each AdaLN layer and the width of its output."""
        size = self.config.hidden_size
        blocks: Iterable[Any] = self.joint_blocks
        streams = [stream for block in blocks for stream in (block.x_block, block.context_block)]
        layers = [(stream.adaLN_modulation, stream.num_vectors * size) for stream in streams]
        return [*layers, (self.final_layer.adaLN_modulation, 2 * size)]

    def embedders(self) -> list[nn.Module]:
        """The layers of `embed_vector` and `embed_text`."""
        found = self.t_embedder, self.y_embedder, self.guidance_embedder, self.context_embedder
        return [layer for layer in found if layer is not None]

    def embed_text(self, context: Tensor) -> Tensor:
        """txt [B, L, D] of the context [B, L, context_dim]."""
        return self.context_embedder(context)

    def embed_vector(
        self, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None = None, *, dtype: torch.dtype
    ) -> Tensor:
        """vec [B, D], the input of all AdaLN layers. guidance is scaled by 1000, as in FLUX."""
        vec = self.t_embedder(timestep_embedding(timesteps, TIME_FEATURES).to(dtype))
        if self.guidance_embedder is not None and guidance is not None:
            vec = vec + self.guidance_embedder(timestep_embedding(guidance * 1000.0, TIME_FEATURES).to(dtype))
        if y is not None:
            vec = vec + self.y_embedder(y.to(dtype))
        return vec

    def embed_latent(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, L, D]: odd sizes are padded circularly; positions are added."""
        p = self.config.patch_size
        x = F.pad(x, (0, -x.shape[-1] % p, 0, -x.shape[-2] % p), mode="circular")
        positions = self.positions(x.shape[-2] // p, x.shape[-1] // p)
        return self.x_embedder(x) + positions.to(device=x.device, dtype=x.dtype)

    def positions(self, rows: int, columns: int) -> Tensor:
        """[1, rows * columns, D]: the middle of the position grid."""
        most, pixels = self.config.pos_embed_max_size, self.config.patch_size * VAE_FACTOR
        if max(rows, columns) > most:
            raise LatentTooLarge((columns * pixels, rows * pixels), most * pixels)
        top, left = (most - rows) // 2, (most - columns) // 2
        grid = self.pos_embed.view(most, most, -1)
        return grid[top : top + rows, left : left + columns].reshape(1, rows * columns, -1)

    def unpatchify(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """[B, L, patch_size ** 2 * C] -> [B, C, height, width]; the padding of odd sizes is cut off."""
        p = self.config.patch_size
        rows, columns = -(-height // p), -(-width // p)  # rounded up
        grid = tokens.view(tokens.shape[0], rows, columns, p, p, -1)
        latent = grid.permute(0, 5, 1, 3, 2, 4)  # [B, rows, columns, p, p, C] -> [B, C, rows, p, columns, p]
        latent = latent.reshape(tokens.shape[0], -1, rows * p, columns * p)
        return latent[:, :, :height, :width]
