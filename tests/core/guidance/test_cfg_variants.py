"""CFG's kin: rescale, CFG-Zero*, APG and the curve, against formulas written out and what must not change."""

import math

import pytest
import torch

from mmdit_core.guidance.cfg import CURVES, apg, cfg, cfg_zero_star, rescale, scale_at

COMBINE = {
    "cfg": cfg,
    "cfg_zero_star": cfg_zero_star,
    "apg": lambda *arguments, **options: apg(*arguments, **options)[0],
    "rescaled": lambda p, n, scale: rescale(cfg(p, n, scale), p),
}


def pair():
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind(0)


def close(found, expected, atol=1e-12):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", COMBINE)
def test_a_sample_does_not_depend_on_the_others(name):
    positive, negative = pair()
    positive[1] *= 30
    whole = COMBINE[name](positive, negative, 4.0)
    for index in range(3):
        part = slice(index, index + 1)
        close(whole[part], COMBINE[name](positive[part], negative[part], 4.0), atol=1e-13)


@pytest.mark.parametrize("name", COMBINE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtype_and_inputs_are_kept_and_sums_do_not_overflow(name, dtype):
    positive, negative = (100 * side for side in pair())
    expected = COMBINE[name](positive, negative, 4.0)
    positive, negative = positive.to(dtype), negative.to(dtype)
    kept = positive.clone(), negative.clone()
    found = COMBINE[name](positive, negative, 4.0)
    assert found.dtype == dtype
    close(found.double(), expected, atol=12 * torch.finfo(dtype).eps * expected.abs().max().item())
    assert torch.equal(positive, kept[0]) and torch.equal(negative, kept[1])


@pytest.mark.parametrize("name", COMBINE)
def test_flat_predictions_give_no_nan(name):
    flat = torch.zeros(2, 4, 3, 3)
    assert COMBINE[name](flat, flat, 4.0).isfinite().all()
    assert COMBINE[name](flat, flat + 1, 4.0).isfinite().all()


def test_rescale_gives_each_sample_the_positives_deviation():
    positive, negative = pair()
    guided = cfg(positive, negative, 5.0)
    full = rescale(guided, positive, 1.0)
    close(full.flatten(1).std(1), positive.flatten(1).std(1))
    ratio = positive.flatten(1).std(1) / guided.flatten(1).std(1)
    expected = 0.7 * guided * ratio.reshape(3, 1, 1, 1) + 0.3 * guided
    close(rescale(guided, positive), expected)
    assert rescale(guided, positive, 0.0) is guided


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.5])
def test_cfg_zero_star_is_the_published_formula(scale):
    positive, negative = pair()
    for p, n, found in zip(positive, negative, cfg_zero_star(positive, negative, scale), strict=True):
        s = (p * n).sum() / (n * n).sum()
        close(found, (1 - scale) * s * n + scale * p)


def test_cfg_zero_star_does_not_care_how_long_the_negative_is_and_is_cfg_for_equal_sides():
    positive, negative = pair()
    close(cfg_zero_star(positive, 7.0 * negative, 4.0), cfg_zero_star(positive, negative, 4.0))
    close(cfg_zero_star(positive, positive.clone(), 4.0), positive)
    # The best multiple leaves a difference at right angles to the negative.
    apart = (cfg_zero_star(positive, negative, 2.0) - positive).flatten(1)
    close((apart * negative.flatten(1)).sum(1), torch.zeros(3, dtype=torch.float64))


def test_zero_init_holds_x_for_the_first_steps_alone():
    positive, negative = pair()
    for scale in (1.0, 4.0):
        for step in (0, 1):
            assert not cfg_zero_star(positive, negative, scale, step=step, zero_steps=2).any()
        later = cfg_zero_star(positive, negative, scale, step=2, zero_steps=2)
        assert torch.equal(later, cfg_zero_star(positive, negative, scale))


@pytest.mark.parametrize("scale", [0.0, 4.5])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("norm", [2.0, 8.0, math.inf])
def test_apg_is_the_published_algorithm(scale, eta, norm):
    positive, negative = pair()
    negative[0] = positive[0] + 0.01 * negative[0]  # a difference shorter than any norm here
    average = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64) / 100
    found, kept = apg(positive, negative, scale, eta=eta, norm=norm, momentum=-0.5, average=average)
    close(kept, positive - negative - 0.5 * average)
    for p, delta, ours in zip(positive, kept, found, strict=True):
        delta = delta * min(1.0, norm / delta.norm().item())
        unit = p / p.norm()
        along = (delta * unit).sum() * unit
        close(ours, p + (scale - 1) * (delta - along + eta * along))


def test_apg_at_its_neutral_options_is_cfg():
    positive, negative = pair()
    close(apg(positive, negative, 4.5, eta=1.0)[0], cfg(positive, negative, 4.5))


def test_apg_at_eta_zero_adds_nothing_along_the_positive():
    positive, negative = pair()
    added = apg(positive, negative, 4.5)[0] - positive
    close((added * positive).flatten(1).sum(1), torch.zeros(3, dtype=torch.float64), atol=1e-11)


def test_apg_hands_its_average_from_step_to_step():
    positive, negative = pair()
    _, first = apg(positive, negative, 4.0, momentum=0.5)
    _, second = apg(positive, negative, 4.0, momentum=0.5, average=first)
    close(first, positive - negative)
    close(second, 1.5 * (positive - negative))
    assert apg(positive, None, 1.0, momentum=0.5, average=second) == (positive, second)


@pytest.mark.parametrize("name", ["cfg_zero_star", "apg"])
def test_scale_one_is_the_positive_and_needs_no_negative(name):
    positive, _ = pair()
    assert COMBINE[name](positive, None, 1.0) is positive


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_stays_between_one_and_its_scale_and_is_one_outside_the_window(curve):
    values = [scale_at(i / 100, 5.0, curve, start=0.2, end=0.8) for i in range(101)]
    assert all(1 <= value <= 5 for value in values)
    assert set(values[:20] + values[81:]) == {1.0}
    assert max(values) == pytest.approx(5)


@pytest.mark.parametrize(
    ("curve", "quarter", "expected"),
    [
        ("constant", 0.25, 5.0),
        ("rising", 0.25, 2.0),
        ("falling", 0.25, 4.0),
        ("cosine_rising", 0.5, 3.0),
        ("cosine_rising", 1 / 3, 2.0),
        ("cosine_falling", 1 / 3, 4.0),
    ],
)
def test_curves_by_hand(curve, quarter, expected):
    assert scale_at(quarter, 5.0, curve) == pytest.approx(expected)
    assert scale_at(0.4 + 0.2 * quarter, 5.0, curve, start=0.4, end=0.6) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, n: rescale(p, n[:1]), r"rescale: guided has shape \[3, 4, 5, 6\]; expected \[1, 4, 5, 6\]"),
        (lambda p, n: rescale(p, n, 1.5), r"strength is 1.5; it must be in \[0, 1\]"),
        (lambda p, n: cfg_zero_star(p, None, 4.0), "cfg_zero_star: scale is 4.0 but there is no negative"),
        (lambda p, n: cfg_zero_star(p, n, math.nan), "scale is nan"),
        (lambda p, n: cfg_zero_star(p, n, 4.0, zero_steps=-1), "zero_steps is -1"),
        (lambda p, n: apg(p, n[:1], 4.0), r"apg: negative has shape \[1, 4, 5, 6\]"),
        (lambda p, n: apg(p, n, 4.0, eta=1.5), r"apg: eta is 1.5; it must be in \[0, 1\]"),
        (lambda p, n: apg(p, n, 4.0, norm=0.0), "norm is 0.0; it must be > 0"),
        (lambda p, n: apg(p, n, 4.0, momentum=1.0), "momentum is 1.0; it must be between -1 and 1"),
        (lambda p, n: apg(p, n, 4.0, momentum=0.5, average=n[:1]), r"average has shape \[1, 4, 5, 6\]"),
        (lambda p, n: scale_at(0.5, 4.0, "sine"), "curve 'sine' is unknown; choose one of constant, rising"),
        (lambda p, n: scale_at(1.5, 4.0), r"progress is 1.5; it must be in \[0, 1\]"),
        (lambda p, n: scale_at(0.5, 4.0, start=0.6, end=0.4), r"end is 0.4; it must be in \[0.6, 1\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pair())
