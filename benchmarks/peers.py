"""Our model, ComfyUI's own and diffusers', for benchmarks that time them and tests that compare them."""

from __future__ import annotations

import math

import torch

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.checkpoints.keymaps import to_diffusers

OURS, COMFYUI, DIFFUSERS = CONTENDERS = ("ours", "ComfyUI", "diffusers")
TEXT_TOKENS = 154


def inputs(config: MMDiTConfig, tokens: int, dtype: torch.dtype, batch: int = 1) -> dict[str, torch.Tensor]:
    """Random inputs of a model: a square latent of so many image tokens, one timestep, a text."""
    torch.manual_seed(1)
    side = math.isqrt(tokens) * config.patch_size
    return {
        "x": torch.randn(batch, config.in_channels, side, side).to(dtype),
        "timesteps": torch.full((batch,), 500.0),
        "context": torch.randn(batch, TEXT_TOKENS, config.context_dim).to(dtype),
        "y": torch.randn(batch, config.pooled_dim).to(dtype),
    }


def model_of(
    contender: str, config: MMDiTConfig, dtype: torch.dtype, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """A contender's model that shares these tensors."""
    if contender == DIFFUSERS:
        with torch.device("meta"):
            model = diffusers_model(config)
        state = to_diffusers(state, config)
    else:
        model = {OURS: _ours, COMFYUI: comfyui_model}[contender](config, dtype, "meta")
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def velocity(contender: str, model: torch.nn.Module, *, x, timesteps, context, y, **options) -> torch.Tensor:
    """The prediction of a contender's model."""
    if contender == DIFFUSERS:
        return model(x, context, y, timesteps, return_dict=False)[0]
    return model(x=x, timesteps=timesteps, context=context, y=y, **options)


def _ours(config: MMDiTConfig, dtype: torch.dtype, device: str):
    """As the loader node builds it: with ComfyUI's layers and its attention."""
    import comfy.ldm.modules.attention
    import comfy.ops

    attention = comfy.ldm.modules.attention.optimized_attention
    return MMDiT(config, device, dtype, comfy.ops.disable_weight_init, attention)


def comfyui_model(config: MMDiTConfig, dtype: torch.dtype, device: str):
    """ComfyUI's SD3 model of this shape, its weights not yet loaded."""
    import comfy.ldm.modules.diffusionmodules.mmdit
    import comfy.ops

    return comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper(
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        depth=config.hidden_size // 64,
        num_blocks=config.depth,
        adm_in_channels=config.pooled_dim,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": config.context_dim, "out_features": config.hidden_size},
        },
        pos_embed_max_size=config.pos_embed_max_size,
        num_patches=config.pos_embed_max_size**2,
        qk_norm=config.qk_norm,
        x_block_self_attn_layers=list(config.dual_attention),
        operations=comfy.ops.disable_weight_init,
        dtype=dtype,
        device=device,
    )


def diffusers_model(config: MMDiTConfig):
    """diffusers' SD3 model of this shape, its weights not yet loaded."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=config.pos_embed_max_size * config.patch_size,
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        num_layers=config.depth,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.context_dim,
        caption_projection_dim=config.hidden_size,
        pooled_projection_dim=config.pooled_dim,
        out_channels=config.channels_out,
        pos_embed_max_size=config.pos_embed_max_size,
        dual_attention_layers=config.dual_attention,
        qk_norm="rms_norm" if config.qk_norm else None,
    )
