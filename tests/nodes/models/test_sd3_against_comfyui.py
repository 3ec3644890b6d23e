"""The core against ComfyUI's own SD3 model with the same weights, in process."""

from __future__ import annotations

import comfy.ldm.modules.attention
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


class Rebuilt(torch.nn.Module):
    """A block rebuilt from its parts under ComfyUI's names, as an IP-Adapter for SD3.5 does."""

    def __init__(self, original_block):
        super().__init__()
        self.original_block = original_block

    def forward(self, context, x, c, **kwargs):
        """As comfy.ldm.modules.diffusionmodules.mmdit computes a block."""
        block = self.original_block
        txt_qkv, txt_rest = block.context_block.pre_attention(context, c)
        if block.x_block.x_block_self_attn:
            img_qkv, second, img_rest = block.x_block.pre_attention_x(x, c)
        else:
            img_qkv, img_rest = block.x_block.pre_attention(x, c)
        heads = block.x_block.attn.num_heads
        joined = [torch.cat(each, dim=1) for each in zip(txt_qkv, img_qkv, strict=True)]
        attn = comfy.ldm.modules.attention.optimized_attention(*joined, heads=heads)
        length = context.shape[1]
        text = None if block.context_block.pre_only else block.context_block.post_attention(attn[:, :length], *txt_rest)
        if not block.x_block.x_block_self_attn:
            return text, block.x_block.post_attention(attn[:, length:], *img_rest)
        attn2 = comfy.ldm.modules.attention.optimized_attention(*second, heads=heads)
        return text, block.x_block.post_attention_x(attn[:, length:], attn2, *img_rest)


@pytest.mark.floor
@pytest.mark.parametrize("name", CONFIGS)
def test_other_packs_enter_by_the_blocks_as_on_comfyuis_model(name):
    ours, theirs = pair(CONFIGS[name])
    given = inputs(ours.config, (9, 12))
    expected = theirs(**given)
    for model in (ours, theirs):
        model.joint_blocks = torch.nn.ModuleList(Rebuilt(block) for block in model.joint_blocks)
    assert relative_error(ours(**given), expected) <= 1e-5
    assert relative_error(theirs(**given), expected) <= 1e-5
    hooks = {("double_block", 1): lambda args, extra: extra["original_block"](args)}
    hooked = ours(**given, transformer_options={"patches_replace": {"dit": hooks}})
    assert relative_error(hooked, expected) <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_the_block_methods_give_comfyuis_tensors(name):
    ours, theirs = pair(CONFIGS[name])
    torch.manual_seed(2)
    x, c = torch.randn(2, 7, ours.config.hidden_size), torch.randn(2, ours.config.hidden_size)
    for mine, comfys in zip(ours.joint_blocks, theirs.joint_blocks, strict=True):
        for stream in ("x_block", "context_block"):
            one, two = getattr(mine, stream), getattr(comfys, stream)
            assert (one.pre_only, one.x_block_self_attn) == (two.pre_only, two.x_block_self_attn)
            step = "pre_attention_x" if one.x_block_self_attn else "pre_attention"
            for a, b in zip(flat(getattr(one, step)(x, c)), flat(getattr(two, step)(x, c)), strict=True):
                assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


def flat(values) -> list[torch.Tensor]:
    """The tensors in nested tuples; None is none."""
    if values is None:
        return []
    return [values] if isinstance(values, torch.Tensor) else [tensor for value in values for tensor in flat(value)]
