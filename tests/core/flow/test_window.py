"""Windows of the sampling, and the one tolerance for equal sigmas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit_core.flow.sigma import SIGMA_TOLERANCE, percent_of_sigma, same_sigma
from mmdit_core.flow.window import FADES, Window, WindowError


def straight(percent: float) -> float:
    return 1.0 - percent


def shifted(percent: float) -> float:
    """SD3's map at shift 3."""
    t = 1.0 - percent
    return 3 * t / (1 + 2 * t)


PERCENTS = st.floats(0, 1)


@pytest.mark.parametrize("to_sigma", [straight, shifted])
@given(percent=PERCENTS)
def test_the_percent_of_a_sigma_inverts_the_map(to_sigma, percent):
    assert percent_of_sigma(to_sigma(percent), to_sigma) == pytest.approx(percent, abs=1e-9)


def test_a_sigma_out_of_the_maps_range_gives_the_nearer_end():
    assert percent_of_sigma(2.0, straight) == pytest.approx(0, abs=1e-11)
    assert percent_of_sigma(-1.0, straight) == pytest.approx(1, abs=1e-11)


@pytest.mark.parametrize("sigma", [1.0, 0.5, 0.03, 1e-4])
def test_float32_rounding_does_not_make_another_sigma_and_a_step_of_a_long_schedule_does(sigma):
    assert same_sigma(sigma, float(np.float32(sigma)))
    assert same_sigma(sigma, sigma * (1 + SIGMA_TOLERANCE / 2))
    assert not same_sigma(sigma, sigma * (1 + 2 * SIGMA_TOLERANCE))
    assert not same_sigma(sigma, sigma * (1 - 2 * SIGMA_TOLERANCE))


def test_zero_is_the_same_sigma_as_zero_alone():
    assert same_sigma(0.0, 0.0)
    assert not same_sigma(0.0, 1e-6)


@given(cut=st.floats(0.01, 0.99), sigma=st.floats(0, 1))
def test_consecutive_windows_share_no_sigma_and_leave_none_out(cut, sigma):
    first, second = Window(0, cut), Window(cut, 1)
    assert first.holds(sigma, shifted) != second.holds(sigma, shifted)


def test_a_window_holds_its_start_and_not_its_end():
    window = Window(0.25, 0.75)
    inside = [percent for percent in (0, 0.2, 0.25, 0.5, 0.74, 0.75, 0.8, 1) if window.holds(1 - percent, straight)]
    assert inside == [0.25, 0.5, 0.74]


@pytest.mark.parametrize("percent", [0.1, 0.3, 0.7])
def test_a_sigma_in_float32_is_at_the_start_and_at_the_end_of_a_window_in_float64(percent):
    sigma = shifted(percent)
    for near in (sigma * (1 + 1e-7), sigma * (1 - 1e-7)):
        assert Window(percent, 1).holds(near, shifted)
        assert not Window(0, percent).holds(near, shifted)


def test_the_whole_window_holds_the_first_sigma_and_sigma_zero_whatever_the_map_gives_there():
    def never(percent: float) -> float:
        raise AssertionError("the ends need no map")

    for sigma in (0.0, 0.5, 1.0, 2.0):
        assert Window().holds(sigma, never)
        assert Window().strength_at(sigma, never) == 1


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.7, 0.2), (0, 0), (1, 1)])
def test_an_empty_window_has_no_strength_at_any_sigma(start, end):
    window = Window(start, end)
    assert window.is_empty and not window.is_whole
    assert all(window.strength_at(sigma, straight) == 0 for sigma in (0.0, 0.3, 0.5, 0.8, 1.0))


def test_a_window_is_whole_only_without_limits_and_fade():
    assert Window().is_whole
    assert not any(w.is_whole for w in (Window(0.01), Window(end=0.99), Window(fade="in")))


# Strengths at a quarter, half and three quarters of the window, by hand.
BY_HAND = {"constant": (1, 1, 1), "in": (0.25, 0.5, 0.75), "out": (0.75, 0.5, 0.25), "cosine": (0.5, 1, 0.5)}


@pytest.mark.parametrize("fade", FADES)
@pytest.mark.parametrize("to_sigma", [straight, shifted])
def test_a_fade_runs_over_the_window_and_not_over_the_whole_sampling(fade, to_sigma):
    window = Window(0.2, 0.6, fade)
    found = [window.strength_at(to_sigma(percent), to_sigma) for percent in (0.3, 0.4, 0.5)]
    assert found == pytest.approx(BY_HAND[fade], abs=1e-6)
    assert window.strength_at(to_sigma(0.1), to_sigma) == window.strength_at(to_sigma(0.7), to_sigma) == 0


@given(start=PERCENTS, end=PERCENTS, sigma=st.floats(0, 1), fade=st.sampled_from(sorted(FADES)))
def test_a_strength_is_in_0_to_1_and_0_outside(start, end, sigma, fade):
    window = Window(start, end, fade)
    strength = window.strength_at(sigma, shifted)
    assert 0 <= strength <= 1
    if not window.holds(sigma, shifted):
        assert strength == 0


@pytest.mark.parametrize("field", ["start", "end"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_a_window_out_of_range_is_refused_by_field_and_value(field, value):
    with pytest.raises(WindowError, match=rf"{field} is .*in \[0, 1\]") as caught:
        Window(**{field: value})
    assert caught.value.field == field and caught.value.value is value


def test_an_unknown_fade_is_refused_with_the_known_ones():
    with pytest.raises(WindowError, match="constant, in, out, cosine"):
        Window(fade="linear")
