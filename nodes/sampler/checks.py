"""Checks of prompts and latents, which a link can bring in any state, before anything is loaded onto the GPU."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor

from ...mmdit_core.models.checks import VAE_FACTOR
from ..comfyui.run.sampling import ModelFacts
from ..errors import require


def check_latent(
    node: str, latent: dict[str, Any], *, one_kind: bool = True, each: bool = False, name: str = "latent_image"
) -> None:
    """Refuse a LATENT that cannot be sampled with any model.

    Args: one_kind, refuse nested latents (of video and sound, say); each, a seed for each image of the batch; name,
    of the input.
    Raises: InputError.
    """
    samples, mask, indices = latent["samples"], latent.get("noise_mask"), latent.get("batch_index")
    demand = partial(require, node=node, name=name)
    made = "Check the node that made this latent"
    if samples.is_nested:
        demand(not one_kind, found="it holds latents of several kinds", right="Connect the latent of an image")
        return
    demand(samples.numel(), found=f"its size is {' x '.join(map(str, samples.shape))}", right=made)
    demand(samples.isfinite().all(), found="it holds values that are not finite", right=made)
    if isinstance(mask, Tensor):
        demand(mask.numel() and mask.isfinite().all(), found="its noise mask is empty or not finite", right=made)
    for key in ("downscale_ratio_spacial", "downscale_ratio_temporal"):
        ratio = latent.get(key)
        demand(ratio is None or 0 < ratio < math.inf, found=f"its {key} is {ratio}", right=made)
    if indices is not None:
        demand(len(indices) and min(indices) >= 0, found=f"its batch_index is {list(indices)[:9]}", right=made)
        found = f"its batch_index names {len(indices)} images and it holds {len(samples)}"
        demand(not each or len(indices) == len(samples), found=found, right=f'Set batch_noise to "shared". {made}')


def check_inputs(
    node: str,
    model: ModelFacts,
    positive,
    negative,
    samples: Tensor,
    *,
    flow: bool = True,
    others: str = "",
    names: tuple[str, str] = ("positive", "negative"),
) -> None:
    """Refuse prompts that are not finite, and what our core cannot run; ComfyUI's own models check the rest themselves.

    Args: samples, the latent's as they fit the model; flow, refuse a model that is no rectified flow; others, what
    else the user can do with one; names, of the inputs that the prompts came in by.
    Raises: InputError for text of another model, a latent of other channels, an image larger than the positions.
    """
    found = f"{model.kind} is not a flow-matching model"
    right = f"Connect SD3, SD3.5, FLUX or another rectified-flow model{others}"
    require(model.is_flow or not flow, node, "model", found, right)
    config = model.config
    for name, conditioning in zip(names, (positive, negative), strict=True):
        demand = partial(require, node=node, name=name)
        demand(conditioning, found="it holds no prompt", right="Connect the output of TripleTextEncode")
        for context, options in conditioning:
            pooled = options.get("pooled_output")
            tensors = [value for value in (context, pooled) if isinstance(value, Tensor)]
            right = "Check the precision of the text encoder and the strengths of prompt weights"
            finite = all(value.isfinite().all() for value in tensors)
            demand(finite, found="the text holds values that are not finite", right=right)
            if config is None:
                continue
            right = "Encode the prompt with the CLIP that belongs to this model"
            widths = (("text", context, config.context_dim), ("pooled text", pooled, config.pooled_dim))
            for kind, value, width in widths:
                demand(value is not None, found=f"it has no {kind}", right=right)
                found = f"the {kind} is {value.shape[-1]} channels wide, the model takes {width}"
                demand(value.shape[-1] == width, found=found, right=right)
    if config is None:
        return
    demand = partial(require, node=node, name="latent_image")
    found = f"the latent has {samples.ndim} dimensions, as video latents do"
    demand(samples.ndim == 4, found=found, right="Connect the latent of an image")
    found = f"the latent has {samples.shape[1]} channels, the model takes {config.in_channels}"
    right = "Encode the image with the VAE that belongs to this model"
    demand(samples.shape[1] == config.in_channels, found=found, right=right)
    height, width = samples.shape[-2] * VAE_FACTOR, samples.shape[-1] * VAE_FACTOR
    most = config.pos_embed_max_size * config.patch_size * VAE_FACTOR
    found = f"the image is {width} x {height} pixels, this model covers at most {most} x {most}"
    demand(max(height, width) <= most, found=found, right="Set a smaller width and height in the latent node")
