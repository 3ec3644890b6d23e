"""Layers by themselves: hooks see whole tensors, gradients reach everything."""

from __future__ import annotations

import pytest
import torch

from mmdit_core import MMDiTConfig
from mmdit_core.models.attention import attention
from mmdit_core.models.layers import AttentionProjections, Mlp, PatchEmbed
from tests.core.models.tiny import CONFIGS, inputs, random_model

DTYPES = [torch.float32, torch.bfloat16]
CONFIG = MMDiTConfig(hidden_size=128, num_heads=2, qk_norm="rms")


def test_each_head_has_its_own_part_of_the_projection_and_queries_and_keys_are_normed():
    torch.manual_seed(0)
    layer = AttentionProjections(CONFIG).double().requires_grad_(False)
    x = torch.randn(2, 5, 128, dtype=torch.float64)
    for norm in (layer.ln_q, layer.ln_k):
        norm.weight.normal_()
    flat = layer.qkv(x)
    for part, (found, norm) in enumerate(zip(layer.to_qkv(x), (layer.ln_q, layer.ln_k, None), strict=True)):
        for head in range(2):
            expected = flat[..., 128 * part + 64 * head : 128 * part + 64 * (head + 1)]
            if norm is not None:
                expected = expected * (expected.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
            assert torch.allclose(found[:, head], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("watched", ["qkv", "ln_q", "ln_k"])
def test_a_forward_hook_keeps_an_output_that_nothing_writes_into(watched):
    layer, seen = AttentionProjections(CONFIG), []
    getattr(layer, watched).register_forward_hook(lambda layer, given, out: seen.append((out, out.clone())))
    with torch.inference_mode():
        layer.to_qkv(torch.randn(2, 300, 128))
    assert len(seen) == 1 and torch.equal(*seen[0])


@pytest.mark.parametrize("name", ["fc1", "fc2"])
def test_the_mlp_writes_into_no_tensor_that_a_hook_may_keep(name):
    mlp, x, seen = Mlp(16, 4.0), torch.randn(1, 3, 16), []
    kept = x.clone()
    getattr(mlp, name).register_forward_hook(lambda layer, given, out: seen.append((out, out.clone())))
    with torch.inference_mode():
        mlp(x)
    assert torch.equal(*seen[0]) and torch.equal(x, kept)


def test_the_mlp_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    mlp = Mlp(16, 4.0, dtype=torch.float64)
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tokens_of_a_latent_are_its_patches_row_by_row(dtype):
    torch.manual_seed(0)
    embed, x = PatchEmbed(3, 32, 2, dtype=dtype).requires_grad_(False), torch.randn(2, 3, 6, 8).to(dtype)
    found = embed(x)
    patches = x.double().unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 12, 12)
    expected = patches @ embed.proj.weight.double().reshape(32, 12).T + embed.proj.bias.double()
    assert found.shape == (2, 12, 32)
    assert (found.double() - expected).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)


def test_attention_with_split_heads_and_without_is_the_same():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 9, 32) for _ in range(3))
    mask = torch.randn(2, 1, 9, 9)
    split = [each.unflatten(-1, (4, 8)).transpose(1, 2) for each in (q, k, v)]
    expected = attention(q, k, v, 4, mask)
    assert torch.equal(attention(*split, 4, mask, skip_reshape=True), expected)
    heads = attention(*split, 4, mask, skip_reshape=True, skip_output_reshape=True)
    assert torch.equal(heads.transpose(1, 2).flatten(2), expected)


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_parameter_has_a_gradient_after_a_backward_pass(kind):
    model, given = random_model(CONFIGS[kind]).requires_grad_(True), inputs()
    guidance = torch.ones(2) if model.config.guidance_embed else None
    model(timesteps=torch.tensor([300.0, 700.0]), guidance=guidance, **given).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert not model.pos_embed.requires_grad
    # The queries of the last block's text attend, but their output is unused.
    last = f"joint_blocks.{model.config.depth - 1}.context_block.attn.ln_q.weight"
    assert [name for name, p in model.named_parameters() if not p.grad.any()] in ([], [last])
