"""The outputs of three text encoders joined to context and pooled."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.text.encoders import TextStrengths, TextWidths, assemble, cut_t5, scale_parts

WIDTHS = TextWidths(clip_l=3, clip_g=4, context=10)
CLIP_L = torch.full((2, 6, 3), 1.0), torch.full((2, 3), 2.0)
CLIP_G = torch.full((2, 5, 4), 3.0), torch.full((2, 4), 4.0)
T5 = torch.full((2, 7, 10), 5.0)


def test_clip_is_joined_on_the_channels_and_t5_follows():
    context, pooled = assemble(CLIP_L, CLIP_G, T5, widths=WIDTHS)
    assert context.shape == (2, 5 + 7, 10)  # the longer CLIP is cut to the shorter
    assert (context[:, :5, :3] == 1).all() and (context[:, :5, 3:7] == 3).all() and (context[:, :5, 7:] == 0).all()
    assert torch.equal(context[:, 5:], T5)
    assert torch.equal(pooled, torch.cat((CLIP_L[1], CLIP_G[1]), dim=1))


def test_a_missing_clip_is_zeros_and_a_missing_t5_has_no_tokens():
    context, pooled = assemble(CLIP_L, None, None, widths=WIDTHS)
    assert context.shape == (2, 6, 10) and (context[..., :3] == 1).all() and not context[..., 3:].any()
    assert pooled.tolist() == [[2.0] * 3 + [0.0] * 4] * 2
    context, pooled = assemble(None, CLIP_G, T5, widths=WIDTHS)
    assert not context[:, :5, :3].any() and (context[:, :5, 3:7] == 3).all()
    assert pooled.tolist() == [[0.0] * 3 + [4.0] * 4] * 2


def test_t5_alone_is_the_context_in_its_dtype():
    context, pooled = assemble(None, None, T5.bfloat16(), widths=WIDTHS)
    assert torch.equal(context, T5.bfloat16()) and pooled.shape == (2, 7) and not pooled.any()


def test_without_encoders_context_is_77_zeros():
    context, pooled = assemble(widths=WIDTHS, device="cpu")
    assert context.shape == (1, 77, 10) and pooled.shape == (1, 7) and not context.any() and not pooled.any()
    assert assemble()[0].shape == (1, 77, 4096) and assemble()[1].shape == (1, 2048)


def test_widths_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"T5's tokens are \[2, 7, 10\]; the context takes \[B, n, 4096\]"):
        assemble(None, None, T5)
    with pytest.raises(ValueError, match="CLIP-L 8 and CLIP-G 9 together do not fit into a context of 16 channels"):
        TextWidths(8, 9, 16)
    assert TextWidths(8, 8, 16).pooled == 16


def test_strengths_scale_each_encoders_part_and_leave_the_inputs():
    context, pooled = assemble(CLIP_L, CLIP_G, T5, widths=WIDTHS)
    copies = context.clone(), pooled.clone()
    scaled, vector = scale_parts(context, pooled, TextStrengths(2.0, 3.0, 5.0), clip_tokens=5, widths=WIDTHS)
    assert (scaled[:, :5, :3] == 2).all() and (scaled[:, :5, 3:7] == 9).all() and (scaled[:, 5:] == 25).all()
    assert vector.tolist() == [[4.0] * 3 + [12.0] * 4] * 2
    assert torch.equal(context, copies[0]) and torch.equal(pooled, copies[1])
    unscaled = scale_parts(context, pooled, TextStrengths(), clip_tokens=5, widths=WIDTHS)
    assert unscaled[0] is context and unscaled[1] is pooled
    assert scale_parts(context, None, TextStrengths(t5=0.0), clip_tokens=5, widths=WIDTHS)[1] is None


@pytest.mark.parametrize(
    ("limit", "kept", "cut"),
    [(6, [1, 2, 3, 4, 9], []), (5, [1, 2, 3, 4, 9], []), (4, [1, 2, 3, 9], [4]), (1, [9], [1, 2, 3, 4])],
)
def test_cut_t5_keeps_the_end_token(limit, kept, cut):
    assert cut_t5([1, 2, 3, 4, 9], limit) == (kept, cut)
