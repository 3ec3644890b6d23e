"""RF-Inversion's controllers: the published forms, and their ends."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.editing.rf_inversion import Pull, drawn_to_noise
from mmdit_core.flow.schedules import sigmas
from mmdit_core.flow.sigma import shift_sigma
from mmdit_core.flow.window import Window
from mmdit_core.solvers import solve

SHAPE = (2, 3, 4)


def randn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(x, sigma):
    return torch.sin(2 * x) + sigma**2


def test_each_step_mixes_the_noise_that_the_velocity_leads_to():
    image, noise, grid = randn(1), randn(2), sigmas(6).flip(0)
    x = image
    for sigma, following in zip(grid, grid[1:], strict=False):
        led_to = x + (1 - sigma) * curved(x, sigma)
        x = x + (following - sigma) * (0.6 * led_to + 0.4 * noise - x) / (1 - sigma)
    found = solve(drawn_to_noise(curved, noise, 0.4), image, grid, "euler")
    torch.testing.assert_close(found, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "leapfrog", "fireflow"])
def test_gamma_1_leads_to_the_noise_and_0_is_the_velocity_itself(solver):
    image, noise, grid = randn(1), randn(2), sigmas(6).flip(0)
    found = solve(drawn_to_noise(curved, noise, 1.0), image, grid, solver)
    torch.testing.assert_close(found, noise, rtol=0, atol=1e-12)
    assert drawn_to_noise(curved, noise, 0.0) is curved


def test_the_pull_acts_in_its_window_and_decays():
    to_sigma = lambda percent: shift_sigma(1 - percent, 3.0)  # noqa: E731
    pull = Pull(0.8, decay=2.0, window=Window(0.0, 0.5))
    for percent in (0.0, 0.2, 0.49):
        assert pull.strength_at(to_sigma(percent), to_sigma) == pytest.approx(0.8 * (1 - percent) ** 2, abs=1e-9)
    assert pull.strength_at(to_sigma(0.51), to_sigma) == 0
    assert Pull(0.8).strength_at(to_sigma(0.9), to_sigma) == 0.8
