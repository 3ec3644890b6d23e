"""Multistep and exponential methods: published coefficients, and runs in two parts."""

import math

import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_dpmsolver_singlestep, scheduling_unipc_multistep
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Polynomial

from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import SOLVERS, solve, solve_with_history
from mmdit_core.solvers.base import Integrator
from mmdit_core.solvers.exponential import LOG_SNR, TwoStage, phi, residual
from mmdit_core.solvers.multistep import lagrange_integrals

STEPWISE = [name for name, method in SOLVERS.items() if not isinstance(method, Integrator)]
WITH_MEMORY = [name for name in STEPWISE if SOLVERS[name].history]


def curved(x, sigma):
    return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2) - 0.5 * x.roll(1, -1) * torch.cos(2 * sigma)


def start():
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Float64Torch:
    """torch with float64 in place of float32, for a module that hard-codes float32."""

    def __getattr__(self, name):
        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.mark.parametrize(
    ("positions", "published"),
    [
        ([-1], [-1 / 2]),
        ([-2, -1], [5 / 12, -16 / 12]),
        ([-3, -2, -1], [-9 / 24, 37 / 24, -59 / 24]),
    ],
)
def test_adams_bashforth_on_even_steps_has_the_published_weights(positions, published):
    assert lagrange_integrals(positions) == pytest.approx(published, abs=1e-14)


@pytest.mark.parametrize(("solver", "order"), [("ab2", 2), ("ab3", 3), ("ab4", 4)])
@pytest.mark.parametrize("rising", [False, True])
def test_adams_bashforth_integrates_the_polynomial_through_the_last_velocities(solver, order, rising):
    grid = sigmas(9, shift=2.0)[:-1]
    grid = grid.flip(0) if rising else grid
    x, velocities = start(), []
    for index in range(len(grid) - 1):
        velocities = [*velocities, curved(x, grid[index]).numpy().ravel()][-order:]
        positions = grid[index + 1 - len(velocities) : index + 1].numpy() - grid[index].item()
        rows = np.linalg.solve(np.vander(positions, increasing=True), np.stack(velocities))
        h = (grid[index + 1] - grid[index]).item()
        step = [Polynomial(column).integ()(h) for column in rows.T]
        x = x + torch.tensor(step).reshape(x.shape)
    torch.testing.assert_close(solve(curved, start(), grid, solver), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 28])
def test_unipc_matches_diffusers(steps, monkeypatch):
    monkeypatch.setattr(scheduling_unipc_multistep, "torch", Float64Torch())
    grid = sigmas(steps) * (1 - 1e-6)  # its log-SNR is infinite at 1
    reference = scheduling_unipc_multistep.UniPCMultistepScheduler(
        solver_order=2, solver_type="bh2", use_flow_sigmas=True, prediction_type="flow_prediction"
    )
    reference.set_timesteps(steps)
    # Its timesteps are cut to integers: set the sigmas, and step by index.
    reference.sigmas = grid
    reference.set_begin_index(0)
    x = start()
    for sigma in grid[:-1]:
        x = reference.step(curved(x, sigma), 1000 * sigma, x).prev_sample
    torch.testing.assert_close(solve(curved, start(), grid, "unipc"), x, rtol=0, atol=1e-12)


def test_unipc_from_sigma_1_is_the_limit_of_sigmas_below():
    # The limit is approached like 1 / log-SNR in the corrector after next, and its derivative is infinite there.
    exact = solve(curved, start(), sigmas(10), "unipc")
    gaps = []
    for nearness in (1e-3, 1e-6, 1e-12):
        grid = sigmas(10)
        grid[0] = 1 - nearness
        gaps.append((solve(curved, start(), grid, "unipc") - exact).abs().max().item())
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 5e-3


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_two_stages_in_log_snr_match_diffusers_single_step_solver(steps, monkeypatch):
    # RES-2S is its "heun" form; the row runs in time -log(sigma), so the other coordinate is put in for the test.
    row = TwoStage(coordinate=LOG_SNR, weight=residual, fraction=0.5, source="")
    monkeypatch.setitem(SOLVERS, "res_2s_logsnr", row)
    monkeypatch.setattr(scheduling_dpmsolver_singlestep, "torch", Float64Torch())
    grid = (sigmas(steps) * 0.98)[:-1] if steps > 1 else torch.tensor([0.9, 0.4], dtype=torch.float64)
    between = torch.sigmoid((torch.logit(grid[1:]) + torch.logit(grid[:-1])) / 2)
    all_sigmas = torch.stack([grid[:-1], between], 1).flatten()
    reference = scheduling_dpmsolver_singlestep.DPMSolverSinglestepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="heun",
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    reference.set_timesteps(len(all_sigmas))
    reference.sigmas = torch.cat([all_sigmas, grid[-1:]])
    reference.order_list = [1, 2] * (len(grid) - 1)
    reference.set_begin_index(0)
    x = start()
    for sigma in all_sigmas:
        x = reference.step(curved(x, sigma), 1000 * sigma, x).prev_sample
    torch.testing.assert_close(solve(curved, start(), grid, "res_2s_logsnr"), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_res_2s_matches_its_butcher_tableau_in_minus_log_sigma(shift):
    # c2 = 1/2, a21 = c2 phi1(-c2 h), b2 = phi2(-h) / c2, b1 = phi1(-h) - b2, on D' = D - x.
    def phi_1(z):
        return math.expm1(z) / z

    def phi_2(z):
        return (phi_1(z) - 1) / z

    x, grid, c = start(), sigmas(8, shift=shift), 0.5
    for sigma, following in zip(grid[:-2].tolist(), grid[1:-1].tolist(), strict=True):
        h = math.log(sigma / following)
        first = x - sigma * curved(x, torch.tensor(sigma, dtype=torch.float64))
        middle = sigma * math.exp(-c * h)
        middle_x = math.exp(-c * h) * x + h * c * phi_1(-c * h) * first
        second = middle_x - middle * curved(middle_x, torch.tensor(middle, dtype=torch.float64))
        b = phi_2(-h) / c
        x = math.exp(-h) * x + h * ((phi_1(-h) - b) * first + b * second)
    x = x - grid[-2] * curved(x, grid[-2])
    torch.testing.assert_close(solve(curved, start(), grid, "res_2s"), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("z", [-3.0, -1.0, -0.999, -1e-3, -1e-9, 0.5, 2.0])
def test_phi_is_its_integral(z):
    node, weight = np.polynomial.legendre.leggauss(30)
    node, weight = (node + 1) / 2, weight / 2
    for order in (1, 2, 3):
        integral = (weight * np.exp((1 - node) * z) * node ** (order - 1)).sum() / math.factorial(order - 1)
        assert phi(order, z) == pytest.approx(integral, rel=1e-13)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(STEPWISE), st.integers(1, 8), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_a_run_in_two_parts_equals_the_whole(solver, cut, rising, dtype):
    method = SOLVERS[solver]
    grid = sigmas(9)[:-1].flip(0) if rising else sigmas(9)
    cut = min(cut, len(grid) - 2)
    options = {"eta": 0.0} if rising and method.stochastic else {}
    whole_noise, noise = (torch.Generator().manual_seed(1) for _ in range(2))
    x = start().to(dtype)
    whole = solve(curved, x, grid, solver, generator=whole_noise, **options)
    half, history = solve_with_history(curved, x, grid[: cut + 1], solver, generator=noise, **options)
    assert len(history) == min(method.history, cut)
    rest, _ = solve_with_history(curved, half, grid[cut:], solver, generator=noise, history=history, **options)
    assert torch.equal(rest, whole)


@pytest.mark.parametrize("solver", WITH_MEMORY)
def test_without_its_history_the_second_part_is_another_run(solver):
    grid = sigmas(9)
    options = {"eta": 0.0} if SOLVERS[solver].stochastic else {}
    whole = solve(curved, start(), grid, solver, **options)
    half = solve(curved, start(), grid[:6], solver, **options)
    rest = solve(curved, half, grid[5:], solver, **options)
    assert (rest - whole).abs().max() > 1e-4


@pytest.mark.parametrize("solver", STEPWISE)
def test_the_history_is_the_last_start_points_that_the_solver_uses(solver):
    _, history = solve_with_history(curved, start(), sigmas(6), solver, generator=torch.Generator().manual_seed(0))
    count = SOLVERS[solver].history
    assert [point.sigma for point in history] == sigmas(6)[6 - count : 6].tolist()


def test_a_history_that_does_not_lead_to_the_first_sigma_is_an_error():
    half, history = solve_with_history(curved, start(), [1.0, 0.8, 0.5], "ab3")
    with pytest.raises(ValueError, match="history has a point at sigma 0.8, which does not precede 0.9"):
        solve_with_history(curved, half, [0.9, 0.0], "ab3", history=history)
    with pytest.raises(ValueError, match="history has a point at sigma 1, which does not precede 0.8"):
        solve_with_history(curved, half, [0.5, 0.9], "ab3", history=history)
    with pytest.raises(ValueError, match=r"history is of shape \[2, 3, 4, 5\]; expected x's, \[1, 3, 4, 5\]"):
        solve_with_history(curved, half[:1], [0.5, 0.0], "ab3", history=history)
