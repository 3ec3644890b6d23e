"""What depends on the whole schedule, soft masks and speed plans, gives in two samplers the run in one piece."""

from __future__ import annotations

import comfy.patcher_extension
import pytest
import torch
from comfy_extras.nodes_custom_sampler import SplitSigmas
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

import nodes as host_nodes
from mmdit_core.flow.schedules import sigmas


def in_parts(bench, latent, cuts, **inputs):
    ends = [0, *cuts, 10_000]
    for start, end in zip(ends, ends[1:], strict=False):
        latent = bench.all(latent, start_step=start, end_step=end, **inputs)[0]
    return latent["samples"]


def soft(bench):
    return {"samples": bench.latent, "noise_mask": torch.linspace(0, 1, 64).expand(1, 1, 64, 64).clone()}


def with_soft_mask(model, strength=1.0):
    return DifferentialDiffusion.execute(model, strength).result[0]


def with_plan(bench, model=None, speedup="2x"):
    return bench.module("caching").SpeedPlan().apply(model or bench.model, speedup)[0]


def cached(bench, model=None, **fields):
    patching = bench.module("comfyui.patching")
    return patching.attach(model or bench.model, [patching.StepCache(**fields)])


@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "heun", "euler_ancestral"])
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_a_soft_mask_in_two_halves_is_the_whole_run(bench, steps, solver, strength):
    inputs = dict(steps=steps, solver=solver, model=with_soft_mask(bench.model, strength))
    whole = bench.run(soft(bench), **inputs)
    assert torch.equal(in_parts(bench, soft(bench), [steps // 2], **inputs), whole)
    assert torch.equal(in_parts(bench, soft(bench), [1, steps - 1], denoise=0.6, **inputs), bench.run(
        soft(bench), denoise=0.6, **inputs
    ))  # fmt: skip
    assert not torch.equal(whole, bench.run(soft(bench), steps=steps, solver=solver))


@pytest.mark.parametrize("speedup", ["1.2x", "1.5x", "2x", "2.5x", "3x"])
@pytest.mark.parametrize("cuts", [[14], [5, 15]])
def test_a_speed_plan_in_parts_is_the_whole_run_at_the_same_work(bench, speedup, cuts):
    inputs = dict(steps=28, model=with_plan(bench, speedup=speedup))
    with bench.rows() as rows:
        whole = bench.run(**inputs)
    with bench.rows() as parts:
        made = in_parts(bench, bench.empty(), cuts, **inputs)
    assert torch.equal(made, whole) and parts == rows


def prompts(bench):
    (left,) = host_nodes.ConditioningSetArea().append(bench.positive, 32, 64, 0, 0, 1.0)
    (late,) = host_nodes.ConditioningSetTimestepRange().set_range(bench.negative, 0.3, 1.0)
    return {"positive": [*bench.positive, *left, *late], "negative": late}


@pytest.mark.parametrize("fields", [{"every": 2}, {"uncond_every": 3}, {"every": 3, "uncond_every": 2, "order": 0}])
@pytest.mark.parametrize("solver", ["euler", "heun", "ab3", "dpmpp_2m_sde"])
@pytest.mark.parametrize("with_prompts", [False, True])
def test_stored_predictions_go_on_in_the_second_half(bench, fields, solver, with_prompts):
    skip = bench.module("control").BlockSkip()
    skip = skip.apply(bench.model, blocks="0", branch="negative", start_percent=0.4, end_percent=0.8)[0]
    texts = prompts(bench) if with_prompts else {}
    inputs = dict(steps=7, solver=solver, model=cached(bench, skip, **fields), **texts)
    whole = bench.run(bench.empty(2), **inputs)
    for cuts in ([1], [3], [2, 5]):
        assert torch.equal(in_parts(bench, bench.empty(2), cuts, **inputs), whole), cuts


def test_a_soft_mask_and_a_speed_plan_together_and_with_a_shift(bench):
    inputs = dict(steps=14, shift=1.7, model=with_plan(bench, with_soft_mask(bench.model)))
    assert torch.equal(in_parts(bench, soft(bench), [7], **inputs), bench.run(soft(bench), **inputs))


def test_the_way_back_from_an_inversion_in_two_halves_follows_the_whole_soft_mask(bench):
    model = with_soft_mask(bench.model)
    up = bench.module("invert").FlowInvert().invert(model, bench.positive, soft(bench), 6, "leapfrog", 0)[0]
    inputs = dict(solver="leapfrog", cfg=1.0, model=model)
    made = in_parts(bench, up, [3], **inputs)
    assert torch.equal(made, bench.run(up, **inputs))
    assert ((made - bench.latent).abs().max() / bench.latent.std()).item() < 1e-4


def test_a_half_may_be_continued_many_times(bench):
    """Stored predictions are copied out of the LATENT: a run adds nothing to them."""
    inputs = dict(steps=7, model=cached(bench, every=3))
    half = bench.all(end_step=2, **inputs)[0]
    first = bench.run(half, start_step=2, **inputs)
    assert torch.equal(bench.run(half, start_step=2, **inputs), first)
    resume = bench.module("comfyui.run.resume")
    points = [point for item in half[resume.KEY].stored.values() for point in item.cond.points]
    assert len(points) == 1 and all(value.device.type == "cpu" for _, value in points)


@pytest.mark.parametrize("change", ["prompt", "model", "nothing"])
def test_predictions_of_another_prompt_or_model_are_not_used(bench, change):
    inputs = dict(steps=6, model=cached(bench, every=2))
    half = bench.all(end_step=3, **inputs)[0]
    boost = bench.module("control").TextBoost()
    given = dict(strength=1.5, mode="attention", phrase="", part="all", branch="both", fade="constant")
    boosted = boost.apply(inputs["model"], blocks="0", start_percent=0.0, end_percent=1.0, **given)[0]
    changed = {"prompt": {"positive": bench.negative}, "model": {"model": boosted}, "nothing": {}}[change]
    with bench.rows() as rows:
        bench.run(half, start_step=3, **{**inputs, **changed})
    # Step 3 would be extrapolated; step 4 is computed in any case, and step 5 is extrapolated.
    assert rows == ([2] if change == "nothing" else [2, 2])


def test_other_nodes_read_the_whole_schedule(bench):
    seen = []

    def look(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        seen.append(tuple(transformer_options["sample_sigmas"].tolist()))
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    model = bench.model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, look)
    in_parts(bench, bench.empty(), [3], model=model)
    assert set(seen) == {tuple(sigmas(6, "linear", 3.0).float().tolist())}


def test_a_start_step_on_an_image_keeps_its_own_part_of_the_schedule(bench):
    """No earlier run is known, so the mask begins with the first step that is run, as in KSampler (Advanced)."""
    model = with_soft_mask(bench.model)
    given = dict(cfg=3.0, sampler_name="euler", scheduler="normal", positive=bench.positive, negative=bench.negative)
    theirs = host_nodes.KSamplerAdvanced().sample(
        model, add_noise="enable", noise_seed=5, steps=6, latent_image=soft(bench), start_at_step=2, end_at_step=99,
        return_with_leftover_noise="disable", **given,
    )[0]["samples"]  # fmt: skip
    ours = bench.run(soft(bench), schedule="sd3", start_step=2, model=model)
    assert ((ours - theirs).abs().max() / theirs.std()).item() <= 1e-5


def test_a_schedule_that_was_split_before_the_samplers_is_said(bench):
    high, low = SplitSigmas.execute(sigmas(6, "linear", 3.0).float(), 3).result
    for model, latent, what in (
        (with_soft_mask(bench.model), soft(bench), "the soft mask"),
        (with_plan(bench), bench.empty(), "the speed plan"),
    ):
        half, _, first = bench.all(latent, sigmas=high, model=model)
        assert f"Parts: the schedule ends at sigma 0.75, and so did {what}. To split a run" in first
        assert "Parts:" not in bench.all(half, sigmas=low, model=model)[2]
    assert "Parts:" not in bench.all(sigmas=high)[2]


def test_what_another_sampler_does_not_know_is_said(bench):
    model = with_plan(bench, with_soft_mask(bench.model))
    half, _, first = bench.all(soft(bench), end_step=3, model=model)
    does = "leaves noise outside the mask, and begins the soft mask and the speed plan again"
    assert f"Parts: continue with Flow Matching Sampler. KSampler (Advanced) {does}" in first
    second = bench.all({"samples": half["samples"]}, start_step=3, add_noise="disable", model=with_plan(bench))[2]
    assert "Parts: the steps of another sampler are not known: the speed plan began with this one's" in second
    assert "Parts:" not in bench.all(soft(bench), model=model)[2]
