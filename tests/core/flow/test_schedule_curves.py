"""The curves of the schedules against scipy, published formulas and definitions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta as beta_distribution

from mmdit_core.flow.schedules import SCHEDULES, beta_quantile, sigmas
from mmdit_core.flow.sigma import shift_sigma

CURVES = ("beta", "karras", "cosine", "log_snr", "cosmap")
STEPS = (1, 2, 3, 7, 28, 100)


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=atol)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=20), st.floats(0.3, 10), st.floats(0.3, 10))
def test_beta_quantiles_are_scipys(probabilities, a, b):
    found = beta_quantile(torch.tensor(probabilities, dtype=torch.float64), a, b)
    close(found, beta_distribution.ppf(probabilities, a, b), atol=1e-10)


@pytest.mark.parametrize(("a", "b"), [(0.3, 10.0), (0.6, 0.6), (4.0, 0.3)])
def test_beta_quantiles_of_0_and_1_are_exactly_the_ends(a, b):
    assert beta_quantile(torch.tensor([0.0, 1.0], dtype=torch.float64), a, b).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 1.5), (1.0, 1.0), (2.0, 0.7), (5.0, 5.0)])
@pytest.mark.parametrize("steps", STEPS)
def test_beta_is_scipys_quantiles_of_even_steps(steps, a, b):
    expected = beta_distribution.ppf(1 - np.arange(steps + 1) / steps, a, b)
    close(sigmas(steps, "beta", 1.0, alpha=a, beta=b), expected)


@pytest.mark.parametrize("steps", [8, 20, 28])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_beta_is_comfyuis_before_its_rounding(steps, shift):
    # ComfyUI rounds 999 * quantile to a row of its table; row k is the sigma (k + 1) / 1000.
    rows = np.rint(beta_distribution.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6) * 999)
    rounded = (rows + 1) / 1000
    ours = shift_sigma(sigmas(steps, "beta", shift), 1 / shift)[:-1]
    assert len(set(rows)) == steps
    # Half a row of rounding, and (k + 1) / 1000 for k / 999: a row at the low end, nothing at the high one.
    assert np.all(np.abs(rounded - ours.numpy()) <= (0.5 + 1 - ours.numpy()) / 1000 + 1e-12)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("rho", [1.0, 7.0])
def test_karras_is_the_published_formula_down_to_the_lowest_trained_sigma(steps, rho):
    ramp = np.arange(steps) / max(steps - 1, 1)
    expected = (1 + ramp * (0.001 ** (1 / rho) - 1)) ** rho
    close(sigmas(steps, "karras", 1.0, rho=rho), [*expected, 0.0])


def test_the_last_step_of_karras_begins_at_the_lowest_trained_sigma_shifted():
    assert sigmas(28, "karras", 3.0)[-2].item() == pytest.approx(shift_sigma(0.001, 3.0), abs=1e-15)


@pytest.mark.parametrize("steps", STEPS)
def test_cosine_is_half_a_cosine_wave(steps):
    close(sigmas(steps, "cosine", 1.0), [(1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps + 1)])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_log_snr_steps_are_even_between_pure_noise_and_pure_data(shift):
    grid = sigmas(20, "log_snr", shift)
    times = torch.log((1 - grid[1:-1]) / grid[1:-1])
    close(times.diff(), [2 * math.log(999) / 20] * 18)
    # A shift moves the log-SNR, and one step outside the grid are the lowest and the highest trained sigma.
    assert times[0].item() - times.diff()[0].item() == pytest.approx(-math.log(999) - math.log(shift), abs=1e-12)


@pytest.mark.parametrize("steps", STEPS)
def test_cosmap_is_the_published_map_and_has_the_cosine_schedules_log_snr(steps):
    u = 1 - np.arange(1, steps) / steps
    grid = sigmas(steps, "cosmap", 1.0)
    close(grid, [1.0, *(1 - 1 / (np.tan(np.pi * u / 2) + 1)), 0.0])
    inside = grid[1:-1].numpy()
    np.testing.assert_allclose((1 - inside) / inside, np.cos(np.pi * u / 2) / np.sin(np.pi * u / 2), rtol=1e-11)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(set(SCHEDULES) - {"sd3"})), st.integers(1, 60), st.floats(0.05, 50))
def test_every_schedule_is_its_curve_shifted(name, steps, shift):
    close(sigmas(steps, name, shift), shift_sigma(sigmas(steps, name, 1.0), shift))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0.3, 10), st.floats(0.3, 10), st.floats(0.1, 100), st.floats(0.2, 20))
def test_options_in_range_leave_the_grid_strictly_falling(steps, alpha, beta, rho, shift):
    for grid in (sigmas(steps, "beta", shift, alpha=alpha, beta=beta), sigmas(steps, "karras", shift, rho=rho)):
        assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()


@pytest.mark.parametrize("name", CURVES)
def test_denoise_is_the_tail_of_the_longer_curve(name):
    assert torch.equal(sigmas(10, name, denoise=0.5), sigmas(20, name)[10:])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"rho": 7.0}, "schedule 'linear' has no option 'rho'; it takes none"),
        ("beta", {"rho": 7.0}, "schedule 'beta' has no option 'rho'; it takes alpha, beta"),
        ("beta", {"alpha": 0.0}, r"alpha is 0.0; it must be in \[0.3, 10\]"),
        ("beta", {"beta": math.nan}, "beta is nan"),
        ("beta", {"alpha": 0.29}, "alpha is 0.29"),
        ("beta", {"beta": 10.1}, "beta is 10.1"),
        ("karras", {"rho": 101.0}, "rho is 101.0"),
        ("karras", {"rho": 0.0}, r"rho is 0.0; it must be in \[0.1, 100\]"),
    ],
)
def test_an_error_names_the_option_the_value_and_the_range(name, options, message):
    with pytest.raises(ValueError, match=message):
        sigmas(8, name, **options)
