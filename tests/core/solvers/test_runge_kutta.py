"""Runge-Kutta methods: formulas, scipy's tableaux, closed forms."""

import math

import pytest
import torch
from scipy.integrate import RK23, RK45, solve_ivp

from mmdit_core.flow.schedules import sigmas
from mmdit_core.flow.sigma import LOWEST_SIGMA
from mmdit_core.solvers import SOLVERS, CallLimitError, solve, solve_with_history

ADAPTIVE = {"bosh3": RK23, "dopri5": RK45}


def curved(x, sigma):
    return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2) - 0.5 * x.roll(1, -1) * math.cos(2 * float(sigma))


def start():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Counted:
    """A velocity that records the sigmas of its calls."""

    def __init__(self, velocity):
        self.velocity, self.sigmas = velocity, []

    def __call__(self, x, sigma):
        self.sigmas.append(sigma.item())
        return self.velocity(x, sigma)


def midpoint_step(f, x, s, h):
    return x + h * f(x + h / 2 * f(x, s), s + h / 2)


def ralston_step(f, x, s, h):
    k = f(x, s)
    return x + h / 4 * (k + 3 * f(x + 2 / 3 * h * k, s + 2 / 3 * h))


def rk4_step(f, x, s, h):
    k1 = f(x, s)
    k2 = f(x + h / 2 * k1, s + h / 2)
    k3 = f(x + h / 2 * k2, s + h / 2)
    k4 = f(x + h * k3, s + h)
    return x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6


@pytest.mark.parametrize(
    ("solver", "step"), [("midpoint", midpoint_step), ("ralston", ralston_step), ("rk4", rk4_step)]
)
@pytest.mark.parametrize("ends", [(1.0, 0.05), (0.05, 1.0)])
def test_a_step_is_the_published_formula(solver, step, ends):
    grid = (ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, 9, dtype=torch.float64) ** 1.5).tolist()
    x = start()
    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        x = step(curved, x, sigma, following - sigma)
    torch.testing.assert_close(solve(curved, start(), grid, solver), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("solver", ["midpoint", "ralston"])
def test_a_step_to_zero_without_a_stage_there_is_not_an_euler_step(solver):
    called = Counted(curved)
    solve(called, start(), [0.3, 0.0], solver)
    assert len(called.sigmas) == 2 and min(called.sigmas) > 0


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_embedded_pairs_are_scipys(solver):
    pair, scipys = SOLVERS[solver], ADAPTIVE[solver]
    for index, row in enumerate(pair.stages[:-1]):
        assert row == pytest.approx(scipys.A[index + 1][: index + 1], abs=1e-15)
        assert sum(row) == pytest.approx(pair.fractions[index], abs=1e-14)
    assert pair.fractions == pytest.approx([*scipys.C[1:], 1.0], abs=1e-15)
    assert pair.stages[-1] == pytest.approx(scipys.B, abs=1e-15)
    # The sign of an error estimate is a convention: scipy takes embedded less result.
    assert [-value for value in pair.errors] == pytest.approx(scipys.E, abs=1e-15)
    assert pair.calls_per_step == len(scipys.C)


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize("ends", [(1.0, 0.1), (0.1, 1.0)])
def test_at_a_tight_tolerance_the_result_is_scipys(solver, ends):
    def flat(sigma, y):
        return curved(torch.from_numpy(y).reshape(2, 3, 4), sigma).flatten().numpy()

    reference = solve_ivp(flat, ends, start().flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-12)
    expected = torch.from_numpy(reference.y[:, -1]).reshape(2, 3, 4)
    found = solve(curved, start(), ends, solver, tolerance=1e-8, max_calls=20_000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_error_falls_with_the_tolerance(solver):
    exact = solve(curved, start(), [1.0, 0.0], "dopri5", tolerance=1e-8)
    errors, calls = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        called = Counted(curved)
        errors.append((solve(called, start(), [1.0, 0.0], solver, tolerance=tolerance) - exact).abs().max().item())
        calls.append(len(called.sigmas))
        assert errors[-1] < 10 * tolerance
    assert errors[0] > errors[1] > errors[2] and calls == sorted(calls)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_an_adaptive_run_uses_only_the_ends_of_the_schedule_and_never_calls_at_sigma_zero(solver):
    few, many = Counted(curved), Counted(curved)
    a = solve(few, start(), [1.0, 0.0], solver)
    b = solve(many, start(), sigmas(28), solver)
    assert torch.equal(a, b) and few.sigmas == many.sigmas
    assert max(few.sigmas) == 1 and min(few.sigmas) == LOWEST_SIGMA


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_a_rejected_step_costs_calls_and_the_last_velocity_is_reused(solver):
    # A sharp turn that the error estimate of the step before does not predict.
    called, taken = Counted(lambda x, sigma: 8 * torch.tanh(60 * (sigma - 0.4)) * x.cos()), []
    solve(called, start(), [1.0, 0.1], solver, callback=lambda *reports: taken.append(reports), tolerance=1e-5)
    steps = (len(called.sigmas) - 1) / SOLVERS[solver].calls_per_step
    assert steps == int(steps) > len(taken)


def controlled_steps(solver, velocity, x, begin, end, tolerance):
    """The published step size control on scipy's tableau: the sigmas of all calls and the starts of accepted steps."""
    pair, order = ADAPTIVE[solver], SOLVERS[solver].order
    calls, starts, sigma, h = [begin], [], begin, 0.05 * (end - begin)
    first = velocity(x, begin)
    while sigma != end:
        h = end - sigma if abs(h) >= abs(end - sigma) else h
        k = [first]
        for c, row in zip(pair.C[1:], pair.A[1:], strict=True):
            at = x + h * sum(weight * slope for weight, slope in zip(row, k, strict=False))
            calls.append(sigma + c * h)
            k.append(velocity(at, sigma + c * h))
        new_x = x + h * sum(weight * slope for weight, slope in zip(pair.B, k, strict=True))
        calls.append(sigma + h)
        k.append(velocity(new_x, sigma + h))
        estimate = h * sum(weight * slope for weight, slope in zip(pair.E, k, strict=True))
        scaled = estimate / (tolerance * (1 + torch.maximum(x.abs(), new_x.abs())))
        error = scaled.flatten(1).square().mean(1).sqrt().max().item()
        if error <= 1:
            starts.append(sigma)
            x, first, sigma = new_x, k[-1], end if h == end - sigma else sigma + h
        h *= min(3.0, max(0.2, 0.9 * error ** (-1 / order)))
    return calls, starts


@pytest.mark.parametrize("solver", ADAPTIVE)
@pytest.mark.parametrize(("tolerance", "bend"), [(1e-3, 1.0), (1e-5, 1.0), (1e-4, 40.0), (1.0, 0.01)])
@pytest.mark.parametrize(("begin", "end"), [(1.0, 0.1), (0.1, 1.0)])
def test_the_steps_are_those_of_the_published_controller(solver, tolerance, bend, begin, end):
    def velocity(x, sigma):
        return curved(x, sigma) + torch.tanh(torch.tensor(bend * (float(sigma) - 0.4))) * x.cos()

    calls, starts = controlled_steps(solver, velocity, start(), begin, end, tolerance)
    called, reports = Counted(velocity), []
    solve(called, start(), [begin, end], solver, lambda *report: reports.append(report[4].item()), tolerance=tolerance)
    assert called.sigmas == pytest.approx(calls, abs=1e-6)
    assert reports == pytest.approx(starts, abs=1e-6)


def test_a_constant_velocity_lets_every_step_grow_threefold():
    called = []
    solve(lambda x, sigma: called.append(sigma.item()) or torch.ones_like(x), start(), [1.0, 0.0], "bosh3")
    # 0.05, 0.15, 0.45 of the way to the lowest sigma, then the rest.
    ends = [1 - 0.999 * fraction for fraction in (0.05, 0.2, 0.65, 1.0)]
    assert called[3::3] == pytest.approx(ends, abs=1e-6)


@pytest.mark.parametrize("end", [0.0, 0.0005])
def test_an_adaptive_run_from_the_lowest_sigma_and_below_ends(end):
    for begin in (0.001, 0.0008):
        x = solve(lambda x, sigma: torch.ones_like(x), start(), [begin, end], "bosh3")
        torch.testing.assert_close(x, start() + end - begin, rtol=0, atol=1e-12)


def test_options_and_their_ranges_are_the_documented_ones():
    for solver in ADAPTIVE:
        assert [(o.name, o.default, o.low, o.high) for o in SOLVERS[solver].options] == [
            ("tolerance", 1e-3, 1e-8, 1.0),
            ("max_calls", 1000, 8, 100_000),
        ]
        solve(curved, start(), [1.0, 0.9], solver, tolerance=1.0, max_calls=100_000)
        torch.testing.assert_close(
            solve(curved, start(), [1.0, 0.5], solver),
            solve(curved, start(), [1.0, 0.5], solver, tolerance=1e-3, max_calls=1000),
        )


def test_a_run_may_make_exactly_max_calls():
    def calls_of(**options):
        called = Counted(lambda x, sigma: torch.ones_like(x))
        solve(called, start(), [1.0, 0.1], "bosh3", **options)
        return len(called.sigmas)

    needed = calls_of()
    assert needed == 1 + 4 * 3 == calls_of(max_calls=needed)
    with pytest.raises(CallLimitError) as caught:
        calls_of(max_calls=needed - 1)
    error = caught.value
    assert (error.calls, error.start, error.end, error.max_calls, error.tolerance) == (10, 1.0, 0.1, 12, 1e-3)
    assert error.sigma == pytest.approx(1 - 0.9 * 0.65, abs=1e-6)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_callbacks_step_is_the_number_of_sigmas_passed(solver):
    reports, grid = [], sigmas(5)
    solve(curved, start(), grid, solver, callback=lambda step, steps, x, d, sigma: reports.append((step, steps, sigma)))
    steps = [step for step, _, _ in reports]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 4
    assert {total for _, total, _ in reports} == {5}
    for step, _, sigma in reports:
        assert grid[step] >= sigma > grid[step + 1]


def test_the_largest_error_of_the_batch_sets_the_step():
    def velocity(x, sigma):
        return curved(x, sigma) * torch.tensor([40.0] + [0.01] * 15).reshape(16, 1, 1)

    one = start()[:1]
    alone, together = Counted(lambda x, sigma: 40 * curved(x, sigma)), Counted(velocity)
    solve(alone, one, [1.0, 0.1], "bosh3")
    solve(together, one.repeat(16, 1, 1), [1.0, 0.1], "bosh3")
    assert len(together.sigmas) >= len(alone.sigmas)


def test_the_call_limit_is_an_error_with_the_sigma_reached():
    with pytest.raises(ValueError, match=r"solve: 2\d model calls lead from sigma 1 to 0\.\d+ and not to 0; m"):
        solve(curved, start(), [1.0, 0.0], "bosh3", tolerance=1e-7, max_calls=30)


def test_a_velocity_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="the velocity is not finite in a step from sigma 1"):
        solve(lambda x, sigma: x / 0 * 0, start(), [1.0, 0.0], "dopri5")


def test_an_adaptive_run_has_no_history_and_in_two_parts_agrees_to_its_tolerance():
    half, history = solve_with_history(curved, start(), [1.0, 0.5], "dopri5", tolerance=1e-7)
    assert history == ()
    rest = solve(curved, half, [0.5, 0.0], "dopri5", tolerance=1e-7)
    whole = solve(curved, start(), [1.0, 0.0], "dopri5", tolerance=1e-7)
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("euler", {"tolerance": 0.1}, "solver 'euler' has no option 'tolerance'; it takes none"),
        ("dopri5", {"eta": 0.1}, "solver 'dopri5' has no option 'eta'; it takes tolerance, max_calls"),
        ("bosh3", {"tolerance": 0.0}, r"tolerance is 0.0; for 'bosh3' it must be in \[1e-08, 1\]"),
        ("bosh3", {"max_calls": math.nan}, "max_calls is nan"),
    ],
)
def test_an_option_of_another_solver_or_out_of_range_is_an_error(solver, options, message):
    with pytest.raises(ValueError, match=message):
        solve(curved, start(), sigmas(4), solver, **options)
