"""The asynchronous leapfrog: the published step, reversibility, its history."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.flow.schedules import SCHEDULES, sigmas
from mmdit_core.solvers import SOLVERS, solve, solve_with_history


def curved(x, sigma):
    return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2) - 0.5 * x.roll(1, -1) * torch.cos(2 * sigma)


def other(x, sigma):
    return curved(x, sigma) + 0.3 * torch.sin(2 * x + sigma)


def start(dtype=torch.float64):
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def published(velocity, z, v, grid):
    """Zhuang et al. 2021, the step psi: k1 = z + v h/2, u1 = f(k1, s + h/2), v' = 2 u1 - v, z' = k1 + v' h/2."""
    for s, following in zip(grid[:-1], grid[1:], strict=True):
        h = following - s
        k1 = z + v * h / 2
        v = 2 * velocity(k1, s + h / 2) - v
        z = k1 + v * h / 2
    return z, v


@pytest.mark.parametrize("rising", [False, True])
def test_the_step_is_the_published_one(rising):
    grid = sigmas(9, shift=2.0)[:-1]
    grid = grid.flip(0) if rising else grid
    expected, expected_v = published(curved, start(), curved(start(), grid[0]), grid)
    found, (end,) = solve_with_history(curved, start(), grid, "leapfrog")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.velocity, expected_v, rtol=0, atol=1e-12)
    assert torch.equal(end.x, found) and end.sigma == grid[-1]


@pytest.mark.parametrize("rate", [-2.0, 0.7])
def test_on_a_linear_problem_a_step_is_the_published_matrix(rate):
    # For dx/dsigma = rate * x, a = h * rate, the pair (x, h v) goes on by [[1 + a, a / 2], [2 a, a - 1]].
    h, steps = -0.1, 7
    a = h * rate
    pair = torch.tensor([1.0, h * rate], dtype=torch.float64)
    matrix = torch.tensor([[1 + a, a / 2], [2 * a, a - 1]], dtype=torch.float64)
    assert torch.linalg.det(matrix).item() == pytest.approx(-1)  # area-preserving up to a reflection
    expected = torch.linalg.matrix_power(matrix, steps) @ pair
    grid = [0.9 + h * index for index in range(steps + 1)]
    found, (end,) = solve_with_history(lambda x, sigma: rate * x, torch.ones(1, dtype=torch.float64), grid, "leapfrog")
    assert [found.item(), h * end.velocity.item()] == pytest.approx(expected.tolist(), abs=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-4)])
def test_inversion_and_sampling_return_the_start_on_every_schedule(schedule, dtype, tolerance):
    grid = sigmas(50, schedule)
    noise, history = solve_with_history(curved, start(dtype), grid.flip(0), "leapfrog")
    back, (end,) = solve_with_history(curved, noise, grid, "leapfrog", history=history)
    assert (noise - start(dtype)).abs().max() > 0.5
    torch.testing.assert_close(back, start(dtype), rtol=0, atol=tolerance)
    assert end.sigma == 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=30, unique=True),
    st.booleans(),
    st.floats(-1.5, 1.5),
)
def test_a_run_is_reversed_on_any_grid_and_along_any_flow(thousandths, rising, bend):
    grid = torch.tensor(sorted(thousandths, reverse=not rising), dtype=torch.float64) / 1000

    def velocity(x, sigma):
        return bend * curved(x, sigma)

    there, history = solve_with_history(velocity, start(), grid, "leapfrog")
    back, _ = solve_with_history(velocity, there, grid.flip(0), "leapfrog", history=history)
    torch.testing.assert_close(back, start(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4"])
def test_other_solvers_do_not_return_to_the_start(solver):
    grid = sigmas(50)
    back = solve(curved, solve(curved, start(), grid.flip(0), solver), grid, solver)
    assert (back - start()).abs().max() > 1e-8


def test_without_its_history_a_run_does_not_return_to_the_start():
    grid = sigmas(20)
    noise = solve(curved, start(), grid.flip(0), "leapfrog")
    assert (solve(curved, noise, grid, "leapfrog") - start()).abs().max() > 1e-5


def test_a_first_velocity_with_an_error_of_the_step_keeps_the_order():
    exact, errors = solve(curved, start(), [1.0, 0.2], "dopri5", tolerance=1e-8), []
    for steps in (100, 200):
        grid = torch.linspace(1, 0.2, steps + 1, dtype=torch.float64)
        _, (point,) = solve_with_history(curved, start(), [0.9, 1.0], "leapfrog")
        wrong = type(point)(1.0, start(), curved(start(), torch.tensor(1.0)) + 3.0 / steps)
        found, _ = solve_with_history(curved, start(), grid, "leapfrog", history=(wrong,))
        errors.append((found - exact).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)


def test_along_another_flow_a_run_without_history_is_more_accurate():
    grid = sigmas(28)
    noise, history = solve_with_history(curved, start(), grid.flip(0), "leapfrog")
    exact = solve(other, noise, [1.0, 0.0], "dopri5", tolerance=1e-8)
    fresh, carried = (solve_with_history(other, noise, grid, "leapfrog", history=given)[0] for given in ((), history))
    assert (fresh - exact).abs().max() < (carried - exact).abs().max() / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_a_run_in_two_parts_equals_the_whole(cut, rising, dtype):
    grid = sigmas(8).flip(0) if rising else sigmas(8)
    whole, ended = solve_with_history(curved, start(dtype), grid, "leapfrog")
    half, history = solve_with_history(curved, start(dtype), grid[: cut + 1], "leapfrog")
    rest, rest_ended = solve_with_history(curved, half, grid[cut:], "leapfrog", history=history)
    assert torch.equal(rest, whole) and torch.equal(rest_ended[0].velocity, ended[0].velocity)


@pytest.mark.parametrize("rising", [False, True])
def test_calls_are_at_the_start_and_at_the_middle_of_each_step(rising):
    grid, called = [0.0, 0.4, 1.0] if rising else [1.0, 0.4, 0.0], []
    solve(lambda x, sigma: (called.append(round(sigma.item(), 6)), curved(x, sigma))[1], start(), grid, "leapfrog")
    assert called == ([0.0, 0.2, 0.7] if rising else [1.0, 0.7, 0.2])
    assert SOLVERS["leapfrog"].calls_per_step == 1


def test_the_callback_has_each_step_once_with_its_start():
    grid, reports = sigmas(5), []
    solve(curved, start(), grid, "leapfrog", callback=lambda *arguments: reports.append(arguments))
    assert [(step, steps) for step, steps, *_ in reports] == [(index, 5) for index in range(5)]
    assert [sigma.item() for *_, sigma in reports] == grid[:-1].tolist() and torch.equal(reports[0][2], start())


def test_a_history_of_another_sigma_or_shape_is_an_error():
    half, history = solve_with_history(curved, start(), [1.0, 0.8, 0.5], "leapfrog")
    with pytest.raises(ValueError, match="history ends at sigma 0.5, and the run begins at 0.8"):
        solve_with_history(curved, half, [0.8, 0.0], "leapfrog", history=history)
    with pytest.raises(ValueError, match=r"history is of shape \[2, 3, 4, 5\]; expected x's, \[1, 3, 4, 5\]"):
        solve_with_history(curved, half[:1], [0.5, 0.0], "leapfrog", history=history)
    with pytest.raises(ValueError, match="does not precede"):
        solve_with_history(curved, half, [0.5, 0.0], "ab2", history=history)
