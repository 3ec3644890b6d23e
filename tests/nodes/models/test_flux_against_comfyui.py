"""The core's FLUX.1 against ComfyUI's own with the same weights, in process: alone, with patches, with controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.peers_flux import comfyui_model, comfyui_state, comfyui_velocity
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.text.tokens import EncoderTokens, TokenMap, words_of
from tests.core.control.first_args import captured
from tests.core.models.flux_tiny import CONFIGS, TEXT, TOLERANCE, error, inputs, random_model

DEV = CONFIGS["dev"]
MAP = TokenMap((EncoderTokens("T5", False, 0, TEXT, words_of([("red", True, 1), ("circle", True, 2)])),))
CALL = ModelCall(DEV.depth, DEV.depth_single_blocks, (NEGATIVE, POSITIVE), batch=4, maps=(None, MAP))
KEYS = [CALL.key_of(block) for block in CALL.blocks]


@pytest.fixture(scope="module")
def pairs():
    made = {}
    for name, config in CONFIGS.items():
        ours, theirs = random_model(config), comfyui_model(config, torch.float32, "cpu")
        theirs.load_state_dict(comfyui_state(ours.state_dict()), strict=True)
        made[name] = ours, theirs.eval().requires_grad_(False)
    return made


def both(pair, make: Callable[[], dict] = dict, **given) -> tuple[Tensor, Tensor]:
    """The velocities of our model and of ComfyUI's. Args: make, the options of a call, made for each of them."""
    ours, theirs = pair
    with torch.no_grad():
        return ours(**given, transformer_options=make()), comfyui_velocity(theirs, **given, transformer_options=make())


@pytest.mark.parametrize("size", [(6, 10), (7, 12), (13, 5), (1, 3), (24, 31)])
@pytest.mark.parametrize("name", CONFIGS)
def test_same_velocity_as_comfyuis_model(pairs, name, size):
    found, expected = both(pairs[name], **inputs(CONFIGS[name], size))
    assert found.shape == expected.shape and error(found, expected) <= TOLERANCE


@pytest.mark.parametrize("leave_out", ["guidance", "y"])
def test_what_is_not_given_acts_as_in_comfyuis_model(pairs, leave_out):
    given = {**inputs(DEV), leave_out: None}
    found, expected = both(pairs["dev"], **given)
    assert error(found, expected) <= TOLERANCE and error(found, pairs["dev"][0](**inputs(DEV))) > 1e-3


REFERENCES = {
    "one": [(6, 10)],
    "an odd one": [(7, 5)],
    "several, below and to the right": [(6, 10), (12, 4), (5, 8)],
    "wide ones": [(2, 20), (3, 18), (4, 4)],
}


@pytest.mark.parametrize("method", ["offset", "index"])
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_latents_are_where_comfyui_puts_them(pairs, name, method):
    given = {**inputs(DEV), "ref_latents": [torch.randn(2, 16, *size) for size in REFERENCES[name]]}
    found, expected = both(pairs["dev"], **given, ref_latents_method=method)
    assert error(found, expected) <= TOLERANCE and error(found, pairs["dev"][0](**inputs(DEV))) > 1e-2


@pytest.mark.parametrize("kind", ["added", "boolean"])
def test_an_attention_mask_acts_as_in_comfyuis_model(pairs, kind):
    tokens = TEXT + 15
    torch.manual_seed(2)
    mask = torch.randn(2, tokens, tokens) if kind == "added" else torch.rand(2, tokens, tokens) > 0.3
    found, expected = both(pairs["dev"], **inputs(DEV), attention_mask=mask)
    assert error(found, expected) <= TOLERANCE and error(found, pairs["dev"][0](**inputs(DEV))) > 1e-2


def test_controlnet_residuals_act_as_in_comfyuis_model(pairs):
    control = {"input": [torch.randn(2, 15, 64), None], "output": [None, torch.randn(2, 8, 64)]}
    found, expected = both(pairs["dev"], **inputs(DEV), control=control)
    assert error(found, expected) <= TOLERANCE and error(found, pairs["dev"][0](**inputs(DEV))) > 1e-2


def test_block_hooks_get_the_arguments_of_comfyuis_model(pairs):
    """The same names and values in each block of each kind, with a mask and a reference."""
    calls: list[dict] = []

    def watch(args, extra):
        options = {name: args["transformer_options"].get(name) for name in OPTIONS}
        calls.append({**{name: value.clone() for name, value in args.items() if torch.is_tensor(value)}, **options})
        return extra["original_block"](args)

    given = {**inputs(DEV), "ref_latents": [torch.randn(2, 16, 4, 6)], "attention_mask": torch.randn(2, 30, 30)}
    both(pairs["dev"], lambda: {"patches_replace": {"dit": dict.fromkeys(KEYS, watch)}}, **given)
    ours, theirs = calls[: len(KEYS)], calls[len(KEYS) :]
    assert [call.keys() for call in ours] == [call.keys() for call in theirs]
    assert ours[0].keys() == {"img", "txt", "vec", "pe", "attn_mask", *OPTIONS}
    for one, two in zip(ours, theirs, strict=True):
        assert [one[name] for name in OPTIONS] == [two[name] for name in OPTIONS]
        for name in one.keys() - {*OPTIONS}:
            assert one[name].shape == two[name].shape and error(one[name], two[name]) <= TOLERANCE, name


OPTIONS = ("block_type", "total_blocks", "block_index", "img_slice", "reference_image_num_tokens")


def scaled_query(q, k, v, pe=None, attn_mask=None, extra_options=None):
    first, last = extra_options["img_slice"]
    q = q.clone()
    q[:, :, first:last] *= 1.5
    return {"q": q, "pe": pe.flip(2), "attn_mask": torch.zeros(1, 1, 1, last)}


def scaled_output(attn, extra_options):
    return attn * (1 + extra_options["block_index"] + (extra_options["block_type"] == "single"))


def moved_image(args):
    args["transformer_options"]["total_blocks"] = 0  # what a patch writes here is the call's own
    return {**args, "img": args["img"] * 1.5, "img_ids": args["img_ids"] + 3, "txt_ids": args["txt_ids"] + 1}


PATCHES = {
    "attn1_patch": {"attn1_patch": [scaled_query]},
    "attn1_output_patch": {"attn1_output_patch": [scaled_output]},
    "post_input": {"post_input": [moved_image]},
    "all": {"attn1_patch": [scaled_query], "attn1_output_patch": [scaled_output], "post_input": [moved_image]},
}


@pytest.mark.parametrize("name", PATCHES)
def test_patches_act_as_in_comfyuis_model(pairs, name):
    found, expected = both(pairs["dev"], lambda: {"patches": PATCHES[name]}, **inputs(DEV))
    assert error(found, expected) <= TOLERANCE and error(found, pairs["dev"][0](**inputs(DEV))) > 1e-2


def test_an_attention_override_acts_as_in_comfyuis_model(pairs):
    calls = []

    def override(func, q, k, v, heads, *args, **kwargs):
        calls.append(q.shape)
        return func(q, k, v * 1.5, heads, *args, **kwargs)

    found, expected = both(pairs["dev"], lambda: {"optimized_attention_override": override}, **inputs(DEV))
    assert error(found, expected) <= TOLERANCE and error(found, pairs["dev"][0](**inputs(DEV))) > 1e-2
    assert calls == [(2, 2, TEXT + 15, 32)] * 2 * DEV.num_blocks


CONTROLS = {
    "skip": BlockControl("skip", (1, 3)),
    "skip, negative": BlockControl("skip", (0, 2, 4), branch="negative"),
    "disable": BlockControl("disable", (1, 3)),
    "disable, positive": BlockControl("disable", (0,), branch="positive"),
    "disable in the block": BlockControl("disable", (1, 3), scope="block"),
    "residual": BlockControl("boost", (0, 2), 1.7),
    "residual, a phrase": BlockControl("boost", (1, 3), 2.0, phrases=("red circle",)),
    "attention": BlockControl("boost", (0, 4), 1.7, mode="attention", branch="negative"),
    "attention, a phrase": BlockControl("boost", (1, 3), 2.0, mode="attention", phrases=("circle",)),
    "value": BlockControl("boost", (1, 2), 1.7, mode="value"),
    "prompt": BlockControl("prompt", (1, 3), context=torch.linspace(-2, 2, 5 * 24).view(1, 5, 24)),
    "prompt, all blocks": BlockControl("prompt", range(5), context=torch.linspace(-2, 2, 13 * 24).view(1, 13, 24)),
}


def with_controls(model, controls, given, count=None, **more) -> dict:
    """The options of a call with controls, attached as a library user attaches them."""
    call = replace(CALL, first_args=captured(model, CALL, {**given, **more}))
    return {"patches_replace": {"dit": compile_controls(controls, call, None, count)}}


@pytest.mark.parametrize("names", [[name] for name in CONTROLS] + [["skip, negative", "attention", "prompt"]], ids=str)
def test_block_controls_act_as_on_comfyuis_model(pairs, names):
    ours, theirs = pairs["dev"]
    given, controls = inputs(DEV, batch=4), [CONTROLS[name] for name in names]
    counts = BlockCallCount(), BlockCallCount()
    with torch.no_grad():
        found = ours(**given, transformer_options=with_controls(ours, controls, given, counts[0]))

        def as_ours(**inputs):
            return comfyui_velocity(theirs, **inputs)

        expected = as_ours(**given, transformer_options=with_controls(as_ours, controls, given, counts[1]))
        plain = ours(**given)
    assert counts[0] == counts[1]
    assert error(found, expected) <= TOLERANCE and error(found, plain) > 1e-4
    if names == ["prompt, all blocks"]:
        alone = ours(**{**given, "context": CONTROLS[names[0]].context.expand(4, -1, -1)})
        assert error(found[2:], alone[2:]) <= TOLERANCE


def test_a_skip_on_one_branch_with_a_reference_latent(pairs):
    ours, theirs = pairs["dev"]
    given = {**inputs(DEV, batch=4), "ref_latents": [torch.randn(4, 16, 4, 6)]}
    hooks = compile_controls([CONTROLS["skip, negative"]], CALL)
    found, expected = both((ours, theirs), lambda: {"patches_replace": {"dit": hooks}}, **given)
    assert error(found, expected) <= TOLERANCE and error(found, ours(**given)) > 1e-4
