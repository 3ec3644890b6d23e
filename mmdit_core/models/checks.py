"""The checks of a model's inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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
    if context is None or context.ndim != 3 or context.shape[-1] != config.context_dim:
        found = None if context is None else list(context.shape)
        raise ValueError(f"{name}: the text context is {found}; this model takes [B, L, {config.context_dim}]")
    if y is not None and y.shape[-1] != config.pooled_dim:
        raise ValueError(f"{name}: the pooled text is {list(y.shape)}; this model takes [B, {config.pooled_dim}]")
    # Injected layers may cast their weights; plain ones need the dtype of their input.
    dtype = embedder.weight.dtype if type(embedder) is nn.Linear else x.dtype
    if not x.dtype == context.dtype == dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"{name}: latent {x.dtype}, context {context.dtype}, weights {dtype}: give all one dtype")
