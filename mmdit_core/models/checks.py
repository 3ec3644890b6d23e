"""The checks of a model's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import REFERENCE_METHODS, TIMESTEP_ZERO
from .latents import check_references

VAE_FACTOR = 8  # image pixels per latent pixel, in every model of the SD3 family


class LatentTooLarge(ValueError):
    """A latent that the position grid cannot cover. size (width, height) and most, the largest side: image pixels."""

    def __init__(self, size: tuple[int, int], most: int):
        super().__init__(f"the image is {size[0]} x {size[1]} pixels; the model's positions cover {most} x {most}")
        self.size, self.most = size, most


def check_inputs(
    name: str, config: Any, embedder: nn.Module, x: Tensor, context: Tensor | None, y: Tensor | None
) -> None:
    """Refuse inputs of a model's forward that do not fit it. Args: name of the model, in errors; embedder, of the text.

    Raises: ValueError.
    """
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise ValueError(f"{name}: the latent is {list(x.shape)}; this model takes [B, {config.in_channels}, H, W]")
    context = _checked_text(name, config, embedder, x, context)
    if y is not None and y.shape[-1] != config.pooled_dim:
        raise ValueError(f"{name}: the pooled text is {list(y.shape)}; this model takes [B, {config.pooled_dim}]")


def check_qwen_image(
    model: Any,
    latent: Tensor,
    context: Tensor | None,
    *,
    absent: Mapping[str, Any],
    control: Mapping[str, Any] | None,
    mask: Tensor | None,
    references: Sequence[Tensor],
    method: str,
    additional_t_cond: Tensor | None,
) -> None:
    """Refuse inputs of `QwenImage.forward` that do not fit the model.

    Args: latent [B, C, T, H, W]; references [1 or B, C, h, w]; absent, name -> value of inputs that it does not have.
    Raises: ValueError.
    """
    config = model.config
    channels, name = config.in_channels, "QwenImage"
    if latent.ndim != 5 or latent.shape[1] != channels:
        right = f"this model takes [B, {channels}, H, W] or [B, {channels}, layers, H, W]"
        raise ValueError(f"{name}: the latent is {list(latent.shape)}; {right}")
    context = _checked_text(name, config, model.txt_in, latent, context)
    for given, value in absent.items():
        if value is not None:
            raise ValueError(f"{name}: {given} is given; this model has no such input")
    others = [key for key, each in (control or {}).items() if key != "input" and any(v is not None for v in each or ())]
    if others:
        raise ValueError(f"{name}: control has residuals under {', '.join(others)}; this model takes them under input")
    rows, tokens = context.shape[:2]
    if mask is not None and mask.shape not in ((1, tokens), (rows, tokens)):
        right = f"this context takes [1 or {rows}, {tokens}]"
        raise ValueError(f"{name}: the attention mask is {list(mask.shape)}; {right}")
    check_references(name, channels, latent, references, method, REFERENCE_METHODS)
    if additional_t_cond is not None and not config.additional_t_cond:
        raise ValueError(f"{name}: additional_t_cond is given; this model does not embed it")
    if additional_t_cond is not None and references and method == TIMESTEP_ZERO:
        raise ValueError(f"{name}: additional_t_cond is not defined with references at timestep 0")


def _checked_text(name: str, config: Any, embedder: nn.Module, latent: Tensor, context: Tensor | None) -> Tensor:
    """The context, if it fits the model, and has one dtype with the latent and the weights. Raises: ValueError."""
    if context is None or context.ndim != 3 or context.shape[-1] != config.context_dim:
        found = None if context is None else list(context.shape)
        raise ValueError(f"{name}: the text context is {found}; this model takes [B, L, {config.context_dim}]")
    # Injected layers may cast their weights; plain ones need the dtype of their input.
    dtype = embedder.weight.dtype if type(embedder) is nn.Linear else latent.dtype
    if not latent.dtype == context.dtype == dtype and not torch.is_autocast_enabled(latent.device.type):
        raise ValueError(f"{name}: latent {latent.dtype}, context {context.dtype}, weights {dtype}: give all one dtype")
    return context
