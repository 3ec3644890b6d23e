"""Controls on ComfyUI's own Qwen-Image model, with and without a text mask, against diffusers' and dense attention."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace

import comfy.ops
import pytest
import torch
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel as HostModel
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.text.tokens import EncoderTokens, TokenMap, words_of
from tests.core.control.first_args import captured

DEPTH, TEXT, IMAGE = 4, 7, 24
MAP = TokenMap((EncoderTokens("Qwen", False, 0, TEXT, words_of([("red", True, 1), ("circle", True, 2)])),))
ROWS = {"both": slice(0, 4), "negative": slice(0, 2), "positive": slice(2, 4)}
MASK = torch.ones(4, TEXT, dtype=torch.long)
MASK[:2, 4:], MASK[3, 6:] = 0, 0
MASKS = pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])


@pytest.fixture(scope="module")
def model(pack):
    torch.manual_seed(0)
    made = HostModel(
        in_channels=64, out_channels=16, num_layers=DEPTH, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(8, 12, 12), dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    ).eval().requires_grad_(False)  # fmt: skip
    for parameter in made.parameters():
        parameter.normal_(std=0.1)
    return made


@pytest.fixture(scope="module")
def twin(model):
    made = QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=DEPTH, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    made.load_state_dict(model.state_dict())
    return made.eval().requires_grad_(False)


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.randn(4, 16, 1, 8, 12), "timestep": torch.rand(4), "context": torch.randn(4, TEXT, 24)}


CALL = ModelCall(DEPTH, 0, (NEGATIVE, POSITIVE), batch=4, maps=(None, MAP))


def run(model, controls=(), mask=None, existing=None, block_calls=None, call=CALL, **changed) -> Tensor:
    existing = existing or {}
    given = {**inputs(), "attention_mask": mask, **changed}
    if mask is not None:  # no block hook is given the mask
        rooms = sys.modules["mmdit_pack.nodes.comfyui.block_forward"], sys.modules["mmdit_pack.nodes.comfyui.families"]
        family = next(family for family in rooms[1].FAMILIES if family.label == "Qwen-Image")
        with rooms[0].hooked(model, family, compile_controls(controls, call, {}, block_calls)):
            return model(**given, transformer_options={"patches_replace": {"dit": existing}})
    call = replace(call, first_args=captured(model, call, given))
    hooks = compile_controls(controls, call, existing, block_calls)
    return model(**given, transformer_options={"patches_replace": {"dit": {**existing, **hooks}}})


def reference(
    twin, mask, changes: dict[int, Callable[[Tensor], Tensor]], skipped: dict[int, slice], hooks=()
) -> Tensor:
    """diffusers' model; changes: block -> function of the text before it; skipped: block -> rows left alone;
    hooks: a forward hook for each block."""
    blocks = twin.transformer_blocks
    handles = [block.register_forward_hook(hook, with_kwargs=True) for block, hook in zip(blocks, hooks, strict=False)]
    for index, change in changes.items():

        def before(module, args, kwargs, change=change):
            return args, {**kwargs, "encoder_hidden_states": change(kwargs["encoder_hidden_states"])}

        handles.append(blocks[index].register_forward_pre_hook(before, with_kwargs=True))
    for index, rows in skipped.items():

        def after(module, args, kwargs, out, rows=rows):
            streams = [stream.clone() for stream in out]
            for stream, name in zip(streams, ("encoder_hidden_states", "hidden_states"), strict=True):
                stream[rows] = kwargs[name][rows]
            return tuple(streams)

        handles.append(blocks[index].register_forward_hook(after, with_kwargs=True))
    given = inputs()
    tokens = given["x"].reshape(4, 16, 4, 2, 6, 2).permute(0, 2, 4, 1, 3, 5).reshape(4, IMAGE, 64)
    try:
        out = twin(
            tokens, given["context"], None if mask is None else mask.bool(), given["timestep"], [[(1, 4, 6)]] * 4,
            return_dict=False,
        )[0]  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    return out.reshape(4, 4, 6, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(4, 16, 1, 8, 12)


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


def scaled(rows: slice, factor: float, places=slice(None)) -> Callable[[Tensor], Tensor]:
    def change(txt: Tensor) -> Tensor:
        txt = txt.clone()
        txt[rows, places] = txt[rows, places] * factor
        return txt

    return change


@MASKS
def test_the_twin_has_the_same_output(model, twin, mask):
    assert error(run(model, mask=mask), reference(twin, mask, {}, {})) <= 1e-5


def test_the_mask_matters(model):
    assert error(run(model, mask=MASK), run(model)) > 1e-3


@MASKS
@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(1,), (0, 2), tuple(range(DEPTH))])
def test_skip_leaves_both_streams_as_they_were(model, twin, mask, branch, blocks):
    block_calls = BlockCallCount()
    ours = run(model, [BlockControl("skip", blocks, branch=branch)], mask, block_calls=block_calls)
    assert error(ours, reference(twin, mask, {}, dict.fromkeys(blocks, ROWS[branch]))) <= 1e-5
    assert error(ours, run(model, mask=mask)) > 1e-3
    saved = len(blocks) * (2 if branch == "both" else 1)
    assert (block_calls.skipped, block_calls.total) == (saved, 2 * DEPTH)


@MASKS
@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_disable_and_residual_boost_act_onward(model, twin, mask, branch, strength):
    blocks = (0, 2)
    control = BlockControl("boost", blocks, strength, branch=branch)
    if strength == 0:
        control = BlockControl("disable", blocks, branch=branch)
    theirs = reference(twin, mask, dict.fromkeys(blocks, scaled(ROWS[branch], strength)), {})
    assert error(run(model, [control], mask), theirs) <= 1e-5 and error(theirs, run(model, mask=mask)) > 1e-3


@MASKS
def test_a_phrase_is_boosted_and_the_other_branch_skipped(model, twin, mask):
    blocks = (1, 2)
    controls = [BlockControl("boost", blocks, 2.0, phrases=("circle",)), BlockControl("skip", (2,), branch="negative")]
    changes = dict.fromkeys(blocks, scaled(ROWS["positive"], 2.0, [2]))
    theirs = reference(twin, mask, changes, {2: ROWS["negative"]})
    assert error(run(model, controls, mask), theirs) <= 1e-5


def dense(factors: dict[str, Tensor]):
    """Plain attention in which image queries weigh text keys, or read text values, by factors [B, text]."""

    def attention(func, q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
        assert skip_reshape and q.shape[2] == TEXT + IMAGE
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = (logits if mask is None else logits + mask[:, None]).softmax(-1)
        if "attention" in factors:
            weights[:, :, TEXT:, :TEXT] *= factors["attention"][:, None, None]
            weights = weights / weights.sum(-1, keepdim=True)
        if "value" in factors:
            weights[:, :, TEXT:, :TEXT] *= factors["value"][:, None, None]
        return (weights @ v).transpose(1, 2).flatten(2)

    return attention


@MASKS
@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("mode", ["attention", "value"])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_attention_and_value_boosts_equal_a_dense_reference(model, mask, branch, mode, strength):
    factors = torch.ones(4, TEXT)
    factors[ROWS[branch]] = strength

    def hook(args, extra):
        options = {**args["transformer_options"], "optimized_attention_override": dense({mode: factors})}
        return extra["original_block"]({**args, "transformer_options": options})

    ours = run(model, [BlockControl("boost", (1,), strength, mode=mode, branch=branch)], mask)
    theirs = run(model, mask=mask, existing={("double_block", 1): hook})
    assert error(ours, theirs) <= 1e-5 and error(theirs, run(model, mask=mask)) > 1e-4


@MASKS
def test_an_attention_boost_and_a_skipped_branch_act_together(model, mask):
    boost = BlockControl("boost", (1,), 3.0, mode="attention")
    both = run(model, [boost, BlockControl("skip", (1,), branch="negative")], mask)
    assert error(both[:2], run(model, [BlockControl("skip", (1,))], mask)[:2]) <= 1e-5
    assert error(both[2:], run(model, [boost], mask)[2:]) <= 1e-5


def second_stream(twin, context: Tensor, chosen) -> list:
    """Forward hooks that run each block again with the other prompt, on the positive rows; chosen ones give its img."""
    rows = ROWS["positive"]
    stream = {"txt": twin.txt_in(twin.txt_norm(context)).expand(2, -1, -1)}
    places = twin.pos_embed([[(1, 4, 6)]], max_txt_seq_len=context.shape[1], device=torch.device("cpu"))

    def hook_of(index):
        def after(module, args, kwargs, out):
            given = {name: kwargs[name][rows] for name in ("hidden_states", "temb")}
            again = module.forward(
                **given, encoder_hidden_states=stream["txt"], encoder_hidden_states_mask=None, image_rotary_emb=places
            )
            stream["txt"], img = again
            return (out[0], torch.cat((out[1][:2], img))) if index in chosen else None

        return after

    return [hook_of(index) for index in range(DEPTH)]


def other_context(length: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(1, length, 24)


@pytest.mark.parametrize("length", [TEXT, 4, 200])
@pytest.mark.parametrize("chosen", [(0,), (1, 3), tuple(range(DEPTH))])
def test_a_block_prompt_of_any_length_equals_a_second_stream(model, twin, length, chosen):
    context = other_context(length)
    ours = run(model, [BlockControl("prompt", chosen, context=context)])
    assert error(ours, reference(twin, None, {}, {}, second_stream(twin, context, chosen))) <= 1e-5
    assert error(ours, run(model)) > 1e-4


def test_a_block_prompt_is_that_prompt_next_to_a_prompt_of_a_single_token(model):
    one, other = {"context": inputs()["context"][:, :1]}, other_context(2)
    prompt = BlockControl("prompt", tuple(range(DEPTH)), context=other)
    call = ModelCall(DEPTH, 0, (POSITIVE,), batch=4)
    theirs = run(model, call=call, context=other.expand(4, -1, -1))
    assert error(run(model, [prompt], call=call, **one), theirs) <= 1e-5
