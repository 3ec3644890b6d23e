"""SpeedPlan in ComfyUI: what FlowMatchingSampler and KSampler compute with it, and that nothing outlives its run."""

from __future__ import annotations

import comfy.hooks
import comfy.model_management as management
import comfy.model_patcher
import comfy.samplers
import comfy_extras.nodes_easycache
import pytest
import torch
from comfy_extras.nodes_slg import SkipLayerGuidanceDiTSimple

import nodes as comfyui_nodes
from mmdit_core.caching.plans import PLANS


@pytest.fixture(scope="module")
def step_cache(bench):
    """ComfyUI's side of the node."""
    return bench.module("comfyui.step_cache")


def ksampler(bench, model, *, sampler="euler", steps=6, cfg=3.0, batch=1, positive=None, negative=None, seed=5):
    texts = positive or bench.positive, negative or bench.negative
    latent = bench.empty(batch)
    return comfyui_nodes.KSampler().sample(model, seed, steps, cfg, sampler, "simple", *texts, latent)[0]["samples"]


def cached(bench, step_cache, model=None, node_id=None, **fields):
    # The pack's own class: it is another one than that of a plain import.
    patching = bench.module("comfyui.patching")
    return patching.attach(model or bench.model, [patching.StepCache(**fields)], node_id)


def error(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


SAMPLERS = {"ours": lambda bench, model, **given: bench.run(model=model, **given), "theirs": ksampler}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_each_field_computes_its_fraction_of_rows_and_leaves_the_model_as_it_was(bench, step_cache, sampler):
    plain = sampler(bench, bench.model)
    for fields, rows in (
        ({}, [2] * 6),
        ({"uncond_every": 2}, [2, 1] * 3),
        ({"uncond_every": 3}, [2, 1, 1] * 2),
        ({"every": 2}, [2] * 3),
        ({"every": 2, "uncond_every": 3}, [2, 1, 1]),
        ({"uncond_every": 2, "warmup": 0.5}, [2, 2, 2, 2, 1, 2]),
        ({"every": 4, "warmup": 0.3, "tail": 0.8}, [2, 2, 2, 2]),
    ):
        with bench.rows() as seen:
            made = sampler(bench, cached(bench, step_cache, **fields))
        assert seen == rows, fields
        assert torch.equal(made, plain) == (fields == {}), fields
        assert torch.equal(sampler(bench, cached(bench, step_cache, **fields)), made), fields
    assert torch.equal(sampler(bench, bench.model), plain)


def test_the_last_computed_difference_is_reused_in_the_next_steps(bench, step_cache):
    """Against the same written out: a denoiser of two predictions, the second made of the first in odd steps."""
    kept = {}

    def by_hand(args):
        sigma = args["timestep"].reshape(-1, 1, 1, 1)
        number = kept["number"] = kept.get("number", -1) + 1
        if number % 2 == 0:
            kept["difference"] = (args["cond"] - args["uncond"]) / sigma
        return args["cond"] + (args["cond_scale"] - 1) * kept["difference"] * sigma

    model = bench.model.clone()
    model.set_model_sampler_cfg_function(by_hand)
    expected = ksampler(bench, model)
    made = ksampler(bench, cached(bench, step_cache, uncond_every=2, order=0))
    assert error(made, expected) < 1e-5 and error(made, ksampler(bench, bench.model)) > 1e-4


@pytest.mark.parametrize(
    ("sampler", "rows"),
    [
        ("heun", [2, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1]),
        ("dpm_2", [2, 2, 1, 1, 2, 2, 1, 1, 2, 2, 1]),
        ("dpmpp_2m", [2, 1, 2, 1, 2, 1]),
        ("euler_ancestral", [2, 1, 2, 1, 2, 1]),
    ],
)
def test_comfyuis_samplers_of_several_calls_are_treated_step_by_step(bench, step_cache, sampler, rows):
    model = cached(bench, step_cache, uncond_every=2)
    with bench.rows() as seen:
        made = ksampler(bench, model, sampler=sampler)
    assert seen == rows
    assert error(made, ksampler(bench, bench.model, sampler=sampler)) < 0.2 and made.isfinite().all()


@pytest.mark.parametrize("solver", ["heun", "midpoint", "dopri5", "dpmpp_2m"])
def test_our_solvers_save_about_half_of_the_negatives(bench, step_cache, solver):
    facts = bench.facts(model=cached(bench, step_cache, uncond_every=2), solver=solver, steps=8)
    plan, calls = facts["speed_plan"], facts["calls"]
    assert calls["positive_rows"] == plan["cond"] == plan["predictions"]
    assert calls["negative_rows"] == plan["uncond"] < 0.75 * plan["predictions"]


def test_the_summary_and_the_node_tell_what_was_saved(bench, step_cache, said):
    model = cached(bench, step_cache, node_id="3", every=2, uncond_every=3)
    facts = bench.facts(model=model)
    assert facts["speed_plan"] == {
        "predictions": 6, "cond": 3, "uncond": 1, "extrapolated": 3, "reused": 5, "without_uncond": 0, "other": 0,
        "work": pytest.approx(1 / 3),
    }  # fmt: skip
    assert facts["calls"]["model"] == 3
    assert "computed in 1 of 6" in said[-1] and "33% of all predictions computed" in said[-1]
    written = bench.all(model=model)[2]
    assert "by the speed plan 5 negative and 3 positive of 6 predictions, which saves 67%" in written
    assert bench.facts()["speed_plan"] is None


def test_at_cfg_1_there_is_nothing_to_save_but_whole_steps(bench, step_cache, said):
    model = cached(bench, step_cache, node_id="3", uncond_every=4)
    assert torch.equal(bench.run(model=model, cfg=1.0), bench.run(cfg=1.0))
    assert said == ["100% of all predictions computed\ncfg is 1: there is no negative prompt to compute"]
    with bench.rows() as seen:
        bench.run(model=cached(bench, step_cache, every=2), cfg=1.0)
    assert seen == [1] * 3


def test_it_keeps_to_the_samplers_own_window(bench, step_cache):
    with bench.rows() as seen:
        bench.run(model=cached(bench, step_cache, uncond_every=2), cfg_start=0.5)
    assert seen == [1, 1, 1, 2, 2, 1]  # the first in the window has nothing to extrapolate from


@pytest.mark.parametrize("guidance", ["rescale", "cfg_zero_star", "apg"])
def test_other_forms_of_guidance_take_what_it_gives(bench, step_cache, guidance):
    plain = bench.run(guidance=guidance)
    made = bench.run(guidance=guidance, model=cached(bench, step_cache, uncond_every=2))
    assert 0 < error(made, plain) < 0.2
    alone = bench.run(guidance=guidance, model=cached(bench, step_cache, uncond_every=2), cfg_end=0.0)
    assert error(alone, bench.run(cfg=1.0)) < 1e-5


def test_areas_masks_and_several_prompts_take_part(bench, step_cache):
    half = [[bench.positive[0][0], {**bench.positive[0][1], "area": (4, 8, 0, 0), "strength": 1.0}]]
    masked = [[bench.negative[0][0], {**bench.negative[0][1], "mask": torch.ones(1, 8, 8) * 0.5, "mask_strength": 1.0}]]
    prompts = bench.positive + half + masked
    plain = ksampler(bench, bench.model, positive=prompts)
    with bench.rows() as seen:
        ksampler(bench, bench.model, positive=prompts)
    whole = sum(seen)
    with bench.rows() as seen:
        made = ksampler(bench, cached(bench, step_cache, uncond_every=2), positive=prompts)
    assert sum(seen) < whole and 0 < error(made, plain) < 0.2


def test_a_prompt_that_ends_within_the_run_is_not_extrapolated_across(bench, step_cache):
    def until(end, text):
        return [[text[0][0], {**text[0][1], "start_percent": 0.0, "end_percent": end}]]

    changing = until(0.4, bench.negative) + [
        [bench.positive[0][0], {**bench.negative[0][1], "start_percent": 0.4, "end_percent": 1.0}]
    ]
    with bench.rows() as seen:
        ksampler(bench, cached(bench, step_cache, uncond_every=6), negative=changing)
    assert [rows for rows in seen if rows > 1] != [2], "only the first step's negative was computed"


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("window", [{}, {"timestep_start": 0.7}, {"timestep_end": 0.5}])
def test_a_prompt_acts_where_comfyui_lets_it_act(step_cache, sigma, window):
    entry = {**window, "model_conds": {}, "uuid": 1}
    acts = comfy.samplers.get_area_and_mult(entry, torch.zeros(1, 4, 8, 8), torch.tensor([sigma])) is not None
    assert step_cache._holds(sigma, window.get("timestep_start"), window.get("timestep_end")) == acts


def test_prompts_with_hooks_are_computed_each_time(bench, step_cache):
    hooks = comfy.hooks.HookGroup()
    hooks.add(comfy.hooks.TransformerOptionsHook(transformers_dict={}))
    hooked = [[bench.negative[0][0], {**bench.negative[0][1], "hooks": hooks}]]
    with bench.rows() as seen:
        made = ksampler(bench, cached(bench, step_cache, every=2, uncond_every=2), negative=hooked)
    with bench.rows() as usual:
        plain = ksampler(bench, bench.model, negative=hooked)
    assert seen == usual and torch.equal(made, plain)


def test_another_nodes_guidance_gets_both_predictions(bench, step_cache):
    seen = []

    def theirs(args):
        seen.append((args["cond"] - args["uncond"]).norm().item())
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    model = bench.model.clone()
    model.set_model_sampler_cfg_function(theirs)
    made = ksampler(bench, cached(bench, step_cache, model=model, uncond_every=2))
    assert len(seen) == 6 and min(seen) > 0
    assert error(made, ksampler(bench, cached(bench, step_cache, uncond_every=2))) < 1e-5


def test_a_node_that_makes_the_predictions_itself_is_left_to_do_so(bench, step_cache, said):
    model = bench.model.clone()
    model.model_options["sampler_calc_cond_batch_function"] = lambda args: comfy.samplers._calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )
    made = ksampler(bench, cached(bench, step_cache, model=model, node_id="3", uncond_every=2))
    assert torch.equal(made, ksampler(bench, model))
    assert said == ["everything was computed: another node makes the predictions itself"]


def test_what_another_node_requests_is_computed_and_counted(bench, step_cache, said):
    model = SkipLayerGuidanceDiTSimple.execute(bench.model, 0.0, 1.0, double_layers="0").result[0]
    with bench.rows() as seen:
        ksampler(bench, cached(bench, step_cache, model=model, node_id="3", every=2))
    computed, percent = sum(seen), int(said[-1].split("%")[0])
    assert percent == round(100 * computed / 12) and "cfg is 1" not in said[-1], said
    assert "6 predictions that another node requested, all computed" in said[-1]


def test_prompts_that_are_requested_again_with_a_block_skipped_stay_separate(bench, step_cache):
    """A node's guidance may request both prompts of a step once more, with hooks on the model."""

    def repeated(model, found):
        def look(args):
            options = args["model_options"].copy()
            for block in (0, 1):
                options = comfy.model_patcher.set_model_options_patch_replace(
                    options, lambda given, _: given, "dit", "double_block", block
                )
            weak = comfy.samplers.calc_cond_batch(args["model"], args["conds"], args["input"], args["sigma"], options)
            found.append(error(weak[0], args["conds_out"][0]))
            return args["conds_out"]

        clone = model.clone()
        clone.model_options["sampler_pre_cfg_function"] = [look]
        return clone

    found: list[float] = []
    plan = cached(bench, step_cache, every=2)
    assert torch.equal(ksampler(bench, repeated(plan, found)), ksampler(bench, plan))
    assert len(found) == 6 and min(found) > 1e-3


def test_an_image_of_a_batch_is_what_it_is_alone(bench, step_cache):
    model = cached(bench, step_cache, every=2, uncond_every=2)
    together = bench.run(bench.empty(2), model=model, batch_noise="per image")
    alone = bench.run(bench.empty(1), model=model, batch_noise="per image")
    assert error(together[:1], alone) < 1e-5


def test_two_samplers_of_one_graph_and_other_sizes_share_nothing(bench, step_cache):
    model = cached(bench, step_cache, every=2, uncond_every=2)
    first = ksampler(bench, model)
    ksampler(bench, model, batch=2, seed=9)
    bench.run(bench.empty(1, (8, 12)), model=model)
    assert torch.equal(ksampler(bench, model), first)
    options = model.model_options["transformer_options"]
    run = bench.module("comfyui.patching").RUN
    assert run not in options and run not in bench.model.model_options["transformer_options"]


@pytest.mark.parametrize("trouble", [management.InterruptProcessingException, RuntimeError])
def test_a_run_that_is_cancelled_or_fails_leaves_nothing_behind(bench, step_cache, trouble):
    model = cached(bench, step_cache, every=2, uncond_every=2)
    whole = ksampler(bench, model)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 2:
            raise trouble("stopped")

    handle = bench.model.model.diffusion_model.x_embedder.register_forward_hook(stop)
    try:
        with pytest.raises(trouble):
            ksampler(bench, model)
    finally:
        handle.remove()
    assert torch.equal(ksampler(bench, model), whole)


def test_comfyuis_easycache_saves_more_on_top_of_it(bench, step_cache):
    def with_easycache(model):
        return comfy_extras.nodes_easycache.EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False).result[0]

    def cost(model):
        with bench.rows() as seen:
            made = ksampler(bench, model, steps=12)
        return sum(seen), made

    plain, _ = cost(bench.model)
    theirs, _ = cost(with_easycache(bench.model))
    plan = cached(bench, step_cache, uncond_every=2)
    ours, _ = cost(plan)
    for both in (with_easycache(plan), cached(bench, step_cache, model=with_easycache(bench.model), uncond_every=2)):
        together, made = cost(both)
        assert together < ours < plain and theirs < plain and made.isfinite().all()


def test_easycache_leaves_the_latent_alone_that_comfyui_goes_on_with(bench):
    """It reuses the velocity minus the latent: compared with the same written out, in float32."""
    kept, levels = {}, []

    def by_hand(apply_model, given):
        x, sigma = given["input"], given["timestep"].reshape(-1, 1, 1, 1)
        levels.append(float(sigma.max()))
        if len(levels) % 2 and len(levels) > 1:
            return x - sigma * (x + kept["difference"])
        denoised = apply_model(x, given["timestep"], **given["c"])
        kept["difference"] = (x - denoised) / sigma - x
        return denoised

    class Every2nd(comfy_extras.nodes_easycache.EasyCacheHolder):
        """Reuses in every second step, whatever it measures."""

        def should_do_easycache(self, sigmas):
            self.calls = getattr(self, "calls", 0) + 1
            self.skip_current_step = self.calls % 2 == 1 and self.calls > 1
            return True

        def clone(self):
            return type(self)(0.0, 0.0, 1.0, 8, False, False, self.output_channels)

    assert bench.model.model.get_dtype_inference() == torch.float32
    model = comfy_extras.nodes_easycache.EasyCacheNode.execute(bench.model, 0.2, 0.0, 1.0, False).result[0]
    options = model.model_options["transformer_options"]
    options["easycache"] = Every2nd(0.0, 0.0, 1.0, 8, False, False, 16)
    made = ksampler(bench, model)
    expected = bench.model.clone()
    expected.set_model_unet_function_wrapper(by_hand)
    assert error(made, ksampler(bench, expected)) < 1e-4


def test_block_controls_act_in_what_is_still_computed(bench, step_cache):
    skip = bench.module("control").BlockSkip()
    skip = skip.apply(bench.model, blocks="0", branch="negative", start_percent=0.0, end_percent=1.0)[0]
    facts = bench.facts(model=cached(bench, step_cache, model=skip, uncond_every=2))
    # 6 positive and 3 negative predictions of 2 blocks, of which a negative one skips one.
    assert (facts["block_calls"]["total"], facts["block_calls"]["skipped"]) == (18, 3)


def test_a_block_control_that_begins_or_ends_is_computed_at_once(bench, step_cache):
    boost = bench.module("control").TextBoost()
    given = dict(strength=2.0, mode="attention", phrase="", part="all", branch="both", fade="constant")
    model = boost.apply(bench.model, blocks="0", start_percent=1 / 6, end_percent=0.5, **given)[0]
    facts = bench.facts(model=cached(bench, step_cache, model=model, every=6))
    assert facts["speed_plan"]["cond"] == 3  # the first step, and where the boost begins and ends


def test_a_controlnet_that_begins_or_ends_is_computed_at_once(step_cache):
    class Net:
        def __init__(self, timestep_range, previous=None):
            self.timestep_range, self.previous_controlnet = timestep_range, previous

    chain = Net((1.0, 0.5), Net((0.7, 0.0), Net(None)))
    assert [step_cache._active_controlnets(chain, sigma) for sigma in (0.9, 0.7, 0.5, 0.4)] == [2, 3, 3, 2]
    assert step_cache._active_controlnets(None, 0.5) == 0


def test_reuse_of_the_last_run_is_off_and_says_why(bench, step_cache):
    model = cached(bench, step_cache, uncond_every=2)
    written = bench.all(model=model, reuse=True)[2]
    assert "Reuse: not possible, SpeedPlan extrapolates from the predictions of earlier steps" in written
    off, _ = bench.module("caching").SpeedPlan().apply(model, "1x (off)")
    step_cache_of = bench.module("comfyui.patching").step_cache_of
    assert step_cache_of(off) is None and step_cache_of(model) is not None
    assert "not possible" not in bench.all(model=off, reuse=True)[2]


def test_a_second_plan_takes_the_place_of_the_first(bench, step_cache):
    first = cached(bench, step_cache, uncond_every=4)
    second = cached(bench, step_cache, model=first, every=2)
    assert torch.equal(ksampler(bench, second), ksampler(bench, cached(bench, step_cache, every=2)))
    assert bench.module("comfyui.patching").step_cache_of(first).uncond_every == 4


def test_an_inversion_stays_exact(bench, step_cache):
    model = cached(bench, step_cache, every=2, uncond_every=2)
    invert = bench.module("invert").FlowInvert().invert
    latent = {"samples": bench.latent}
    (plain,) = invert(bench.model, bench.positive, latent, 6, "leapfrog", 0.0)
    (made,) = invert(model, bench.positive, latent, 6, "leapfrog", 0.0)
    assert torch.equal(made["samples"], plain["samples"])


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.speedup:g}x")
def test_the_node_reaches_what_it_promises(bench, plan):
    node = bench.module("caching").SpeedPlan()
    model, words = node.apply(bench.model, f"{plan.speedup:g}x")
    facts = bench.facts(model=model, steps=28)
    assert 1 / facts["speed_plan"]["work"] >= plan.speedup
    rows = facts["calls"]["positive_rows"] + facts["calls"]["negative_rows"]
    assert rows / 56 == pytest.approx(facts["speed_plan"]["work"])
    assert f"up to {1 / plan.step_cache.work(28):.2f} times as fast" in words
    assert "Measured on this model" not in words  # the bench's model is another one than the costs are of


def test_off_is_the_plain_run_bit_for_bit_and_an_unknown_choice_is_refused(bench):
    node = bench.module("caching").SpeedPlan()
    model, words = node.apply(bench.model, "1x (off)")
    assert torch.equal(bench.run(model=model), bench.run()) and words == "Off: everything is computed."
    with pytest.raises(ValueError, match=r"SpeedPlan: speedup: '9x' is unknown. Choose one of 1x \(off\), 1.2x"):
        node.apply(bench.model, "9x")
