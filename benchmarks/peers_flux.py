"""FLUX.1 of the core, of ComfyUI and of diffusers, for `benchmarks.peers` and for tests that compare them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from mmdit_core import FluxConfig


def comfyui_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The core's tensors under the names of ComfyUI's class, which calls the norms' `scale` weight."""
    return {re.sub(r"_norm\.scale$", "_norm.weight", name): tensor for name, tensor in state.items()}


def comfyui_model(config: FluxConfig, dtype: torch.dtype, device: str):
    """ComfyUI's model of this shape, its weights not yet loaded."""
    import comfy.ldm.flux.model
    import comfy.ops

    return comfy.ldm.flux.model.Flux(
        in_channels=config.in_channels,
        out_channels=config.channels_out,
        patch_size=config.patch_size,
        vec_in_dim=config.pooled_dim,
        context_in_dim=config.context_dim,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        depth=config.depth,
        depth_single_blocks=config.depth_single_blocks,
        axes_dim=list(config.axes_dim),
        theta=10000,
        qkv_bias=True,
        guidance_embed=config.guidance_embed,
        txt_ids_dims=[],
        operations=comfy.ops.disable_weight_init,
        dtype=dtype,
        device=device,
    )


def diffusers_model(config: FluxConfig):
    """diffusers' model of this shape, its weights not yet loaded."""
    from diffusers import FluxTransformer2DModel

    pixels = config.patch_size**2
    return FluxTransformer2DModel(
        patch_size=1,  # its tokens are patches already
        in_channels=config.in_channels * pixels,
        out_channels=config.channels_out * pixels,
        num_layers=config.depth,
        num_single_layers=config.depth_single_blocks,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.context_dim,
        pooled_projection_dim=config.pooled_dim,
        guidance_embeds=config.guidance_embed,
        axes_dims_rope=config.axes_dim,
    )


def packed(x: Tensor, index: int = 0) -> tuple[Tensor, Tensor]:
    """A latent of an even size as diffusers' pipelines give it: tokens [B, L, 4 * C] and positions [L, 3]."""
    batch, channels, height, width = x.shape
    tokens = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    ids = torch.zeros(height // 2, width // 2, 3, device=x.device)
    ids[..., 0] = index
    ids[..., 1] += torch.arange(height // 2, device=x.device)[:, None]
    ids[..., 2] += torch.arange(width // 2, device=x.device)
    return tokens.reshape(batch, -1, 4 * channels), ids.view(-1, 3)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """`packed` back: [B, L, 4 * C] -> [B, C, height, width]."""
    grid = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(len(tokens), -1, height, width)


def diffusers_velocity(model, *, x, timesteps, context, y, guidance=None, ref_latents=()) -> Tensor:
    """The prediction of diffusers' model, called as its pipelines call it. Args: as of the core's model."""
    tokens, ids = packed(x)
    own = tokens.shape[1]
    for ref in ref_latents:  # of FLUX.1 Kontext, whose pipeline takes one
        more, more_ids = packed(ref, 1)
        tokens, ids = torch.cat((tokens, more), dim=1), torch.cat((ids, more_ids))
    txt_ids = torch.zeros(context.shape[1], 3, device=x.device)
    given = {"encoder_hidden_states": context, "pooled_projections": y, "timestep": timesteps / 1000}
    out = model(tokens, **given, img_ids=ids, txt_ids=txt_ids, guidance=guidance, return_dict=False)[0]
    return unpacked(out[:, :own], *x.shape[-2:])


def comfyui_velocity(model, *, timesteps, **given) -> Tensor:
    """The prediction of ComfyUI's model, which takes sigma. Args: as of the core's model."""
    return model(timestep=timesteps / 1000, **given)
