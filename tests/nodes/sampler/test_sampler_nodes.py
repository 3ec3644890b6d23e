"""FlowMatchingSampler and MMDiTSampler against ComfyUI's KSampler, in process, on a tiny random model."""

from __future__ import annotations

import sys

import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch

import nodes as host_nodes
from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import SOLVERS


@pytest.fixture(scope="module")
def sampling(pack):
    return sys.modules[f"{pack.__name__}.nodes.sampler.node"]


@pytest.fixture(scope="module")
def model(pack, tiny_file):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(tiny_file))


@pytest.fixture(scope="module")
def texts():
    torch.manual_seed(1)
    return [[[torch.randn(1, 20, 4096), {"pooled_output": torch.randn(1, 2048)}]] for _ in range(2)]


def empty(size=(8, 8), batch=1):
    return {"samples": torch.zeros(batch, 16, *size)}


def flow(sampling, model, texts, latent=None, **changed):
    given = dict(seed=5, steps=4, cfg=3.0, solver="euler", schedule="linear", shift=0.0, denoise=1.0)
    node = sampling.FlowMatchingSampler()
    return node.sample(model, *texts, latent if latent is not None else empty(), **{**given, **changed})[0]["samples"]


def host_euler(model, texts, levels, latent=None, cfg=3.0, seed=5, **kwargs):
    """ComfyUI's own euler on given sigmas."""
    latent = latent if latent is not None else empty()
    noise = comfy.sample.prepare_noise(latent["samples"], seed)
    return comfy.sample.sample_custom(
        model, noise, cfg, comfy.samplers.sampler_object("euler"), levels.float(), *texts, latent["samples"],
        noise_mask=latent.get("noise_mask"), seed=seed, disable_pbar=True, **kwargs,
    )  # fmt: skip


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize("schedule", ["linear", "sd3"])
@pytest.mark.parametrize("shift", [0.0, 1.6])
def test_euler_equals_comfyuis_euler_on_the_same_sigmas(sampling, model, texts, schedule, shift):
    levels = sigmas(4, schedule, shift or 3.0)
    assert error(flow(sampling, model, texts, schedule=schedule, shift=shift), host_euler(model, texts, levels)) <= 1e-5


def test_the_sd3_schedule_equals_comfyuis_normal(sampling, model, texts):
    latent = empty()
    (theirs,) = host_nodes.KSampler().sample(model, 5, 4, 3.0, "euler", "normal", *texts, latent)
    assert error(flow(sampling, model, texts, schedule="sd3"), theirs["samples"]) <= 1e-5


def test_mmdit_sampler_equals_ksampler(sampling, model, texts):
    arguments = dict(seed=5, steps=4, cfg=3.0, sampler_name="dpmpp_2m", scheduler="simple", denoise=0.7)
    torch.manual_seed(2)
    latent = {"samples": torch.randn(2, 16, 8, 8)}
    (ours,) = sampling.MMDiTSampler().sample(model, *texts, latent, **arguments)
    (theirs,) = host_nodes.KSampler().sample(model, 5, 4, 3.0, "dpmpp_2m", "simple", *texts, latent, denoise=0.7)
    assert torch.equal(ours["samples"], theirs["samples"])


@pytest.fixture(scope="module")
def fine(sampling, model, texts):
    """An image that every deterministic solver should come near."""
    return flow(sampling, model, texts, steps=60)


STOCHASTIC = [name for name, method in SOLVERS.items() if method.stochastic]


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in STOCHASTIC])
def test_every_deterministic_solver_comes_near_the_same_image(sampling, model, texts, fine, solver):
    coarse = flow(sampling, model, texts, steps=12, solver=solver)
    assert coarse.shape == fine.shape
    assert error(coarse, fine) < 0.1


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_a_stochastic_solver_draws_its_noise_from_the_seed(sampling, model, texts, solver):
    # Another sample of the same distribution: near to no other image, so its size and spread are what can be told.
    first = flow(sampling, model, texts, steps=12, solver=solver)
    assert torch.isfinite(first).all()
    assert torch.equal(first, flow(sampling, model, texts, steps=12, solver=solver))
    assert error(flow(sampling, model, texts, steps=12, solver=solver, seed=6), first) > 0.1
    assert error(flow(sampling, model, texts, steps=12), first) > 0.1
    assert first.std() / flow(sampling, model, texts, steps=12).std() == pytest.approx(1, abs=0.25)


def test_a_shift_is_set_on_a_clone_and_moves_every_percent_window(sampling, model, texts):
    before = model.get_model_object("model_sampling")
    shifted = sampling.sampling.with_shift(model, 1.6)
    assert model.get_model_object("model_sampling") is before and before.shift == 3.0
    window = shifted.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert window == pytest.approx(1.6 * 0.5 / (1 + 0.6 * 0.5))
    assert error(flow(sampling, model, texts, shift=1.6), flow(sampling, model, texts)) > 1e-3


def test_denoise_keeps_the_input_image(sampling, model, texts):
    torch.manual_seed(2)
    latent = {"samples": torch.randn(1, 16, 8, 8), "batch_index": [0]}
    levels = sigmas(4, "linear", 3.0, denoise=0.5)
    ours = flow(sampling, model, texts, latent, denoise=0.5)
    assert error(ours, host_euler(model, texts, levels, latent)) <= 1e-5
    assert torch.equal(flow(sampling, model, texts, latent, denoise=0.0), latent["samples"])
    out = sampling.FlowMatchingSampler().sample(model, *texts, latent, steps=2, denoise=0.5)[0]
    assert out["batch_index"] == [0]  # what else a LATENT carries stays in it


def test_a_noise_mask_leaves_the_rest_untouched(sampling, model, texts):
    torch.manual_seed(2)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    latent = {"samples": torch.randn(1, 16, 8, 8), "noise_mask": mask}
    ours = flow(sampling, model, texts, latent)
    levels = sigmas(4, "linear", 3.0)
    assert error(ours, host_euler(model, texts, levels, latent)) <= 1e-5
    kept, redrawn = (slice(None), slice(None), slice(None), slice(0, 3)), (..., slice(5, 8))
    assert torch.allclose(ours[kept], latent["samples"][kept], atol=1e-4)
    assert not torch.allclose(ours[redrawn], latent["samples"][redrawn], atol=0.1)


def test_area_conditioning_and_timestep_ranges_act_as_in_ksampler(sampling, model, texts):
    positive, negative = texts
    (left,) = host_nodes.ConditioningSetArea().append(positive, 32, 64, 0, 0, 1.0)
    (late,) = host_nodes.ConditioningSetTimestepRange().set_range(negative, 0.4, 1.0)
    both = [[*left, *late], negative]
    levels = sigmas(4, "linear", 3.0)
    assert error(flow(sampling, model, both), host_euler(model, both, levels)) <= 1e-5


def test_a_batch_runs_and_image_0_does_not_depend_on_the_others_prompt(sampling, model, texts):
    batch = flow(sampling, model, texts, empty(batch=3))
    assert batch.shape == (3, 16, 8, 8)
    assert error(batch[:1], flow(sampling, model, texts)) <= 1e-4


def test_at_cfg_1_the_negative_is_not_computed(sampling, model, texts):
    rows = []
    handle = model.model.diffusion_model.x_embedder.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    try:
        flow(sampling, model, texts, cfg=1.0)
        alone = sum(rows)
        rows.clear()
        flow(sampling, model, texts, cfg=3.0)
    finally:
        handle.remove()
    assert (alone, sum(rows)) == (4, 8)


def test_one_step_and_odd_sizes_run(sampling, model, texts):
    assert torch.isfinite(flow(sampling, model, texts, empty((7, 11)), steps=1)).all()


def wrong_text():
    return [[torch.randn(1, 20, 768), {"pooled_output": torch.randn(1, 2048)}]]


def wrong_pooled():
    return [[torch.randn(1, 20, 4096), {"pooled_output": torch.randn(1, 768)}]]


@pytest.mark.parametrize("node", ["FlowMatchingSampler", "MMDiTSampler"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, n, x: (wrong_text(), n, x), "positive: the text is 768 channels wide, the model takes 4096"),
        (lambda p, n, x: (p, wrong_pooled(), x), "negative: the pooled text is 768 .* the model takes 2048"),
        (lambda p, n, x: (p, n, {"samples": torch.ones(1, 4, 8, 8)}), "latent has 4 channels, the model takes 16"),
        (lambda p, n, x: (p, n, {"samples": torch.ones(1, 16, 2, 8, 8)}), "latent has 5 dimensions"),
        (lambda p, n, x: ([], n, x), "positive: it holds no prompt"),
        (lambda p, n, x: (p, n, empty((128, 128))), "the image is 1024 x 1024 pixels.*at most 384 x 384"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_named(sampling, model, texts, node, change, words):
    arguments = dict(seed=5, steps=2, cfg=3.0, denoise=1.0)
    if node == "MMDiTSampler":
        arguments |= dict(sampler_name="euler", scheduler="simple")
    with pytest.raises(ValueError, match=f"{node}: .*{words}"):
        getattr(sampling, node)().sample(model, *change(*texts, empty()), **arguments)
    assert torch.isfinite(flow(sampling, model, texts)).all()  # the graph runs after the fix


def test_the_input_model_is_not_changed(sampling, model, texts):
    weights = model.model.diffusion_model.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    options, picture = repr(model.model_options), flow(sampling, model, texts)
    flow(sampling, model, texts, shift=2.0)
    assert repr(model.model_options) == options and not model.object_patches
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert torch.equal(flow(sampling, model, texts), picture)
