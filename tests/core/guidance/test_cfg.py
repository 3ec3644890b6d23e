import math

import pytest
import torch

from mmdit_core.guidance.cfg import cfg


def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64).unbind(0)


def test_scale_one_is_the_positive_itself_and_needs_no_negative():
    positive, negative = pair()
    assert cfg(positive, negative, 1.0) is positive
    assert cfg(positive, None, 1.0) is positive


def test_scale_zero_is_the_negative():
    positive, negative = pair()
    assert torch.equal(cfg(positive, negative, 0.0), negative)


@pytest.mark.parametrize("scale", [0.5, 4.5, -2.0])
def test_scale_extrapolates_from_negative_through_positive(scale):
    positive, negative = pair()
    expected = scale * positive + (1 - scale) * negative
    torch.testing.assert_close(cfg(positive, negative, scale), expected, rtol=0, atol=1e-13)


def test_guiding_velocities_is_guiding_denoised():
    positive, negative = pair()
    x = torch.ones_like(positive)
    sigma = 0.7
    by_velocity = x - sigma * cfg(positive, negative, 3.0)
    by_denoised = cfg(x - sigma * positive, x - sigma * negative, 3.0)
    torch.testing.assert_close(by_velocity, by_denoised, rtol=0, atol=1e-13)


def test_inputs_stay_as_they_were_and_dtype_is_kept():
    positive, negative = (side.to(torch.bfloat16) for side in pair())
    kept = positive.clone(), negative.clone()
    assert cfg(positive, negative, 4.0).dtype == torch.bfloat16
    assert torch.equal(positive, kept[0]) and torch.equal(negative, kept[1])


@pytest.mark.parametrize(
    ("negative", "scale", "message"),
    [
        (None, 4.0, "scale is 4.0 but there is no negative"),
        (torch.zeros(1, 4, 5, 6), 4.0, r"negative has shape \[1, 4, 5, 6\]; expected \[3, 4, 5, 6\]"),
        (torch.zeros(3, 4, 5, 6), math.nan, "scale is nan; it must be finite"),
    ],
)
def test_bad_input_is_named(negative, scale, message):
    with pytest.raises(ValueError, match=message):
        cfg(pair()[0], negative, scale)
