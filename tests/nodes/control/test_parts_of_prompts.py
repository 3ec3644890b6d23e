"""Prompts in part of the sampling, in areas and masks, several, with hooks, by default, in context windows."""

from __future__ import annotations

import threading

import comfy.context_windows
import comfy.hooks
import comfy.multigpu
import node_helpers
import pytest
import torch

from tests.nodes.control.rows_bench import (
    ROUNDING,
    SIGMAS,
    apart,
    apply_wrapper,
    attached,
    controls,
    function_wrapper,
    guider,
    one_by_one,
    prompts,
    sample,
)
from tests.nodes.families.oracles import Bench, difference
from tests.nodes.families.tiny import FAMILIES as TINY
from tests.nodes.families.tiny import build

FAMILIES = ("SD3", "Z-Image")
NAMES = ("skip negative", "boost positive", "phrase", "disable negative", "prompt")
STEPS = (1.0, 0.3, 0.0)


def with_values(prompt, **values):
    return node_helpers.conditioning_set_values(prompt, values)


def in_range(prompt, start, end):
    return with_values(prompt, start_percent=start, end_percent=end)


def in_area(prompt, *area):
    return with_values(prompt, area=area, strength=0.8, set_area_to_bounds=False)


def masked(prompt):
    mask = torch.zeros(1, 7, 9)
    mask[:, 2:, :5] = 1.0
    return with_values(prompt, mask=mask, mask_strength=1.0, set_area_to_bounds=False)


def hooked(bench, prompt, strength):
    """A prompt whose predictions are computed with other weights."""
    name, weight = next(
        (name, value)
        for name, value in bench.model.model.named_parameters()
        if ("block" in name or "layers" in name) and value.ndim == 2 and name.endswith(".weight")
    )
    diff = torch.randn(weight.shape, generator=torch.Generator().manual_seed(8)) * 0.3
    group = comfy.hooks.create_hook_lora({f"{name.removesuffix('.weight')}.diff": diff}, strength, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(prompt, group)


def negative_in_part(bench, conds):
    return {**conds, "negative": in_range(conds["negative"], 0.0, 0.5)}


def negatives_in_turn(bench, conds):
    late = in_range(conds["third"], 0.5, 1.0)
    return {**conds, "negative": [*in_range(conds["negative"], 0.0, 0.5), *late]}


def area_of_the_positive(bench, conds):
    return {**conds, "positive": [*bench.prompt(6), *in_area(conds["positive"], 4, 4, 0, 1)]}


def area_of_the_negative(bench, conds):
    return {**conds, "negative": [*conds["third"], *in_area(conds["negative"], 4, 4, 0, 1)]}


def areas_of_both(bench, conds):
    areas = {name: in_area(conds[name], 4, 4, index, 1 - index) for index, name in enumerate(("positive", "negative"))}
    return {name: [*areas[name], *bench.prompt(6 + index)] for index, name in enumerate(areas)}


def masks(bench, conds):
    return {**conds, "positive": [*masked(conds["positive"]), *bench.prompt(6)]}


def several(bench, conds):
    return {**conds, "positive": [*bench.prompt(6, 12), *conds["positive"], *bench.prompt(8)]}


def hooks_on_the_positive(bench, conds):
    return {**conds, "positive": hooked(bench, conds["positive"], 0.5)}


def hooks_on_both(bench, conds):
    return {name: hooked(bench, conds[name], 0.5 + index) for index, name in enumerate(("positive", "negative"))}


def default(bench, conds):
    first = masked(conds["positive"])
    return {
        **conds,
        "positive": comfy.hooks.set_default_conds_and_combine([first], [bench.prompt(6)])[0],
        "negative": comfy.hooks.set_default_conds_and_combine([masked(conds["negative"])], [conds["third"]])[0],
    }


ARRANGED = {
    made.__name__: made
    for made in (
        negative_in_part,
        negatives_in_turn,
        area_of_the_positive,
        area_of_the_negative,
        areas_of_both,
        masks,
        several,
        hooks_on_the_positive,
        hooks_on_both,
        default,
    )
}


@pytest.fixture(scope="module", params=FAMILIES)
def case(bench, request):
    made = Bench.make(bench.module, request.param)
    return made, prompts(made)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arranged", ARRANGED)
def test_prompts_in_parts(case, arranged, name):
    bench, conds = case
    conds, control = ARRANGED[arranged](bench, conds), controls(bench)[name]
    ours = sample(bench, guider(attached(bench, control), conds), STEPS)
    assert difference(ours, sample(bench, apart(bench, conds, control), STEPS)) <= 2 * ROUNDING


@pytest.mark.parametrize("wrapper", [function_wrapper, apply_wrapper])
@pytest.mark.parametrize("arranged", ["areas_of_both", "several", "hooks_on_both"])
def test_prompts_in_parts_under_another_nodes_wrapper(case, arranged, wrapper):
    bench, conds = case
    conds = ARRANGED[arranged](bench, conds)
    for name in NAMES:
        control = controls(bench)[name]
        ours = sample(bench, guider(wrapper(attached(bench, control), one_by_one), conds), STEPS)
        assert difference(ours, sample(bench, apart(bench, conds, control), STEPS)) <= 2 * ROUNDING


def in_windows(model, dim, length, split=False):
    clone = model.clone()
    clone.model_options["context_handler"] = comfy.context_windows.IndexListContextHandler(
        context_schedule=comfy.context_windows.get_matching_context_schedule("standard_static"),
        fuse_method=comfy.context_windows.get_matching_fuse_method("pyramid"),
        context_length=length,
        context_overlap=1,
        dim=dim,
        split_conds_to_windows=split,
    )
    return clone


@pytest.mark.parametrize("family", ["FLUX.1 dev", "LTX-Video"])
@pytest.mark.parametrize("split", [False, True])
def test_context_windows(bench, family, split):
    made = Bench.make(bench.module, family)
    conds = several(made, prompts(made))
    latent = torch.zeros(1, 128, 5, 4, 5) if made.latent.ndim == 5 else torch.zeros(1, 16, 10, 8)
    plain = in_windows(made.model, 2, 4, split)
    for name in NAMES:
        control = controls(made)[name]
        ours = sample(made, guider(attached(made, control, model=plain), conds), STEPS, latent)
        right = sample(made, apart(made, conds, control, plain), STEPS, latent)
        assert difference(ours, right) <= 2 * ROUNDING


def test_a_phrase_acts_in_the_area_that_comfyui_copies_from_the_negative_prompt(case):
    """ComfyUI's copy of a negative area has the positive text, but the negative one's by name."""
    bench, conds = case
    implicit = area_of_the_negative(bench, conds)
    explicit = {**implicit, "positive": [*conds["positive"], *in_area(conds["positive"], 4, 4, 0, 1)]}
    phrase = attached(bench, controls(bench)["phrase"])
    ours, right = sample(bench, guider(phrase, implicit), STEPS), sample(bench, guider(phrase, explicit), STEPS)
    assert difference(ours, right) <= ROUNDING
    assert difference(ours, sample(bench, guider(bench.model, implicit), STEPS)) > 1e-3


def test_a_block_prompt_beside_references_of_two_sizes(bench):
    """They run in calls of their own with positions of their own; the block prompt's must not be reused."""
    made = Bench.make(bench.module, "Qwen-Image-Edit-2511")
    conds, control = prompts(made), controls(made)["prompt"]
    sizes = (torch.randn(1, 16, 1, 7, 9), torch.randn(1, 16, 1, 9, 12))
    texts = (conds["positive"][0][0], made.prompt(6)[0][0])
    given = [[text, {"reference_latents": [size]}] for text, size in zip(texts, sizes, strict=True)]
    model = attached(made, control)
    halves = [sample(made, guider(model, {"positive": [each], "negative": [each]}, 1.0), SIGMAS) for each in given]
    both = sample(made, guider(model, {"positive": given, "negative": given}, 1.0), SIGMAS)
    assert difference(both, sum(halves) / 2) <= ROUNDING


@pytest.mark.parametrize("family", ["SD3", "FLUX.1 dev", "Z-Image"])
def test_predictions_of_two_gpus(bench, family):
    """ComfyUI splits a batch over copies of the model, each in a thread: here two copies on the CPU."""
    made = Bench.make(bench.module, family)
    conds, (copy, _, _) = prompts(made), build(TINY[family])
    copy.model.current_patcher = copy
    for name in NAMES:
        control = controls(made)[name]
        model = attached(made, control)
        model.model.current_patcher = model
        devices = {torch.device("cpu"): model, torch.device("cpu", 0): copy}
        threads = set()

        def noting(executor, *args, threads=threads, **kwargs):
            threads.add(threading.get_ident())
            return executor(*args, **kwargs)

        model.add_wrapper_with_key("apply_model", "mmdit_test", noting)
        model.model_options["multigpu_clones"] = devices
        model.model_options["multigpu_thread_pool"] = comfy.multigpu.MultiGPUThreadPool(list(devices))
        ours = sample(made, guider(model, conds), STEPS)
        assert len(threads) == 2
        assert difference(ours, sample(made, apart(made, conds, control), STEPS)) <= 2 * ROUNDING
