"""A run split over several samplers is the whole run: start_step, end_step, and the resume state in the LATENT."""

from __future__ import annotations

import comfy.sample
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nodes as host_nodes
from mmdit_core.flow.schedules import SCHEDULES
from mmdit_core.solvers import SOLVERS

ADAPTIVE = ("bosh3", "dopri5")  # they choose their own steps, so that an end on the way makes other ones
STEPWISE = [name for name in SOLVERS if name not in ADAPTIVE]


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


def in_parts(bench, latent, cuts, second=None, **inputs):
    """The run over one sampler for each part; `second` are inputs of all but the first."""
    ends = [0, *cuts, 10_000]
    for number, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        changed = {**inputs, **(second or {})} if number else inputs
        latent = bench.all(latent, start_step=start, end_step=end, **changed)[0]
    return latent


def masked(bench):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    return {"samples": bench.latent, "noise_mask": mask}


@pytest.mark.parametrize("solver", STEPWISE)
def test_two_halves_are_the_whole_for_every_solver(bench, solver):
    whole = bench.run(solver=solver)
    halves = in_parts(bench, bench.empty(), [3], solver=solver)
    assert error(halves["samples"], whole) <= 1e-5
    assert set(halves) == {"samples"}  # a finished run leaves no mark


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    solver=st.sampled_from(STEPWISE),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(3, 6),
    kind=st.sampled_from(["empty", "picture", "mask", "batch"]),
    inputs=st.sampled_from(
        [
            {},
            {"cfg": 1.0},
            {"cfg_start": 0.3, "cfg_end": 0.7},
            {"guidance": "apg", "cfg_curve": "falling"},
            {"guidance": "cfg_zero_star", "zero_steps": 2},
            {"shift": 1.0, "denoise": 0.6},
            {"batch_noise": "per image", "variation_strength": 0.4},
        ]
    ),
    data=st.data(),
)
def test_parts_are_the_whole(bench, solver, schedule, steps, kind, inputs, data):
    latent = {
        "empty": bench.empty(),
        "picture": {"samples": bench.latent},
        "mask": masked(bench),
        "batch": bench.empty(2),
    }[kind]
    cuts = sorted(data.draw(st.sets(st.integers(0, steps), min_size=1, max_size=2)))
    given = dict(solver=solver, schedule=schedule, steps=steps, **inputs)
    assert error(in_parts(bench, latent, cuts, **given)["samples"], bench.run(latent, **given)) <= 1e-5


def test_a_multistep_solver_continues_with_its_history(bench):
    """Without it the second half would begin again at first order: that is another image."""
    whole = bench.run(solver="dpmpp_2m")
    half = bench.all(solver="dpmpp_2m", end_step=3)[0]
    forgetful = {"samples": half["samples"]}
    second = dict(solver="dpmpp_2m", start_step=3)
    assert error(bench.run(half, **second), whole) <= 1e-5
    assert error(bench.run(forgetful, add_noise="disable", **second), whole) > 1e-4


def test_outside_a_mask_both_halves_keep_the_first_image(bench):
    latent = masked(bench)
    made = in_parts(bench, latent, [3])["samples"]
    assert torch.allclose(made[..., :3], bench.latent[..., :3], atol=1e-4)


def test_the_second_samplers_seed_changes_no_deterministic_run(bench):
    """The noise is already there: another seed in the second sampler changes a deterministic run in nothing."""
    whole = bench.run()
    assert error(in_parts(bench, bench.empty(), [3], {"seed": 77})["samples"], whole) <= 1e-5
    stochastic = dict(solver="euler_ancestral")
    other = in_parts(bench, bench.empty(), [3], {"seed": 77}, **stochastic)["samples"]
    assert error(other, bench.run(**stochastic)) > 0.1


def test_another_solver_may_continue_a_run(bench):
    mixed = in_parts(bench, bench.empty(), [3], {"solver": "heun"}, solver="ab4")["samples"]
    assert error(mixed, bench.run()) < 0.2


def host_advanced(bench, latent, **changed):
    given = dict(
        add_noise="enable",
        noise_seed=5,
        steps=6,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        start_at_step=0,
        end_at_step=10_000,
        return_with_leftover_noise="disable",
    )
    texts = dict(positive=bench.positive, negative=bench.negative, latent_image=latent)
    return host_nodes.KSamplerAdvanced().sample(bench.model, **texts, **{**given, **changed})[0]


def test_ksampler_advanced_continues_our_first_half_and_we_continue_its(bench):
    whole = bench.run(schedule="sd3")
    ours = bench.all(schedule="sd3", end_step=3)[0]
    after = host_advanced(bench, ours, add_noise="disable", start_at_step=3)
    assert error(after["samples"], whole) <= 1e-5
    theirs = host_advanced(bench, bench.empty(), end_at_step=3, return_with_leftover_noise="enable")
    assert error(bench.run(theirs, schedule="sd3", start_step=3, add_noise="disable"), whole) <= 1e-5


def test_a_start_step_on_a_finished_image_adds_the_noise_of_that_step(bench):
    latent = {"samples": bench.latent}
    theirs = host_advanced(bench, latent, start_at_step=2)["samples"]
    assert error(bench.run(latent, schedule="sd3", start_step=2), theirs) <= 1e-5


def test_a_resume_state_is_valid_for_its_own_samples_only(bench):
    """ComfyUI's nodes carry a LATENT's other keys along; what a sampler made of it is an image like any other."""
    half = bench.all(end_step=3)[0]
    resume = bench.module("comfyui.run.resume")
    assert resume.resume_state(half) is not None and resume.changed_since(half) is None
    done = host_advanced(bench, half, add_noise="disable", start_at_step=3)
    assert resume.KEY in done and resume.resume_state(done) is None and resume.changed_since(done) is None
    plain = {"samples": done["samples"]}
    assert torch.equal(bench.run(done, start_step=2), bench.run(plain, start_step=2))
    (upscaled,) = host_nodes.LatentUpscale().upscale(half, "nearest-exact", 96, 96, "disabled")
    (taken,) = host_nodes.LatentFromBatch().frombatch(bench.all(bench.empty(2), end_step=3)[0], 1, 1)
    for changed in (upscaled, taken):
        assert resume.resume_state(changed) is None and resume.changed_since(changed).sigma == 0.75


def test_noise_may_be_added_to_an_unfinished_latent(bench):
    half = bench.all(end_step=3)[0]
    plain = {"samples": half["samples"]}
    assert torch.equal(bench.run(half, start_step=3, add_noise="enable"), bench.run(plain, start_step=3))


def test_a_resume_state_at_sigma_1_replaces_the_noise(bench):
    """As FlowInvert hands it on: no noise is added, whatever the seed."""
    resume = bench.module("comfyui.run.resume")
    noise = comfy.sample.prepare_noise(bench.empty()["samples"], 5)
    start = resume.ResumeState(samples=noise, sigma=1.0, x=noise, noise=noise, image=bench.empty()["samples"])
    latent = {"samples": noise, resume.KEY: start}
    assert torch.equal(bench.run(latent, seed=123), bench.run(seed=5))


@pytest.mark.parametrize(("start", "end"), [(3, 3), (5, 2), (6, 10_000), (9_000, 10_000), (0, 0)])
def test_no_steps_leave_the_latent_as_it_is(bench, start, end):
    half = bench.all(end_step=3)[0]
    latent, curve, summary = bench.all(half, start_step=start, end_step=end)
    assert latent is half and curve.ndim == 4 and summary.startswith("Nothing was run")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"start_step": 2}, "start_step: the latent comes from a run that ended at sigma .* and step 2 is at"),
        ({"start_step": 3, "steps": 9}, "start_step: the latent comes from a run .* Give both samplers the same"),
        ({}, "start_step: the latent comes from a run that ended at sigma 0.75, and step 0 is at 1"),
        ({"add_noise": "disable"}, "add_noise: without noise there is nothing to start from at step 0, sigma 1"),
    ],
)
def test_parts_that_do_not_fit_are_named(bench, changed, words):
    half = bench.all(end_step=3)[0]
    with pytest.raises(ValueError, match=f"FlowMatchingSampler: {words}"):
        bench.run(half, **changed)


def test_the_summary_reports_remaining_noise_and_a_continued_run(bench):
    half, _, first = bench.all(end_step=3)
    second = bench.all(half, start_step=3)[2]
    assert "Steps: 0 to 3 of 6" in first and "the rest of it stays in the latent" in first
    assert "Steps: 3 to 6 of 6" in second and "continues an earlier run" in second
