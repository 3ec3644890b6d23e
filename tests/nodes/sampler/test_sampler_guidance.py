"""FlowMatchingSampler's guidance: its window, forms and curve, and that the negative is really not computed outside."""

from __future__ import annotations

import comfy.samplers
import comfy_extras.nodes_easycache
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_slg
import pytest
import torch

from mmdit_core.guidance.cfg import CURVES

FORMS = ("cfg", "rescale", "cfg_zero_star", "apg")


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize(
    ("start", "end", "rows"),
    [
        (0.0, 1.0, [2, 2, 2, 2]),
        (0.25, 0.5, [1, 2, 1, 1]),
        (0.5, 1.0, [1, 1, 2, 2]),
        (0.0, 0.5, [2, 2, 1, 1]),
        (0.5, 0.5, [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_outside_its_window_the_negative_is_not_computed(bench, start, end, rows, shift):
    # linear takes even steps of the percent, whatever the shift: windows are resolved on the shifted model.
    with bench.rows() as seen:
        facts = bench.facts(steps=4, cfg_start=start, cfg_end=end, shift=shift)
    assert seen == rows
    assert facts["calls"]["positive_rows"] == 4 and facts["calls"]["negative_rows"] == rows.count(2)
    assert facts["calls"]["without_negative"] == rows.count(1)


def test_the_saved_work_is_reported(bench):
    summary = bench.all(steps=4, cfg_end=0.5)[2]
    assert "Skipped: the negative prompt in 2 of 4 predictions, which saves 25% of the model's work" in summary
    assert "Model calls: 4; images in them: 4 positive, 2 negative" in summary
    assert "Skipped" not in bench.all(steps=4)[2]


def test_at_cfg_1_the_negative_is_skipped_and_reported(bench):
    summary = bench.all(steps=4, cfg=1.0)[2]
    assert "Guidance: none: at cfg 1 the negative prompt is not computed" in summary
    assert "4 positive, 0 negative" in summary and "saves 50% of the model's work" in summary


def test_two_windows_of_one_run_equal_comfyuis_guider_with_two_scales(bench):
    """Steps with cfg, then steps at cfg 1: the same as ComfyUI's euler with its scale changed by hand."""
    guider = comfy.samplers.CFGGuider(bench.model)
    guider.set_conds(bench.positive, bench.negative)

    def euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            guider.set_cfg(3.0 if step < 2 else 1.0)
            denoised = model(x, sigma * x.new_ones(len(x)), **extra_args)
            x = x + (following - sigma) * (x - denoised) / sigma
        return x

    noise = comfy.sample.prepare_noise(bench.empty()["samples"], 5)
    levels = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    theirs = guider.sample(
        noise, bench.empty()["samples"], comfy.samplers.KSAMPLER(euler), levels, disable_pbar=True, seed=5
    )
    assert error(bench.run(steps=4, cfg_end=0.5), theirs) <= 1e-5


def test_every_form_differs_and_none_changes_the_input_model(bench):
    pictures = {form: bench.run(guidance=form) for form in FORMS}
    for form, picture in pictures.items():
        assert torch.isfinite(picture).all()
        assert [other for other in FORMS if torch.equal(pictures[other], picture)] == [form]
    assert bench.model.model_options == {"transformer_options": {}}


def test_at_cfg_1_every_form_gives_the_same_image(bench):
    plain = bench.run(cfg=1.0)
    for form in FORMS[1:]:
        assert error(bench.run(cfg=1.0, guidance=form), plain) <= 1e-5


def test_rescale_is_off_at_0_and_reduces_the_spread_at_1(bench):
    plain, flat = bench.run(cfg=8.0), bench.run(cfg=8.0, guidance="rescale", rescale=1.0)
    assert error(bench.run(cfg=8.0, guidance="rescale", rescale=0.0), plain) <= 1e-5
    assert flat.std() < 0.9 * plain.std()


def by_hand(form):
    """The papers' formulas on ComfyUI's arguments: "cond" and "uncond" are sigma * velocity there."""

    def cfg_function(args):
        ahead, back, scale = args["cond"], args["uncond"], args["cond_scale"]
        if form == "cfg_zero_star":
            back = back * (ahead * back).sum() / (back * back).sum()
            return back + scale * (ahead - back)
        if form == "rescale":
            guided = back + scale * (ahead - back)
            return 0.7 * guided * ahead.std() / guided.std() + 0.3 * guided
        data = args["cond_denoised"]
        step = data - args["uncond_denoised"]
        across = step - (step * data).sum() / (data * data).sum() * data
        return args["input"] - (data + (scale - 1) * across)

    return cfg_function


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_form_equals_its_papers_formula(bench, form):
    patched = bench.model.clone()
    patched.set_model_sampler_cfg_function(by_hand(form))
    assert error(bench.run(guidance=form), bench.run(model=patched)) <= 1e-4


def test_zero_steps_keep_x_and_do_not_call_the_model(bench):
    with bench.rows() as seen:
        rested = bench.run(steps=6, guidance="cfg_zero_star", zero_steps=2)
    assert len(seen) == 4
    assert error(rested, bench.run(steps=6, guidance="cfg_zero_star")) > 1e-3
    assert torch.equal(bench.run(steps=6, zero_steps=2), bench.run(steps=6))  # of cfg_zero_star alone


@pytest.mark.parametrize("curve", [name for name in CURVES if name != "constant"])
def test_a_curve_spends_less_guidance_than_a_constant(bench, curve):
    curved = bench.run(cfg=6.0, cfg_curve=curve)
    assert error(curved, bench.run(cfg=6.0)) > 1e-3 and error(curved, bench.run(cfg=1.0)) > 1e-3
    with bench.rows() as seen:
        bench.run(steps=4, cfg=6.0, cfg_curve=curve, cfg_start=0.25, cfg_end=0.75)
    # The window holds two steps; a rising curve begins at scale 1, where the negative plays no part.
    assert seen == ([1, 1, 2, 1] if "rising" in curve else [1, 2, 2, 1])


def test_guidance_of_other_nodes_still_acts(bench):
    """Skip-layer guidance adds its own prediction after ours, in our forms and windows too."""
    (skipping,) = comfy_extras.nodes_slg.SkipLayerGuidanceDiT.execute(
        bench.model, 3.0, 0.0, 1.0, double_layers="1"
    ).result
    for changed in ({}, {"guidance": "apg"}, {"cfg_end": 0.5}):
        assert error(bench.run(model=skipping, **changed), bench.run(**changed)) > 1e-2
    facts = bench.facts(model=skipping, steps=4)
    assert facts["calls"]["positive_rows"] == 8 and facts["calls"]["negative_rows"] == 4


def test_calls_that_another_nodes_cache_answers_are_not_counted(bench):
    (cached,) = comfy_extras.nodes_easycache.EasyCacheNode.execute(bench.model, 3.0, 0.0, 1.0, False).result
    with bench.rows() as rows:
        calls = bench.facts(model=cached, steps=12)["calls"]
    assert len(rows) < 12 and (calls["model"], calls["positive_rows"]) == (len(rows), len(rows))
    assert calls["positive_rows"] + calls["negative_rows"] == sum(rows)


def test_another_nodes_cfg_function_is_used_and_never_replaced_silently(bench):
    (theirs,) = comfy_extras.nodes_model_advanced.RescaleCFG().patch(bench.model, 0.7)
    assert error(bench.run(model=theirs), bench.run()) > 1e-3
    with pytest.raises(ValueError, match="FlowMatchingSampler: guidance: 'apg' would replace another node's"):
        bench.run(model=theirs, guidance="apg")


def test_a_window_that_ends_before_it_starts_is_named(bench):
    with pytest.raises(ValueError, match="FlowMatchingSampler: cfg_end: 0.2 is before cfg_start, 0.5"):
        bench.run(cfg_start=0.5, cfg_end=0.2)
