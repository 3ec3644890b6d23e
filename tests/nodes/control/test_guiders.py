"""Whatever guides, a control of the positive branch acts on the list named positive alone, `negative` likewise."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_perpneg as perpneg
import pytest
import torch

from tests.nodes.control.rows_bench import (
    CFG,
    NAMES,
    ROUNDING,
    SIGMAS,
    alone,
    attached,
    controls,
    guider,
    prompts,
    sample,
    single,
)
from tests.nodes.families.oracles import Bench, difference
from tests.nodes.families.tiny import FAMILIES as TINY
from tests.nodes.families.tiny import build

FAMILIES = ("SD3", "FLUX.1 dev", "Z-Image")


@pytest.fixture(scope="module", params=FAMILIES)
def case(bench, request):
    """A tiny model and its prompts."""
    made = Bench.make(bench.module, request.param, batch=2)
    return made, prompts(made)


@pytest.fixture(params=NAMES)
def control(case, request):
    return controls(case[0])[request.param]


def third(bench, prompt, control):
    """The prediction of a prompt that is neither the positive nor the negative one."""
    return single(bench, prompt, 2, control)


def test_basic_guider(case, control):
    bench, conds = case
    made = custom.Guider_Basic(attached(bench, control))
    made.set_conds(conds["positive"])
    assert difference(sample(bench, made), single(bench, conds["positive"], 0, control)) <= ROUNDING


@pytest.mark.parametrize("nested", [False, True])
def test_dual_cfg_guider(case, control, nested):
    bench, conds = case
    made = custom.Guider_DualCFG(attached(bench, control))
    made.set_conds(conds["positive"], conds["third"], conds["negative"])
    made.set_cfg(2.0, 3.0, nested=nested)
    cond = single(bench, conds["positive"], 0, control)
    middle = third(bench, conds["third"], control)
    uncond = single(bench, conds["negative"], 1, control)
    if nested:
        right = uncond + 3.0 * (middle + 2.0 * (cond - middle) - uncond)
    else:
        right = uncond + 3.0 * (middle - uncond) + 2.0 * (cond - middle)
    assert difference(sample(bench, made), right) <= ROUNDING


def test_perp_neg_guider(case, control):
    """Perp-Neg's formula is not linear, so it is given the denoised latents of the single predictions."""
    bench, conds = case
    made = perpneg.Guider_PerpNeg(attached(bench, control))
    made.set_conds(conds["positive"], conds["negative"], conds["third"])
    made.set_cfg(CFG, 1.0)
    ours = sample(bench, made)
    ends = [single(bench, conds["positive"], 0, control), single(bench, conds["negative"], 1, control)]
    ends.append(third(bench, conds["third"], control))
    x = bench.model.model.model_sampling.noise_scaling(
        torch.tensor(SIGMAS[0]),
        torch.randn(ours.shape, generator=torch.Generator().manual_seed(5)),
        torch.zeros(ours.shape),
        False,
    )
    into, out = bench.model.model.process_latent_in, bench.model.model.process_latent_out
    scale = 1 - SIGMAS[1]  # of ComfyUI's inverse noise scaling
    ratio = SIGMAS[1] / SIGMAS[0]
    denoised = [(into(end) * scale - ratio * x) / (1 - ratio) for end in ends]
    guided = perpneg.perp_neg(x, *denoised, 1.0, CFG)
    assert difference(ours, out((ratio * x + (1 - ratio) * guided) / scale)) <= 5 * ROUNDING


class CopyingGuider(comfy.samplers.CFGGuider):
    """A guider of another pack, with new lists of copied entries in each step."""

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        cond, uncond = ([dict(entry) for entry in self.conds[name]] for name in ("positive", "negative"))
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, uncond, cond, self.cfg, model_options=model_options, seed=seed
        )


def test_a_guider_with_new_lists_in_each_step(case, control):
    bench, conds = case
    made = CopyingGuider(attached(bench, control))
    made.set_conds(conds["positive"], conds["negative"])
    made.set_cfg(CFG)
    cond, uncond = single(bench, conds["positive"], 0, control), single(bench, conds["negative"], 1, control)
    assert difference(sample(bench, made), uncond + CFG * (cond - uncond)) <= ROUNDING


class NamedGuider(comfy.samplers.CFGGuider):
    """A guider of another pack, with names of its own."""

    def set_conds(self, first, second):
        self.inner_set_conds({"first": first, "second": second})

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        conds = [self.conds["second"], self.conds["first"]]
        second, first = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        return second + self.cfg * (first - second)


def test_a_guider_with_other_names_is_refused_before_the_first_step(case, control):
    bench, conds = case
    made = NamedGuider(attached(bench, control))
    made.set_conds(conds["positive"], conds["negative"])
    made.set_cfg(CFG)
    if control.branch == "both" and control.branches != (0,):
        cond, uncond = alone(bench, conds["positive"], control), alone(bench, conds["negative"], control)
        assert difference(sample(bench, made), uncond + CFG * (cond - uncond)) <= ROUNDING
    else:
        with pytest.raises(ValueError, match="the guider has no prompt of the name (posi|nega)tive: it has first, sec"):
            sample(bench, made)


def with_post_cfg(model, function):
    """A clone of a MODEL with a function after guidance."""
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(function)
    return clone


@pytest.mark.parametrize(("asked", "branch"), [("uncond", 1), ("cond", 0)])
def test_a_prediction_of_one_of_the_guiders_lists_alone(case, control, asked, branch):
    """As self-attention guidance and skip-layer guidance request them."""
    bench, conds = case

    def add(args):
        (extra,) = comfy.samplers.calc_cond_batch(
            args["model"], [args[asked]], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 0.5 * (extra - args["cond_denoised"])

    made = guider(with_post_cfg(attached(bench, control), add), conds)
    cond, uncond = single(bench, conds["positive"], 0, control), single(bench, conds["negative"], 1, control)
    extra = (cond, uncond)[branch]
    assert difference(sample(bench, made), uncond + CFG * (cond - uncond) + 0.5 * (extra - cond)) <= ROUNDING


def test_a_prediction_of_a_conditioning_of_the_nodes_own(case, control):
    bench, conds = case

    def add(args):
        own = [{**entry, "uuid": object(), "model_conds": dict(entry["model_conds"])} for entry in args["uncond"]]
        text = own[0]["model_conds"]["c_crossattn"]
        own[0]["model_conds"]["c_crossattn"] = text._copy_with(conds["third"][0][0])
        (extra,) = comfy.samplers.calc_cond_batch(
            args["model"], [own], args["input"], args["sigma"], args["model_options"]
        )
        return args["denoised"] + 0.5 * (extra - args["cond_denoised"])

    made = guider(with_post_cfg(attached(bench, control), add), conds)
    if control.branch != "both" or control.branches == (0,):
        with pytest.raises(ValueError, match="conditionings that are not the guider's own"):
            sample(bench, made)
    else:
        cond, uncond = alone(bench, conds["positive"], control), alone(bench, conds["negative"], control)
        extra = alone(bench, conds["third"], control)
        assert difference(sample(bench, made), uncond + CFG * (cond - uncond) + 0.5 * (extra - cond)) <= ROUNDING


@pytest.mark.parametrize("known", [True, False])
def test_a_call_of_the_model_without_the_samplers_function(case, control, known):
    """A node that calls `apply_model` by itself: the prompt is known by its text, or refused with words."""
    bench, conds = case

    def add(args):
        text, x = conds["negative" if known else "third"][0], args["input"]
        made = args["uncond"][0]["model_conds"]
        given = {name: value.process_cond(batch_size=len(x), area=None).cond for name, value in made.items()}
        given["c_crossattn"] = text[0].repeat(len(x), 1, 1)
        options = {**args["model_options"]["transformer_options"]}
        extra = args["model"].apply_model(x, args["sigma"], **given, transformer_options=options)
        return args["denoised"] + 0.5 * (extra - args["cond_denoised"])

    made = guider(with_post_cfg(attached(bench, control), add), conds)
    of_branch = control.branch != "both" or control.branches == (0,)
    if of_branch and not known:
        with pytest.raises(ValueError, match="does not say whose rows they are"):
            sample(bench, made)
    else:
        cond, uncond = single(bench, conds["positive"], 0, control), single(bench, conds["negative"], 1, control)
        extra = uncond if known else alone(bench, conds["third"], control)
        assert difference(sample(bench, made), uncond + CFG * (cond - uncond) + 0.5 * (extra - cond)) <= ROUNDING


@pytest.mark.parametrize("family", FAMILIES)
def test_a_guider_with_a_second_model_for_the_negative_prompt(bench, family):
    """ComfyUI gives the second model the options of the first, so controls act on it, too."""
    made = Bench.make(bench.module, family)
    conds, given = prompts(made), controls(made)
    for name in NAMES:
        two = custom.Guider_DualModel(attached(made, given[name]), build(TINY[family])[0])
        two.set_conds(conds["positive"], conds["negative"])
        two.set_cfg(CFG)
        cond, uncond = single(made, conds["positive"], 0, given[name]), single(made, conds["negative"], 1, given[name])
        assert difference(sample(made, two), uncond + CFG * (cond - uncond)) <= ROUNDING


def test_a_second_model_with_other_blocks_is_refused(bench):
    made = Bench.make(bench.module, "FLUX.1 dev")
    smaller = replace(TINY["FLUX.1 dev"], config={**TINY["FLUX.1 dev"].config, "depth": 1})
    conds = prompts(made)
    two = custom.Guider_DualModel(attached(made, controls(made)["skip negative"]), build(smaller)[0])
    two.set_conds(conds["positive"], conds["negative"])
    two.set_cfg(CFG)
    with pytest.raises(ValueError, match=r"the guider has a second model of 3 \(.*\) blocks, the first has 4"):
        sample(made, two)


def test_a_wrapper_without_a_key_is_of_another_node(case):
    bench, conds = case
    control = controls(bench)["skip negative"]
    model = attached(bench, control)
    model.add_wrapper("apply_model", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    cond, uncond = single(bench, conds["positive"], 0, control), single(bench, conds["negative"], 1, control)
    assert difference(sample(bench, guider(model, conds)), uncond + CFG * (cond - uncond)) <= ROUNDING
