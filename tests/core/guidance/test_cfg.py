"""CFG, rescale, CFG-Zero*, APG and the curves of the scale, against the published formulas."""

from __future__ import annotations

import math

import pytest
import torch

from mmdit_core.guidance.cfg import CURVES, apg, cfg, cfg_zero_star, rescale, scale_at

COMBINE = {
    "cfg": cfg,
    "cfg_zero_star": cfg_zero_star,
    "apg": apg,
    "rescaled": lambda cond, uncond, scale: rescale(cfg(cond, uncond, scale), cond),
}
FORMS = ("cfg", "cfg_zero_star", "apg")


def pair():
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# What all forms share.


@pytest.mark.parametrize("name", COMBINE)
def test_a_sample_does_not_depend_on_its_batch(name):
    cond, uncond = pair()
    cond[1] *= 30
    whole = COMBINE[name](cond, uncond, 4.0)
    for index in range(3):
        part = slice(index, index + 1)
        close(whole[part], COMBINE[name](cond[part], uncond[part], 4.0), atol=1e-13)


@pytest.mark.parametrize("name", COMBINE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_inputs_are_unchanged_and_sums_do_not_overflow(name, dtype):
    cond, uncond = (100 * side for side in pair())
    expected = COMBINE[name](cond, uncond, 4.0)
    cond, uncond = cond.to(dtype), uncond.to(dtype)
    copies = cond.clone(), uncond.clone()
    found = COMBINE[name](cond, uncond, 4.0)
    assert found.dtype == dtype
    close(found.double(), expected, atol=12 * torch.finfo(dtype).eps * expected.abs().max().item())
    assert torch.equal(cond, copies[0]) and torch.equal(uncond, copies[1])


@pytest.mark.parametrize("name", COMBINE)
def test_constant_predictions_give_no_nan(name):
    zero = torch.zeros(2, 4, 3, 3)
    assert COMBINE[name](zero, zero, 4.0).isfinite().all()
    assert COMBINE[name](zero, zero + 1, 4.0).isfinite().all()


@pytest.mark.parametrize("name", COMBINE)
def test_small_predictions_are_combined_like_large_ones(name):
    cond, uncond = pair()
    whole = COMBINE[name](cond, uncond, 4.0)
    close(COMBINE[name](1e-6 * cond, 1e-6 * uncond, 4.0), 1e-6 * whole, atol=1e-17)


@pytest.mark.parametrize("name", FORMS)
def test_scale_one_returns_cond_itself_and_needs_no_uncond(name):
    cond, uncond = pair()
    assert COMBINE[name](cond, None, 1.0) is cond
    assert COMBINE[name](cond, uncond, 1.0) is cond


@pytest.mark.parametrize("name", FORMS)
def test_equal_predictions_are_the_result_at_any_scale(name):
    cond, _ = pair()
    close(COMBINE[name](cond, cond.clone(), 4.0), cond)


# Each form against its formula.


def test_cfg_at_scale_zero_is_uncond():
    cond, uncond = pair()
    assert torch.equal(cfg(cond, uncond, 0.0), uncond)


@pytest.mark.parametrize("scale", [0.5, 4.5, -2.0])
def test_cfg_extrapolates_from_uncond_through_cond(scale):
    cond, uncond = pair()
    close(cfg(cond, uncond, scale), scale * cond + (1 - scale) * uncond, atol=1e-13)


def test_cfg_of_velocities_is_cfg_of_denoised():
    cond, uncond = pair()
    x, sigma = torch.ones_like(cond), 0.7
    by_velocity = x - sigma * cfg(cond, uncond, 3.0)
    close(by_velocity, cfg(x - sigma * cond, x - sigma * uncond, 3.0), atol=1e-13)


def test_rescale_gives_each_sample_the_deviation_of_cond():
    cond, uncond = pair()
    guided = cfg(cond, uncond, 5.0)
    close(rescale(guided, cond, 1.0).flatten(1).std(1), cond.flatten(1).std(1))
    ratio = cond.flatten(1).std(1) / guided.flatten(1).std(1)
    for strength in (0.2, 0.7, 1.0):
        expected = strength * guided * ratio.reshape(3, 1, 1, 1) + (1 - strength) * guided
        close(rescale(guided, cond, strength), expected)
    assert torch.equal(rescale(guided, cond), rescale(guided, cond, 0.7))
    assert rescale(guided, cond, 0.0) is guided


def test_rescale_leaves_a_constant_sample_unchanged():
    cond, _ = pair()
    guided = torch.full_like(cond, 3.0)
    assert torch.equal(rescale(guided, cond, 1.0), guided)


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.5])
def test_cfg_zero_star_is_the_published_formula(scale):
    cond, uncond = pair()
    for c, u, found in zip(cond, uncond, cfg_zero_star(cond, uncond, scale), strict=True):
        s = (c * u).sum() / (u * u).sum()
        close(found, (1 - scale) * s * u + scale * c)


def test_cfg_zero_star_does_not_depend_on_the_length_of_uncond():
    cond, uncond = pair()
    close(cfg_zero_star(cond, 7.0 * uncond, 4.0), cfg_zero_star(cond, uncond, 4.0))
    # The nearest multiple leaves a difference orthogonal to uncond.
    difference = (cfg_zero_star(cond, uncond, 2.0) - cond).flatten(1)
    close((difference * uncond.flatten(1)).sum(1), torch.zeros(3, dtype=torch.float64))


def test_cfg_zero_star_of_a_zero_uncond_scales_cond():
    cond, _ = pair()
    close(cfg_zero_star(cond, torch.zeros_like(cond), 4.0), 4.0 * cond)


@pytest.mark.parametrize("scale", [0.0, 4.5])
def test_apg_is_the_published_algorithm_at_eta_zero(scale):
    cond, uncond = pair()
    for c, u, found in zip(cond, uncond, apg(cond, uncond, scale), strict=True):
        unit = c / c.norm()
        difference = c - u
        close(found, c + (scale - 1) * (difference - (difference * unit).sum() * unit))


def test_apg_adds_nothing_parallel_to_cond():
    cond, uncond = pair()
    added = apg(cond, uncond, 4.5) - cond
    close((added * cond).flatten(1).sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-11)
    assert added.abs().max() > 0.1


def test_apg_of_a_zero_cond_is_cfg():
    _, uncond = pair()
    close(apg(torch.zeros_like(uncond), uncond, 4.0), -3.0 * uncond)


# The scale over a run.


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_is_between_one_and_its_scale_and_one_outside_the_window(curve):
    values = [scale_at(i / 100, 5.0, curve, start=0.2, end=0.8) for i in range(101)]
    assert all(1 <= value <= 5 for value in values)
    assert set(values[:20] + values[81:]) == {1.0}
    assert max(values) == pytest.approx(5)


@pytest.mark.parametrize(
    ("curve", "position", "expected"),
    [
        ("constant", 0.25, 5.0),
        ("rising", 0.25, 2.0),
        ("falling", 0.25, 4.0),
        ("cosine_rising", 0.5, 3.0),
        ("cosine_rising", 1 / 3, 2.0),
        ("cosine_falling", 1 / 3, 4.0),
    ],
)
def test_curves_by_hand(curve, position, expected):
    assert scale_at(position, 5.0, curve) == pytest.approx(expected)
    assert scale_at(0.4 + 0.2 * position, 5.0, curve, start=0.4, end=0.6) == pytest.approx(expected)


def test_the_window_includes_both_of_its_ends():
    assert scale_at(0.2, 5.0, start=0.2, end=0.8) == scale_at(0.8, 5.0, start=0.2, end=0.8) == 5.0
    assert scale_at(0.0, 5.0) == scale_at(1.0, 5.0) == 5.0
    assert scale_at(math.nextafter(0.2, 0), 5.0, start=0.2, end=0.8) == 1.0
    assert scale_at(math.nextafter(0.8, 1), 5.0, start=0.2, end=0.8) == 1.0


def test_a_window_of_width_zero_is_at_the_start_of_its_curve():
    assert scale_at(0.5, 5.0, "rising", start=0.5, end=0.5) == 1.0
    assert scale_at(0.5, 5.0, "falling", start=0.5, end=0.5) == 5.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, u: cfg(c, None, 4.0), "cfg: scale is 4.0 and uncond is None; it may be None only at scale 1"),
        (lambda c, u: cfg(c, u[:1], 4.0), r"cfg: uncond has shape \[1, 4, 5, 6\]; expected \[3, 4, 5, 6\]"),
        (lambda c, u: cfg(c, u, math.nan), "cfg: scale is nan; it must be finite"),
        (lambda c, u: rescale(c, u[:1]), r"rescale: guided has shape \[3, 4, 5, 6\]; expected \[1, 4, 5, 6\]"),
        (lambda c, u: rescale(c, u, 1.5), r"strength is 1.5; it must be in \[0, 1\]"),
        (lambda c, u: rescale(c, u, -0.1), r"strength is -0.1; it must be in \[0, 1\]"),
        (lambda c, u: cfg_zero_star(c, None, 4.0), "cfg_zero_star: scale is 4.0 and uncond is None"),
        (lambda c, u: cfg_zero_star(c, u, math.inf), "cfg_zero_star: scale is inf"),
        (lambda c, u: apg(c, u[:1], 4.0), r"apg: uncond has shape \[1, 4, 5, 6\]"),
        (lambda c, u: scale_at(0.5, 4.0, "sine"), "curve 'sine' is unknown; choose one of constant, rising"),
        (lambda c, u: scale_at(0.5, math.inf), "scale_at: scale is inf; it must be finite"),
        (lambda c, u: scale_at(1.5, 4.0), r"progress is 1.5; it must be in \[0, 1\]"),
        (lambda c, u: scale_at(-0.5, 4.0), r"progress is -0.5; it must be in \[0, 1\]"),
        (lambda c, u: scale_at(0.5, 4.0, start=-0.1), r"start is -0.1; it must be in \[0, 1\]"),
        (lambda c, u: scale_at(0.5, 4.0, start=0.6, end=0.4), r"end is 0.4; it must be in \[0.6, 1\]"),
        (lambda c, u: scale_at(0.5, 4.0, end=1.1), r"end is 1.1; it must be in \[0, 1\]"),
    ],
)
def test_an_error_names_the_argument_the_value_and_the_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pair())
