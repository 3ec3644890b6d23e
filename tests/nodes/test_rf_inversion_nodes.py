"""FlowInvert's gamma and SourcePull: the published forms inside ComfyUI, on several kinds of models."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.editing.rf_inversion import drawn_to_noise
from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import solve
from tests.nodes.families.oracles import Bench as FamilyBench
from tests.nodes.test_invert_node import SOLVER_NAMES, Inversion, error, velocity_of

WHOLE = dict(decay=0.0, start_percent=0.0, end_percent=1.0)
CLOSE = 2e-5


@pytest.fixture(scope="module")
def inversion(bench):
    return Inversion(bench)


@pytest.fixture(autouse=True)
def inference():
    """As ComfyUI runs its nodes."""
    with torch.inference_mode():
        yield


def invert(inversion, latent=None, *, solver="euler", steps=4, **more):
    bench = inversion.bench
    latent = latent or inversion.latent
    return inversion.node.invert(bench.model, bench.positive, latent, steps, solver, 0.0, **more)[0]


def noise_of(seed, like):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("solver", SOLVER_NAMES)
def test_gamma_is_the_published_one(inversion, solver):
    bench, noise = inversion.bench, noise_of(3, inversion.bench.latent)
    scale, levels = bench.model.model.latent_format, sigmas(4, "linear", 3.0).flip(0)
    drawn = drawn_to_noise(velocity_of(bench), noise, 0.5)
    expected = solve(drawn, scale.process_in(bench.latent), levels, solver)
    found = invert(inversion, solver=solver, gamma=0.5, noise_seed=3)
    assert error(found["samples"], scale.process_out(expected)) <= CLOSE
    alone = invert(inversion, solver=solver, gamma=1.0, noise_seed=3)
    assert error(alone["samples"], scale.process_out(noise)) <= CLOSE


def test_without_gamma_nothing_changes_and_with_it_no_history_is_handed_over(inversion):
    plain = invert(inversion, solver="leapfrog", steps=10)
    assert torch.equal(
        invert(inversion, solver="leapfrog", steps=10, gamma=0.0, noise_seed=9)["samples"], plain["samples"]
    )
    drawn = invert(inversion, solver="leapfrog", steps=10, gamma=0.5)
    facts = inversion.bench.facts(drawn, solver="leapfrog", cfg=1.0, steps=10)
    assert facts["noise"]["goes_on"] and not facts["noise"]["turns_back"]


def test_gamma_keeps_to_the_noise_mask(inversion):
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    latent = {"samples": inversion.bench.latent, "noise_mask": mask}
    found = invert(inversion, latent, gamma=0.5, noise_seed=3)["samples"]
    plain = invert(inversion, latent)["samples"]
    assert error(found[..., 4:, :], plain[..., 4:, :]) <= CLOSE and error(found, plain) > 1e-3


def pulled(of, model, latent, **given):
    return of("invert").SourcePull().apply(model, latent, **{"eta": 0.9, **WHOLE, **given})[0]


@pytest.mark.parametrize("name", ["SD3.5 Medium", "FLUX.1 dev", "Qwen-Image", "Z-Image"])
def test_the_pull_mixes_the_predicted_image_and_the_source(bench, name):
    """One step of Euler from noise is the predicted image."""
    made = FamilyBench.make(bench.module, name)
    image = noise_of(8, made.latent)
    run = lambda model, levels: made.run(model=model, sigmas=levels)  # noqa: E731
    plain = run(made.model, (1.0, 0.0))
    half = run(pulled(bench.module, made.model, {"samples": image}, eta=0.5), (1.0, 0.0))
    assert error(half, (plain + image) / 2) <= CLOSE
    assert torch.equal(run(pulled(bench.module, made.model, {"samples": image}, eta=0.0), (1.0, 0.0)), plain)
    all_of_it = run(pulled(bench.module, made.model, {"samples": image}, eta=1.0), (1.0, 0.6, 0.3, 0.0))
    assert error(all_of_it, image) <= CLOSE
    window = dict(start_percent=0.0, end_percent=0.01)
    early = run(pulled(bench.module, made.model, {"samples": image}, eta=1.0, **window), (1.0, 0.6, 0.0))
    assert error(early, image) > 1e-2


def test_any_sampler_is_pulled_and_a_batch_is_pulled_to_its_images(bench):
    import comfy.sample

    images = torch.cat([bench.latent, bench.latent.flip(-1)])
    model = pulled(bench.module, bench.model, {"samples": images}, eta=1.0)
    noise = noise_of(4, images)
    found = comfy.sample.sample(
        model, noise, 4, 3.0, "dpmpp_2m", "simple", bench.positive, bench.negative, torch.zeros_like(images),
        disable_pbar=True,
    )  # fmt: skip
    assert error(found, images) <= CLOSE
    one = pulled(bench.module, bench.model, {"samples": bench.latent}, eta=1.0)
    both = bench.run(bench.empty(2), model=one)
    assert error(both, bench.latent.expand(2, -1, -1, -1)) <= CLOSE


def test_what_does_not_fit_is_refused(bench):
    before = dict(bench.model.model_options)
    small = pulled(bench.module, bench.model, {"samples": bench.latent[..., :4]})
    with pytest.raises(
        ValueError, match="SourcePull: source_latent: it is 1 x 16 x 8 x 4, and the sampled latent 1 x 16 x 8 x 8"
    ):
        bench.run(model=small)
    with pytest.raises(ValueError, match="SourcePull: source_latent: it is empty"):
        pulled(bench.module, bench.model, bench.empty())
    with pytest.raises(ValueError, match="SourcePull: end_percent: 0.2 is not after start_percent, 0.5"):
        pulled(bench.module, bench.model, {"samples": bench.latent}, start_percent=0.5, end_percent=0.2)
    pull = pulled(bench.module, bench.model, {"samples": bench.latent})
    with pytest.raises(ValueError, match="FlowInvert: model: it has a Source Pull"):
        Inversion(bench).node.invert(pull, bench.positive, {"samples": bench.latent}, 4, "euler", 0.0)
    with pytest.raises(ValueError, match="FlowInvert: gamma: 1.5. Set a number from 0 to 1"):
        invert(Inversion(bench), gamma=1.5)
    assert bench.model.model_options == before
