"""The attention override next to softmax written out, with masks of every form and both layouts."""

from __future__ import annotations

import math

import pytest
import torch

from mmdit_core.control.attention import attention_override
from mmdit_core.models.attention import attention

TEXT, TOTAL, HEADS, WIDTH, BATCH = 5, 12, 2, 16, 2
FACTORS = torch.tensor([[1.0, 1.7, 0.5, 0.0, 2.0], [0.3, 1.0, 1.0, 4.0, 1.0]])
MASKS = {
    "none": lambda: None,
    "keys": lambda: torch.randn(BATCH, 1, 1, TOTAL),
    "queries and keys": lambda: torch.randn(BATCH, 1, TOTAL, TOTAL),
    "queries and keys of all": lambda: torch.randn(TOTAL, TOTAL),
}


def written_out(q, k, v, mask, weights=None, values=None):
    """[B, heads, L, d]: text queries as they are; image queries weigh text keys, and read text values, by factors."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(WIDTH)
    plain = (logits if mask is None else logits + mask).softmax(-1)
    boosted = plain.clone()
    if weights is not None:
        boosted[..., :TEXT] *= weights[:, None, None]
        boosted = boosted / boosted.sum(-1, keepdim=True)
    scaled = v.clone()
    if values is not None:
        scaled[:, :, :TEXT] *= values[:, None, :, None]
    return torch.cat(((plain @ v)[:, :, :TEXT], (boosted @ scaled)[:, :, TEXT:]), dim=2)


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "effects", [{"attention": FACTORS}, {"value": FACTORS}, {"attention": FACTORS, "value": FACTORS}]
)
def test_image_queries_alone_weigh_text_by_the_factors(effects, mask, by_head):
    q, k, v, given = *(torch.randn(BATCH, HEADS, TOTAL, WIDTH) for _ in range(3)), mask()
    expected = written_out(q, k, v, given, effects.get("attention"), effects.get("value"))
    override = attention_override(TEXT, TOTAL, **effects)
    if by_head:
        found = override(attention, q, k, v, HEADS, mask=given, skip_reshape=True, skip_output_reshape=True)
    else:
        q, k, v = (x.transpose(1, 2).flatten(2) for x in (q, k, v))
        found = override(attention, q, k, v, HEADS, given).unflatten(2, (HEADS, WIDTH)).transpose(1, 2)
    assert (found - expected).abs().max() <= 1e-5


def attention_that_drops_scale(q, k, v, heads, mask=None, scale=None, **kwargs):
    """As a kernel that reads no keyword `scale`, such as ComfyUI 0.24.0's xformers."""
    return attention(q, k, v, heads, mask=mask, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overridden", [True, False], ids=["another node's", "ComfyUI's"])
def test_an_attention_that_drops_the_scale_weighs_by_the_factors_too(overridden, dtype):
    q, k, v = (torch.randn(BATCH, HEADS, TOTAL, WIDTH).to(dtype) for _ in range(3))
    expected = written_out(q.double(), k.double(), v.double(), None, FACTORS.double())
    kwargs = {"skip_reshape": True, "skip_output_reshape": True}
    previous = (lambda func, *args, **kw: attention_that_drops_scale(*args, **kw)) if overridden else None
    override = attention_override(TEXT, TOTAL, attention=FACTORS, previous=previous)
    found = override(attention if overridden else attention_that_drops_scale, q, k, v, HEADS, **kwargs)
    assert (found - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 3e-2)


def test_heads_stay_multiples_of_eight_channels_wide():
    """Fast kernels of a GPU take no others."""
    widths = []

    def seen(q, k, v, heads, **kwargs):
        widths.extend(x.shape[-1] for x in (q, k, v))
        return attention(q, k, v, heads, **kwargs)

    q, k, v = (torch.randn(BATCH, HEADS, TOTAL, WIDTH) for _ in range(3))
    kwargs = {"skip_reshape": True, "skip_output_reshape": True}
    attention_override(TEXT, TOTAL, attention=FACTORS)(seen, q, k, v, HEADS, **kwargs)
    assert max(widths) > WIDTH and not any(width % 8 for width in widths)
