"""Stochastic solvers: mean and variance of their samples against closed forms, and their noise."""

import pytest
import torch

from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import SOLVERS, solve

DETERMINISTIC_TWIN = {"euler_ancestral": "euler", "dpmpp_2m_sde": "dpmpp_2m_logsnr"}
SAMPLES = 200_000
MEAN, WIDTH = 0.8, 0.5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def curved(x, sigma):
    return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2) - 0.5 * x.roll(1, -1) * torch.cos(2 * sigma)


def start(batch=3):
    return torch.randn(batch, 4, 5, generator=generator(3), dtype=torch.float64)


def constant_data(x, sigma):
    """The velocity if all data is 0.8: the denoised is exact, and so is the distribution after every step."""
    return (x - MEAN) / sigma


def gaussian(x, sigma):
    """The velocity if the data is N(0.8, 0.5^2)."""
    variance = (1 - sigma) ** 2 * WIDTH**2 + sigma**2
    slope = (sigma - (1 - sigma) * WIDTH**2) / variance
    return -MEAN + slope * (x - (1 - sigma) * MEAN)


def moments(x):
    return x.mean().item(), x.var().item()


def test_eta_is_1_unless_given_and_in_0_to_1():
    for solver in DETERMINISTIC_TWIN:
        assert [(o.name, o.default, o.low, o.high) for o in SOLVERS[solver].options] == [("eta", 1.0, 0.0, 1.0)]
        full = solve(curved, start(), sigmas(6), solver, generator=generator(4), eta=1.0)
        assert torch.equal(solve(curved, start(), sigmas(6), solver, generator=generator(4)), full)
        with pytest.raises(ValueError, match=r"eta is -0.1; for '.*' it must be in \[0, 1\]"):
            solve(curved, start(), sigmas(6), solver, generator=generator(4), eta=-0.1)


def test_every_stochastic_solver_has_a_deterministic_twin():
    assert set(DETERMINISTIC_TWIN) == {name for name, method in SOLVERS.items() if method.stochastic}


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("grid", [[0.9, 0.3], [1.0, 0.6], [1.0, 0.8, 0.45, 0.3], [0.7, 0.699, 0.2]])
def test_a_step_keeps_the_marginal_if_the_denoised_is_exact(solver, eta, grid):
    noise = torch.randn(SAMPLES, generator=generator(1), dtype=torch.float64)
    x = (1 - grid[0]) * MEAN + grid[0] * noise
    end = solve(constant_data, x, grid, solver, generator=generator(2), eta=eta)
    mean, variance = moments(end)
    # Five standard errors of a sample of this size.
    assert mean == pytest.approx((1 - grid[-1]) * MEAN, abs=5 * grid[-1] / SAMPLES**0.5)
    assert variance == pytest.approx(grid[-1] ** 2, abs=5 * grid[-1] ** 2 * (2 / SAMPLES) ** 0.5)


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("last", [0.0, 0.25])
def test_samples_of_a_gaussian_have_its_mean_and_variance(solver, eta, last):
    noise = torch.randn(SAMPLES, generator=generator(1), dtype=torch.float64)
    grid = torch.linspace(1.0, last, 121, dtype=torch.float64)
    mean, variance = moments(solve(gaussian, noise, grid, solver, generator=generator(2), eta=eta))
    expected = (1 - last) ** 2 * WIDTH**2 + last**2
    # Five standard errors, and what 120 steps leave: the ancestral step's error is of first order.
    left = {"euler_ancestral": 0.02, "dpmpp_2m_sde": 0.002}[solver]
    assert mean == pytest.approx((1 - last) * MEAN, abs=5 * (expected / SAMPLES) ** 0.5 + 0.001)
    assert variance == pytest.approx(expected, abs=5 * expected * (2 / SAMPLES) ** 0.5 + left)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_error_of_the_ancestral_variance_is_of_first_order(eta):
    # Without sampling: a step is affine in x, and two runs on the same noise differ by its factor alone.
    def variance(steps):
        grid, total = torch.linspace(1.0, 0.25, steps + 1, dtype=torch.float64).tolist(), 1.0
        for sigma, following in zip(grid[:-1], grid[1:], strict=True):
            low, high = (
                solve(
                    gaussian,
                    torch.tensor([x]).double(),
                    [sigma, following],
                    "euler_ancestral",
                    None,
                    generator(),
                    eta=eta,
                )
                for x in (0.0, 1.0)
            )
            down = following * (1 - eta * (1 - following / sigma))
            total *= (high - low).item() ** 2
            total += following**2 - ((1 - following) / (1 - down) * down) ** 2
        return total

    exact = 0.75**2 * WIDTH**2 + 0.25**2
    assert (variance(100) - exact) / (variance(200) - exact) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_a_step_from_sigma_1_replaces_the_noise(solver):
    # At eta 1 a step from pure noise forgets it, wholly or (ancestral) but for the part at `down`.
    noise = torch.randn(SAMPLES, generator=generator(1), dtype=torch.float64)
    end = solve(constant_data, noise, [1.0, 0.5], solver, generator=generator(2))
    correlation = torch.corrcoef(torch.stack([noise, end]))[0, 1].item()
    # keep * down / sigma' with down = 0.25 and keep = 0.5 / 0.75.
    expected = {"euler_ancestral": 0.5 / 0.75 * 0.25 / 0.5, "dpmpp_2m_sde": 0.0}[solver]
    assert correlation == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_eta_zero_is_the_deterministic_method_and_needs_no_generator(solver):
    grid = sigmas(8)
    assert torch.equal(
        solve(curved, start(), grid, solver, eta=0.0), solve(curved, start(), grid, DETERMINISTIC_TWIN[solver])
    )


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_a_small_eta_is_a_small_change_of_the_image(solver):
    still = solve(curved, start(), sigmas(8), solver, eta=0.0)
    gaps = [
        (solve(curved, start(), sigmas(8), solver, generator=generator(), eta=eta) - still).abs().max().item()
        for eta in (1e-6, 1e-3, 1.0)
    ]
    # From pure noise any eta makes the SDE's first step a fresh start: its time there is infinite.
    assert gaps[0] < gaps[1] < gaps[2] if solver == "euler_ancestral" else min(gaps) > 0.01


def second_order_sde_from_the_paper(x, grid, noises, eta):
    """SDE-DPM-Solver++(2M), midpoint, with half-log-SNR steps h, as published, for 0 < sigma < 1."""
    before, h_before = None, None
    for sigma, following, noise in zip(grid[:-1], grid[1:], noises, strict=True):
        now = x - sigma * curved(x, sigma)
        h = torch.log((1 - following) / following) - torch.log((1 - sigma) / sigma)
        gain = (1 - following) * (1 - torch.exp(-(1 + eta) * h))
        x = following / sigma * torch.exp(-eta * h) * x + gain * now
        if before is not None:
            x = x + gain / 2 * (now - before) * h / h_before
        x = x + following * torch.sqrt(1 - torch.exp(-2 * eta * h)) * noise
        before, h_before = now, h
    return x


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_dpmpp_2m_sde_matches_the_published_step(eta):
    grid = sigmas(9)[1:-1]
    source = generator(5)
    noises = [torch.randn(start().shape, generator=source).double() for _ in range(len(grid) - 1)]
    expected = second_order_sde_from_the_paper(start(), grid, noises, eta)
    found = solve(curved, start(), grid, "dpmpp_2m_sde", generator=generator(5), eta=eta)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_euler_ancestral_matches_the_step_in_data_and_noise(eta):
    grid = sigmas(9)[:-1]
    source, x = generator(5), start()
    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        v = curved(x, sigma)
        data, noise = x - sigma * v, x + (1 - sigma) * v
        down = (1 - eta) * following + eta * following**2 / sigma
        share = (1 - following) / (1 - down)
        fresh = torch.randn(x.shape, generator=source).double()
        x = (1 - following) * data + share * down * noise + (following**2 - (share * down) ** 2).sqrt() * fresh
    found = solve(curved, start(), grid, "euler_ancestral", generator=generator(5), eta=eta)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_one_seed_is_constant_data_in_every_dtype(solver):
    wide = solve(curved, start(), sigmas(8), solver, generator=generator(4))
    again = solve(curved, start(), sigmas(8), solver, generator=generator(4))
    narrow = solve(curved, start().float(), sigmas(8), solver, generator=generator(4))
    assert torch.equal(wide, again)
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-5)
    assert (solve(curved, start(), sigmas(8), solver, generator=generator(5)) - wide).abs().max() > 0.1


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_with_one_generator_per_sample_a_sample_does_not_depend_on_its_batch(solver):
    def each(x, sigma):
        return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2)

    together = solve(each, start(), sigmas(6), solver, generator=[generator(seed) for seed in (7, 8, 9)])
    for index, seed in enumerate((7, 8, 9)):
        alone = solve(each, start()[index : index + 1], sigmas(6), solver, generator=generator(seed))
        torch.testing.assert_close(together[index : index + 1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "adds noise and there is no generator; give one, or eta 0"),
        ({"generator": [torch.Generator()] * 2}, "there are 2 generators for 3 samples; give one for each"),
        ({"generator": torch.Generator(), "eta": 1.5}, r"eta is 1.5; for '.*' it must be in \[0, 1\]"),
        ({"generator": torch.Generator(), "tolerance": 0.1}, "has no option 'tolerance'; it takes eta"),
    ],
)
@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_an_error_names_the_argument_and_what_is_right(solver, arguments, message):
    with pytest.raises(ValueError, match=message):
        solve(curved, start(), sigmas(4), solver, **arguments)


@pytest.mark.parametrize("solver", DETERMINISTIC_TWIN)
def test_inversion_with_noise_is_an_error(solver):
    rising = sigmas(6).flip(0)[1:]
    with pytest.raises(ValueError, match="adds noise and sigmas rise; for inversion give eta 0"):
        solve(curved, start(), rising, solver, generator=generator())
    assert solve(curved, start(), rising, solver, eta=0.0).isfinite().all()
