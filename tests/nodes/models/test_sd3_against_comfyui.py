"""The core against ComfyUI's own SD3 model with the same weights, in process."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import comfyui_model
from mmdit_core import MMDiT, MMDiTConfig

TINY = dict(context_dim=48, pooled_dim=40, pos_embed_max_size=16)
CONFIGS = {
    "plain": MMDiTConfig(hidden_size=128, num_heads=2, depth=3, **TINY),
    "qk-norm": MMDiTConfig(hidden_size=64, num_heads=1, depth=2, qk_norm="rms", **TINY),
    "dual": MMDiTConfig(hidden_size=128, num_heads=2, depth=4, qk_norm="rms", dual_attention=(0, 1, 2), **TINY),
}
WIDE = {
    "SD3.5 Medium": MMDiTConfig(1536, 24, 2, qk_norm="rms", dual_attention=(0,), pos_embed_max_size=12),
    "SD3.5 Large": MMDiTConfig(2432, 38, 2, qk_norm="rms", pos_embed_max_size=12),
}


def pair(config: MMDiTConfig, std: float = 0.05):
    """Our model and ComfyUI's, with the same random weights."""
    torch.manual_seed(0)
    ours = MMDiT(config).eval().requires_grad_(False)
    for parameter in ours.parameters():
        parameter.normal_(std=std)
    ours.pos_embed.normal_()
    theirs = comfyui_model(config, torch.float32, "cpu")
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs.eval().requires_grad_(False)


def inputs(config: MMDiTConfig, size, batch: int = 3):
    torch.manual_seed(1)
    return {
        "x": torch.randn(batch, config.in_channels, *size),
        "timesteps": torch.rand(batch) * 1000,
        "context": torch.randn(batch, 21, config.context_dim),
        "y": torch.randn(batch, config.pooled_dim),
    }


def relative_error(ours, theirs) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (13, 7), (31, 32)])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_velocity_as_comfyuis_model(name, size):
    ours, theirs = pair(CONFIGS[name])
    given = inputs(ours.config, size)
    assert relative_error(ours(**given), theirs(**given)) <= 1e-5


@pytest.mark.parametrize("name", WIDE)
def test_same_velocity_as_comfyuis_model_at_full_width(name):
    ours, theirs = pair(WIDE[name], std=0.02)
    given = inputs(ours.config, (9, 8), batch=1)
    assert relative_error(ours(**given), theirs(**given)) <= 1e-5


def test_controlnet_residuals_act_as_in_comfyuis_model():
    ours, theirs = pair(CONFIGS["plain"])
    given = inputs(ours.config, (8, 8))
    control = {"output": [torch.randn(3, 16, 128), None, torch.randn(3, 16, 128)]}
    assert relative_error(ours(**given, control=control), theirs(**given, control=control)) <= 1e-5
