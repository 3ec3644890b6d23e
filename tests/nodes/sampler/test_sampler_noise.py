"""FlowMatchingSampler's noise: a batch against its images alone, variations, and the noise of stochastic steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nodes as host_nodes
from mmdit_core.solvers import SOLVERS

STOCHASTIC = [name for name, method in SOLVERS.items() if method.stochastic]


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize("solver", ["euler", "unipc", *STOCHASTIC])
@pytest.mark.parametrize("variation", [0.0, 0.3])
def test_image_k_of_a_batch_is_the_one_that_its_own_seed_gives_alone(bench, solver, variation):
    given = dict(solver=solver, variation_strength=variation, variation_seed=40)
    batch = bench.run(bench.empty(3), batch_noise="per image", seed=2**64 - 2, **given)
    for k in range(3):
        seeds = {"variation_seed": 40 + k, "seed": 2**64 - 2} if variation else {"seed": (2**64 - 2 + k) % 2**64}
        assert error(batch[k : k + 1], bench.run(**{**given, **seeds})) <= 1e-4
    assert error(batch[1:2], batch[:1]) > 1e-3


@pytest.mark.parametrize("noise", ["shared", "per image"])
def test_an_image_taken_out_of_a_batch_is_made_again(bench, noise):
    """ComfyUI's Latent From Batch notes which one it took; stochastic steps go with it where each has its own seed."""
    latent = bench.empty(4)
    (taken,) = host_nodes.LatentFromBatch().frombatch(latent, 2, 2)
    solver = "euler_ancestral" if noise == "per image" else "euler"
    batch = bench.run(latent, batch_noise=noise, solver=solver)
    assert error(bench.run(taken, batch_noise=noise, solver=solver), batch[2:]) <= 1e-4


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    solver=st.sampled_from(sorted(SOLVERS)),
    seed=st.integers(0, 2**64 - 1),
    batch=st.integers(2, 3),
    cfg=st.sampled_from([1.0, 2.5]),
    strength=st.sampled_from([0.0, 0.2]),
    data=st.data(),
)
def test_a_batch_equals_its_singles(bench, solver, seed, batch, cfg, strength, data):
    dials = dict(solver=solver, steps=3, cfg=cfg, batch_noise="per image", tolerance=1e-2)
    if solver in ("bosh3", "dopri5"):
        dials["tolerance"] = 1.0  # the worst of the batch chooses the steps of all: here the fewest there can be
    made = bench.run(bench.empty(batch), seed=seed, variation_seed=seed, variation_strength=strength, **dials)
    k = data.draw(st.integers(0, batch - 1))
    alone = (seed if strength else (seed + k) % 2**64), (seed + k) % 2**64
    single = bench.run(seed=alone[0], variation_seed=alone[1], variation_strength=strength, **dials)
    assert error(made[k : k + 1], single) <= 1e-4


def test_a_batch_of_one_is_the_same_either_way(bench):
    for solver in ("euler", *STOCHASTIC):
        assert torch.equal(bench.run(solver=solver, batch_noise="per image"), bench.run(solver=solver))


def test_a_variation_leads_from_one_image_to_the_other(bench):
    start, end = bench.run(seed=5), bench.run(seed=9)
    assert torch.equal(bench.run(seed=5, variation_seed=9, variation_strength=0.0), start)
    assert torch.equal(bench.run(seed=5, variation_seed=9, variation_strength=1.0), end)
    distances = [error(bench.run(seed=5, variation_seed=9, variation_strength=s), start) for s in (0.05, 0.3, 0.8)]
    assert 0 < distances[0] < distances[1] < distances[2]
    half = bench.run(seed=5, variation_seed=9, variation_strength=0.5)
    assert half.std() == pytest.approx(start.std().item(), rel=0.2)  # noise of full strength, not two halves averaged


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_the_noise_of_the_steps_has_a_seed_and_an_amount(bench, solver):
    usual = bench.run(solver=solver)
    assert torch.equal(bench.run(solver=solver, step_noise_seed=5), usual)  # its default is the seed itself
    other = bench.run(solver=solver, step_noise_seed=6)
    assert error(other, usual) > 0.1
    calm = bench.run(solver=solver, eta=0.0)
    assert torch.equal(calm, bench.run(solver=solver, eta=0.0, step_noise_seed=6))
    assert error(bench.run(solver=solver, eta=0.3), calm) < error(usual, calm)


def test_eta_does_nothing_to_a_solver_without_noise(bench):
    assert torch.equal(bench.run(solver="heun", eta=0.0), bench.run(solver="heun"))


def test_the_noise_is_made_on_the_cpu_from_the_seed_alone(bench):
    torch.manual_seed(1)
    first = bench.run(batch_noise="per image", solver="dpmpp_2m_sde")
    torch.manual_seed(2)
    assert torch.equal(bench.run(batch_noise="per image", solver="dpmpp_2m_sde"), first)


def test_a_batch_index_that_does_not_fit_is_named(bench):
    latent = {**bench.empty(2), "batch_index": [0]}
    with pytest.raises(ValueError, match="latent_image: its batch_index names 1 images and it holds 2"):
        bench.run(latent, batch_noise="per image")
