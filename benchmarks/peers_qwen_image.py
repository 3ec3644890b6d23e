"""Qwen-Image of ComfyUI and of diffusers, for `benchmarks.peers`: without references and the second condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peers_flux import packed, unpacked
from mmdit_core import QwenImageConfig


def comfyui_model(config: QwenImageConfig, dtype: torch.dtype, device: str):
    """ComfyUI's model of this shape, its weights not yet loaded."""
    import comfy.ldm.qwen_image.model
    import comfy.ops

    return comfy.ldm.qwen_image.model.QwenImageTransformer2DModel(
        **_sizes(config),
        operations=comfy.ops.disable_weight_init,
        dtype=dtype,
        device=device,
    )


def diffusers_model(config: QwenImageConfig):
    """diffusers' model of this shape, its weights not yet loaded."""
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(**_sizes(config))
    # No checkpoint holds the rotations: they need values also where the parameters are on the meta device.
    with torch.device("cpu"):
        model.pos_embed = type(model.pos_embed)(theta=10000, axes_dim=list(config.axes_dim), scale_rope=True)
    return model


def _sizes(config: QwenImageConfig) -> dict[str, Any]:
    """The arguments that both classes have under the same names."""
    return {
        "patch_size": config.patch_size,
        "in_channels": config.in_channels * config.patch_size**2,
        "out_channels": config.channels_out,
        "num_layers": config.depth,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.context_dim,
        "axes_dims_rope": config.axes_dim,
    }


def diffusers_velocity(model, *, x, timesteps, context) -> Tensor:
    """The prediction of diffusers' model, called as its pipelines call it. Args: as of the core's model."""
    rows, columns = (size // 2 for size in x.shape[-2:])
    tokens, _ = packed(x)
    shapes = [[(1, rows, columns)]] * len(x)
    given = {"encoder_hidden_states": context, "timestep": timesteps / 1000, "img_shapes": shapes}
    return unpacked(model(tokens, **given, return_dict=False)[0], *x.shape[-2:])


def comfyui_velocity(model, *, x, timesteps, context) -> Tensor:
    """The prediction of ComfyUI's model, which takes sigma and an axis of frames. Args: as of the core's model."""
    # The class writes into these options, and without them into its default argument.
    return model(x[:, :, None], timesteps / 1000, context, transformer_options={})[:, :, 0]
