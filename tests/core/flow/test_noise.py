"""Noise between two noises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.flow.noise import slerp


def noises(*shape):
    torch.manual_seed(3)
    return torch.randn(shape), torch.randn(shape)


def test_the_ends_are_the_noises_themselves():
    a, b = noises(2, 4, 8, 8)
    assert slerp(a, b, 0) is a and slerp(a, b, 1) is b


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1))
def test_what_lies_between_is_noise_of_the_same_strength(share):
    a, b = noises(3, 16, 32, 32)
    between = slerp(a, b, share)
    assert between.dtype == a.dtype and between.shape == a.shape
    # Two noises of this size meet at nearly a right angle: the spread stays within their own sampling error.
    torch.testing.assert_close(between.flatten(1).std(1), torch.ones(3), rtol=0, atol=0.02)


def test_the_way_is_an_arc_walked_evenly():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    third = slerp(a, b, 1 / 3)
    torch.testing.assert_close(third, torch.tensor([[3**0.5 / 2, 0.5]]))
    torch.testing.assert_close(slerp(third, b, 0.5), slerp(a, b, 2 / 3))


def test_each_sample_walks_by_itself():
    a, b = noises(3, 4, 8, 8)
    torch.testing.assert_close(slerp(a, b, 0.3)[1:2], slerp(a[1:2], b[1:2], 0.3), rtol=0, atol=0)


@pytest.mark.parametrize("same", [1.0, -1.0, 0.0])
def test_noises_that_have_no_arc_stay_finite(same):
    a, _ = noises(1, 4, 8, 8)
    assert slerp(a, same * a, 0.3).isfinite().all()
    torch.testing.assert_close(slerp(a, a.clone(), 0.3), a)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_named(share):
    with pytest.raises(ValueError, match="share is .* must be in"):
        slerp(*noises(1, 4), share)


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"end has shape \[1, 2\]; expected start's, \[1, 4\]"):
        slerp(torch.zeros(1, 4), torch.zeros(1, 2), 0.5)
