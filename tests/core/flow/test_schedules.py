import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.flow import schedules as schedule
from mmdit_core.flow.schedules import SCHEDULES, SMALLEST_SIGMA, parse_sigmas, sigmas
from mmdit_core.flow.sigma import flux_mu, mu_to_shift, shift_sigma

SHIFTS = st.floats(0.05, 50)


def test_linear_is_even_steps_shifted():
    expected = [1, 3 * 0.75 / 2.5, 3 * 0.5 / 2, 3 * 0.25 / 1.5, 0]
    torch.testing.assert_close(sigmas(4), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)
    assert sigmas(4, shift=1.0).tolist() == [1, 0.75, 0.5, 0.25, 0]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 200), SHIFTS, st.floats(0.05, 1))
def test_every_schedule_falls_strictly_to_zero(name, steps, shift, denoise):
    grid = sigmas(steps, name, shift, denoise=denoise)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64 and grid.device.type == "cpu"
    assert grid[-1] == 0 and grid[0] <= 1
    assert (grid.diff() < 0).all()
    assert denoise < 1 or grid[0] == 1


@pytest.mark.parametrize("steps", [1, 2, 7, 28, 50, 1000])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.5])
def test_sd3_grid_is_the_one_diffusers_makes(steps, shift):
    reference = FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(steps)
    torch.testing.assert_close(sigmas(steps, "sd3", shift), reference.sigmas.double(), rtol=0, atol=1e-6)


def test_sd3_tail_is_shifted_twice():
    assert sigmas(28, "sd3", 3.0)[-2].item() == pytest.approx(0.00893, abs=5e-6)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 8100])
@pytest.mark.parametrize("steps", [4, 28])
def test_flux_shift_gives_the_grid_diffusers_makes_from_mu(tokens, steps):
    reference = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = flux_mu(tokens)
    reference.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), mu=mu)
    grid = sigmas(steps, "linear", mu_to_shift(mu))
    torch.testing.assert_close(grid, reference.sigmas.double(), rtol=0, atol=1e-6)


def test_denoise_is_the_tail_of_a_longer_schedule():
    assert torch.equal(sigmas(10, denoise=0.5), sigmas(20)[10:])
    assert torch.equal(sigmas(7, "sd3", denoise=0.3), sigmas(23, "sd3")[16:])
    assert torch.equal(sigmas(7, denoise=1.0), sigmas(7))
    # Rounding to a whole number of steps is down, and denoise is 1 from 0.9999 up.
    assert torch.equal(sigmas(10, denoise=0.91), sigmas(10)) and torch.equal(sigmas(10, denoise=0.9), sigmas(11)[1:])
    assert torch.equal(sigmas(20_000, denoise=0.9999), sigmas(20_002)[2:])
    assert torch.equal(sigmas(20_000, denoise=0.99991), sigmas(20_000))
    assert len(sigmas(1, denoise=1e-4)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number >= 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"steps": 4, "schedule": "cubic"}, "schedule 'cubic' is unknown; choose one of linear, sd3"),
        ({"steps": 4, "shift": 0.0}, "shift is 0.0; it must be finite and > 0"),
        ({"steps": 4, "shift": math.inf}, "shift is inf"),
        ({"steps": 4, "denoise": 0.99e-4}, "denoise is 9.9"),
        ({"steps": 4, "denoise": 0.0}, r"denoise is 0.0; it must be in \[0.0001, 1\]"),
        ({"steps": 4, "denoise": 1.5}, "denoise is 1.5"),
        ({"steps": 4, "denoise": math.nan}, "denoise is nan"),
        ({"steps": 11, "denoise": 1e-4}, "11 steps at denoise 0.0001 are the end of a schedule of 110000"),
        ({"steps": 100_001}, "it may have at most 100000"),
    ],
)
def test_an_error_names_the_argument_the_value_and_the_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        sigmas(**arguments)


def test_a_new_schedule_is_one_function_and_one_row(monkeypatch):
    def cosine(steps, shift, *, power=1.0):
        return shift_sigma(
            torch.cos(torch.linspace(0, 1, steps + 1, dtype=torch.float64) * math.pi / 2) ** power, shift
        )

    monkeypatch.setitem(schedule.SCHEDULES, "cosine", cosine)
    assert torch.equal(sigmas(8, "cosine", 2.0, power=2.0), cosine(8, 2.0, power=2.0))


@pytest.mark.parametrize("text", ["1, 0.75, 0.5, 0", "1;0.75; .5\n0", "1.0 0.75 5e-1 0 ", "１，0.75、0．5；0"])
def test_a_text_of_sigmas_is_read_without_a_shift(text):
    assert parse_sigmas(text).tolist() == [1, 0.75, 0.5, 0] and parse_sigmas(text).dtype == torch.float64


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(SMALLEST_SIGMA, 1) | st.just(0.0), min_size=2, max_size=9, unique=True))
def test_numbers_and_their_text_give_the_same_sigmas(values):
    falling = sorted(values, reverse=True)
    assert parse_sigmas(", ".join(map(repr, falling))).tolist() == parse_sigmas(falling).tolist() == falling


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("", "there are 0 sigmas"),
        ("1", "there are 1 sigmas; a step needs two"),
        ("1, half, 0", "'half' is not a number"),
        ("1, 0.5, 0.5, 0", "sigma 1 is 0.5 and sigma 2 is 0.5; sigmas must fall"),
        ("1, 1e-320, 0", "sigma 1 is 9.99989e-321; above 0, it must be at least 1e-37"),
        ([0.0, 1.0], "sigma 0 is 0 and sigma 1 is 1; sigmas must fall"),
        ([14.6, 1.0], r"sigma 0 is 14.6; it must be in \[0, 1\]"),
        ("1, nan", "sigma 1 is nan"),
        ("1, -0.1", "sigma 1 is -0.1"),
    ],
)
def test_sigmas_that_are_no_schedule_are_an_error_with_the_first_wrong_one(values, message):
    with pytest.raises(ValueError, match=message):
        parse_sigmas(values)


def test_a_sigma_above_one_by_a_rounding_becomes_one():
    assert parse_sigmas([1 + 2**-23, 0.5]).tolist() == [1, 0.5]
    assert parse_sigmas([1 + 0.9e-5, 0.5]).tolist() == [1, 0.5]
    with pytest.raises(ValueError, match=r"sigma 0 is 1.00001; it must be in \[0, 1\]"):
        parse_sigmas([1 + 1.1e-5, 0.5])
