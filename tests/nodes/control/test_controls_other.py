"""Controls on ComfyUI's own Chroma and AuraFlow models, against plain wrappers around their blocks, hooks unused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import comfy.ops
import pytest
import torch
from comfy.ldm.aura.mmdit import MMDiT as AuraFlow
from comfy.ldm.chroma.model import Chroma
from torch import Tensor

from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import BlockCallCount, ModelCall, TextLayout
from mmdit_core.control.spec import NEGATIVE, POSITIVE, BlockControl
from mmdit_core.text.tokens import EncoderTokens, TokenMap, words_of
from tests.core.control.first_args import captured

DOUBLE, SINGLE, PROMPT, IMAGE, REGISTERS = 3, 3, 7, 12, 8
MAP = TokenMap((EncoderTokens("T5", False, 0, PROMPT, words_of([("red", True, 1), ("circle", True, 2)])),))
ROWS = {"both": slice(0, 4), "negative": slice(0, 2), "positive": slice(2, 4)}


@dataclass(frozen=True)
class Case:
    """A model; the names of its lists of blocks; tokens before the prompt's; its inputs."""

    model: Any
    lists: tuple[str, str]
    registers: int
    given: dict[str, Tensor]

    @property
    def text(self) -> int:
        return self.registers + PROMPT

    @property
    def blocks(self) -> list:
        return [block for name in self.lists for block in getattr(self.model, name)]

    @property
    def call(self) -> ModelCall:
        return ModelCall(
            DOUBLE, SINGLE, (NEGATIVE, POSITIVE), 4, (None, MAP), (PROMPT, PROMPT), text=TextLayout(prompt_last=True)
        )

    @cached_property
    def plain(self) -> Tensor:
        return self.model(**self.given, transformer_options={})


def randomly(model, std: float):
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=std)
    return model


def chroma() -> Case:
    model = Chroma(
        in_channels=64, out_channels=64, context_in_dim=24, hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=DOUBLE,
        depth_single_blocks=SINGLE, axes_dim=[8, 12, 12], theta=10000, patch_size=2, qkv_bias=True, in_dim=64,
        out_dim=64, hidden_dim=32, n_layers=2, txt_ids_dims=[], vec_in_dim=0, dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    given = {"context": torch.randn(4, PROMPT, 24), "guidance": torch.zeros(4)}
    return Case(randomly(model, 0.1), ("double_blocks", "single_blocks"), 0, given)


def auraflow() -> Case:
    model = AuraFlow(
        in_channels=16, out_channels=16, dim=64, n_layers=DOUBLE + SINGLE, n_double_layers=DOUBLE, n_heads=2,
        global_conddim=64, cond_seq_dim=24, max_seq=64, dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    given = {"context": torch.randn(4, PROMPT, 24)}
    return Case(randomly(model, 0.1), ("double_layers", "single_layers"), REGISTERS, given)


def made_by(maker: Callable[[], Case]) -> Case:
    torch.manual_seed(0)
    made = maker()
    made.given.update(x=torch.randn(4, 16, 6, 8), timestep=torch.rand(4))
    return made


@pytest.fixture(scope="module", params=[chroma, auraflow])
def case(request) -> Case:
    return made_by(request.param)


def run(case: Case, controls=(), existing=None, block_calls=None, options=None) -> Tensor:
    call = replace(case.call, first_args=captured(case.model, case.call, case.given))
    hooks = compile_controls(controls, call, existing, block_calls)
    options = {**(options or {}), "patches_replace": {"dit": {**(existing or {}), **hooks}}}
    return case.model(**case.given, transformer_options=options)


def reference(case: Case, changes: dict[int, Callable[[Tensor], Tensor]], skipped: dict[int, slice]) -> Tensor:
    """ComfyUI's model, each block's forward wrapped. changes: block -> function of the text before it; skipped:
    block -> rows that pass it unchanged."""
    text_first = isinstance(case.model, AuraFlow)  # its double blocks take and give (text, image)

    def wrapped(index: int, forward):
        single = index >= DOUBLE

        def pass_through(out: Tensor, before: Tensor) -> Tensor:
            if index not in skipped:
                return out
            out = out.clone()
            out[skipped[index]] = before[skipped[index]]
            return out

        def run_single(joint, *args, **kwargs):
            txt, img = joint[:, : case.text].clone(), joint[:, case.text :]
            joint = torch.cat((changes.get(index, lambda t: t)(txt), img), 1)
            before = joint.clone()
            return pass_through(forward(joint, *args, **kwargs), before)

        def run_double(img, txt, *args, **kwargs):
            img, txt = img.clone(), changes.get(index, lambda t: t)(txt.clone())
            before = img.clone(), txt.clone()
            if text_first:
                txt, img = forward(txt, img, *args, **kwargs)
            else:
                img, txt = forward(img=img, txt=txt, **kwargs)
            img, txt = pass_through(img, before[0]), pass_through(txt, before[1])
            return (txt, img) if text_first else (img, txt)

        if single:
            return run_single
        return (lambda c, x, *args, **kwargs: run_double(x, c, *args, **kwargs)) if text_first else run_double

    with pytest.MonkeyPatch.context() as patch:
        for index, block in enumerate(case.blocks):
            patch.setattr(block, "forward", wrapped(index, block.forward))
        return case.model(**case.given, transformer_options={})


def error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.std()).item()


def scaled(rows: slice, factor: float, places=slice(None)) -> Callable[[Tensor], Tensor]:
    def change(txt: Tensor) -> Tensor:
        txt[rows, places] = txt[rows, places] * factor
        return txt

    return change


def test_the_wrappers_change_nothing_by_themselves(case):
    assert error(reference(case, {}, {}), case.plain) <= 1e-5 and torch.isfinite(case.plain).all()


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(1,), (0, 2, 4), tuple(range(6))])
def test_skip_leaves_both_streams_as_they_were(case, branch, blocks):
    block_calls = BlockCallCount()
    ours = run(case, [BlockControl("skip", blocks, branch=branch)], block_calls=block_calls)
    assert error(ours, reference(case, {}, dict.fromkeys(blocks, ROWS[branch]))) <= 1e-5
    assert error(ours, case.plain) > 1e-3
    assert (block_calls.skipped, block_calls.total) == (len(blocks) * (2 if branch == "both" else 1), 12)


@pytest.mark.parametrize("branch", ROWS)
@pytest.mark.parametrize("blocks", [(0,), (1, 2, 4)])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_disable_and_residual_boost_act_onward(case, branch, blocks, strength):
    control = BlockControl("boost", blocks, strength, branch=branch)
    if strength == 0:
        control = BlockControl("disable", blocks, branch=branch)
    theirs = reference(case, dict.fromkeys(blocks, scaled(ROWS[branch], strength)), {})
    assert error(run(case, [control]), theirs) <= 1e-5 and error(theirs, case.plain) > 1e-3


@pytest.mark.parametrize("block", [1, 4])
def test_a_phrase_is_found_behind_the_tokens_that_the_model_puts_before_the_prompt(case, block):
    control = BlockControl("boost", (block,), 2.0, phrases=("red circle",))
    places = [case.registers + 1, case.registers + 2]
    theirs = reference(case, {block: scaled(ROWS["positive"], 2.0, places)}, {})
    assert error(run(case, [control]), theirs) <= 1e-5 and error(theirs, case.plain) > 1e-4


def dense(factors: dict[str, Tensor], text: int):
    """Plain attention in which image queries weigh text keys, or read text values, by factors [B, text]."""

    def attention(func, q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
        assert skip_reshape and mask is None and q.shape[2] == text + IMAGE
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        if "attention" in factors:
            weights[:, :, text:, :text] *= factors["attention"][:, None, None]
            weights = weights / weights.sum(-1, keepdim=True)
        if "value" in factors:
            weights[:, :, text:, :text] *= factors["value"][:, None, None]
        return (weights @ v).transpose(1, 2).flatten(2)

    return attention


@pytest.mark.parametrize("key", [("double_block", 1), ("single_block", 2)])
@pytest.mark.parametrize("branch", ["both", "positive"])
@pytest.mark.parametrize("mode", ["attention", "value"])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_attention_and_value_boosts_equal_a_dense_reference(case, key, branch, mode, strength):
    factors = torch.ones(4, case.text)
    factors[ROWS[branch]] = strength

    def hook(args, extra):
        options = {**args["transformer_options"], "optimized_attention_override": dense({mode: factors}, case.text)}
        return extra["original_block"]({**args, "transformer_options": options})

    block = key[1] + (DOUBLE if key[0] == "single_block" else 0)
    ours = run(case, [BlockControl("boost", (block,), strength, mode=mode, branch=branch)])
    theirs = run(case, existing={key: hook})
    assert error(ours, theirs) <= 1e-5 and error(theirs, case.plain) > 1e-4


def test_a_widened_attention_asks_for_full_precision_and_the_text_queries_do_not(case):
    precision = []

    def override(func, *args, **kwargs):
        precision.append(kwargs.get("low_precision_attention", True))
        return func(*args, **kwargs)

    run(case, [BlockControl("disable", (1,), scope="block")], options={"optimized_attention_override": override})
    assert precision == [
        True,
        True,
        False,
        True,
        True,
        True,
        True,
    ]  # two calls in block 1: text queries, image queries


@pytest.mark.parametrize("block", [1, 4])
def test_skipping_one_branch_gives_the_same_as_both_runs_put_together(case, block):
    rows = []

    def spoil(args, extra):
        """The block, and then its arguments wiped: nobody may read them again."""
        rows.append(len(args["img"]))
        out = {name: value.clone() for name, value in extra["original_block"](args).items()}
        for name in ("img", "txt"):
            args.get(name, args["img"]).fill_(float("nan"))
        return out

    key = ("double_block", 1) if block == 1 else ("single_block", 1)
    skipped = run(case, [BlockControl("skip", (block,), branch="negative")], {key: spoil})
    assert error(skipped[:2], run(case, [BlockControl("skip", (block,))])[:2]) <= 1e-5
    assert error(skipped[2:], case.plain[2:]) <= 1e-5 and rows == [2]


@pytest.mark.parametrize("length", [PROMPT, 4, 19])
def test_a_block_prompt_on_chroma_in_all_blocks_is_that_prompt(length):
    case, other = made_by(chroma), torch.randn(1, length, 24)
    ours = run(case, [BlockControl("prompt", tuple(range(6)), context=other)])
    theirs = case.model(**{**case.given, "context": other.expand(4, -1, -1)}, transformer_options={})
    assert error(ours[2:], theirs[2:]) <= 1e-5 and error(ours[:2], case.plain[:2]) <= 1e-5
