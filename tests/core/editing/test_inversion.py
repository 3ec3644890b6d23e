"""Inversion under a noise mask."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.editing.inversion import masked_velocity
from mmdit_core.flow.path import interpolate
from mmdit_core.solvers import solve

SHAPE = (2, 3, 4, 5)


def velocity(x, sigma):
    return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2) - 0.5 * x.roll(1, -1)


@pytest.fixture
def ends():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)


def of(value):
    return lambda x, sigma: torch.full((), value, dtype=x.dtype)


@pytest.mark.parametrize("sigma", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("mask", [0.0, 0.4, 1.0])
def test_the_velocity_is_that_of_inpainting(ends, sigma, mask):
    image, noise = ends
    x = interpolate(image, noise, sigma) + 0.1
    path = interpolate(image, noise, sigma)
    masked_x = mask * x + (1 - mask) * path
    at = torch.tensor(sigma, dtype=torch.float64)
    denoised = mask * (masked_x - sigma * velocity(masked_x, at)) + (1 - mask) * image
    found = masked_velocity(velocity, of(mask), image, noise)(x, at)
    torch.testing.assert_close(found, (x - denoised) / sigma, rtol=0, atol=1e-9)


def test_under_mask_one_it_is_the_models_velocity(ends):
    image, noise = ends
    x = torch.randn(SHAPE, dtype=torch.float64)
    for sigma in (0.0, 0.5, 1.0):
        at = torch.tensor(sigma, dtype=torch.float64)
        torch.testing.assert_close(masked_velocity(velocity, of(1.0), image, noise)(x, at), velocity(x, at))


def test_outside_the_mask_an_inversion_ends_at_the_noise(ends):
    image, noise = ends
    masked = masked_velocity(velocity, of(0.0), image, noise)
    grid = torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(solve(masked, image, grid), noise, rtol=0, atol=1e-12)


def test_the_model_gets_the_path_outside_the_mask_and_x_inside(ends):
    image, noise = ends
    mask = torch.zeros(SHAPE, dtype=torch.float64)
    mask[..., :2] = 1
    inputs = []
    masked = masked_velocity(lambda x, sigma: inputs.append(x) or x, lambda x, sigma: mask, image, noise)
    x = torch.randn(SHAPE, dtype=torch.float64)
    masked(x, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(inputs[0], torch.where(mask == 1, x, interpolate(image, noise, 0.3)))


def test_near_sigma_zero_the_pull_to_the_path_is_bounded(ends):
    image, noise = ends
    masked = masked_velocity(of(0.0), of(0.0), image, noise)
    found = masked(image + 1e-3, torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(found, noise - image + 1.0, rtol=0, atol=1e-9)
