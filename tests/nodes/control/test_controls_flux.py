"""Controls on ComfyUI's own FLUX model: against diffusers' model with plain forward hooks, and dense attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import comfy.ops
import pytest
import torch
from comfy.ldm.flux.model import Flux
from diffusers import FluxTransformer2DModel
from torch import Tensor

from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.text.tokens import EncoderTokens, TokenMap, words_of
from tests.core.control.first_args import captured

DOUBLE, SINGLE, TEXT, IMAGE = 3, 3, 7, 12
WIDTH, HEADS = 64, 2
MAP = TokenMap((EncoderTokens("T5", False, 0, TEXT, words_of([("red", True, 1), ("circle", True, 2)])),))
CALL = ModelCall(DOUBLE, SINGLE, (NEGATIVE, POSITIVE), batch=4, maps=(None, MAP))
ROWS = {"both": slice(0, 4), "negative": slice(0, 2), "positive": slice(2, 4)}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Flux(
        in_channels=16, out_channels=16, patch_size=2, vec_in_dim=20, context_in_dim=24, hidden_size=WIDTH,
        num_heads=HEADS, mlp_ratio=4.0, depth=DOUBLE, depth_single_blocks=SINGLE, axes_dim=[8, 12, 12], theta=10000,
        qkv_bias=True, guidance_embed=True, txt_ids_dims=[], dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    ).eval().requires_grad_(False)  # fmt: skip
    for parameter in made.parameters():
        parameter.normal_(std=0.1)
    return made


def attention_keys(weights: dict[str, Tensor], own: str, theirs: str, added: bool) -> dict[str, Tensor]:
    """One stream's attention in a double block."""
    q, k = ("norm_added_q", "norm_added_k") if added else ("norm_q", "norm_k")
    names = ("add_q_proj", "add_k_proj", "add_v_proj") if added else ("to_q", "to_k", "to_v")
    made = {
        f"{theirs}.{q}.weight": weights[f"{own}.norm.query_norm.weight"],
        f"{theirs}.{k}.weight": weights[f"{own}.norm.key_norm.weight"],
    }
    for kind in ("weight", "bias"):
        parts = weights[f"{own}.qkv.{kind}"].chunk(3)
        made |= {f"{theirs}.{name}.{kind}": part for name, part in zip(names, parts, strict=True)}
        made[f"{theirs}.{'to_add_out' if added else 'to_out.0'}.{kind}"] = weights[f"{own}.proj.{kind}"]
    return made


def to_diffusers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
    embedders = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder", "vector_in": "text_embedder"}
    for own, theirs in embedders.items():
        renamed[f"{own}.in_layer"] = f"time_text_embed.{theirs}.linear_1"
        renamed[f"{own}.out_layer"] = f"time_text_embed.{theirs}.linear_2"
    made: dict[str, Tensor] = {}
    for i in range(DOUBLE):
        block, theirs = f"double_blocks.{i}", f"transformer_blocks.{i}"
        for stream, norm, ff in (("img", "norm1", "ff"), ("txt", "norm1_context", "ff_context")):
            renamed[f"{block}.{stream}_mod.lin"] = f"{theirs}.{norm}.linear"
            renamed[f"{block}.{stream}_mlp.0"] = f"{theirs}.{ff}.net.0.proj"
            renamed[f"{block}.{stream}_mlp.2"] = f"{theirs}.{ff}.net.2"
            made |= attention_keys(weights, f"{block}.{stream}_attn", f"{theirs}.attn", added=stream == "txt")
    for i in range(SINGLE):
        block, theirs = f"single_blocks.{i}", f"single_transformer_blocks.{i}"
        renamed |= {f"{block}.linear2": f"{theirs}.proj_out", f"{block}.modulation.lin": f"{theirs}.norm.linear"}
        for name in ("query", "key"):
            made[f"{theirs}.attn.norm_{name[0]}.weight"] = weights[f"{block}.norm.{name}_norm.weight"]
        for kind in ("weight", "bias"):
            sizes = [WIDTH, WIDTH, WIDTH, 4 * WIDTH]
            parts = weights[f"{block}.linear1.{kind}"].split(sizes)
            for name, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts, strict=True):
                made[f"{theirs}.{name}.{kind}"] = part
    for kind in ("weight", "bias"):
        made |= {f"{theirs}.{kind}": weights[f"{own}.{kind}"] for own, theirs in renamed.items()}
        shift, scale = weights[f"final_layer.adaLN_modulation.1.{kind}"].chunk(2)
        made[f"norm_out.linear.{kind}"] = torch.cat((scale, shift))
    return made


@pytest.fixture(scope="module")
def twin(model):
    made = FluxTransformer2DModel(
        patch_size=1, in_channels=64, num_layers=DOUBLE, num_single_layers=SINGLE, attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS, joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    made.load_state_dict(to_diffusers(model.state_dict()))
    return made.eval().requires_grad_(False)


def inputs(batch: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(1)
    given = {"x": torch.randn(4, 16, 6, 8), "timestep": torch.rand(4), "context": torch.randn(4, TEXT, 24)}
    given |= {"y": torch.randn(4, 20), "guidance": torch.rand(4) * 4}
    return {name: value[-batch:] for name, value in given.items()}


def run(model, controls=(), call: ModelCall = CALL, existing=None, block_calls=None, **changed) -> Tensor:
    existing = existing or {}
    given = {**inputs(call.batch), **changed}
    hooks = compile_controls(controls, replace(call, first_args=captured(model, call, given)), existing, block_calls)
    return model(**given, transformer_options={"patches_replace": {"dit": {**existing, **hooks}}})


PLACES = torch.tensor([[0, row, column] for row in range(3) for column in range(4)]).float()


def reference(twin, changes: dict[int, Callable[[Tensor], Tensor]], skipped: dict[int, slice], hooks=()) -> Tensor:
    """diffusers' model; changes: block -> function of the text before it; skipped: block -> rows left alone;
    hooks: a forward hook for each block."""
    blocks = [*twin.transformer_blocks, *twin.single_transformer_blocks]
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
    tokens = given["x"].reshape(4, 16, 3, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(4, IMAGE, 64)
    try:
        out = twin(
            tokens, given["context"], given["y"], given["timestep"], PLACES, torch.zeros(TEXT, 3), given["guidance"],
            return_dict=False,
        )[0]  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    return out.reshape(4, 3, 4, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(4, 16, 6, 8)


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


def scaled(rows: slice, factor: float, places=slice(None)) -> Callable[[Tensor], Tensor]:
    def change(txt: Tensor) -> Tensor:
        txt = txt.clone()
        txt[rows, places] = txt[rows, places] * factor
        return txt

    return change


def test_the_twin_has_the_same_output(model, twin):
    assert error(run(model), reference(twin, {}, {})) <= 1e-5


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(1,), (0, 2, 4), tuple(range(6))])
def test_skip_leaves_both_streams_as_they_were(model, twin, branch, blocks):
    ours = run(model, [BlockControl("skip", blocks, branch=branch)])
    theirs = reference(twin, {}, dict.fromkeys(blocks, ROWS[branch]))
    assert error(ours, theirs) <= 1e-5 and error(ours, run(model)) > 1e-3


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(0,), (1, 2, 4)])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_disable_and_residual_boost_act_onward(model, twin, branch, blocks, strength):
    control = BlockControl("boost", blocks, strength, branch=branch)
    if strength == 0:
        control = BlockControl("disable", blocks, branch=branch)
    theirs = reference(twin, dict.fromkeys(blocks, scaled(ROWS[branch], strength)), {})
    assert error(run(model, [control]), theirs) <= 1e-5 and error(theirs, run(model)) > 1e-3


def test_a_phrase_is_boosted_in_double_and_single_blocks(model, twin):
    control = BlockControl("boost", (1, 4), 2.0, phrases=("red circle",))
    theirs = reference(twin, dict.fromkeys((1, 4), scaled(ROWS["positive"], 2.0, [1, 2])), {})
    assert error(run(model, [control]), theirs) <= 1e-5 and error(theirs, run(model)) > 1e-4


def dense(factors: dict[str, Tensor], text: int = TEXT):
    """Plain attention in which image queries weigh text keys, or read text values, by factors [B, text]."""

    def attention(func, q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
        assert skip_reshape and mask is None and q.shape[2] == text + IMAGE
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        if "attention" in factors:
            weights = weights.clone()
            weights[:, :, text:, :text] *= factors["attention"][:, None, None]
            weights = weights / weights.sum(-1, keepdim=True)
        if "value" in factors:
            weights = weights.clone()
            weights[:, :, text:, :text] *= factors["value"][:, None, None]
        return (weights @ v).transpose(1, 2).flatten(2)

    return attention


def dense_hook(factors: dict[str, Tensor]):
    def hook(args, extra):
        options = {**args["transformer_options"], "optimized_attention_override": dense(factors)}
        return extra["original_block"]({**args, "transformer_options": options})

    return hook


@pytest.mark.parametrize("key", [("double_block", 1), ("single_block", 1)])
@pytest.mark.parametrize("branch", ["both", "positive"])
@pytest.mark.parametrize("mode", ["attention", "value"])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_attention_and_value_boosts_equal_a_dense_reference(model, key, branch, mode, strength):
    factors = torch.ones(4, TEXT)
    factors[ROWS[branch]] = strength
    block = key[1] + (DOUBLE if key[0] == "single_block" else 0)
    ours = run(model, [BlockControl("boost", (block,), strength, mode=mode, branch=branch)])
    theirs = run(model, existing={key: dense_hook({mode: factors})})
    assert error(ours, theirs) <= 1e-5 and error(theirs, run(model)) > 1e-4


def test_nothing_leaks_between_branches_though_the_blocks_write_into_what_they_are_given(model):
    call = ModelCall(DOUBLE, SINGLE, (NEGATIVE, POSITIVE), 4)
    rows = []

    def watch(args, extra):
        rows.append(len(args["img"]))
        return extra["original_block"](args)

    def spoil(args, extra):
        """The block, and then its arguments wiped: nobody may read them again."""
        out = {name: value.clone() for name, value in watch(args, extra).items()}
        for name in ("img", "txt"):
            args.get(name, args["img"]).fill_(float("nan"))
        return out

    keys = [("double_block", 1), ("single_block", 1)]
    control = BlockControl("skip", (1, 4), branch="negative")
    skipped = run(model, [control], call, dict.fromkeys(keys, spoil))
    assert error(skipped[:2], run(model, [BlockControl("skip", (1, 4))], call)[:2]) <= 1e-5
    assert rows == [2, 2] and torch.equal(skipped, run(model, [control], call))


def second_stream(twin, context: Tensor, chosen) -> list:
    """Forward hooks that run each block again with the other prompt, on the positive rows; chosen ones give its img."""
    rows, length = ROWS["positive"], context.shape[1]
    stream = {"txt": twin.context_embedder(context).expand(2, -1, -1)}
    places = twin.pos_embed(torch.cat((torch.zeros(length, 3), PLACES)))

    def hook_of(index):
        def after(module, args, kwargs, out):
            given = {name: kwargs[name][rows] for name in ("hidden_states", "temb")}
            again = module.forward(**given, encoder_hidden_states=stream["txt"], image_rotary_emb=places)
            stream["txt"], img = again
            return (out[0], torch.cat((out[1][:2], img))) if index in chosen else None

        return after

    return [hook_of(index) for index in range(DOUBLE + SINGLE)]


def other_context(length: int) -> Tensor:
    torch.manual_seed(3)
    return torch.randn(1, length, 24)


@pytest.mark.parametrize("length", [TEXT, 4, 19])
@pytest.mark.parametrize("chosen", [(0,), (1, 3), (5,)])
def test_a_block_prompt_in_some_blocks_equals_a_second_stream(model, twin, length, chosen):
    block_calls, context = BlockCallCount(), other_context(length)
    ours = run(model, [BlockControl("prompt", chosen, context=context)], block_calls=block_calls)
    assert error(ours, reference(twin, {}, {}, second_stream(twin, context, chosen))) <= 1e-5
    assert error(ours, run(model)) > 1e-4 and block_calls.extra == max(chosen) + 1


@pytest.mark.parametrize("length", [TEXT, 4, 19])
def test_a_block_prompt_in_all_blocks_is_that_prompt(model, length):
    call, context = ModelCall(DOUBLE, SINGLE, (POSITIVE,), 1), other_context(length)
    kept = context.clone()
    ours = run(model, [BlockControl("prompt", tuple(range(6)), context=context)], call)
    assert error(ours, run(model, call=call, context=context)) <= 1e-5
    assert torch.equal(context, kept)
