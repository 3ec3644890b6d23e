"""What the layers do to spare memory: the same values, bit for bit, and nothing changed that is not theirs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mmdit_core.layers import NORM_TOKENS, AttentionProjections, Mlp, PatchEmbed

DTYPES = [torch.float32, torch.bfloat16]


def projections(dtype: torch.dtype) -> AttentionProjections:
    torch.manual_seed(0)
    return AttentionProjections(128, 2, qk_norm="rms", qkv_bias=True, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, NORM_TOKENS, NORM_TOKENS + 1, 3 * NORM_TOKENS + 5])
def test_queries_and_keys_normed_piece_by_piece_are_those_normed_at_once(tokens, dtype):
    layer, x = projections(dtype), torch.randn(2, tokens, 128).to(dtype)
    kept = x.clone()
    for norm in (layer.ln_q, layer.ln_k):
        norm.weight.normal_()
    with torch.inference_mode():
        found = layer(x)
        q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 64)).unbind(2)
        expected = [each.transpose(1, 2) for each in (layer.ln_q(q), layer.ln_k(k), v)]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert torch.equal(x, kept)


def test_gradients_of_many_tokens_are_those_of_the_plain_norms():
    layer = projections(torch.float64).requires_grad_(True)
    x = torch.randn(1, 2 * NORM_TOKENS, 128, dtype=torch.float64, requires_grad=True)
    sum(each.square().sum() for each in layer(x)).backward()
    found = x.grad.clone()
    x.grad = None
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 64)).unbind(2)
    (layer.ln_q(q).square().sum() + layer.ln_k(k).square().sum() + v.square().sum()).backward()
    assert torch.allclose(found, x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mlp_holds_one_hidden_tensor_and_leaves_its_input(dtype):
    torch.manual_seed(0)
    mlp, x = Mlp(64, 4.0, dtype=dtype), torch.randn(2, 9, 64).to(dtype)
    kept, places = x.clone(), []
    mlp.fc1.register_forward_hook(lambda layer, given, hidden: places.append(hidden.data_ptr()))
    mlp.fc2.register_forward_pre_hook(lambda layer, given: places.append(given[0].data_ptr()))
    with torch.no_grad():
        expected = mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))
        places.clear()
        assert torch.equal(mlp(x), expected)
    assert len(places) == 2 and places[0] == places[1]
    assert torch.equal(x, kept)


def test_the_mlp_keeps_what_gradients_need():
    torch.manual_seed(0)
    mlp = Mlp(16, 4.0, dtype=torch.float64)
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_of_a_latent_come_row_by_row_and_in_one_piece(dtype):
    torch.manual_seed(0)
    embed, x = PatchEmbed(3, 32, 2, dtype=dtype).requires_grad_(False), torch.randn(2, 3, 6, 8).to(dtype)
    found = embed(x)
    assert found.shape == (2, 12, 32) and found.is_contiguous()
    patches = x.double().unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 12, 12)
    expected = patches @ embed.proj.weight.double().reshape(32, 12).T + embed.proj.bias.double()
    assert (found.double() - expected).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)
