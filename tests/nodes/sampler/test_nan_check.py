"""The first value that is not finite ends a run, and the error names its step, prompt and block."""

from __future__ import annotations

import math

import pytest
import torch

from mmdit_core.control.spec import BlockControl
from mmdit_core.flow.window import Window

NUMBERS = ("cfg", "shift", "denoise", "cfg_start", "cfg_end", "eta", "variation_strength", "rescale", "tolerance")


@pytest.fixture
def broken(bench, tiny_file):
    """A model of its own with one weight too large for float32, and what happens with it: `broken(name, **inputs)`."""
    model = bench.module("comfyui.loading.model").load_model(str(tiny_file))

    def run(name: str, **dials) -> str:
        weights = dict(model.model.diffusion_model.named_parameters())
        kept = weights[name].detach().clone()
        with torch.no_grad():
            weights[name].fill_(1e38)
        try:
            with pytest.raises(ValueError, match="not finite") as caught:
                bench.run(model=dials.pop("model", model), **dials)
        finally:
            with torch.no_grad():
                weights[name].copy_(kept)
        assert torch.isfinite(bench.run(model=model)).all()  # the graph runs after the fix
        return str(caught.value)

    run.model = model
    return run


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        ("joint_blocks.1.x_block.mlp.fc2.weight", "the positive prediction: block 1 gives it"),
        ("joint_blocks.0.x_block.attn.proj.weight", "the positive prediction: block 0 gives it"),
        ("joint_blocks.0.context_block.mlp.fc2.weight", "the positive prediction: block 0 gives it"),
        ("x_embedder.proj.weight", "the positive prediction: what enters block 0 already holds it"),
        ("context_embedder.weight", "the positive prediction: what enters block 0 already holds it"),
        ("final_layer.linear.weight", "the positive prediction: after the last block"),
    ],
)
def test_step_branch_and_block_are_named(broken, weight, words):
    message = broken(weight, cfg=1.0)
    assert message.startswith("FlowMatchingSampler: step 1 of 6 (sigma 1) gives a value that is not finite: ")
    assert words in message and "bf16" in message


def test_the_branch_is_the_one_that_breaks(bench, broken):
    """A text that overflows in the model, though it is finite itself: as the negative, and from 50% on."""
    loud = [[3e38 * bench.negative[0][0].sign(), bench.negative[0][1]]]
    with pytest.raises(ValueError, match="step 1 of 6 .* the negative prediction: what enters block 0 already holds"):
        bench.run(negative=loud)
    with pytest.raises(ValueError, match=r"step 4 of 6 \(sigma 0.75\) .* the negative prediction"):
        bench.run(negative=loud, cfg_start=0.5)
    with pytest.raises(ValueError, match="step 1 of 6 .* the positive prediction"):
        bench.run(positive=loud)
    assert torch.isfinite(bench.run(negative=loud, cfg=1.0)).all()  # it is not computed


@pytest.mark.parametrize("solver", ["heun", "rk4", "res_2s", "unipc", "ab4", "dopri5", "euler_ancestral"])
def test_every_kind_of_solver_is_checked(bench, broken, solver):
    message = broken("joint_blocks.1.x_block.mlp.fc2.weight", solver=solver)
    assert "the positive and the negative prediction: block 1 gives it" in message
    assert "step 1 of 6" in message or "a step after step 0 of 6" in message


def test_a_control_is_named_by_its_block_and_its_start(bench, broken):
    boost = BlockControl("boost", (1,), strength=1e38, window=Window(0.5))
    model = bench.attach(bench.model, [boost])
    with pytest.raises(
        ValueError, match="step 4 of 6 .* the positive and the negative prediction: what enters block 1"
    ):
        bench.run(model=model)
    skipped = BlockControl("skip", (1,))
    model = bench.attach(broken.model, [skipped])
    broken_block = "joint_blocks.1.x_block.mlp.fc2.weight"
    weights = dict(broken.model.model.diffusion_model.named_parameters())
    with torch.no_grad():
        kept = weights[broken_block].clone()
        weights[broken_block].fill_(1e38)
        assert torch.isfinite(bench.run(model=model)).all()  # a block that is not run breaks nothing
        weights[broken_block].copy_(kept)


def test_guidance_that_overflows_is_not_blamed_on_the_model(bench):
    patched = bench.model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1e38 * 1e38)
    with pytest.raises(ValueError, match="the predictions were finite: guidance, or another node's patch"):
        bench.run(model=patched)


def test_comfyuis_own_model_is_checked_too(bench, tiny_file):
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(tiny_file))
    assert "comfy.ldm" in type(model.model.diffusion_model).__module__
    block = model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc2
    with torch.no_grad():
        block.weight.fill_(1e38)
    with pytest.raises(ValueError, match="step 1 of 6 .* the positive and the negative prediction: block 1 gives it"):
        bench.run(model=model)


def test_the_check_waits_for_the_device_once_a_step(bench, monkeypatch):
    guard = bench.module("comfyui.run.nan_check")
    asked = []
    original = guard.is_finite
    monkeypatch.setattr(guard, "is_finite", lambda values: asked.append(1) or original(values))
    with bench.rows() as rows:
        bench.run(solver="rk4")
    assert len(asked) == 6 and len(rows) > 20


def test_a_tolerance_that_takes_too_many_calls_is_named(bench):
    with pytest.raises(
        ValueError, match="FlowMatchingSampler: tolerance: set it higher: .* model calls lead from sigma 1 to"
    ):
        bench.run(solver="bosh3", tolerance=1e-6, shift=100.0, cfg=1.0, positive=bench.negative)


def test_a_sweep_continues_after_an_image_that_is_not_finite(bench, broken):
    """BlockAnalysis shows what breaks: its runs are not guarded."""
    host = bench.module("comfyui.run.sampling")
    weights = dict(broken.model.model.diffusion_model.named_parameters())
    with torch.no_grad():
        weights["final_layer.linear.weight"].fill_(math.nan)
    made = host.sample_flow(
        broken.model,
        bench.positive,
        bench.negative,
        host.prepare(host.fitted(broken.model, bench.empty()), 5),
        seed=5,
        cfg=1.0,
        solver="euler",
        sigmas=torch.tensor([1.0, 0.5, 0.0]),
    )
    assert made.isnan().any()


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_by_name(bench, name, value):
    with pytest.raises(ValueError, match=f"FlowMatchingSampler: {name}: .*(nan|inf). Set a number from"):
        bench.run(**{name: value})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cfg": 101.0}, "cfg: 101. Set a number from 0 to 100"),
        ({"steps": 0}, "steps: 0. Set a number from 1 to 10000"),
        ({"end_step": -1}, "end_step: -1. Set a number from 0 to 10000"),
        ({"solver": "ddim"}, "solver: 'ddim' is unknown. Choose one of euler, heun"),
        ({"guidance": "pag"}, "guidance: 'pag' is unknown. Choose one of cfg, rescale, cfg_zero_star, apg"),
        ({"custom_sigmas": "1, x"}, "custom_sigmas: 'x' is not a number"),
        ({"custom_sigmas": "0, 1"}, "custom_sigmas: sigma 0 is 0 and sigma 1 is 1; sigmas must fall"),
        ({"sigmas": torch.tensor([14.6, 1.0, 0.0])}, "sigmas: sigma 0 is 14.6"),
        ({"sigmas": torch.tensor([1.0, 0.0]), "custom_sigmas": "1, 0"}, "custom_sigmas: the input sigmas is connected"),
    ],
)
def test_values_out_of_range_are_refused_by_name(bench, changed, words):
    with pytest.raises(ValueError, match=f"FlowMatchingSampler: {words}"):
        bench.run(**changed)


@pytest.mark.parametrize("where", ["latent_image", "positive", "negative"])
def test_an_input_that_is_not_finite_is_named_before_anything_runs(bench, where):
    ill = [[bench.positive[0][0] * math.nan, bench.positive[0][1]]]
    changed = {"latent_image": {"latent": {"samples": bench.latent * math.inf}}}.get(where, {where: ill})
    with bench.rows() as rows, pytest.raises(ValueError, match=f"FlowMatchingSampler: {where}: .*not finite"):
        bench.run(**changed)
    assert not rows


SAMPLERS = {
    "FlowMatchingSampler": dict(steps=2, cfg=3.0),
    "MMDiTSampler": dict(seed=5, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple", denoise=1.0),
}


def sampled(bench, node, **changed):
    """A sampler's latent, with links and values changed by name."""
    links = dict(model=bench.model, positive=bench.positive, negative=bench.negative, latent_image=bench.empty())
    return getattr(bench.module("sampler.node"), node)().sample(**{**links, **SAMPLERS[node], **changed})[0]


@pytest.mark.parametrize("node", SAMPLERS)
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda b: {"positive": [[b.positive[0][0] * math.nan, b.positive[0][1]]]}, "positive: the text holds values"),
        (
            lambda b: {"negative": [[b.negative[0][0] / 0, b.negative[0][1]]]},
            "negative: the text holds values that are",
        ),
        (
            lambda b: {"positive": [[b.positive[0][0], {"pooled_output": torch.full((1, 2048), math.nan)}]]},
            "positive: the text holds values that are not finite",
        ),
        (lambda b: {"positive": [[b.positive[0][0], {}]]}, "positive: it has no pooled text"),
        (
            lambda b: {"latent_image": {"samples": b.latent * math.nan}},
            "latent_image: it holds values that are not fin",
        ),
        (lambda b: {"latent_image": {"samples": torch.zeros(1, 16, 0, 8)}}, "latent_image: its size is 1 x 16 x 0 x 8"),
        (lambda b: {"latent_image": {"samples": torch.zeros(0, 16, 8, 8)}}, "latent_image: its size is 0 x 16 x 8 x 8"),
        (lambda b: {"latent_image": {**b.empty(), "batch_index": []}}, r"latent_image: its batch_index is \[\]"),
        (lambda b: {"latent_image": {**b.empty(), "batch_index": [-1]}}, r"latent_image: its batch_index is \[-1\]"),
        (
            lambda b: {"latent_image": {**b.empty(), "noise_mask": torch.zeros(0, 64, 64)}},
            "latent_image: its noise mask is empty",
        ),
        (
            lambda b: {"latent_image": {**b.empty(), "noise_mask": torch.full((1, 64, 64), math.nan)}},
            "latent_image: its noise mask is empty or not finite",
        ),
        (
            lambda b: {"latent_image": {**b.empty(), "downscale_ratio_spacial": math.nan}},
            "latent_image: its downscale_ratio_spacial is nan",
        ),
        (lambda b: {"cfg": math.nan}, "cfg: nan. Set a number from 0 to 100"),
        (lambda b: {"cfg": 10**400}, "cfg: a number too large. Set a number from 0 to 100"),
        (lambda b: {"cfg": "4"}, "cfg: '4' is not a number. Set a number from 0 to 100"),
        (lambda b: {"steps": 2.5}, "steps: 2.5 is not whole. Set a number from 1 to 10000"),
        (lambda b: {"denoise": None}, "denoise: None is not a number. Set a number from 0 to 1"),
    ],
)
def test_what_a_link_may_bring_is_refused_by_node_and_input(bench, node, changed, words):
    with bench.rows() as rows, pytest.raises(ValueError, match=f"^{node}: {words}"):
        sampled(bench, node, **changed(bench))
    assert not rows
    assert torch.isfinite(sampled(bench, node)["samples"]).all()  # the graph runs after the fix


def test_an_unknown_input_is_refused(bench):
    with pytest.raises(TypeError, match="unexpected keyword argument 'start_percent'"):
        bench.run(start_percent=0.5)
