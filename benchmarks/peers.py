"""Our model, ComfyUI's own and diffusers', for benchmarks that time them and tests that compare them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks import peers_flux, peers_qwen_image
from mmdit_core import Flux, FluxConfig, MMDiT, MMDiTConfig, QwenImage, QwenImageConfig
from mmdit_core.checkpoints.keymaps import to_diffusers
from mmdit_core.config import ModelConfig

OURS, COMFYUI, DIFFUSERS = CONTENDERS = ("ours", "ComfyUI", "diffusers")
TEXT_TOKENS = 154
GUIDANCE = 3.5


def inputs(config: ModelConfig, tokens: int, dtype: torch.dtype, batch: int = 1) -> dict[str, torch.Tensor]:
    """Random inputs of a model: a square latent of so many image tokens, one timestep, a text.

    Without y for a model that has no pooled text.
    """
    torch.manual_seed(1)
    side = math.isqrt(tokens) * config.patch_size
    given = {
        "x": torch.randn(batch, config.in_channels, side, side).to(dtype),
        "timesteps": torch.full((batch,), 500.0),
        "context": torch.randn(batch, TEXT_TOKENS, config.context_dim).to(dtype),
    }
    if not isinstance(config, QwenImageConfig):
        given["y"] = torch.randn(batch, config.pooled_dim).to(dtype)
    return {**given, "guidance": torch.full((batch,), GUIDANCE)} if config.guidance_embed else given


def model_of(
    contender: str, config: ModelConfig, dtype: torch.dtype, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """A contender's model that shares these tensors."""
    peers = FAMILIES[type(config)]
    if contender == DIFFUSERS:
        with torch.device("meta"):
            model = peers.diffusers(config)
        state = to_diffusers(state, config)
    elif contender == COMFYUI:
        model, state = peers.comfyui(config, dtype, "meta"), peers.comfyui_state(state)
    else:
        model = _ours(peers.ours, config, dtype, "meta")
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def velocity(contender: str, model: torch.nn.Module, config: ModelConfig, **given: Any) -> torch.Tensor:
    """The prediction of a contender's model. Args: given, as of our model."""
    peers = FAMILIES[type(config)]
    calls = {OURS: _call, COMFYUI: peers.comfyui_velocity, DIFFUSERS: peers.diffusers_velocity}
    return calls[contender](model, **given)


def _call(model: torch.nn.Module, **given: Any) -> torch.Tensor:
    return model(**given)


def _ours(model: Callable[..., torch.nn.Module], config: ModelConfig, dtype: torch.dtype, device: str):
    """As the loader node builds it: with ComfyUI's layers and its attention."""
    import comfy.ldm.modules.attention
    import comfy.ops

    attention = comfy.ldm.modules.attention.optimized_attention
    return model(config, device, dtype, comfy.ops.disable_weight_init, attention)


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


def diffusers_velocity(model: torch.nn.Module, *, x, timesteps, context, y) -> torch.Tensor:
    """The prediction of diffusers' SD3 model. Args: as of our model."""
    return model(x, context, y, timesteps, return_dict=False)[0]


class Peers(NamedTuple):
    """How the models of one family are made and called.

    Fields: ours, the core's class; comfyui and diffusers, which make the others' models; comfyui_state, the core's
    tensors under ComfyUI's names; comfyui_velocity and diffusers_velocity, which call them with our arguments.
    """

    ours: Callable[..., torch.nn.Module]
    comfyui: Callable[..., torch.nn.Module]
    diffusers: Callable[..., torch.nn.Module]
    comfyui_state: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    comfyui_velocity: Callable[..., torch.Tensor]
    diffusers_velocity: Callable[..., torch.Tensor]


FAMILIES: dict[type, Peers] = {
    MMDiTConfig: Peers(MMDiT, comfyui_model, diffusers_model, dict, _call, diffusers_velocity),
    FluxConfig: Peers(
        Flux,
        peers_flux.comfyui_model,
        peers_flux.diffusers_model,
        peers_flux.comfyui_state,
        peers_flux.comfyui_velocity,
        peers_flux.diffusers_velocity,
    ),
    QwenImageConfig: Peers(
        QwenImage,
        peers_qwen_image.comfyui_model,
        peers_qwen_image.diffusers_model,
        dict,
        peers_qwen_image.comfyui_velocity,
        peers_qwen_image.diffusers_velocity,
    ),
}
