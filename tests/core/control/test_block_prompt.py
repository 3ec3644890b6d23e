"""A second text stream in chosen blocks, against a loop written out here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from tests.core.control.first_args import text_alone

CONFIG = MMDiTConfig(hidden_size=64, num_heads=2, depth=4, context_dim=24, pooled_dim=20, pos_embed_max_size=8)
CALL = ModelCall(4, 0, (NEGATIVE, POSITIVE, POSITIVE), batch=6)


def reference(model, given, txt2, chosen):
    """Both streams through every block, the image from the stream that the block uses; every row alike."""
    vec = model.embed_vector(given["timesteps"], given["y"], dtype=torch.float32)
    img, txt = model.embed_latent(given["x"]), model.context_embedder(given["context"])
    txt2 = txt2.expand(len(img), -1, -1)
    for index, block in enumerate(model.joint_blocks):
        (txt, first), (txt2, second) = block(txt, img, vec), block(txt2, img, vec)
        img = second if index in chosen else first
    return model.unpatchify(model.final_layer(img, vec, {}), *given["x"].shape[-2:])


@pytest.mark.parametrize("chosen", [(0,), (2,), (1, 3), (0, 1, 2, 3)])
@pytest.mark.parametrize("length", [7, 5])
def test_both_text_streams_pass_all_blocks_and_the_chosen_blocks_use_the_second(chosen, length):
    torch.manual_seed(0)
    model = MMDiT(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.1)
    given = {
        "x": torch.randn(6, 16, 6, 8),
        "timesteps": torch.rand(6) * 1000,
        "context": torch.randn(6, 7, 24),
        "y": torch.randn(6, 20),
    }
    context, block_calls = torch.randn(1, length, 24), BlockCallCount()
    call = replace(CALL, first_args=text_alone(model.context_embedder))
    prompt = BlockControl("prompt", chosen, context=context)
    hooks = compile_controls([prompt], call, {}, block_calls)
    out = model(**given, transformer_options={"patches_replace": {"dit": hooks}})
    plain, mixed = model(**given), reference(model, given, model.context_embedder(context), chosen)
    scale = plain.std()
    assert ((out[:2] - plain[:2]).abs().max() / scale) <= 1e-5  # the negative rows
    assert ((out[2:] - mixed[2:]).abs().max() / scale) <= 1e-5
    assert ((out[2:] - plain[2:]).abs().max() / scale) > 1e-3
    assert (block_calls.total, block_calls.extra) == (12, 2 * (max(chosen) + 1))
