"""Controls on our model: against diffusers' model with plain forward hooks, dense attention, and by counting."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.checkpoints.keymaps import to_diffusers
from mmdit_core.control import hooks
from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ControlError, ModelCall
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.flow.window import Window
from mmdit_core.text.tokens import EncoderTokens, NoTokenMap, PhraseNotFound, TokenMap, words_of

CONFIG = MMDiTConfig(
    hidden_size=128, num_heads=2, depth=5, context_dim=48, pooled_dim=40, pos_embed_max_size=8, qk_norm="rms",
    dual_attention=(0, 1),
)  # fmt: skip
CLIP, T5 = 6, 5
WORDS = [words_of([(w, True, first + i) for i, w in enumerate(("red", "circle"))]) for first in (1, CLIP)]
MAP = TokenMap(
    (EncoderTokens("CLIP-L", True, 0, CLIP, WORDS[0]), EncoderTokens("T5", False, CLIP, CLIP + T5, WORDS[1]))
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = MMDiT(CONFIG).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter.normal_(std=0.08)
    made.pos_embed.normal_()
    return made


@pytest.fixture(scope="module")
def twin(model):
    c = CONFIG
    made = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=c.depth, attention_head_dim=64,
        num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=128, pooled_projection_dim=40,
        out_channels=16, pos_embed_max_size=8, dual_attention_layers=c.dual_attention, qk_norm="rms_norm",
    )  # fmt: skip
    made.load_state_dict(to_diffusers(model.state_dict(), c))
    return made.eval().requires_grad_(False)


def inputs(batch: int = 4):
    torch.manual_seed(1)
    return {
        "x": torch.randn(batch, 16, 6, 8),
        "timesteps": torch.rand(batch) * 1000,
        "context": torch.randn(batch, CLIP + T5, 48),
        "y": torch.randn(batch, 40),
    }


# A batched guidance call: negative first, two rows each.
CALL = ModelCall(double=5, single=0, branches=(NEGATIVE, POSITIVE), batch=4, maps=(None, MAP))


def run(
    model, controls, call: ModelCall = CALL, block_calls: BlockCallCount | None = None, options: dict | None = None
) -> Tensor:
    options = dict(options or {})
    existing = options.get("patches_replace", {}).get("dit", {})
    hooks = compile_controls(controls, call, existing, block_calls)
    options["patches_replace"] = {"dit": {**existing, **hooks}}
    return model(**inputs(call.batch), transformer_options=options)


def reference(twin, blocks: dict[int, Callable[[Tensor], Tensor]], skipped: dict[int, slice]) -> Tensor:
    """diffusers' model; blocks: index -> function of the text before that block; skipped: index -> rows left alone."""
    handles = []
    for index, change in blocks.items():

        def before(module, args, kwargs, change=change):
            return args, {**kwargs, "encoder_hidden_states": change(kwargs["encoder_hidden_states"])}

        handles.append(twin.transformer_blocks[index].register_forward_pre_hook(before, with_kwargs=True))
    for index, rows in skipped.items():

        def after(module, args, kwargs, out, rows=rows):
            txt, img = out
            img = img.clone()
            img[rows] = kwargs["hidden_states"][rows]
            if txt is not None:
                txt = txt.clone()
                txt[rows] = kwargs["encoder_hidden_states"][rows]
            return txt, img

        handles.append(twin.transformer_blocks[index].register_forward_hook(after, with_kwargs=True))
    given = inputs()
    try:
        return twin(given["x"], given["context"], given["y"], given["timesteps"], return_dict=False)[0]
    finally:
        for handle in handles:
            handle.remove()


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


ROWS = {"both": slice(0, 4), "negative": slice(0, 2), "positive": slice(2, 4)}


def scaled(rows: slice, factor: float, places=slice(None)) -> Callable[[Tensor], Tensor]:
    def change(txt: Tensor) -> Tensor:
        txt = txt.clone()
        txt[rows, places] = txt[rows, places] * factor
        return txt

    return change


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(2,), (0, 3), (1, 2, 4), (0, 1, 2, 3, 4)])
def test_skip_leaves_both_streams_as_they_were(model, twin, branch, blocks):
    ours = run(model, [BlockControl("skip", blocks, branch=branch)])
    assert error(ours, reference(twin, {}, dict.fromkeys(blocks, ROWS[branch]))) <= 1e-5


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(0,), (2, 4), (1, 2, 3)])
def test_disable_zeroes_the_text_onward(model, twin, branch, blocks):
    ours = run(model, [BlockControl("disable", blocks, branch=branch)])
    assert error(ours, reference(twin, dict.fromkeys(blocks, scaled(ROWS[branch], 0.0)), {})) <= 1e-5


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("strength", [0.5, 1.5, 2.0])
def test_residual_boost_scales_the_text_onward(model, twin, branch, strength):
    blocks = (1, 3)
    ours = run(model, [BlockControl("boost", blocks, strength, branch=branch)])
    theirs = reference(twin, dict.fromkeys(blocks, scaled(ROWS[branch], strength)), {})
    assert error(ours, theirs) <= 1e-5 and error(ours, run(model, [])) > 1e-3


@pytest.mark.parametrize(
    ("phrases", "part", "places"),
    [(("red",), "all", [1, CLIP]), (("red circle",), "t5", [CLIP, CLIP + 1]), ((), "clip", list(range(CLIP)))],
)
def test_boost_of_some_tokens(model, twin, phrases, part, places):
    control = BlockControl("boost", (0, 2), 2.0, phrases=phrases, part=part, branch="positive")
    theirs = reference(twin, dict.fromkeys((0, 2), scaled(ROWS["positive"], 2.0, places)), {})
    assert error(run(model, [control]), theirs) <= 1e-5


def test_a_phrase_means_the_positive_branch_alone(model):
    both, positive = (BlockControl("boost", (1,), 2.0, phrases=("red",), branch=b) for b in ("both", "positive"))
    assert torch.equal(run(model, [both]), run(model, [positive]))


def test_a_phrase_without_a_token_map_is_an_error_of_its_own(model):
    without = ModelCall(5, 0, (NEGATIVE, POSITIVE), 4)
    with pytest.raises(ControlError, match="has no token map") as caught:
        run(model, [BlockControl("boost", (1,), 2.0, phrases=("red",))], without)
    assert isinstance(caught.value.__cause__, NoTokenMap) and caught.value.field == "phrases"
    unknown = BlockControl("boost", (1,), 2.0, phrases=("green",))
    with pytest.raises(ControlError, match="'green' is not in the prompt.*red circle") as caught:
        run(model, [unknown])
    assert caught.value.control == unknown and isinstance(caught.value.__cause__, PhraseNotFound)


def test_skip_wins_over_disable_and_disable_over_boost(model):
    skip, disable = BlockControl("skip", (2,)), BlockControl("disable", (2,))
    boost = BlockControl("boost", (2,), 3.0)
    assert torch.equal(run(model, [boost, disable, skip]), run(model, [skip]))
    assert torch.equal(run(model, [boost, disable]), run(model, [disable]))
    one_branch = BlockControl("skip", (2,), branch="negative")
    mixed = run(model, [boost, one_branch])
    assert error(mixed[:2], run(model, [skip])[:2]) <= 1e-5 and error(mixed[2:], run(model, [boost])[2:]) <= 1e-5


@pytest.mark.parametrize("mode", ["residual", "attention", "value"])
def test_boosts_multiply(model, mode):
    twice = [BlockControl("boost", (1,), 1.5, mode=mode), BlockControl("boost", (1,), 2.0, mode=mode)]
    assert error(run(model, twice), run(model, [BlockControl("boost", (1,), 3.0, mode=mode)])) <= 1e-5


@pytest.mark.parametrize(
    "control",
    [
        BlockControl("boost", (0, 1, 2), 1.0),
        BlockControl("boost", (0, 1, 2), 1.0, mode="attention"),
        BlockControl("boost", (0, 1, 2), 1.0, mode="value"),
        BlockControl("skip", ()),
        BlockControl("skip", (1,), window=Window(0.4, 0.4)),
    ],
)
def test_what_does_nothing_installs_nothing(model, control):
    assert compile_controls([control], CALL) == {}


def dense(factors_attention=None, factors_value=None, text: int = CLIP + T5):
    """Plain attention in which image queries weigh text keys and read text values by factors [B, text]."""

    def attention(func, q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2])
        values = torch.ones_like(weights)
        if q.shape[2] == text + 12:  # the joint sequence; the second attention has 12 image tokens alone
            if factors_attention is not None:
                weights[:, :, text:, :text] = factors_attention[:, None, None]
            if factors_value is not None:
                values[:, :, text:, :text] = factors_value[:, None, None]
        weights = weights * (logits - logits.amax(-1, keepdim=True)).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        return ((weights * values) @ v).transpose(1, 2).flatten(2)

    return attention


def with_dense_block(model, index: int, override) -> Tensor:
    def hook(args, extra):
        options = {**args["transformer_options"], "optimized_attention_override": override}
        return extra["original_block"]({**args, "transformer_options": options})

    return model(**inputs(), transformer_options={"patches_replace": {"dit": {("double_block", index): hook}}})


@pytest.mark.parametrize("block", [0, 3])  # block 0 has the second attention, which must pass through
@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("mode", ["attention", "value"])
@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_attention_and_value_boosts_equal_a_dense_reference(model, block, branch, mode, strength):
    factors = torch.ones(4, CLIP + T5)
    factors[ROWS[branch]] = strength
    override = dense(**{f"factors_{mode}": factors})
    ours = run(model, [BlockControl("boost", (block,), strength, mode=mode, branch=branch)])
    assert error(ours, with_dense_block(model, block, override)) <= 1e-5


def test_attention_and_value_together_on_a_phrase(model):
    attention, value = torch.ones(4, CLIP + T5), torch.ones(4, CLIP + T5)
    attention[2:, [2, CLIP + 1]], value[2:, :CLIP] = 3.0, 0.5
    controls = [
        BlockControl("boost", (2,), 3.0, mode="attention", phrases=("circle",)),
        BlockControl("boost", (2,), 0.5, mode="value", part="clip", branch="positive"),
    ]
    assert error(run(model, controls), with_dense_block(model, 2, dense(attention, value))) <= 1e-5


def test_disable_within_the_block_hides_the_text_from_the_image_and_leaves_the_text_stream_alone(model):
    texts = {}

    def record(args, extra):
        texts.setdefault(len(texts), args["txt"])
        return extra["original_block"](args)

    existing = {"patches_replace": {"dit": {("double_block", 3): record}}}
    ours = run(model, [BlockControl("disable", (2,), scope="block")], options=existing)
    run(model, [], options=existing)
    assert error(ours, with_dense_block(model, 2, dense(torch.zeros(4, CLIP + T5)))) <= 1e-5
    assert torch.allclose(texts[0], texts[1], atol=1e-5)


def test_residual_boost_of_the_last_block_does_nothing(model):
    boosted = run(model, [BlockControl("boost", (4,), 2.0)])
    assert error(boosted, run(model, [])) <= 1e-4  # LayerNorm takes the scale away, nobody reads the text afterwards


def test_a_hook_and_an_override_that_are_there_are_chained(model):
    calls = []

    def hook(args, extra):
        calls.append("hook")
        return extra["original_block"](args)

    def override(func, *args, **kwargs):
        calls.append("override")
        return func(*args, **kwargs)

    options = {"patches_replace": {"dit": {("double_block", 3): hook}}, "optimized_attention_override": override}
    control = BlockControl("boost", (3,), 2.0, mode="value")
    assert torch.equal(run(model, [control], options=options), run(model, [control]))
    # 5 blocks, 2 of them with a second attention; block 3's attention is split in two.
    assert calls.count("hook") == 1 and calls.count("override") == 5 + 2 + 1


def rows_run(model, controls, call: ModelCall = CALL) -> list[int]:
    """Rows that each block really computes."""
    rows = []
    handles = [
        block.x_block.mlp.register_forward_hook(lambda _, args, out: rows.append(out.shape[0]))
        for block in model.joint_blocks
    ]
    try:
        run(model, controls, call)
    finally:
        for handle in handles:
            handle.remove()
    return rows


def test_skipping_one_branch_really_runs_fewer_rows(model):
    assert rows_run(model, []) == [4] * 5
    assert rows_run(model, [BlockControl("skip", (1, 3), branch="negative")]) == [4, 2, 4, 2, 4]
    assert rows_run(model, [BlockControl("skip", (1, 3))]) == [4, 4, 4]


def test_the_count_counts_block_calls_by_prompt(model):
    block_calls = BlockCallCount()
    run(model, [BlockControl("skip", (1, 3), branch="negative"), BlockControl("skip", (0,))], block_calls=block_calls)
    assert (block_calls.total, block_calls.skipped) == (10, 4)
    assert str(block_calls) == "skipped 4 of 10 block calls, 40.0%"


def test_nothing_that_came_in_is_changed(model):
    kept = {}

    def keep(args, extra):
        kept[args["transformer_options"]["block_index"]] = (
            args["txt"],
            args["txt"].clone(),
            args["img"],
            args["img"].clone(),
        )
        return extra["original_block"](args)

    controls = [
        BlockControl("boost", (1,), 2.0),
        BlockControl("skip", (2,), branch="negative"),
        BlockControl("disable", (3,)),
    ]
    run(model, controls, options={"patches_replace": {"dit": {("double_block", i): keep for i in range(5)}}})
    assert all(torch.equal(a, b) and torch.equal(c, d) for a, b, c, d in kept.values())


@pytest.mark.parametrize("cut", [3, 4])
@pytest.mark.parametrize("mode", ["residual", "attention", "value"])
def test_a_phrase_past_the_end_of_a_context_that_was_cut_acts_on_what_is_left(model, cut, mode):
    """Words of T5 are at CLIP and CLIP + 1; a context cut before them has the CLIP words alone."""
    given = inputs()
    given["context"] = given["context"][:, : CLIP + T5 - cut]
    left = [position for position in (1, 2, CLIP, CLIP + 1) if position < CLIP + T5 - cut]

    def run_with(control: BlockControl, maps) -> Tensor:
        hooks = compile_controls([control], replace(CALL, maps=maps))
        return model(**given, transformer_options={"patches_replace": {"dit": hooks}})

    words = words_of([(f"w{position}", True, position) for position in left])
    by_hand = TokenMap((EncoderTokens("all", True, 0, CLIP + T5, words),))
    phrases = tuple(f"w{position}" for position in left)
    ours = run_with(BlockControl("boost", (1,), 2.0, mode, phrases=("red circle",)), (None, MAP))
    theirs = run_with(BlockControl("boost", (1,), 2.0, mode, phrases=phrases), (None, by_hand))
    assert torch.equal(ours, theirs) and error(ours, model(**given)) > 1e-4


def test_a_boosts_factors_are_computed_once_a_model_call_and_not_once_a_block(model, monkeypatch):
    made, original = [], hooks._Factors._of_chunk
    monkeypatch.setattr(hooks._Factors, "_of_chunk", lambda *given: made.append(given[1]) or original(*given))
    run(model, [BlockControl("boost", (0, 1, 2, 3), 1.5), BlockControl("boost", (0, 1, 2, 3), 1.5, "attention")])
    assert sorted(made) == [0, 0, 1, 1]  # one table for each of the two boosts, a row for each chunk


def test_a_phrase_that_no_prompt_has_is_refused_even_where_its_block_is_skipped(model):
    controls = [BlockControl("boost", (1,), 2.0, phrases=("red",)), BlockControl("skip", (1,), branch="positive")]
    without = ModelCall(5, 0, (NEGATIVE, POSITIVE), 4)
    with pytest.raises(ControlError, match="no token map"):
        run(model, controls, without)
