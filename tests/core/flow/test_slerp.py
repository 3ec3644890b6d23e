"""Interpolation of noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.flow.slerp import slerp


def noises(*shape):
    torch.manual_seed(3)
    return torch.randn(shape), torch.randn(shape)


def test_fractions_0_and_1_are_the_noises_themselves():
    a, b = noises(2, 4, 8, 8)
    assert slerp(a, b, 0) is a and slerp(a, b, 1) is b


@settings(max_examples=30, deadline=None)
@given(fraction=st.floats(0, 1))
def test_interpolated_noise_has_the_same_standard_deviation(fraction):
    a, b = noises(3, 16, 32, 32)
    between = slerp(a, b, fraction)
    assert between.dtype == a.dtype and between.shape == a.shape
    # Two noises of this size are nearly orthogonal: the deviation is within their sampling error.
    torch.testing.assert_close(between.flatten(1).std(1), torch.ones(3), rtol=0, atol=0.02)


def test_equal_fractions_are_equal_angles():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(a, b, 1 / 3)
    torch.testing.assert_close(third, torch.tensor([[3**0.5 / 2, 0.5]]))
    torch.testing.assert_close(slerp(third, b, 0.5), slerp(a, b, 2 / 3))


def test_a_sample_does_not_depend_on_its_batch():
    a, b = noises(3, 4, 8, 8)
    torch.testing.assert_close(slerp(a, b, 0.3)[1:2], slerp(a[1:2], b[1:2], 0.3), rtol=0, atol=0)


@pytest.mark.parametrize("same", [1.0, -1.0, 0.0])
def test_equal_opposite_and_zero_noises_give_no_nan(same):
    a, _ = noises(1, 4, 8, 8)
    assert slerp(a, same * a, 0.3).isfinite().all()
    torch.testing.assert_close(slerp(a, a.clone(), 0.3), a)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_out_of_range_is_an_error(fraction):
    with pytest.raises(ValueError, match="fraction is .* must be in"):
        slerp(*noises(1, 4), fraction)


def test_noises_of_two_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"end has shape \[1, 2\]; expected start's, \[1, 4\]"):
        slerp(torch.zeros(1, 4), torch.zeros(1, 2), 0.5)
