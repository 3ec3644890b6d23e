import math

import numpy as np
import pytest
import torch
from scipy import stats

from mmdit_core.flow import path as flow
from mmdit_core.flow.sigma import shift_sigma

DRAWS = 20_000


def latents(*, dtype=torch.float64, batch=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, batch, 4, 6, 5, generator=generator, dtype=torch.float64).to(dtype).unbind(0)


def test_path_ends_are_exactly_data_and_noise():
    data, noise = latents()
    assert torch.equal(flow.interpolate(data, noise, 0.0), data)
    assert torch.equal(flow.interpolate(data, noise, torch.tensor(1.0)), noise)


def test_each_sample_gets_its_own_sigma():
    data, noise = latents()
    sigma = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    x = flow.interpolate(data, noise, sigma)
    for i, level in enumerate(sigma.tolist()):
        assert torch.equal(x[i], (1 - level) * data[i] + level * noise[i])


def test_velocity_is_the_derivative_of_the_path():
    data, noise = latents()
    slope = (flow.interpolate(data, noise, 0.75) - flow.interpolate(data, noise, 0.25)) / 0.5
    torch.testing.assert_close(flow.velocity_target(data, noise), slope, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_float32_sigma_does_not_change_the_dtype_of_latents(dtype):
    data, noise = latents(dtype=dtype)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    assert flow.interpolate(data, noise, sigma).dtype == dtype


def test_loss_is_the_mean_square_of_the_batch_or_of_each_sample():
    data, noise = latents()
    offset = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1)
    velocity = flow.velocity_target(data, noise) + offset
    torch.testing.assert_close(
        flow.flow_loss(velocity, data, noise, reduction="sample"),
        torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64),
        rtol=0,
        atol=1e-13,
    )
    assert flow.flow_loss(velocity, data, noise).item() == pytest.approx(14 / 3, abs=1e-13)


def test_loss_of_half_precision_is_computed_in_float32():
    data, noise = latents(dtype=torch.float16)
    loss = flow.flow_loss(flow.velocity_target(data, noise) + 300, data, noise)  # 300 squared overflows float16
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(90_000, rel=1e-3)


def test_loss_gradient_points_from_prediction_to_target():
    data, noise = latents()
    velocity = torch.zeros_like(data, requires_grad=True)
    (gradient,) = torch.autograd.grad(flow.flow_loss(velocity, data, noise), velocity)
    torch.testing.assert_close(gradient, -2 * (noise - data) / data.numel(), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, n: flow.interpolate(d, n[:1], 0.5), r"noise has shape \[1, 4, 6, 5\]; expected \[3, 4, 6, 5\]"),
        (lambda d, n: flow.velocity_target(d, n[:1]), r"noise has shape \[1, 4, 6, 5\]; expected \[3, 4, 6, 5\]"),
        (lambda d, n: flow.interpolate(d, n, torch.rand(3, 1)), r"sigma has shape \[3, 1\]"),
        (lambda d, n: flow.interpolate(d, n, torch.rand(2)), r"sigma has shape \[2\]; expected \[\] or \[3\]"),
        (lambda d, n: flow.flow_loss(d[..., :1], d, n), r"velocity has shape \[3, 4, 6, 1\]"),
        (lambda d, n: flow.flow_loss(d, d, n, reduction="sum"), "reduction 'sum' is unknown; choose 'mean' or"),
    ],
)
def test_an_error_has_the_shape_found_and_the_expected_one(call, message):
    with pytest.raises(ValueError, match=message):
        call(*latents())


def mode_cdf(sigma, scale):
    """P(f(u) <= sigma) for the paper's f, which falls from 1 to 0: inverted on a fine grid."""
    u = np.linspace(0, 1, 200_001)
    f = 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)
    return 1 - np.interp(sigma, f[::-1], u[::-1])


CASES = {
    "uniform": ({}, lambda s: s),
    "logit_normal": ({}, lambda s: stats.norm.cdf(np.log(s / (1 - s)))),
    "logit_normal, leaning and narrow": (
        {"mean": 0.5, "std": 0.6},
        lambda s: stats.norm.cdf((np.log(s / (1 - s)) - 0.5) / 0.6),
    ),
    "mode": ({}, lambda s: mode_cdf(s, 1.29)),
    "mode, avoiding the middle": ({"scale": -0.8}, lambda s: mode_cdf(s, -0.8)),
    # The integral of 2 / (pi - 2 pi s + 2 pi s^2).
    "cosmap": ({}, lambda s: 0.5 + 2 / np.pi * np.arctan(2 * s - 1)),
}


def draw(case, **extra):
    options, _ = CASES[case]
    generator = torch.Generator().manual_seed(7)
    return flow.sample_timesteps(DRAWS, case.split(",")[0], generator=generator, **options, **extra)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_draws_follow_the_published_density(case, shift):
    def cdf(sigma):
        return CASES[case][1](sigma / (sigma + shift * (1 - sigma)))

    sigma = draw(case, shift=shift).double().numpy()
    # 1.95 / sqrt(n) is the Kolmogorov-Smirnov distance that a right sampler passes in 1 of 1000 seeds.
    assert stats.kstest(sigma, cdf).statistic < 1.95 / math.sqrt(DRAWS)


def test_the_test_of_densities_distinguishes_them():
    sigma = draw("logit_normal").double().numpy()
    for other in ("uniform", "mode", "cosmap", "logit_normal, leaning and narrow"):
        assert stats.kstest(sigma, CASES[other][1]).statistic > 4 / math.sqrt(DRAWS)


def test_every_density_has_a_case():
    assert {case.split(",")[0] for case in CASES} == set(flow.DENSITIES)


@pytest.mark.parametrize("density", flow.DENSITIES)
def test_draws_at_the_edges_are_inside_the_open_interval(density, monkeypatch):
    edges = torch.tensor([0.0, torch.finfo(torch.float32).tiny, 1 - 2**-24])
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: edges)
    for shift in (1e-3, 1.0, 1e3):
        sigma = flow.sample_timesteps(3, density, shift=shift)
        assert ((sigma > 0) & (sigma < 1)).all()


@pytest.mark.parametrize("density", flow.DENSITIES)
def test_every_density_map_is_monotone(density):
    steps = flow.DENSITIES[density](torch.linspace(0.001, 0.999, 999, dtype=torch.float64)).diff()
    assert (steps > 0).all() or (steps < 0).all()


def test_the_shift_in_training_is_that_of_sampling():
    torch.testing.assert_close(
        draw("logit_normal", shift=3.0), shift_sigma(draw("logit_normal"), 3.0), rtol=0, atol=1e-7
    )


def test_a_generator_makes_the_draw_repeatable():
    assert torch.equal(draw("mode"), draw("mode"))
    generator = torch.Generator().manual_seed(7)
    first, second = (flow.sample_timesteps(8, generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_zero_draws_are_an_empty_tensor():
    assert flow.sample_timesteps(0).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density": "gaussian"}, "'gaussian' is unknown; choose one of uniform, logit_normal, mode, cosmap"),
        ({"shift": 0.0}, r"shift is 0.0; it must be finite and > 0"),
        ({"shift": math.nan}, "shift is nan"),
        ({"density": "logit_normal", "std": 0.0}, "std is 0.0; it must be > 0"),
        ({"density": "mode", "scale": -1.01}, "scale is -1.01"),
        ({"density": "mode", "scale": 1.8}, r"scale is 1.8; it must be in \[-1, 1.7519\]"),
    ],
)
def test_an_error_names_the_option_the_value_and_the_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        flow.sample_timesteps(4, **arguments)


def test_a_sigma_for_the_whole_batch_may_have_one_element():
    data, noise = latents()
    whole = flow.interpolate(data, noise, torch.tensor([0.25], dtype=torch.float64))
    assert torch.equal(whole, flow.interpolate(data, noise, 0.25))


def test_the_defaults_of_the_densities_are_the_published_ones():
    u = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.equal(flow.mode(u), flow.mode(u, scale=1.29))
    assert torch.equal(flow.logit_normal(u), flow.logit_normal(u, mean=0.0, std=1.0))
    for scale in (-1.0, 2 / (math.pi - 2)):
        assert flow.mode(u, scale=scale).isfinite().all()


def test_the_lowest_and_the_highest_draw_are_one_float32_step_inside():
    edge = torch.finfo(torch.float32).eps
    drawn = flow.sample_timesteps(200, "uniform", shift=1e9, generator=torch.Generator().manual_seed(0))
    assert drawn.max().item() == 1 - edge
    drawn = flow.sample_timesteps(200, "uniform", shift=1e-9, generator=torch.Generator().manual_seed(0))
    assert drawn.min().item() == edge


def test_draws_are_on_the_requested_device_whatever_the_generators():
    generator = torch.Generator().manual_seed(0)
    assert flow.sample_timesteps(4, generator=generator, device="meta").device.type == "meta"
    assert flow.sample_timesteps(4, generator=generator).device.type == "cpu"
