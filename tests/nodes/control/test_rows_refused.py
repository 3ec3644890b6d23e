"""Unknown rows are refused with words, and only where a control tells the branches apart."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.control.rows_bench import (
    CHANGES,
    ROUNDING,
    WRAPPERS,
    attached,
    controls,
    function_wrapper,
    guided,
    guider,
    on_rows,
    prompts,
    repeated,
    reversed_rows,
    sample,
)
from tests.nodes.families.oracles import Bench, difference

FAMILIES = ("SD3", "FLUX.1 dev", "Z-Image")


@pytest.fixture(scope="module", params=FAMILIES)
def case(bench, request):
    made = Bench.make(bench.module, request.param, batch=2)
    return made, prompts(made)


def same_text(conds):
    return {"positive": conds["positive"], "negative": conds["positive"]}


@pytest.mark.parametrize("name", ["skip negative", "boost positive", "phrase", "prompt"])
def test_equal_prompts_without_a_wrapper_work(case, name):
    bench, conds = case
    conds, control = same_text(conds), controls(bench)[name]
    ours = sample(bench, guider(attached(bench, control), conds))
    assert difference(ours, guided(bench, conds, control)) <= ROUNDING


@pytest.mark.parametrize("change", [repeated, reversed_rows])
@pytest.mark.parametrize("kind", WRAPPERS)
def test_equal_prompts_under_a_wrapper_are_refused_for_one_branch_alone(case, kind, change):
    bench, conds = case
    conds, made = same_text(conds), controls(bench)
    for name in ("skip negative", "boost positive", "phrase", "prompt"):
        model = WRAPPERS[kind](attached(bench, made[name]), change)
        with pytest.raises(ValueError, match="another node changed the rows of the batch"):
            sample(bench, guider(model, conds))
    both = WRAPPERS[kind](attached(bench, made["skip both"]), change)
    assert difference(sample(bench, guider(both, conds)), guided(bench, conds, made["skip both"])) <= ROUNDING


@pytest.mark.parametrize("change", CHANGES)
def test_equal_texts_with_other_pooled_texts_are_told_apart(bench, change):
    made = Bench.make(bench.module, "FLUX.1 dev", batch=2)
    conds = prompts(made)
    text, options = conds["positive"][0]
    conds["negative"] = [[text, {**options, "pooled_output": options["pooled_output"] + 1}]]
    for name in ("skip negative", "boost positive"):
        control = controls(made)[name]
        model = function_wrapper(attached(made, control), CHANGES[change])
        assert difference(sample(made, guider(model, conds)), guided(made, conds, control)) <= ROUNDING


def changed_text(apply, x, t, given):
    """Another node's own text in the rows."""
    return apply(x, t, {**given, "c_crossattn": given["c_crossattn"] * 1.1})


def test_a_text_that_another_node_changed_is_refused_for_one_branch_alone(case):
    bench, conds = case
    for name in ("skip negative", "phrase", "prompt"):
        model = function_wrapper(attached(bench, controls(bench)[name]), changed_text)
        with pytest.raises(ValueError, match="another node changed the rows of the batch"):
            sample(bench, guider(model, conds))
    sample(bench, guider(function_wrapper(attached(bench, controls(bench)["skip both"]), changed_text), conds))


def next_to_the_network(model, change):
    """A clone of a MODEL with another pack's wrapper within all of ours, as far as the model calls it."""

    def wrapper(executor, x, t, context, *args, **kwargs):
        def apply(x, t, given):
            return executor(x, t, given["context"], *args, **kwargs)

        return change(apply, x, t, {"context": context})

    clone = model.clone()
    clone.add_wrapper_with_key("diffusion_model", "another_pack", wrapper)
    return clone


def as_it_is(apply, x, t, given):
    return apply(x, t, given)


def halved(apply, x, t, given):
    return torch.cat([on_rows(apply, x, t, given, rows) for rows in ((0, 1), (2, 3))])


@pytest.mark.parametrize("family", ["LTX-Video", "Krea 2", "Qwen-Image", "AuraFlow"])
def test_rows_that_change_next_to_the_network_are_refused(bench, family):
    made = Bench.make(bench.module, family, batch=2)
    conds, given = prompts(made), controls(made)
    control = given["skip negative"]
    ours = sample(made, guider(next_to_the_network(attached(made, control), as_it_is), conds))
    assert difference(ours, guided(made, conds, control)) <= ROUNDING
    for name, change in (("skip negative", reversed_rows), ("skip both", repeated), ("phrase", halved)):
        model = next_to_the_network(attached(made, given[name]), change)
        with pytest.raises(ValueError, match="another node changed the rows of the batch"):
            sample(made, guider(model, conds))
    both = next_to_the_network(attached(made, given["skip both"]), reversed_rows)
    assert difference(sample(made, guider(both, conds)), guided(made, conds, given["skip both"])) <= ROUNDING


def test_without_another_wrapper_no_row_is_compared(case, monkeypatch):
    """Comparing waits for the device."""
    bench, conds = case
    rows = bench.of("comfyui.rows")

    def fail(*args):
        raise AssertionError("a row was compared")

    monkeypatch.setattr(rows, "_holds", fail)
    for control in controls(bench).values():
        sample(bench, guider(attached(bench, control), conds))
    with pytest.raises(AssertionError, match="a row was compared"):
        sample(bench, guider(function_wrapper(attached(bench, control), reversed_rows), conds))
