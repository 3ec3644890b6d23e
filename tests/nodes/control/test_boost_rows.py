"""The rows of TextBoost: each is the node with its values, in a chain."""

from __future__ import annotations

import inspect

import pytest
import torch

from tests.nodes.control.rows_bench import guider, prompts, sample
from tests.nodes.control.test_phrases_of_runs import text_boost
from tests.nodes.families.oracles import Bench, difference

STEPS = (1.0, 0.6, 0.0)


@pytest.fixture(scope="module", params=["SD3", "Z-Image"])
def case(bench, request):
    made = Bench.make(bench.module, request.param)
    return made, prompts(made)


@pytest.fixture(scope="module")
def made(bench):
    return Bench.make(bench.module, "SD3")


@pytest.fixture
def shown(made, monkeypatch):
    """What is shown on nodes, by their id."""
    texts = {}
    monkeypatch.setattr(made.of("comfyui.frontend.messages"), "show_text", texts.__setitem__)
    return texts


def controls(bench, model):
    return bench.of("comfyui.patching").controls_of(model)


GIVEN = [
    dict(mode="residual", blocks="0", strength=2.0),
    dict(mode="attention", blocks="0:1.5, 1:3", branch="positive", phrase="red"),
    dict(mode="value", blocks="", fade="in"),
]


@pytest.mark.parametrize("given", GIVEN)
def test_rows_are_text_boosts_in_a_chain(case, given):
    bench, conds = case
    rows = "on | 1 | 3 | circle\noff | 0 | 9 |\n\non | 0, 1:0.5 | 0 | red"
    ours = text_boost(bench, **given, rows=rows)
    chain = text_boost(bench, **given)
    for values in (
        dict(blocks="1", strength=3.0, phrase="circle"),
        dict(blocks="0, 1:0.5", strength=0.0, phrase="red"),
    ):
        chain = text_boost(bench, chain, **{**given, **values})
    assert controls(bench, ours) == controls(bench, chain) and len(controls(bench, ours)) == 3 + len(
        controls(bench, text_boost(bench, **given))
    )
    samples = [sample(bench, guider(model, conds), STEPS) for model in (ours, chain, text_boost(bench, **given))]
    assert torch.equal(samples[0], samples[1]) and difference(samples[0], samples[2]) > 1e-4


@pytest.mark.parametrize("rows", ["", "\n \n", "off | 0 | 3 |\noff | 99 | 50 | x", "on | 0 | 1 |", "on | | 3 | red"])
def test_a_node_whose_rows_do_nothing_is_the_node_without_them(made, rows):
    model, plain = text_boost(made, rows=rows), text_boost(made)
    assert controls(made, model) == controls(made, plain)
    conds = prompts(made)
    out = [sample(made, guider(each, conds), STEPS) for each in (model, plain)]
    assert torch.equal(*out)


def test_saved_prompts_without_rows_run_as_before(made):
    rows = made.of("control").TextBoost.INPUT_TYPES()["optional"]
    assert list(rows)[-1] == "rows", "appended"
    assert rows["rows"][1]["default"] == "" and rows["rows"][1]["advanced"] and rows["rows"][1]["multiline"]
    assert inspect.signature(made.of("control").TextBoost.rows).parameters["rows"].default == ""


def test_full_width_signs_are_read(made):
    ours = text_boost(made, rows="ｏｎ｜０－１｜２．５｜")
    assert controls(made, ours) == controls(made, text_boost(made, rows="on | 0-1 | 2.5"))


NO_BLOCKS = "no blocks are named: nothing happens"
IDLE = [
    (dict(rows="off | 0 | 2 |\non | 0 | 2 |\noff | 0 | 2 |"), "row 1, row 3: off"),
    (
        dict(rows="on | 0 | 1 |\non | | 2 |"),
        f"row 1: strength 1 changes nothing\nrow 2: {NO_BLOCKS}",
    ),
    (dict(rows="on | 0:1, 1:1 | 2 |"), "row 1: strength 1 changes nothing"),
    (dict(blocks="", rows="off | 0 | 2 |"), f"the node's own inputs: {NO_BLOCKS}\nrow 1: off"),
    (dict(blocks="", rows="on | 0 | 2 |"), None),
    (dict(blocks="", phrase="red", rows="on | 0 | 2 |"), f"the node's own inputs: {NO_BLOCKS}"),
    (dict(rows="on | 0 | 2 |"), None),
    (dict(rows=""), None),
    (dict(blocks="", rows=""), NO_BLOCKS),
    (
        dict(mode="residual", rows="on | last | 2 | red"),
        "row 1: a residual boost of the last block does nothing: no later block reads its text",
    ),
]


@pytest.mark.parametrize(("given", "text"), IDLE)
def test_rows_that_do_nothing_are_named_on_the_node(made, shown, given, text):
    text_boost(made, **given, unique_id="4")
    assert shown == ({} if text is None else {"4": text})


WRONG = [
    (dict(rows="on | 0 | 2 |\non | 40 | 2 |"), "row 2: block 40 does not exist. This model has blocks"),
    (dict(rows="on | x | 2 |"), "row 1: 'x' cannot be read as blocks"),
    (dict(rows="on | 0 | 10.5 |"), "row 1: strength 10.5. Write one from 0 to 10"),
    (dict(rows="on | 0 | -1 |"), "row 1: strength -1. Write one from 0 to 10"),
    (dict(rows="on | 0:11 | 1 |"), "row 1: block 0 has strength 11. Write one from 0 to 10"),
    (
        dict(rows="on | 0 | 2 |\non | 0 | 2 | red", branch="negative"),
        "row 2: a phrase is set, .*Set branch",
    ),
    (dict(rows="maybe | 0 | 2 |"), "row 1: 'maybe' is neither on nor off. Write on or off, blocks"),
    (dict(rows=3), "3 is not a text"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_what_is_wrong_with_a_row_is_an_error_of_the_row(made, given, words):
    with pytest.raises(ValueError, match=f"^TextBoost: rows: {words}"):
        text_boost(made, **given)


def test_a_boost_that_cancels_is_refused_in_a_row(bench):
    cross = Bench.make(bench.module, "Anima")
    given = dict(mode="attention", phrase="", blocks="")
    with pytest.raises(ValueError, match="^TextBoost: rows: row 2: in this model's cross-attention .*Set mode"):
        text_boost(cross, **given, rows="off | 0 | 3 |\non | 0 | 3 |")
    text_boost(cross, **given, rows="off | 0 | 3 |\non | 0 | 1 |")


def test_a_phrase_that_the_prompt_lacks_is_an_error_of_its_row(case):
    bench, conds = case
    first = text_boost(bench, phrase="red", rows="on | 0 | 2 | circle")
    for fade in ("constant", "in"):
        model = text_boost(bench, first, fade=fade, rows="on | 0 | 2 | red\non | 0 | 2 | yellow")
        with pytest.raises(ValueError, match="^TextBoost: rows: row 2: .*yellow.*Write whole words of the prompt"):
            sample(bench, guider(model, conds), STEPS)
    with pytest.raises(ValueError, match="^TextBoost: part: "):
        sample(bench, guider(text_boost(bench, blocks="", part="t5", rows="on | 0 | 2 |"), conds), STEPS)


def test_equal_rows_are_equal_for_the_run_cache_and_other_rows_are_not(made):
    fingerprint = made.of("comfyui.fingerprint").fingerprint
    patching = made.of("comfyui.patching")

    def key(rows):
        return fingerprint(patching.attached(text_boost(made, rows=rows)))

    assert key("on | 0 | 2 | red") == key("on|0|2|red")
    assert key("on | 0 | 2 | red") != key("on | 0 | 2 | circle")
