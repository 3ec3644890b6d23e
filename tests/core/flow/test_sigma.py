import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.flow.sigma import (
    SIGMA_TOLERANCE,
    flux_mu,
    mu_to_shift,
    percent_of_sigma,
    resolution_shift,
    same_sigma,
    shift_sigma,
)

SHIFTS = st.floats(0.05, 50)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1))
def test_a_sigma_in_float32_is_the_same_sigma(sigma):
    rounded = torch.tensor(sigma, dtype=torch.float32).item()
    assert same_sigma(sigma, rounded) or sigma < 1e-30


@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.001])
def test_the_tolerance_is_relative_and_ends_at_1e_5(sigma):
    assert SIGMA_TOLERANCE == 1e-5
    for factor in (1 + 0.9e-5, 1 - 0.9e-5):
        assert same_sigma(sigma, sigma * factor) and same_sigma(sigma * factor, sigma)
    for factor in (1 + 1.1e-5, 1 - 1.1e-5):
        assert not same_sigma(sigma, sigma * factor) and not same_sigma(sigma * factor, sigma)


def test_zero_is_the_same_sigma_as_zero_alone():
    assert same_sigma(0.0, 0.0) and not same_sigma(0.0, 1e-6)


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1), SHIFTS)
def test_percent_of_sigma_is_the_inverse_of_percent_to_sigma(percent, shift):
    def percent_to_sigma(percent):
        return shift_sigma(1 - percent, shift)

    assert percent_of_sigma(percent_to_sigma(percent), percent_to_sigma) == pytest.approx(percent, abs=1e-11)


def test_percent_of_a_sigma_outside_the_models_range_is_an_end():
    def percent_to_sigma(percent):
        return 0.9 - 0.8 * percent

    assert percent_of_sigma(1.0, percent_to_sigma) == pytest.approx(0, abs=1e-12)
    assert percent_of_sigma(0.0, percent_to_sigma) == pytest.approx(1, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), SHIFTS, SHIFTS)
def test_shift_has_an_inverse_and_composes(sigma, shift, other):
    assert shift_sigma(shift_sigma(sigma, shift), 1 / shift) == pytest.approx(sigma, abs=1e-14)
    assert shift_sigma(shift_sigma(sigma, shift), other) == pytest.approx(shift_sigma(sigma, shift * other), abs=1e-14)


@settings(max_examples=200, deadline=None)
@given(SHIFTS, st.sampled_from([torch.float32, torch.float64]))
def test_shift_keeps_ends_exactly_order_and_dtype(shift, dtype):
    grid = shift_sigma(torch.linspace(0, 1, 101, dtype=dtype), shift)
    assert grid.dtype == dtype
    assert grid[0] == 0 and grid[-1] == 1
    assert (grid.diff() > 0).all()


def test_flux_mu_at_its_two_published_sizes():
    assert flux_mu(256) == 0.5
    assert flux_mu(4096) == 1.15
    assert mu_to_shift(flux_mu(4096)) == pytest.approx(3.158, abs=5e-4)


def test_resolution_shift_is_the_root_of_the_pixel_ratio():
    assert resolution_shift(2048 * 2048) == 2
    assert resolution_shift(512 * 512) == 0.5
    assert resolution_shift(1024 * 1024) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shift_sigma(0.5, -1.0), "shift is -1.0"),
        (lambda: shift_sigma(0.5, 0.0), "shift is 0.0"),
        (lambda: flux_mu(0), "tokens is 0; it must be > 0"),
        (lambda: resolution_shift(0), "pixels is 0; it must be > 0"),
    ],
)
def test_bad_number_to_a_shift_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
