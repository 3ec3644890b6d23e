"""Phrases with several positive prompts act where they are; what no prompt has is refused before the first step."""

from __future__ import annotations

import node_helpers
import pytest
import torch

import nodes as comfyui_nodes
from tests.nodes.control.rows_bench import ROUNDING, attached, guider, prompts, sample
from tests.nodes.families.oracles import Bench, difference

STEPS = (1.0, 0.75, 0.3, 0.0)
FAMILIES = ("SD3", "Z-Image")


@pytest.fixture(scope="module", params=FAMILIES)
def case(bench, request):
    made = Bench.make(bench.module, request.param)
    return made, prompts(made)


def boost(bench, *phrases, **given):
    return bench.control("boost", bench.numbers[:2], 3.0, "value", phrases=phrases, **given)


def text_boost(bench, model=None, **changed):
    """The node on the tiny model."""
    given = dict(
        blocks="0", strength=3.0, mode="value", phrase="", part="all", branch="both", fade="constant", preset="none"
    )
    window = dict(start_percent=0.0, end_percent=1.0)
    return bench.of("control").TextBoost().apply(model or bench.model, **{**given, **changed}, **window)[0]


def late(prompt):
    return node_helpers.conditioning_set_values(prompt, {"start_percent": 0.5, "end_percent": 1.0})


def early(prompt):
    return node_helpers.conditioning_set_values(prompt, {"start_percent": 0.0, "end_percent": 0.5})


def area(prompt):
    return node_helpers.conditioning_set_values(prompt, {"area": (4, 4, 0, 0), "strength": 1.0})


def other(bench):
    """A prompt with a token map of other words."""
    return bench.with_map(bench.prompt(6, 9), ("blue", "square"), first=3)


TWO = {
    "combined": lambda bench, of: [*other(bench), *of],
    "in turn": lambda bench, of: [*early(other(bench)), *late(of)],
    "in an area": lambda bench, of: [*other(bench), *area(of)],
    "without a map": lambda bench, of: [*bench.prompt(7), *of],
}


def calls_of(model):
    """The list to which each model call of a MODEL adds its number of rows."""
    calls: list[int] = []

    def note(executor, x, *args, **kwargs):
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key("apply_model", "mmdit_test", note)
    return calls


@pytest.mark.parametrize("two", TWO)
def test_a_phrase_acts_where_it_is(case, two):
    """A boost of the phrase is a boost of its tokens in the prompt that has it, and nothing in the other."""
    bench, conds = case
    both = {**conds, "positive": TWO[two](bench, conds["positive"])}
    ours = sample(bench, guider(attached(bench, boost(bench, "red circle")), both), STEPS)
    # The same tokens by another name: in this map they are the whole text's only words.
    elsewhere = bench.with_map([[conds["positive"][0][0].clone(), conds["positive"][0][1]]], ("x", "y"))
    again = {**conds, "positive": TWO[two](bench, elsewhere)}
    assert difference(ours, sample(bench, guider(attached(bench, boost(bench, "x y")), again), STEPS)) <= ROUNDING
    assert difference(ours, sample(bench, guider(bench.model, both), STEPS)) > 1e-4


@pytest.mark.parametrize("two", ["combined", "in turn", "in an area"])
def test_a_phrase_that_no_positive_prompt_has_is_refused_without_a_model_call(case, two):
    bench, conds = case
    conds = {
        "positive": TWO[two](bench, conds["positive"]),
        "negative": bench.with_map(bench.prompt(30), ("green", "star")),
    }
    for phrase in ("yellow", "green star"):  # one is nowhere, one in the negative prompt alone
        model = text_boost(bench, phrase=phrase)
        calls = calls_of(model)
        with pytest.raises(ValueError, match=f"^TextBoost: phrase: .*{phrase}.*Write whole words of the prompt"):
            sample(bench, guider(model, conds), STEPS)
        assert not calls


def test_a_part_is_looked_for_in_each_list_that_is_computed(case):
    """At cfg 1 the negative prompt needs no part; else one of its prompts does, before the first step."""
    bench, conds = case
    model = text_boost(bench, part="t5")
    calls = calls_of(model)
    with pytest.raises(ValueError, match="^TextBoost: part: "):
        sample(bench, guider(model, conds), STEPS)
    before = len(calls)
    sample(bench, guider(model, conds, 1.0), STEPS)
    assert before <= 1 and len(calls) == before + 3
    mapped = {**conds, "negative": [*bench.prompt(8), *bench.with_map(bench.prompt(3), ("green", "star"))]}
    sample(bench, guider(model, mapped), STEPS)
    with pytest.raises(ValueError, match="^TextBoost: part: it has no CLIP|^TextBoost: part: .*clip"):
        sample(bench, guider(text_boost(bench, part="clip"), mapped), STEPS)


def test_a_joined_prompt_is_boosted_and_an_averaged_one_is_refused(case):
    bench, conds = case
    first = other(bench)  # held, as ComfyUI's cache of outputs does: token maps are weak
    (joined,) = comfyui_nodes.ConditioningConcat().concat(first, conds["positive"])
    model = text_boost(bench, phrase="red circle")
    ours = sample(bench, guider(model, {**conds, "positive": joined}), STEPS)
    assert difference(ours, sample(bench, guider(bench.model, {**conds, "positive": joined}), STEPS)) > 1e-4
    (mixed,) = comfyui_nodes.ConditioningAverage().addWeighted(conds["positive"], bench.prompt(6), 0.5)
    with pytest.raises(ValueError, match="^TextBoost: phrase: .*averaged or otherwise changed"):
        sample(bench, guider(model, {**conds, "positive": mixed}), STEPS)


def test_a_phrase_is_boosted_where_a_wrapper_cuts_its_prompt_out(case):
    """The rows of one of two prompts of one list are told apart by their text, too."""
    bench, conds = case
    conds = {**conds, "positive": [*other(bench), *conds["positive"]]}
    model = attached(bench, boost(bench, "red circle"))
    right = sample(bench, guider(model, conds), STEPS)

    def turned(apply_model, args):
        c = {k: v.flip(0) if torch.is_tensor(v) and len(v) == len(args["input"]) else v for k, v in args["c"].items()}
        return apply_model(args["input"].flip(0), args["timestep"], **c).flip(0)

    model = model.clone()
    model.set_model_unet_function_wrapper(turned)
    assert difference(sample(bench, guider(model, conds), STEPS), right) <= ROUNDING
