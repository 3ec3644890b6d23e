"""Checks of a model, its prompts and a latent before anything is loaded onto the GPU."""

from __future__ import annotations

import torch

from ...mmdit_core.models.checks import VAE_FACTOR
from ..comfyui.loading.model import core_config
from ..errors import InputError


def check_inputs(node: str, model, positive, negative, samples) -> None:
    """Refuse what our core cannot run before anything is loaded onto the GPU. The host's own models check themselves.

    Raises: InputError for text of another model, a latent of other channels, a picture larger than the positions.
    """
    for name, conditioning in (("positive", positive), ("negative", negative)):
        if not conditioning:
            raise InputError(node, name, "it holds no prompt", "Connect the output of TripleTextEncode")
    config = core_config(model)
    if config is None:
        return
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for context, options in conditioning:
            found = context.shape[-1]
            if found != config.context_dim:
                raise InputError(
                    node,
                    name,
                    f"the text is {found} channels wide, the model takes {config.context_dim}",
                    "Encode the prompt with the CLIP that belongs to this model",
                )
            pooled = options.get("pooled_output")
            if pooled is not None and pooled.shape[-1] != config.pooled_dim:
                raise InputError(
                    node,
                    name,
                    f"the pooled text is {pooled.shape[-1]} channels wide, the model takes {config.pooled_dim}",
                    "Encode the prompt with the CLIP that belongs to this model",
                )
    if samples.ndim != 4:
        raise InputError(
            node,
            "latent_image",
            f"the latent has {samples.ndim} dimensions, as video latents do",
            "Connect the latent of a picture",
        )
    if samples.shape[1] != config.in_channels:
        raise InputError(
            node,
            "latent_image",
            f"the latent has {samples.shape[1]} channels, the model takes {config.in_channels}",
            "Encode the picture with the VAE that belongs to this model",
        )
    height, width = samples.shape[-2] * VAE_FACTOR, samples.shape[-1] * VAE_FACTOR
    most = config.pos_embed_max_size * config.patch_size * VAE_FACTOR
    if max(height, width) > most:
        raise InputError(
            node,
            "latent_image",
            f"the picture is {width} x {height} pixels, this model covers at most {most} x {most}",
            "Set a smaller width and height in the latent node",
        )


def check_finite(node: str, **conditionings) -> None:
    """Refuse text that holds NaN or infinity: all that is sampled with it would be so.

    Raises: InputError.
    """
    for name, conditioning in conditionings.items():
        for context, options in conditioning:
            tensors = [value for value in (context, options.get("pooled_output")) if isinstance(value, torch.Tensor)]
            if not all(value.isfinite().all() for value in tensors):
                raise InputError(
                    node,
                    name,
                    "the text holds values that are not finite",
                    "Look at the text encoder's precision and the strengths of prompt weights",
                )
