"""What tests of FLUX.1 share: tiny random models and their inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdit_core import Flux, FluxConfig

TEXT = 9
# A head's channels are no multiple of what a kernel likes, and the axes have channels of their own.
TINY = dict(hidden_size=64, num_heads=2, depth=2, depth_single_blocks=3, context_dim=24, pooled_dim=20)
CONFIGS = {
    "dev": FluxConfig(**TINY, axes_dim=(4, 14, 14), guidance_embed=True),
    "schnell": FluxConfig(**TINY, axes_dim=(8, 12, 12)),
    "Fill": FluxConfig(**TINY, axes_dim=(4, 14, 14), guidance_embed=True, in_channels=12, out_channels=4),
}
TOLERANCE = 1e-5  # of the spread of the velocity


def random_model(config: FluxConfig, seed: int = 0, std: float = 0.1, **kwargs) -> Flux:
    torch.manual_seed(seed)
    model = Flux(config, **kwargs).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.normal_(mean=1.0 if name.endswith(".scale") else 0.0, std=std)
    return model


def inputs(config: FluxConfig, size=(6, 10), batch: int = 2, seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    given = {
        "x": torch.randn(batch, config.in_channels, *size),
        "timesteps": torch.rand(batch) * 1000,
        "context": torch.randn(batch, TEXT, config.context_dim),
        "y": torch.randn(batch, config.pooled_dim),
    }
    return {**given, "guidance": torch.linspace(1.5, 4.0, batch)} if config.guidance_embed else given


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, of the spread of the velocity."""
    return ((ours - theirs).abs().max() / theirs.std()).item()
