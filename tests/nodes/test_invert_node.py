"""FlowInvert, in process: an image up to noise along the model's own velocity, and back with Flow Matching Sampler."""

from __future__ import annotations

from dataclasses import replace

import comfy.hooks
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

import nodes as host_nodes
from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import solve

SOLVER_NAMES = ("leapfrog", "midpoint", "euler", "fireflow")
BACK = 1e-4  # of the latent's spread: float32 over ten steps and two ways


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


class Inversion:
    """FlowInvert on the tiny model, and the sampler's way back with the same settings."""

    def __init__(self, bench):
        self.bench = bench
        self.node = bench.module("invert").FlowInvert()
        self.latent = {"samples": bench.latent}

    def up(self, latent=None, *, model=None, positive=None, steps=10, solver="leapfrog", shift=0.0):
        given = model or self.bench.model, positive or self.bench.positive
        return self.node.invert(*given, latent or self.latent, steps, solver, shift)[0]

    def down(self, latent, *, steps=10, solver="leapfrog", cfg=1.0, **changed):
        return self.bench.run(latent, steps=steps, solver=solver, cfg=cfg, **changed)

    def there_and_back(self, latent=None, **both) -> float:
        latent = latent or self.latent
        return error(self.down(self.up(latent, **both), **both), latent["samples"])


@pytest.fixture(scope="module")
def inversion(bench):
    return Inversion(bench)


@pytest.mark.parametrize("both", [{}, {"steps": 1}, {"steps": 3, "shift": 1.5}, {"steps": 28}])
def test_leapfrog_returns_to_the_image(inversion, both):
    assert inversion.there_and_back(**both) <= BACK
    assert error(inversion.up(**both)["samples"], inversion.bench.latent) > 0.1  # and it was away


def test_the_solvers_return_in_the_order_of_their_cost(inversion):
    leapfrog, midpoint, euler, fireflow = (inversion.there_and_back(solver=name) for name in SOLVER_NAMES)
    assert leapfrog < midpoint < euler and fireflow < euler / 5 and leapfrog < euler / 1000


@pytest.mark.parametrize("size", [(7, 11), (4, 16)])
def test_batches_and_odd_sizes_return_and_an_image_does_not_depend_on_the_others(inversion, size):
    latent = {
        "samples": torch.randn(3, 16, *size, generator=torch.Generator().manual_seed(4)),
        "batch_index": [4, 2, 7],
    }
    up = inversion.up(latent)
    assert error(inversion.down(up), latent["samples"]) <= BACK and up["batch_index"] == [4, 2, 7]
    alone = inversion.up({"samples": latent["samples"][1:2]})["samples"]
    assert error(up["samples"][1:2], alone) <= 1e-4


def velocity_of(bench, model=None):
    (context, options), core = bench.positive[0], (model or bench.model).model.diffusion_model

    def velocity(x, sigma):
        rows = (sigma * 1000).expand(len(x)).float()
        return core(x, rows, context=context.expand(len(x), -1, -1), y=options["pooled_output"].expand(len(x), -1))

    return velocity


@pytest.mark.parametrize("solver", SOLVER_NAMES)
@pytest.mark.parametrize("shift", [0.0, 1.6])
def test_the_velocity_is_the_models_own(inversion, solver, shift):
    """The core's model called by itself, from sigma 0, where ComfyUI's denoised prediction gives no velocity."""
    bench, scale = inversion.bench, inversion.bench.model.model.latent_format
    levels = sigmas(4, "linear", shift or 3.0).flip(0)
    expected = solve(velocity_of(bench), scale.process_in(bench.latent), levels, solver)
    found = inversion.up(steps=4, solver=solver, shift=shift)["samples"]
    assert error(found, scale.process_out(expected)) <= 1e-5


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_the_sampler_starts_from_the_inversion_and_adds_no_noise(inversion, solver):
    up = inversion.up(solver=solver)
    assert torch.equal(inversion.down(up, solver=solver, seed=1), inversion.down(up, solver=solver, seed=2))
    facts = inversion.bench.facts(up, solver=solver, cfg=1.0, steps=10)
    assert facts["noise"]["goes_on"] and facts["noise"]["turns_back"] == (solver == "leapfrog")
    anew = inversion.down(up, solver=solver, add_noise="enable")
    assert error(anew, inversion.bench.latent) > 0.1


def test_a_way_back_in_two_parts_returns_too(inversion):
    half, *_ = inversion.bench.all(inversion.up(), steps=10, solver="leapfrog", cfg=1.0, end_step=4)
    assert error(inversion.down(half, start_step=4), inversion.bench.latent) <= BACK


def other_flows(bench):
    boost = bench.module("control").TextBoost()
    boosted, *_ = boost.apply(
        bench.model, blocks="0", strength=1.5, mode="attention", phrase="", part="all", branch="both",
        start_percent=0.4, end_percent=1.0, fade="constant",
    )  # fmt: skip
    return {
        "another prompt": {"positive": bench.negative},
        "a boost from 40% on": {"model": boosted},
        "cfg": {"cfg": 3.0},
        "more steps": {"steps": 12},
        "another shift": {"shift": 1.7},
    }


@pytest.mark.parametrize("change", ["another prompt", "a boost from 40% on", "cfg", "more steps", "another shift"])
def test_along_another_flow_the_sampler_starts_without_history(inversion, change):
    """leapfrog's own velocity belongs to the flow of the inversion: elsewhere it would only swing."""
    up, changed = inversion.up(), other_flows(inversion.bench)[change]
    resume = inversion.bench.module("comfyui.run.resume")
    forgetful = {**up, resume.KEY: replace(up[resume.KEY], history=())}
    edited = inversion.down(up, **changed)
    assert torch.equal(edited, inversion.down(forgetful, **changed))
    assert not torch.equal(inversion.down(up), inversion.down(forgetful))


def test_comfyuis_sigmas_are_the_same_way_back(inversion):
    levels = sigmas(10, "linear", 3.0).float()
    assert error(inversion.down(inversion.up(), sigmas=levels), inversion.bench.latent) <= BACK


def masked(soft: bool):
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    return torch.nn.functional.avg_pool2d(mask, 17, 1, 8, count_include_pad=False) if soft else mask


@pytest.mark.parametrize("soft", [False, True])
def test_with_a_noise_mask_only_its_inside_is_inverted(inversion, soft):
    latent = {**inversion.latent, "noise_mask": masked(soft)}
    up = inversion.up(latent)
    assert torch.equal(up["noise_mask"], latent["noise_mask"])
    assert error(inversion.down(up), latent["samples"]) <= BACK
    edited = inversion.down(up, positive=inversion.bench.negative)
    kept, changed = (..., slice(0, 2)), (..., slice(6, 8))
    assert error(edited[kept], latent["samples"][kept]) <= 1e-4 < error(edited[changed], latent["samples"][changed])


def test_a_mask_that_depends_on_sigma_is_followed(inversion):
    model = DifferentialDiffusion.execute(inversion.bench.model, 0.8).result[0]
    latent = {**inversion.latent, "noise_mask": masked(True)}
    plain = inversion.up(latent)["samples"]
    up = inversion.up(latent, model=model)
    assert error(up["samples"], plain) > 1e-3
    assert error(inversion.down(up, model=model), latent["samples"]) <= BACK


def test_a_mask_set_after_the_inversion_is_respected(inversion):
    up = {**inversion.up(), "noise_mask": masked(False)}
    edited = inversion.down(up, positive=inversion.bench.negative)
    assert error(edited[..., :3], inversion.bench.latent[..., :3]) <= 1e-4


def lora_hooks():
    torch.manual_seed(0)
    name = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    weights = {f"{name}.lora_up.weight": torch.randn(512, 4), f"{name}.lora_down.weight": torch.randn(4, 128) * 0.05}
    return comfy.hooks.create_hook_lora(weights, 1.0, 0.0)


def with_timed_lora(bench):
    """Twice the LoRA at first, none after 40%, half of it from 80% on."""
    hooks, frames = lora_hooks(), comfy.hooks.HookKeyframeGroup()
    for strength, start in ((2.0, 0.0), (0.0, 0.4), (0.5, 0.8)):
        frames.add(comfy.hooks.HookKeyframe(strength, start_percent=start))
    hooks.set_keyframes_on_hooks(frames)
    return comfy.hooks.set_hooks_for_conditioning(bench.positive, hooks)


def with_area(bench):
    (left,) = host_nodes.ConditioningSetArea().append(bench.positive, 32, 64, 0, 0, 1.0)
    (late,) = host_nodes.ConditioningSetTimestepRange().set_range(bench.negative, 0.3, 1.0)
    return [*left, *late]


@pytest.mark.parametrize(
    "conditioning",
    [with_area, lambda bench: comfy.hooks.set_hooks_for_conditioning(bench.positive, lora_hooks()), with_timed_lora],
    ids=["areas and times", "a LoRA as a hook", "a LoRA that changes over time"],
)
def test_areas_and_hooks_act_in_both_directions(inversion, conditioning):
    positive = conditioning(inversion.bench)
    up = inversion.up(positive=positive)
    assert error(up["samples"], inversion.up()["samples"]) > 1e-3
    assert error(inversion.down(up, positive=positive), inversion.bench.latent) <= BACK


def test_each_step_is_reported_and_a_cancel_stops_it(inversion):
    bench, told = inversion.bench, []
    sampling, host = bench.module("comfyui.run.sampling"), bench.module("comfyui.editing.inversion")
    prepared = sampling.prepare(sampling.fitted(bench.model, inversion.latent), 0)
    given = dict(solver="leapfrog", sigmas=sigmas(5, "linear", 3.0).flip(0), node="FlowInvert")

    def watch(step, picture, x, steps):
        told.append((step, steps, picture.std().item()))
        if len(told) == 8:
            comfy.model_management.interrupt_current_processing(True)

    _, calls = host.invert_flow(bench.model, bench.positive, prepared, **given, callback=watch)
    assert [(step, steps) for step, steps, _ in told] == [(step, 5) for step in range(5)] and calls == 6
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        host.invert_flow(bench.model, bench.positive, prepared, **given, callback=watch)
    assert len(told) == 8 and inversion.there_and_back() <= BACK


def test_the_input_model_is_not_changed(inversion):
    model = inversion.bench.model
    before, options = model.get_model_object("model_sampling"), repr(model.model_options)
    inversion.up(shift=1.7)
    assert model.get_model_object("model_sampling") is before and not model.object_patches
    assert repr(model.model_options) == options


def unfinished(bench):
    return bench.all(steps=6, end_step=3)[0]


def another_kind(bench):
    return ModelSamplingDiscrete().patch(bench.model, "eps", False)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda b: {"model": another_kind(b)}, "model: .* is not a flow-matching model. Connect SD3"),
        (lambda b: {"latent": {"samples": torch.ones(1, 4, 8, 8)}}, "latent has 4 channels, the model takes 16"),
        (lambda b: {"latent": {"samples": torch.ones(1, 16, 2, 8, 8)}}, "latent has 5 dimensions"),
        (lambda b: {"latent": {"samples": torch.ones(1, 16, 128, 128)}}, "image is 1024 x 1024 .* most 384 x 384"),
        (lambda b: {"latent": b.empty()}, "latent_image: it is empty. Connect an image's latent"),
        (lambda b: {"latent": {"samples": b.latent / 0}}, "latent_image: it holds values that are not finite"),
        (lambda b: {"latent": unfinished(b)}, "latent_image: it comes from a run that ended early"),
        (lambda b: {"positive": [[torch.randn(1, 20, 768), {}]]}, "positive: the text is 768 channels wide"),
        (lambda b: {"positive": [[b.positive[0][0] * float("nan"), {}]]}, "positive: the text holds values that are"),
        (lambda b: {"shift": 5e-324}, "shift: 4.94066e-324. Set 0, or a number from 0.01 to 100"),
        (lambda b: {"shift": float("nan")}, "shift: nan. Set a number from 0 to 100"),
        (lambda b: {"steps": 0}, "steps: 0. Set a number from 1"),
        (lambda b: {"solver": "heun"}, "solver: 'heun' is unknown. Choose one of leapfrog, midpoint, euler"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inversion, change, words):
    with pytest.raises(ValueError, match=f"FlowInvert: .*{words}"):
        inversion.up(**change(inversion.bench))


def test_an_empty_prompt_list_is_named(inversion):
    with pytest.raises(ValueError, match="FlowInvert: positive: it holds no prompt"):
        inversion.node.invert(inversion.bench.model, [], inversion.latent, 4, "euler", 0.0)


def test_a_value_that_is_not_finite_is_refused_with_its_block(inversion, tiny_file):
    model = inversion.bench.module("comfyui.loading.model").load_model(str(tiny_file))
    with torch.no_grad():
        model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc2.weight.fill_(1e38)
    with pytest.raises(ValueError, match=r"FlowInvert: sigma 0 gives a value that is not finite: .*block 1"):
        inversion.up(model=model)


FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=20, context_in_dim=24,
    hidden_size=64, num_heads=2, mlp_ratio=4.0, depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12], theta=10000,
    qkv_bias=True, guidance_embed=True, txt_ids_dims=[],
)  # fmt: skip
QWEN = dict(
    image_model="qwen_image", in_channels=64, out_channels=16, num_layers=2, attention_head_dim=32,
    num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(8, 12, 12),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "sizes"), [(comfy.supported_models.Flux, FLUX), (comfy.supported_models.QwenImage, QWEN)]
)
def test_comfyuis_own_models_return_too(inversion, kind, sizes):
    described = kind(sizes)
    described.set_inference_dtype(torch.float32, None)
    made = described.get_model({}, device="cpu")
    torch.manual_seed(0)
    for parameter in made.diffusion_model.requires_grad_(False).parameters():
        parameter.normal_(std=0.05)
    model = comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))
    options = {"pooled_output": torch.randn(1, 20), "guidance": 3.5}
    positive = [[torch.randn(1, 7, 24), options]]
    up = inversion.up(model=model, positive=positive)
    back = inversion.down(up, model=model, positive=positive, negative=positive)
    picture = inversion.bench.latent.reshape(back.shape)
    assert error(up["samples"], picture) > 0.1 and error(back, picture) <= BACK


def test_a_way_back_that_diverges_is_noted(inversion):
    """An exact way back has no note; one at an absurd cfg leaves the range of images, and says what helps."""
    up = inversion.up()
    assert not inversion.bench.facts(up, solver="leapfrog", cfg=1.0, steps=10)["notes"]
    notes = inversion.bench.facts(up, solver="leapfrog", cfg=100.0, steps=10)["notes"]
    assert any("the way back diverged" in note and "Flow Edit" in note for note in notes), notes


def test_an_edit_of_a_plain_image_is_no_divergence(inversion):
    """The latent of a plain image spreads far less than that of another image."""
    notes = inversion.bench.module("sampler.start").way_back_notes
    resume = inversion.bench.module("comfyui.run.resume")
    plain, image = 0.02 * inversion.bench.latent, 0.6 * inversion.bench.latent
    up = replace(inversion.up()[resume.KEY], image=plain)
    assert not notes(inversion.bench.model.model, up, image, 0.0)
    assert notes(inversion.bench.model.model, up, 5 * image, 0.0)
