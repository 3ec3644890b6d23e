"""What nodes say after a run is what ran, with the guider's names; and every error names a node's input."""

from __future__ import annotations

import comfy_extras.nodes_custom_sampler as custom
import node_helpers
import pytest
import torch

from tests.nodes.control.rows_bench import attached, controls, guider, prompts, sample
from tests.nodes.families.oracles import Bench

STEPS = (1.0, 0.6, 0.0)


@pytest.fixture(scope="module")
def case(bench):
    made = Bench.make(bench.module, "FLUX.1 dev")
    return made, prompts(made)


@pytest.fixture
def shown(case, monkeypatch):
    """What is shown on nodes, by their id."""
    texts: dict[str, str] = {}
    messages = case[0].of("comfyui.frontend.messages")
    monkeypatch.setattr(messages, "show_text", lambda node, text: texts.__setitem__(node, text))
    return texts


def node(bench, name, model=None, **given):
    """A block node applied with the id 7."""
    window = dict(start_percent=0.0, end_percent=1.0)
    return getattr(bench.of("control"), name)().apply(model or bench.model, unique_id="7", **given, **window)[0]


def skip(bench, blocks="0", branch="negative", **given):
    return node(bench, "BlockSkip", blocks=blocks, branch=branch, preset="none", **given)


def test_a_negative_control_at_cfg_1_says_that_there_is_no_negative_prediction(case, shown):
    bench, conds = case
    sample(bench, guider(skip(bench), conds, 1.0), STEPS)
    assert shown["7"] == "cfg is 1: there is no negative prediction"
    sample(bench, guider(skip(bench), conds), STEPS)
    assert shown["7"] == "skipped 2 of 16 block calls, 12.5%"
    disable = node(bench, "TextDisable", blocks="0", scope="block", branch="negative")
    sample(bench, guider(disable, conds, 1.0), STEPS)
    assert shown["7"] == "cfg is 1: there is no negative prediction"


def test_a_negative_prompt_that_its_range_leaves_out_is_told_from_cfg_1(case, shown):
    bench, conds = case
    late = node_helpers.conditioning_set_values(conds["negative"], {"start_percent": 0.99, "end_percent": 1.0})
    sample(bench, guider(skip(bench), {**conds, "negative": late}), STEPS)
    assert shown["7"] == "the negative prompt was left out of every step by its timestep range"


def test_a_guider_without_a_negative_prompt_says_so(case, shown):
    bench, conds = case
    made = custom.Guider_Basic(skip(bench))
    made.set_conds(conds["positive"])
    sample(bench, made, STEPS)
    assert shown["7"] == "the guider has no negative prompt: there is nothing to act on"


def test_all_blocks_skipped_on_both_branches_is_a_warning(case, shown):
    bench, conds = case
    warning = "all blocks were skipped: the image does not depend on the prompt"
    both = skip(bench, blocks="all", branch="both")
    assert "all blocks are skipped" in shown["7"]
    sample(bench, guider(both, conds), STEPS)
    assert shown["7"] == f"skipped 16 of 16 block calls, 100.0%\n{warning}"
    skip(bench, blocks="all", branch="negative", model=skip(bench, blocks="all", branch="positive"))
    assert "all blocks are skipped" in shown["7"]
    shown.clear()
    skip(bench, blocks="all", branch="negative")
    assert not shown


def test_a_block_prompt_says_how_much_more_and_not_that_nothing_was_skipped(case, shown):
    bench, conds = case
    model = node(bench, "BlockPrompt", conditioning=bench.prompt(2), blocks="0-1")
    sample(bench, guider(model, conds), STEPS)
    assert shown["7"] == "4 block calls more than 16, for a block prompt"
    counts = bench.of("comfyui.run.state").BlockCallCount
    assert str(counts(16, 2, 4)) == "skipped 2 of 16 block calls, 12.5%; 4 block calls more than 16, for a block prompt"


@pytest.mark.parametrize("wrapped", [False, True])
def test_rows_are_counted_by_the_guiders_names(case, wrapped):
    bench, conds = case
    made, runs = attached(bench, controls(bench)["skip both"]), []

    def look(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        runs.append(bench.of("comfyui.patching").run_of(executor.class_obj.model_options["transformer_options"]))
        return out

    made.add_wrapper_with_key("outer_sample", "test", look)
    if wrapped:
        made.set_model_unet_function_wrapper(
            lambda apply, args: apply(args["input"], args["timestep"], **args["c"])  # as it is
        )
    dual = custom.Guider_DualCFG(made)
    dual.set_conds(conds["positive"], conds["third"], conds["negative"])
    dual.set_cfg(2.0, 3.0)
    sample(bench, dual, STEPS)
    assert dict(runs[0].calls.rows) == {"positive": 2, "middle": 2, "negative": 2}


ERRORS = [
    ("BlockSkip", "branch", "BlockSkip: branch: why. Set branch to both, or remove the other node, or this one"),
    ("TextDisable", "branch", "TextDisable: branch: why. Set branch to both, or remove"),
    ("TextBoost", "branch", "TextBoost: branch: why. Set branch to both, or remove"),
    ("BlockPrompt", "branch", "BlockPrompt: model: why. Remove the other node, or this one"),
    ("TextBoost", "phrases", "TextBoost: phrase: why. Write whole words of the prompt"),
    *((name, "blocks", f"{name}: model: why. Block controls need the model") for name in ("BlockSkip", "TextBoost")),
    *((name, "model", f"{name}: model: why. Connect one of SD3") for name in ("TextDisable", "BlockPrompt")),
]


@pytest.mark.parametrize(("name", "field", "words"), ERRORS)
def test_an_error_while_sampling_names_the_nodes_input(case, name, field, words):
    control, module = case[0].control("skip", (0,), branch="negative"), case[0].of("control")
    error = getattr(module, name).word_error(module.ControlError(control, field, "why"))
    assert isinstance(error, module.InputError) and str(error).startswith(words)


def test_a_phrase_whose_rows_are_unknown_is_an_error_of_the_phrase(case):
    module = case[0].of("control")
    control = case[0].control("boost", (0,), 2.0, phrases=("red",))
    error = module.TextBoost.word_error(module.ControlError(control, "branch", "why"))
    assert str(error).startswith("TextBoost: phrase: why. Empty the phrase and set branch to both, or remove")


def test_every_field_of_a_control_error_is_worded(case):
    """All that the code raises is in the table."""
    import re
    from pathlib import Path

    root = Path(__file__).parents[3]
    files = [*(root / "mmdit_core").rglob("*.py"), *(root / "nodes").rglob("*.py")]
    fields = {field for path in files for field in re.findall(r'ControlError\([^"\n]*?, "(\w+)"', path.read_text())}
    assert fields == set(case[0].of("control").WHILE_SAMPLING)


def test_the_nan_check_names_the_guiders_prompts(bench):
    """A reference's vectors and repeated rows do not change whose row it is."""
    made = Bench.make(bench.module, "Qwen-Image-Edit-2511", batch=2)
    check, names = made.of("comfyui.run.nan_check"), ["negative", "negative", "positive", "positive"]
    key = made.of("comfyui.patching").ROW_NAMES
    vec = torch.zeros(8, 5)
    for row, found in ((1, "negative"), (2, "positive"), (5, "negative"), (7, "positive")):
        bad = vec.clone()
        bad[row] = torch.nan
        args = {"transformer_options": {key: names}, "vec": bad, "img": torch.zeros(4, 3, 5)}
        assert check._bad_prompts(args, ("img", "vec"), args) == {found}
    args = {"transformer_options": {key: names}, "img": torch.full((3, 2), torch.nan)}
    assert check._bad_prompts(args, ("img",), args) == {"negative", "positive"}
