"""The report of FlowMatchingSampler says what was done, not what was set."""

from __future__ import annotations

import pytest

from mmdit_core.solvers import SOLVERS

STOCHASTIC = [name for name, method in SOLVERS.items() if method.stochastic]


def noise_of(bench, latent=None, **changed):
    """The report's noise and the summary's line about it."""
    written = {}
    summary = bench.all(latent, unique_id="7", extra_pnginfo=written, **changed)[2]
    line = next(line for line in summary.splitlines() if line.startswith("Noise: "))
    return written["mmdit_sampler"]["7"]["noise"], line.removeprefix("Noise: ")


def test_no_seed_is_reported_for_noise_that_was_not_added(bench):
    noise, line = noise_of(bench, {"samples": bench.latent}, seed=3, start_step=2, add_noise="disable")
    assert line == "none added"
    assert not noise["added"] and noise["seed"] is None and noise["step_noise_seed"] is None
    noise, line = noise_of(bench, seed=3)
    assert line == "seed 3" and noise["added"] and noise["seed"] == 3


def test_a_variation_and_seeds_for_each_image_are_reported_only_with_noise(bench):
    inputs = dict(seed=3, variation_strength=0.25, variation_seed=9, batch_noise="per image")
    noise, line = noise_of(bench, bench.empty(2), **inputs)
    assert line == "seed 3 and up, one for each image, 25% of the way to seed 9"
    assert noise["per_image"] and (noise["variation_seed"], noise["variation_strength"]) == (9, 0.25)
    noise, line = noise_of(bench, {"samples": bench.latent}, start_step=2, add_noise="disable", **inputs)
    assert line == "none added"
    assert not noise["per_image"] and (noise["variation_seed"], noise["variation_strength"]) == (None, 0.0)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_noise_of_the_steps_is_reported_if_it_was_drawn(bench, solver):
    picture = {"samples": bench.latent}
    disabled = dict(solver=solver, seed=3, start_step=2, add_noise="disable")
    assert noise_of(bench, picture, **disabled)[1] == "none added, in the steps seed 3"
    assert noise_of(bench, picture, step_noise_seed=8, **disabled)[0]["step_noise_seed"] == 8
    assert noise_of(bench, picture, eta=0.0, **disabled)[1] == "none added"
    assert noise_of(bench, solver=solver, seed=3)[1] == "seed 3"
    assert noise_of(bench, solver=solver, seed=3, step_noise_seed=8)[1] == "seed 3, in the steps seed 8"
    assert noise_of(bench, seed=3, step_noise_seed=8)[0]["step_noise_seed"] is None  # euler draws none


def test_a_continued_run_reports_no_noise_of_its_own(bench):
    half = bench.all(end_step=3, seed=3)[0]
    noise, line = noise_of(bench, half, start_step=3, seed=77)
    assert line == "none added: the latent continues an earlier run"
    assert noise["goes_on"] and noise["seed"] is None


def test_guidance_that_acted_in_no_step_is_reported_as_none(bench):
    inputs = dict(steps=6, cfg_start=0.6, unique_id="7", extra_pnginfo={})
    summary = bench.all(end_step=3, **inputs)[2]
    assert "Guidance: none: cfg 3 acts from 60% to 100% of the sampling, in no step of this run" in summary
    assert "Guidance: cfg 3, from 60% to 100% of the sampling" in bench.all(**inputs)[2]


def test_steps_with_zero_velocity_are_those_of_this_run(bench):
    inputs = dict(steps=6, guidance="cfg_zero_star", zero_steps=4)
    half = bench.facts(end_step=2, **inputs)
    assert half["guidance"]["resting_steps"] == 2 and half["calls"]["model"] == 0
    assert bench.facts(**inputs)["guidance"]["resting_steps"] == 4


def test_blocks_and_predictions_of_a_step_cache_are_counted_as_they_ran(bench):
    cached, _ = bench.module("caching").SpeedPlan().apply(bench.model, "2x")
    skipping = bench.module("control").BlockSkip()
    skipping = skipping.apply(cached, blocks="1", branch="both", start_percent=0.5, end_percent=1.0)[0]
    with bench.rows() as rows:
        facts = bench.facts(model=skipping, steps=20)
    assert facts["calls"]["model"] == len(rows)
    plan, blocks = facts["speed_plan"], facts["block_calls"]
    assert plan["cond"] == facts["calls"]["positive_rows"] and plan["uncond"] == facts["calls"]["negative_rows"]
    assert plan["cond"] + plan["extrapolated"] == plan["predictions"] == facts["calls"]["predictions"] == 20
    assert blocks["total"] == 2 * (plan["cond"] + plan["uncond"]) and 0 < blocks["skipped"] < blocks["total"] / 2
