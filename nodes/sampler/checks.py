"""Checks of prompts and latents, which a link can bring in any state, before anything is loaded onto the GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ...mmdit_core.models.checks import VAE_FACTOR
from ..comfyui.run.sampling import ModelFacts
from ..errors import require
from ..links import require_areas_inside, require_conditioning

MOST_RATIO = 64  # pixels to a side of a latent's
MOST_INDEX = 9_999  # of an image in a batch: ComfyUI makes the noise of all images before it


def check_latent(
    node: str, latent: dict[str, Any], *, one_kind: bool = True, each: bool = False, name: str = "latent_image"
) -> None:
    """Refuse a LATENT that cannot be sampled with any model.

    Args: one_kind, refuse nested latents (of video and sound, say); each, a seed for each image of the batch; name,
    of the input.
    Raises: InputError.
    """
    demand, made = partial(require, node=node, name=name), "Check the node that made this latent"
    samples: Any = latent.get("samples") if isinstance(latent, Mapping) else None
    is_latent = hasattr(samples, "is_nested") and hasattr(samples, "shape")
    demand(is_latent, found=f"{type(latent).__name__} is not a LATENT", right="Connect a LATENT")
    if samples.is_nested:
        demand(not one_kind, found="it holds latents of several kinds", right="Connect the latent of an image")
        return
    size = " x ".join(map(str, samples.shape)) or "empty"
    demand(samples.ndim >= 3 and samples.numel(), found=f"its size is {size}", right=made)
    floats = samples.is_floating_point() and samples.dtype.itemsize > 1
    demand(floats, found=f"its values are {samples.dtype}", right=made)
    demand(samples.isfinite().all(), found="it holds values that are not finite", right=made)
    _check_mask(latent.get("noise_mask"), samples, partial(demand, right=made))
    for key in ("downscale_ratio_spacial", "downscale_ratio_temporal"):
        ratio = latent.get(key)
        fits = ratio is None or (isinstance(ratio, int | float) and 1 <= ratio <= MOST_RATIO)
        demand(fits, found=f"its {key} is {ratio!r:.60}", right=made)
    indices: Any = latent.get("batch_index")
    if indices is not None:
        numbers = isinstance(indices, list | tuple) and all(type(each) is int for each in indices)
        known = numbers and len(indices) and 0 <= min(indices) and max(indices) <= MOST_INDEX
        demand(known, found=f"its batch_index is {indices!r:.60}", right=made)
        found = f"its batch_index names {len(indices)} images and it holds {len(samples)}"
        same = len(indices) == len(samples)
        demand(same or not each, found=found, right=f'Set batch_noise to "shared". {made}')
        demand(same or len(indices) == 1, found=found, right=made)


def _check_mask(mask: Any, samples: Tensor, demand: Callable[..., None]) -> None:
    """Refuse a noise mask that cannot be fitted to the samples. Raises: InputError."""
    if mask is None:
        return
    demand(isinstance(mask, Tensor), found=f"its noise mask is {type(mask).__name__}")
    demand(mask.numel() and mask.isfinite().all(), found="its noise mask is empty or not finite")
    found = f"its noise mask is of shape {list(mask.shape)}"
    demand(2 <= mask.ndim <= max(4, samples.ndim), found=found)
    demand(mask.is_floating_point(), found=f"the values of its noise mask are {mask.dtype}")


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
        require_conditioning(node, name, conditioning)
        demand = partial(require, node=node, name=name)
        for context, options in conditioning:
            right = "Encode the prompt with the CLIP that belongs to this model"
            parts = [("text", context, model.text_width, 3)]
            if config is not None:
                parts.append(("pooled text", options.get("pooled_output"), config.pooled_dim, 2))
            for kind, value, width, rank in parts:
                demand(isinstance(value, Tensor) and value.ndim, found=f"it has no {kind}", right=right)
                found = f"the {kind} is {value.shape[-1]} channels wide, the model takes {width}"
                demand(width in (None, value.shape[-1]), found=found, right=right)
                found = f"the {kind} is of shape {list(value.shape)}"
                demand(config is None or value.ndim == rank, found=found, right=right)
        if not samples.is_nested:
            require_areas_inside(node, name, conditioning, samples.shape[2:])
    demand = partial(require, node=node, name="latent_image")
    if config is not None:
        demand(not samples.is_nested, found="it holds latents of several kinds", right="Connect the latent of an image")
        found = f"the latent has {samples.ndim} dimensions, as video latents do"
        demand(samples.ndim == 4, found=found, right="Connect the latent of an image")
    if model.channels is not None and not samples.is_nested:
        found = f"the latent has {samples.shape[1]} channels, the model takes {model.channels}"
        right = "Encode the image with the VAE that belongs to this model"
        demand(samples.shape[1] == model.channels, found=found, right=right)
    if config is None:
        return
    height, width = samples.shape[-2] * VAE_FACTOR, samples.shape[-1] * VAE_FACTOR
    most = config.pos_embed_max_size * config.patch_size * VAE_FACTOR
    found = f"the image is {width} x {height} pixels, this model covers at most {most} x {most}"
    demand(max(height, width) <= most, found=found, right="Set a smaller width and height in the latent node")
