"""What the layers do to spare memory: the same values, bit for bit, and nothing changed that is not theirs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from mmdit_core.models import products
from mmdit_core.models.layers import NORM_TOKENS, AttentionProjections, Mlp, PatchEmbed, attention
from tests.core.models.prepared import CONFIGS, call, random_model

DTYPES = [torch.float32, torch.bfloat16]


def projections(dtype: torch.dtype) -> AttentionProjections:
    torch.manual_seed(0)
    return AttentionProjections(128, 2, qk_norm="rms", qkv_bias=True, dtype=dtype).requires_grad_(False)


def plainly(layer: AttentionProjections, x: torch.Tensor) -> list[torch.Tensor]:
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 64)).unbind(2)
    return [each.transpose(1, 2) for each in (layer.ln_q(q), layer.ln_k(k), v)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, NORM_TOKENS, NORM_TOKENS + 1, 3 * NORM_TOKENS + 5])
def test_queries_and_keys_normed_piece_by_piece_are_those_normed_at_once(tokens, dtype):
    layer, x = projections(dtype), torch.randn(2, tokens, 128).to(dtype)
    kept = x.clone()
    for norm in (layer.ln_q, layer.ln_k):
        norm.weight.normal_()
    with torch.inference_mode():
        found = layer(x)
        assert all(torch.equal(*pair) for pair in zip(found, plainly(layer, x), strict=True))
    assert torch.equal(x, kept)
    places = {each.untyped_storage().data_ptr() for each in found}
    assert len(places) == (1 if tokens > NORM_TOKENS else 3)  # in pieces they stay where the projection put them


@pytest.mark.parametrize("watched", ["qkv", "ln_q", "ln_k"])
def test_who_watches_a_layer_sees_it_whole_and_unchanged(watched):
    layer, x, seen = projections(torch.float32), torch.randn(2, 2 * NORM_TOKENS, 128), []
    getattr(layer, watched).register_forward_hook(lambda layer, given, out: seen.append((out, out.clone())))
    with torch.inference_mode():
        found = layer(x)
        assert len(seen) == 1 and torch.equal(*seen[0])
        assert all(torch.equal(*pair) for pair in zip(found, plainly(layer, x), strict=True))


def test_who_watches_what_comes_into_a_norm_sees_it_whole():
    layer, seen = projections(torch.float32), []
    layer.ln_q.register_forward_pre_hook(lambda layer, given: seen.append(given[0].shape))
    with torch.inference_mode():
        layer(torch.randn(1, 2 * NORM_TOKENS, 128))
    assert seen == [(1, 2 * NORM_TOKENS, 2, 64)]


def test_a_norm_whose_weight_is_computed_in_each_call_is_called_once():
    """As the host's layers have it under LoRA with little memory."""
    layer, calls = projections(torch.float32), []
    layer.ln_q.weight_function = [None]
    forward = layer.ln_q.forward
    layer.ln_q.forward = lambda x: calls.append(x.shape) or forward(x)
    with torch.inference_mode():
        layer(torch.randn(1, 2 * NORM_TOKENS, 128))
    assert calls == [(1, 2 * NORM_TOKENS, 2, 64)]


def test_gradients_of_many_tokens_are_those_of_the_plain_norms():
    layer = projections(torch.float64).requires_grad_(True)
    x = torch.randn(1, 2 * NORM_TOKENS, 128, dtype=torch.float64, requires_grad=True)
    sum(each.square().sum() for each in layer(x)).backward()
    found = x.grad.clone()
    x.grad = None
    sum(each.square().sum() for each in plainly(layer, x)).backward()
    assert torch.allclose(found, x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mlp_holds_one_hidden_tensor_and_leaves_its_input(dtype):
    torch.manual_seed(0)
    mlp, x = Mlp(64, 4.0, dtype=dtype), torch.randn(2, 9, 64).to(dtype)
    kept, places, forward = x.clone(), [], mlp.fc1.forward
    mlp.fc1.forward = lambda x: (hidden := forward(x), places.append(hidden.data_ptr()))[0]
    mlp.fc2.register_forward_pre_hook(lambda layer, given: places.append(given[0].data_ptr()))
    with torch.no_grad():
        expected = mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))
        places.clear()
        assert torch.equal(mlp(x), expected)
    assert len(places) == 2 and places[0] == places[1]
    assert torch.equal(x, kept)


def test_who_watches_the_hidden_layer_keeps_what_it_saw():
    mlp, x, seen = Mlp(16, 4.0), torch.randn(1, 3, 16), []
    mlp.fc1.register_forward_hook(lambda layer, given, hidden: seen.append(hidden))
    with torch.no_grad():
        mlp(x)
        assert torch.equal(seen[0], mlp.fc1(x))


def test_the_mlp_keeps_what_gradients_need():
    torch.manual_seed(0)
    mlp = Mlp(16, 4.0, dtype=torch.float64)
    x = torch.randn(1, 3, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_of_a_latent_come_row_by_row_and_in_one_piece(dtype):
    torch.manual_seed(0)
    embed, x = PatchEmbed(3, 32, 2, dtype=dtype).requires_grad_(False), torch.randn(2, 3, 6, 8).to(dtype)
    before = []  # the layer's own output lies in this order already: nothing is copied after it
    embed.proj.register_forward_hook(lambda layer, given, out: before.append(out))
    found = embed(x)
    assert found.shape == (2, 12, 32) and found.is_contiguous() and found.data_ptr() == before[0].data_ptr()
    patches = x.double().unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 12, 12)
    expected = patches @ embed.proj.weight.double().reshape(32, 12).T + embed.proj.bias.double()
    assert (found.double() - expected).abs().max() <= (1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_picture_of_many_tokens_is_the_same_with_and_without_gradients(kind, monkeypatch):
    """With them norms and MLPs take the plain way (products too, not here). 660 tokens: six pieces, one not full."""
    seen = []

    def noted(q, k, v, *args, **kwargs):
        seen.append([each.is_contiguous() for each in (q, k, v)])
        return attention(q, k, v, *args, **kwargs)

    monkeypatch.setattr(products, "fast_dtypes", frozenset)
    model = random_model(CONFIGS[kind])
    for block in model.joint_blocks:
        block.attention = noted
    model.pos_embed = torch.randn(1, 40**2, 128)
    model.config = dataclasses.replace(model.config, pos_embed_max_size=40)
    given = {"x": torch.randn(2, 16, 44, 60), "context": torch.randn(2, 21, 48), "y": torch.randn(2, 40)}
    with torch.inference_mode():
        found = call(model, 500, given)
    with torch.enable_grad():
        expected = call(model, 500, given)
    assert torch.equal(found, expected)
    assert all(all(each[1:]) for each in seen)  # keys and values, of both attentions
