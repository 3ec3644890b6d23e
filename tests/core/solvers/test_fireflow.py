"""FireFlow: the published step, its calls, its history."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import solve, solve_with_history


def start(dtype=torch.float64):
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def curved(x, sigma):
    return torch.sin(2 * x) + sigma**2


def published(x, grid):
    """Algorithm 1, step by step."""
    velocity = curved(x, grid[0])
    for sigma, following in zip(grid, grid[1:], strict=False):
        h = following - sigma
        velocity = curved(x + h / 2 * velocity, sigma + h / 2)
        x = x + h * velocity
    return x


@pytest.mark.parametrize("rising", [False, True])
def test_a_run_is_the_published_algorithm(rising):
    grid = sigmas(9).flip(0) if rising else sigmas(9)
    found = solve(curved, start(), grid, "fireflow")
    torch.testing.assert_close(found, published(start(), grid), rtol=0, atol=1e-14)


def test_a_constant_velocity_is_followed_exactly_and_a_step_costs_one_call():
    called, constant = [], torch.full((2, 3, 4), 0.75, dtype=torch.float64)

    def velocity(x, sigma):
        called.append(sigma.item())
        return constant

    found = solve(velocity, start(), sigmas(8), "fireflow")
    torch.testing.assert_close(found, start() - constant, rtol=0, atol=1e-15)
    assert len(called) == 9 and min(called) > 0


@pytest.mark.parametrize("cut", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_run_in_parts_is_the_run_in_one_piece(cut, dtype):
    grid = sigmas(7)
    whole, _ = solve_with_history(curved, start(dtype), grid, "fireflow")
    half, history = solve_with_history(curved, start(dtype), grid[: cut + 1], "fireflow")
    rest, _ = solve_with_history(curved, half, grid[cut:], "fireflow", history=history)
    assert torch.equal(rest, whole) and len(history) == 1
