"""What Speed Plan counts: the predictions that the model made, and none of a prompt that acts in no step."""

from __future__ import annotations

import torch

import nodes as comfyui_nodes


def ksampler(bench, model, *, positive=None, negative=None):
    texts = positive or bench.positive, negative or bench.negative
    return comfyui_nodes.KSampler().sample(model, 5, 6, 3.0, "euler", "simple", *texts, bench.empty())[0]["samples"]


def cached(bench, node_id=None, **fields):
    patching = bench.module("comfyui.patching")
    return patching.attach(bench.model, [patching.StepCache(**fields)], node_id)


def ranged(text, start, end):
    return [[text[0][0], {**text[0][1], "start_percent": start, "end_percent": end}]]


def test_a_negative_that_is_absent_is_not_counted_and_changes_nothing(bench, said):
    """ComfyUI gives zeros for it. Nothing may be extrapolated from those, and the text counts what the model ran."""
    late = ranged(bench.negative, 0.5, 1.0)
    everything = cached(bench, node_id="3", every=2, warmup=1.0)
    with bench.rows() as seen:
        made = ksampler(bench, everything, negative=late)
    assert torch.equal(made, ksampler(bench, bench.model, negative=late))
    absent = seen.count(1)
    assert 0 < absent < 6
    assert said[-1].splitlines() == [
        "100% of all predictions computed",
        f"negative prompt computed in {6 - absent} of {6 - absent} predictions",
        f"{absent} times a prompt was left out by its timestep range",
    ]
    facts = bench.facts(model=cached(bench, uncond_every=2), negative=late)["speed_plan"]
    assert facts["uncond"] + facts["reused"] == 6 - facts["without_uncond"] and facts["out_of_range"] > 0
    ksampler(bench, everything, negative=ranged(bench.negative, 1.0, 1.0))
    assert said[-1] == "100% of all predictions computed\n6 times a prompt was left out by its timestep range"


def test_a_positive_that_is_absent_is_counted_as_it_ran(bench, said):
    early = ranged(bench.positive, 0.0, 0.5)
    with bench.rows() as seen:
        made = ksampler(bench, cached(bench, node_id="3", every=2, warmup=1.0), positive=early)
    assert torch.equal(made, ksampler(bench, bench.model, positive=early))
    assert f"{seen.count(1)} times a prompt was left out by its timestep range" in said[-1] and seen.count(1)
    facts = bench.facts(model=cached(bench, uncond_every=2), positive=early)
    plan, calls = facts["speed_plan"], facts["calls"]
    assert (plan["cond"], plan["uncond"]) == (calls["positive_rows"], calls["negative_rows"])
    assert plan["cond"] + plan["without_cond"] == plan["predictions"] == 6


def test_a_part_of_a_run_under_ksampler_says_that_the_plan_is_for_it_alone(bench, said):
    model = cached(bench, node_id="3", every=2)
    given = dict(add_noise="enable", noise_seed=5, steps=6, cfg=3.0, sampler_name="euler", scheduler="normal")
    texts = dict(positive=bench.positive, negative=bench.negative, latent_image=bench.empty())
    comfyui_nodes.KSamplerAdvanced().sample(
        model, **given, **texts, start_at_step=0, end_at_step=3, return_with_leftover_noise="enable"
    )
    assert said[-1].splitlines()[-1] == "the schedule ends at sigma 0.668: the plan is for this part of a run alone"
    bench.run(model=model, end_step=3)
    assert "alone" not in said[-1]  # our sampler knows the other part
