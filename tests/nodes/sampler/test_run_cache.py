"""The run cache: steps that a change does not affect are not run again; the image equals a full run, bit for bit."""

from __future__ import annotations

import gc

import comfy.model_management as management
import comfy.sd
import comfy_extras.nodes_model_advanced
import comfy_extras.nodes_slg
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.window import Window
from mmdit_core.solvers import SOLVERS


@pytest.fixture
def reusing(bench):
    """A sampler that keeps its last run, and what each of its runs cost: `again(**inputs)` -> samples, steps run."""
    node = bench.module("sampler.node").FlowMatchingSampler()

    def again(latent=None, **inputs):
        written = {}
        out = bench.all(latent, node=node, reuse=True, unique_id="1", extra_pnginfo=written, **inputs)[0]
        steps = written["mmdit_sampler"]["1"]["steps"]
        return out["samples"], steps["last"] - steps["first"] - steps["reused"]

    again.node = node
    return again


def controlled(bench, *controls):
    return bench.attach(bench.model, list(controls))


def boost(start=0.0, end=1.0, strength=1.5, fade="constant", **more):
    return BlockControl("boost", (0,), strength=strength, window=Window(start, end, fade), **more)


def test_a_boost_from_40_percent_on_runs_60_percent_of_the_steps(bench, reusing):
    plain, cost = reusing(steps=10)
    assert cost == 10
    model = controlled(bench, boost(0.4))
    with bench.rows() as rows:
        boosted, cost = reusing(steps=10, model=model)
    assert cost == 6 and len(rows) == 6
    assert torch.equal(boosted, bench.run(steps=10, model=model)) and not torch.equal(boosted, plain)
    stronger = controlled(bench, boost(0.4, strength=2.0))
    made, cost = reusing(steps=10, model=stronger)
    assert cost == 6 and torch.equal(made, bench.run(steps=10, model=stronger))
    made, cost = reusing(steps=10)
    assert cost == 0 and torch.equal(made, plain)


@pytest.mark.parametrize(
    ("first", "then", "cost"),
    [
        ({}, {}, 0),
        ({"cfg_end": 0.5}, {"cfg_end": 0.7}, 5),
        ({"cfg_end": 0.5}, {"cfg_end": 0.5, "cfg": 4.0}, 10),
        ({"cfg_start": 0.5}, {"cfg_start": 0.5, "cfg": 4.0}, 5),
        ({"cfg_start": 0.5}, {"cfg_start": 0.5, "guidance": "apg"}, 5),
        ({"cfg_start": 0.5}, {"cfg_start": 0.5, "rescale": 0.2}, 0),
        ({"end_step": 4}, {}, 6),
        ({}, {"end_step": 4}, 0),
        ({"custom_sigmas": "1, .8, .5, .3, 0"}, {"custom_sigmas": "1, .8, .5, .2, 0"}, 2),
        ({"custom_sigmas": "1, .8, 0"}, {"custom_sigmas": ".9, .8, 0"}, 2),
        ({}, {"seed": 6}, 10),
        ({}, {"steps": 9}, 9),
        ({}, {"solver": "heun"}, 10),
        ({}, {"shift": 2.0}, 10),
        ({}, {"variation_strength": 0.1}, 10),
        ({"solver": "euler_ancestral"}, {"solver": "euler_ancestral", "eta": 0.5}, 10),
        ({"solver": "euler_ancestral"}, {"solver": "euler_ancestral", "step_noise_seed": 9}, 10),
        ({"solver": "dopri5", "cfg_end": 0.5}, {"solver": "dopri5", "cfg_end": 0.6}, 10),
        ({"guidance": "cfg_zero_star", "zero_steps": 2}, {"guidance": "cfg_zero_star", "zero_steps": 1}, 9),
    ],
)
def test_a_change_runs_the_steps_that_it_affects_again(bench, reusing, first, then, cost):
    usual = {"steps": 10}
    reusing(**{**usual, **first})
    made, ran = reusing(**{**usual, **then})
    assert ran == cost
    assert torch.equal(made, bench.run(**{**usual, **then}))


CONTROLS = st.builds(
    lambda a, b, kind: kind(min(a, b), max(a, b)),
    st.integers(0, 10).map(lambda n: n / 10),
    st.integers(0, 10).map(lambda n: n / 10),
    st.sampled_from(
        [
            lambda a, b: boost(a, b),
            lambda a, b: boost(a, b, mode="attention", strength=3.0),
            lambda a, b: boost(a, b, fade="cosine"),
            lambda a, b: BlockControl("skip", (1,), branch="negative", window=Window(a, b)),
            lambda a, b: BlockControl("disable", (1,), window=Window(a, b)),
        ]
    ),
)
INPUTS = st.fixed_dictionaries(
    {
        "cfg": st.sampled_from([1.0, 3.0]),
        "cfg_end": st.sampled_from([0.3, 0.6, 1.0]),
        "guidance": st.sampled_from(["cfg", "rescale"]),
        "cfg_curve": st.sampled_from(["constant", "rising"]),
        "end_step": st.sampled_from([3, 10_000]),
    }
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    solver=st.sampled_from(sorted(SOLVERS)),
    runs=st.lists(st.tuples(st.lists(CONTROLS, max_size=2), INPUTS), min_size=2, max_size=3),
)
def test_reuse_is_a_full_run_bit_for_bit(bench, solver, runs):
    node = bench.module("sampler.node").FlowMatchingSampler()
    for controls, inputs in runs:
        given = dict(solver=solver, steps=5, tolerance=0.1, model=controlled(bench, *controls), **inputs)
        assert torch.equal(bench.run(node=node, reuse=True, **given), bench.run(**given))


def test_another_text_latent_mask_or_model_runs_every_step(bench, reusing, tiny_file):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    other = bench.module("comfyui.loading.model").load_model(str(tiny_file))
    (shifted,) = comfy_extras.nodes_model_advanced.ModelSamplingSD3().patch(bench.model, 2.0)
    changes = [
        {"positive": bench.negative},
        {"negative": bench.positive},
        {"latent": {"samples": bench.latent}, "denoise": 0.9},
        {"latent": {"samples": bench.latent, "noise_mask": mask}, "denoise": 0.9},
        {"model": other},
        {"model": shifted},
    ]
    for change in changes:
        reusing()
        assert reusing(**change)[1] == 6
        assert reusing(**change)[1] == 0


def test_a_lora_runs_every_step(bench, reusing):
    """Its weights are another model's, though ComfyUI keeps the model object."""
    core = bench.model.model.diffusion_model
    name = "joint_blocks.0.x_block.attn.proj"
    width = core.config.hidden_size
    torch.manual_seed(3)
    lora = {
        f"diffusion_model.{name}.lora_up.weight": torch.randn(width, 2),
        f"diffusion_model.{name}.lora_down.weight": torch.randn(2, width),
    }
    patched = comfy.sd.load_lora_for_models(bench.model, None, lora, 1.0, 0)[0]
    assert len(patched.patches) == 1
    plain, _ = reusing()
    made, cost = reusing(model=patched)
    assert cost == 6 and not torch.equal(made, plain)
    assert reusing(model=patched)[1] == 0  # it is as steady as any other weights
    assert torch.equal(reusing()[0], plain)


def test_a_patch_that_may_have_a_memory_runs_every_step_and_is_reported(bench, reusing):
    (skipping,) = comfy_extras.nodes_slg.SkipLayerGuidanceDiT.execute(
        bench.model, 3.0, 0.0, 1.0, double_layers="1"
    ).result
    for _ in range(2):
        assert reusing(model=skipping)[1] == 6
    summary = bench.all(model=skipping, node=reusing.node, reuse=True)[2]
    assert "Reuse: not possible, another node's patch is on the model" in summary


def test_a_second_sampler_of_a_run_may_reuse_its_own(bench, reusing):
    half = bench.all(solver="ab4", end_step=3)[0]
    given = dict(solver="ab4", start_step=3)
    first, cost = reusing(half, **given)
    assert cost == 3
    again, cost = reusing(half, cfg_end=0.6, **given)
    assert cost == 2 and torch.equal(again, bench.run(half, cfg_end=0.6, **given))
    assert not torch.equal(first, again)


def test_nothing_is_kept_without_reuse_and_nothing_after_the_model_is_gone(bench, tiny_file):
    node = bench.module("sampler.node").FlowMatchingSampler()
    bench.run(node=node)
    assert node._cache.latest() is None
    model = bench.module("comfyui.loading.model").load_model(str(tiny_file))
    bench.run(node=node, reuse=True, model=model)
    assert node._cache.latest() is not None
    management.unload_all_models()
    del model
    gc.collect()
    assert node._cache.latest() is None
    bench.run(node=node, reuse=True)
    bench.run(node=node)
    assert node._cache.latest() is None


def test_beyond_its_memory_a_run_keeps_fewer_states(bench, reusing, monkeypatch):
    state = bench.latent.nbytes
    monkeypatch.setattr(bench.module("comfyui.run.run_cache"), "RUN_LIMIT", 3 * state)
    reusing(steps=10)
    assert 2 <= len(reusing.node._cache._runs[-1].states) <= 4
    made, cost = reusing(steps=10, cfg_end=0.5)
    assert 5 <= cost < 10 and torch.equal(made, bench.run(steps=10, cfg_end=0.5))


def test_a_setting_that_returns_costs_nothing(bench, reusing):
    """Turned from 5 to 6 and back: both runs are kept, whatever of the run changed."""
    made = {}
    for cfg, seed in ((5.0, 1), (6.0, 1), (5.0, 2)):
        made[cfg, seed], cost = reusing(steps=4, cfg=cfg, seed=seed)
        assert cost == 4
    for (cfg, seed), samples in made.items():
        again, cost = reusing(steps=4, cfg=cfg, seed=seed)
        assert cost == 0 and torch.equal(again, samples)
    boosted, cost = reusing(steps=4, cfg=5.0, seed=1, model=controlled(bench, boost(0.5)))
    assert cost < 4 and torch.equal(boosted, bench.run(steps=4, cfg=5.0, seed=1, model=controlled(bench, boost(0.5))))


def test_the_oldest_runs_go_first_and_shared_states_count_once(bench, reusing, monkeypatch):
    cache, state = reusing.node._cache, bench.latent.nbytes
    monkeypatch.setattr(bench.module("comfyui.run.run_cache"), "LIMIT", 12 * state)
    reusing(steps=4, cfg_end=0.5)  # 5 states
    reusing(steps=4)  # 2 or 3 more, the first ones are the same
    assert len(cache._runs) == 2 and cache.bytes <= 8 * state
    reusing(steps=4, seed=7)
    assert cache.bytes <= 12 * state
    reusing(steps=4, seed=8)
    assert cache.bytes <= 12 * state
    assert reusing(steps=4, seed=7)[1] == 0
    assert reusing(steps=4, cfg_end=0.5)[1] == 4


def test_a_cancelled_run_leaves_its_states(bench, reusing):
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 4:
            management.interrupt_current_processing()

    handle = bench.model.model.diffusion_model.x_embedder.register_forward_hook(stop)
    try:
        with pytest.raises(management.InterruptProcessingException):
            reusing()
    finally:
        handle.remove()
    made, cost = reusing()
    assert cost == 3 and torch.equal(made, bench.run())
