"""The hooks of ComfyUI's block protocol, called by our model without ComfyUI."""

from __future__ import annotations

import pytest
import torch

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.models.attention import attention

CONFIG = MMDiTConfig(
    hidden_size=64, num_heads=2, depth=3, context_dim=24, pooled_dim=20, pos_embed_max_size=8, dual_attention=(1,)
)
TXT, IMG = 5, 12  # tokens


def setup():
    torch.manual_seed(0)
    model = MMDiT(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.1)
    given = (torch.randn(2, 16, 6, 8), torch.tensor([100.0, 900.0]))
    text = {"context": torch.randn(2, TXT, 24), "y": torch.randn(2, 20)}
    return model, given, text


def test_a_block_hook_that_runs_the_original_changes_nothing():
    model, given, text = setup()
    seen = []

    def hook(args, extra):
        options = args["transformer_options"]
        seen.append((options["block_index"], options["block_type"], options["total_blocks"]))
        assert args["img"].shape == (2, IMG, 64) and args["vec"].shape == (2, 64)
        return extra["original_block"](args)

    replace = {"dit": {("double_block", index): hook for index in range(3)}}
    out = model(*given, **text, transformer_options={"patches_replace": replace})
    assert torch.equal(out, model(*given, **text))
    assert seen == [(0, "double", 3), (1, "double", 3), (2, "double", 3)]


def test_a_block_hook_may_skip_its_block_and_change_the_vector():
    model, given, text = setup()
    plain = model(*given, **text)

    def skip(args, extra):
        return {"img": args["img"], "txt": args["txt"]}

    def no_vector(args, extra):
        return extra["original_block"]({**args, "vec": torch.zeros_like(args["vec"])})

    for hook in (skip, no_vector):
        out = model(*given, **text, transformer_options={"patches_replace": {"dit": {("double_block", 1): hook}}})
        assert not torch.allclose(out, plain)


def test_input_block_and_attention_patches_are_called_with_comfyuis_payload():
    model, given, text = setup()
    calls = {"post_input": 0, "double_block": [], "attn1_patch": [], "attn1_output_patch": []}

    def post_input(args):
        assert set(args) == {"img", "txt", "img_ids", "txt_ids", "transformer_options"}
        calls["post_input"] += 1
        return args

    def double_block(args):
        calls["double_block"].append(args["block_index"])
        assert args["x"].shape == (2, 16, 6, 8)
        return {"img": args["img"], "txt": args["txt"]}

    def attn1(q, k, v, pe=None, attn_mask=None, extra_options=None):
        assert q.shape == (2, 2, TXT + IMG, 32) and extra_options["img_slice"] == [TXT, TXT + IMG]
        calls["attn1_patch"].append(extra_options["block_index"])
        return {"q": q, "k": k, "v": v}

    def attn1_output(out, extra_options):
        assert out.shape == (2, TXT + IMG, 64)
        calls["attn1_output_patch"].append(extra_options["img_slice"])
        return out

    patches = {
        "post_input": [post_input],
        "double_block": [double_block],
        "attn1_patch": [attn1],
        "attn1_output_patch": [attn1_output],
    }
    out = model(*given, **text, transformer_options={"patches": patches})
    assert torch.equal(out, model(*given, **text))
    assert calls["post_input"] == 1
    assert calls["double_block"] == calls["attn1_patch"] == [0, 1, 2]
    assert calls["attn1_output_patch"] == [[TXT, TXT + IMG]] * 3


def test_patches_that_change_values_reach_the_output():
    model, given, text = setup()
    plain = model(*given, **text)
    patches = {
        "post_input": lambda args: {**args, "img": args["img"] * 2},
        "double_block": lambda args: {"img": args["img"] * 2, "txt": args["txt"]},
        "attn1_patch": lambda q, k, v, **_: {"v": v * 2},
        "attn1_output_patch": lambda out, extra: out * 2,
    }
    for name, patch in patches.items():
        out = model(*given, **text, transformer_options={"patches": {name: [patch]}})
        assert not torch.allclose(out, plain), name


def test_an_attention_override_sees_every_attention():
    model, given, text = setup()
    lengths = []

    def override(attention, q, k, v, heads, *args, **kwargs):
        lengths.append(q.shape[2])
        return attention(q, k, v, heads, *args, **kwargs)

    out = model(*given, **text, transformer_options={"optimized_attention_override": override})
    assert torch.equal(out, model(*given, **text))
    assert lengths == [TXT + IMG, TXT + IMG, IMG, TXT + IMG]  # block 1 has a second attention over the image


@pytest.mark.parametrize("hook", ["attn1_patch", "attn1_output_patch", None])
def test_every_joint_attention_has_as_many_queries_as_keys(hook):
    model, given, text = setup()
    lengths = []

    def counted(q, k, v, heads, **kwargs):
        lengths.append((q.shape[2], k.shape[2]))
        return attention(q, k, v, heads, **kwargs)

    for block in model.joint_blocks:
        block.attention = counted
    hooks = {"attn1_patch": lambda q, k, v, **_: {}, "attn1_output_patch": lambda out, extra: out}
    model(*given, **text, transformer_options={"patches": {hook: [hooks[hook]]} if hook else {}})
    both, image = (TXT + IMG, TXT + IMG), (IMG, IMG)
    assert lengths == [both, both, image, both]


def test_controlnet_residuals_are_added_after_their_block():
    model, given, text = setup()
    plain = model(*given, **text)
    zero = {"output": [torch.zeros(2, IMG, 64), None]}
    assert torch.equal(model(*given, **text, control=zero), plain)
    residual = torch.randn(2, IMG, 64)

    def by_hook(args, extra):
        out = extra["original_block"](args)
        return {"img": out["img"] + residual, "txt": out["txt"]}

    controlled = model(*given, **text, control={"output": [None, residual]})
    reference = model(*given, **text, transformer_options={"patches_replace": {"dit": {("double_block", 1): by_hook}}})
    assert torch.equal(controlled, reference) and not torch.allclose(controlled, plain)


def test_the_callers_options_stay_as_they_came():
    model, given, text = setup()
    options = {"sigmas": torch.tensor([0.5])}
    model(*given, **text, transformer_options=options)
    assert set(options) == {"sigmas"}


def test_nothing_is_changed_in_place():
    model, given, text = setup()
    before = [tensor.clone() for tensor in (*given, *text.values())]
    kept = {}

    def keep(args, extra):
        kept[args["transformer_options"]["block_index"]] = (
            args["img"],
            args["img"].clone(),
            args["txt"],
            args["txt"].clone(),
        )
        return extra["original_block"](args)

    replace = {"dit": {("double_block", index): keep for index in range(3)}}
    model(
        *given,
        **text,
        transformer_options={"patches_replace": replace},
        control={"output": [torch.ones(2, IMG, 64)] * 3},
    )
    assert all(torch.equal(a, b) for a, b in zip(before, (*given, *text.values()), strict=True))
    for img, img_copy, txt, txt_copy in kept.values():
        assert torch.equal(img, img_copy) and torch.equal(txt, txt_copy)
