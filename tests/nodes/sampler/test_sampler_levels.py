"""FlowMatchingSampler's sigmas, custom ones and those by image size; its summary and its curve."""

from __future__ import annotations

import json
import math

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import pytest
import torch

from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.schedules import sigmas
from mmdit_core.flow.sigma import flux_mu
from mmdit_core.flow.window import Window
from mmdit_core.solvers import SOLVERS

LEVELS = [1.0, 0.93, 0.71, 0.3, 0.0]


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


def hosts_euler(bench, levels, latent=None, cfg=3.0):
    latent = latent if latent is not None else bench.empty()
    noise = comfy.sample.prepare_noise(latent["samples"], 5)
    return comfy.sample.sample_custom(
        bench.model, noise, cfg, comfy.samplers.sampler_object("euler"), torch.tensor(levels), bench.positive,
        bench.negative, latent["samples"], seed=5, disable_pbar=True,
    )  # fmt: skip


def test_custom_sigmas_are_used_as_text_and_as_a_link(bench):
    theirs = hosts_euler(bench, LEVELS)
    written = bench.run(custom_sigmas="1, 0.93, 0.71, 0.3, 0")
    linked = bench.run(sigmas=torch.tensor(LEVELS))
    assert error(written, theirs) <= 1e-5 and error(linked, theirs) <= 1e-5
    # In place of steps, schedule and denoise, and without a shift of its own.
    other = bench.run(sigmas=torch.tensor(LEVELS), steps=9, schedule="karras", denoise=0.5)
    assert torch.equal(other, linked)


@pytest.mark.parametrize("name", comfy.samplers.SCHEDULER_NAMES)
def test_comfyuis_schedulers_can_be_linked(bench, name):
    levels = custom_sampler.BasicScheduler.execute(bench.model, name, 6, 1.0).result[0]
    assert torch.isfinite(bench.run(sigmas=levels)).all()


def test_sigmas_split_by_splitsigmas_give_the_whole_run(bench):
    levels = torch.tensor(LEVELS)
    high, low = custom_sampler.SplitSigmas.execute(levels, 2).result
    half = bench.all(sigmas=high, solver="dpmpp_2m")[0]
    assert error(bench.run(half, sigmas=low, solver="dpmpp_2m"), bench.run(sigmas=levels, solver="dpmpp_2m")) <= 1e-5


def test_no_sigmas_mean_that_nothing_is_run(bench):
    latent = {"samples": bench.latent}
    for levels in (torch.zeros(0), torch.tensor([0.5])):
        assert bench.all(latent, sigmas=levels)[0] is latent


def test_a_list_with_a_shift_moves_percent_windows_alone(bench):
    given = dict(custom_sigmas="1, 0.9, 0.6, 0.3, 0")
    assert torch.equal(bench.run(shift=1.0, **given), bench.run(**given))
    calls = [bench.facts(cfg_end=0.5, shift=shift, **given)["calls"]["negative_rows"] for shift in (0.1, 1.0, 9.0)]
    assert calls == [4, 3, 1]  # half of the sampling ends at sigma 0.09, 0.5 and 0.9


def test_fluxs_rule_shifts_by_the_number_of_tokens(bench):
    # The tiny model's patches are 2 x 2: a latent of 24 x 20 has 120 tokens.
    latent = bench.empty(size=(24, 20))
    facts = bench.facts(latent, size_shift="flux", steps=4)
    shift = math.exp(flux_mu(120))
    assert facts["shift"] == pytest.approx(shift, abs=1e-6)
    assert facts["sigmas"] == pytest.approx(sigmas(4, "linear", shift).tolist(), abs=1e-6)
    assert torch.equal(
        bench.run(latent, size_shift="flux", shift=7.0), bench.run(latent, size_shift="flux")
    )  # in its place
    assert error(bench.run(latent, size_shift="flux"), bench.run(latent, shift=shift)) <= 1e-6


def test_sd3s_rule_scales_with_the_square_root_of_the_pixels(bench):
    facts = bench.facts(size_shift="sd3", steps=4)  # 64 x 64 pixels, a sixteenth of 1024 a side
    assert facts["shift"] == pytest.approx(3 / 16)
    assert bench.facts(size_shift="sd3", shift=2.0, steps=4)["shift"] == pytest.approx(2 / 16)
    assert bench.facts(steps=4)["shift"] == 3 and not bench.model.object_patches


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_reported_calls_are_those_of_the_model(bench, solver):
    with bench.rows() as rows:
        facts = bench.facts(solver=solver, steps=5, cfg_end=0.6, tolerance=0.1)
    calls = facts["calls"]
    assert (calls["model"], calls["positive_rows"]) == (len(rows), len(rows))
    assert calls["positive_rows"] + calls["negative_rows"] == sum(rows)
    each = facts["calls_per_step"]
    if each is not None:  # the last step, to sigma 0, may take one call
        assert each * 4 + 1 <= calls["model"] <= each * 5 + 1


def test_a_batch_counts_its_images(bench):
    calls = bench.facts(bench.empty(3), steps=4)["calls"]
    assert (calls["model"], calls["positive_rows"], calls["negative_rows"]) == (4, 12, 12)


def test_the_summary_reports_what_ran(bench):
    controls = [
        BlockControl("skip", (1,), branch="negative", window=Window(end=0.5)),
        BlockControl("boost", (0,), strength=1.5),
    ]
    model = bench.attach(bench.model, controls)
    summary = bench.all(model=model, steps=4, solver="heun", guidance="rescale", cfg_end=0.75, shift=2.0)[2]
    for line in (
        "Model: tiny-sd35.safetensors (MMDiTBase), blocks joint 0-1",
        "Control: skip, blocks 1, negative, from 0% to 50% of the sampling",
        "Control: boost x1.5 (residual), blocks 0\n",
        "Solver: heun, 2 model calls a step",
        "Schedule: linear, shift 2 (as set)",
        "Sigmas: 1, 0.8571, 0.6667, 0.4, 0",
        "Steps: 4",
        "Guidance: cfg 3 as rescale 0.7, from 0% to 75% of the sampling",
        "Noise: seed 5",
    ):
        assert line in summary, summary
    lines = summary.splitlines()
    assert sum(line.startswith("Skipped: ") for line in lines) == 2 and "block calls" in summary
    assert any(line.startswith("Time: ") and " s a step" in line for line in lines)
    assert max(map(len, lines)) < 120
    boosted = bench.attach(bench.model, controls[1:])
    assert "block calls" not in bench.all(model=boosted, steps=2)[2], "nothing is skipped by a boost"


def test_the_facts_are_plain_json_with_nothing_missing(bench):
    for changed in ({}, {"cfg": 1.0}, {"solver": "dopri5"}, {"reuse": True}, {"end_step": 2}):
        facts = bench.facts(**changed)
        assert json.loads(json.dumps(facts, allow_nan=False)) == facts
        assert facts["seconds"]["total"] > 0


def test_without_metadata_to_write_to_it_runs_all_the_same(bench):
    assert torch.isfinite(bench.all(unique_id="3", extra_pnginfo=None)[0]["samples"]).all()


def dark(curve, colour) -> torch.Tensor:
    """Where a drawing has a colour, [H, W]."""
    wanted = torch.tensor([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return ((curve[0] - wanted).abs() < 0.02).all(-1)


def test_the_curve_shows_when_guidance_and_controls_act(bench):
    plot, canvas = bench.module("plots.line_plot"), bench.module("plots.canvas")
    summary = bench.module("sampler.report")
    skip = BlockControl("skip", (1,), window=Window(0.5))
    model = bench.attach(bench.model, [skip])
    plain, both = bench.all(steps=8)[1], bench.all(steps=8, model=model, cfg_end=0.5)[1]
    assert plain.dtype == torch.float32 and 0 <= plain.min() and plain.max() <= 1 and plain.shape[-1] == 3
    assert both.shape[1] > plain.shape[1]  # a band more
    left, right = plot.LEFT + plot.INSET, both.shape[2] - plot.MARGIN - plot.INSET
    skipping = dark(both, canvas.ACTION_COLOURS["skip"]).any(0).nonzero().flatten()
    guided = dark(both, summary.GREY)[-100:].any(0).nonzero().flatten()
    middle = (left + right) / 2
    assert abs(skipping.min() - middle) <= 2 and abs(skipping.max() - right) <= 2
    assert abs(guided.max() - middle) <= 2
    assert not dark(plain, canvas.ACTION_COLOURS["skip"]).any()


def test_blocks_are_written_as_the_grammar_reads_them(bench):
    from mmdit_core.control.grammar import parse_blocks

    text = bench.module("sampler.report").blocks_text
    assert text((3, 4, 5, 9)) == "3-5, 9" and text(()) == "none"
    for blocks in [(0,), (1, 2), (0, 2, 3, 7)]:
        assert parse_blocks(text(blocks), 24) == blocks
