import math

import pytest
import torch
from diffusers.schedulers import (
    scheduling_dpmsolver_multistep,
    scheduling_flow_match_euler_discrete,
    scheduling_flow_match_heun_discrete,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import SOLVERS, solve, solve_with_history
from mmdit_core.solvers.base import Integrator, Method, Option, Point, Problem, Step
from mmdit_core.solvers.exponential import LOG_SNR, MINUS_LOG_SIGMA, Coordinate
from mmdit_core.solvers.runge_kutta import RungeKutta

ADAPTIVE = [name for name, method in SOLVERS.items() if method.adaptive]
STOCHASTIC = [name for name, method in SOLVERS.items() if method.stochastic]
STEPWISE = [name for name in SOLVERS if name not in ADAPTIVE]
DETERMINISTIC = [name for name in STEPWISE if name not in STOCHASTIC]
LOGARITHMIC = ("dpmpp_2m", "dpmpp_2m_logsnr", "res_2m", "res_2m_logsnr", "res_2s", "unipc")
OWN_VELOCITY = ("leapfrog", "fireflow")  # steps begin with a velocity that is not the model's there
WITHIN_THE_STEP = ("midpoint", "ralston", "leapfrog", "fireflow")  # no stage at the end of a step


def run(velocity, x, grid, solver, callback=None, seed=0):
    """`solve` with a generator for stochastic solvers."""
    generator = torch.Generator().manual_seed(seed) if solver in STOCHASTIC else None
    return solve(velocity, x, grid, solver, callback, generator)


def curved(x, sigma):
    """A smooth nonlinear velocity without symmetry, about as large as x."""
    return torch.tanh(1.3 * x + 0.4) * (1 + sigma**2) - 0.5 * x.roll(1, -1) * torch.cos(2 * sigma)


def start(dtype=torch.float64):
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


class Float64Torch:
    """torch with float64 in place of float32, for a module that hard-codes float32."""

    def __getattr__(self, name):
        return torch.float64 if name == "float32" else getattr(torch, name)


@pytest.fixture(autouse=True)
def diffusers_in_float64(monkeypatch):
    # Its schedulers round every step to float32, which would hide differences below 1e-6.
    for module in (
        scheduling_dpmsolver_multistep,
        scheduling_flow_match_euler_discrete,
        scheduling_flow_match_heun_discrete,
    ):
        monkeypatch.setattr(module, "torch", Float64Torch())


class Gaussian:
    """Data from N(mean, width^2): the velocity and its trajectories in closed form."""

    mean, width = 0.8, 0.5

    def spread(self, sigma):
        return ((1 - sigma) ** 2 * self.width**2 + sigma**2) ** 0.5

    def velocity(self, x, sigma):
        slope = (sigma - (1 - sigma) * self.width**2) / self.spread(sigma) ** 2
        return -self.mean + slope * (x - (1 - sigma) * self.mean)

    def trajectory(self, sigma):
        z = torch.linspace(-2, 2, 9, dtype=torch.float64)
        return (1 - sigma) * self.mean + self.spread(sigma) * z

    def error(self, solver, grid):
        end = solve(self.velocity, self.trajectory(grid[0]), grid, solver)
        return (end - self.trajectory(grid[-1])).abs().max().item()


class Logistic:
    """dx/dsigma = 4 x (1 - x), on which no method has an order above its own."""

    def velocity(self, x, sigma):
        return 4 * x * (1 - x)

    def trajectory(self, sigma):
        return torch.sigmoid(4 * (sigma - 0.5) + torch.linspace(-2, 2, 9, dtype=torch.float64))

    def point(self, sigma):
        x = self.trajectory(sigma)
        return Point(sigma, x, self.velocity(x, sigma))

    def error(self, solver, grid, history):
        end, _ = solve_with_history(self.velocity, self.trajectory(grid[0]), grid, solver, history=history)
        return (end - self.trajectory(grid[-1])).abs().max().item()


def observed_order(problem, solver, begin, end, steps, exact_start=True):
    errors = []
    for n in (steps, 2 * steps):
        grid = torch.linspace(begin, end, n + 1, dtype=torch.float64).tolist()
        h = (end - begin) / n
        past = [begin - k * h for k in range(SOLVERS[solver].history, 0, -1)] if exact_start else []
        errors.append(problem.error(solver, grid, tuple(problem.point(sigma) for sigma in past)))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_observed_order_is_the_stated_one(solver):
    order = SOLVERS[solver].order
    assert observed_order(Logistic(), solver, 0.9, 0.1, steps=160 if order < 3 else 80) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_the_order_is_the_stated_one_for_inversion_too(solver):
    order = SOLVERS[solver].order
    assert observed_order(Logistic(), solver, 0.1, 0.9, steps=160 if order < 3 else 80) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["ab3", "ab4", "unipc"])
def test_the_order_without_a_history_is_the_documented_one(solver):
    # The lower orders at the start leave Adams-Bashforth at 2; UniPC's first step is corrected, and stays at 3.
    expected = 3 if solver == "unipc" else 2
    found = observed_order(Logistic(), solver, 0.9, 0.1, steps=320, exact_start=False)
    assert found == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("solver", [name for name in DETERMINISTIC if name not in WITHIN_THE_STEP])
def test_the_order_is_not_lost_at_sigma_1_and_0(solver):
    # The straight line to 0 leaves no more than 2. On even steps to 0 the two-step methods' error is h^2 log(1/h),
    # which at this h looks like order 1.8.
    errors = [Gaussian().error(solver, torch.linspace(1, 0, n + 1, dtype=torch.float64)) for n in (320, 640)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(min(SOLVERS[solver].order, 2), abs=0.2)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_matches_diffusers(steps, shift):
    grid = sigmas(steps, shift=shift)
    reference = scheduling_flow_match_euler_discrete.FlowMatchEulerDiscreteScheduler()
    reference.set_timesteps(steps)
    reference.sigmas = grid
    reference.set_begin_index(0)
    x = start()
    for sigma in grid[:-1]:
        x = reference.step(curved(x, sigma), 1000 * sigma, x).prev_sample
    torch.testing.assert_close(solve(curved, start(), grid, "euler"), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_matches_diffusers(steps, shift):
    reference = scheduling_flow_match_heun_discrete.FlowMatchHeunDiscreteScheduler(shift=shift)
    reference.set_timesteps(steps)
    x = start()
    for timestep in reference.timesteps:
        x = reference.step(curved(x, timestep / 1000), timestep, x).prev_sample
    grid = torch.unique_consecutive(reference.sigmas)
    torch.testing.assert_close(solve(curved, start(), grid, "heun"), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver, solver_type", [("dpmpp_2m_logsnr", "midpoint"), ("res_2m_logsnr", "heun")])
@pytest.mark.parametrize("steps", [2, 10, 28])
@pytest.mark.parametrize("begin", [1.0, 0.999])
def test_two_step_in_log_snr_matches_diffusers(solver, solver_type, steps, begin):
    grid = sigmas(steps) * begin
    reference = scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type=solver_type,
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
    )
    reference.set_timesteps(steps)
    # Its own grid starts below 1 and its timesteps are cut to integers: set the sigmas, and step by index.
    reference.sigmas = grid
    reference.set_begin_index(0)
    x = start()
    for sigma in grid[:-1]:
        x = reference.step(curved(x, sigma), 1000 * sigma, x).prev_sample
    torch.testing.assert_close(solve(curved, start(), grid, solver), x, rtol=0, atol=1e-12)


def multistep_from_the_paper(velocity, x, grid):
    """DPM-Solver++ algorithm 2 with alpha = 1: extrapolate the denoised to the midpoint in time -log(sigma)."""
    before, h_before = None, None
    for sigma, following in zip(grid[:-1], grid[1:], strict=True):
        now = x - sigma * velocity(x, sigma)
        h = torch.log(sigma) - torch.log(following)
        if before is None or following == 0:
            guess = now
        else:
            ratio = h_before / h
            guess = (1 + 1 / (2 * ratio)) * now - 1 / (2 * ratio) * before
        x = following / sigma * x - torch.expm1(-h) * guess
        before, h_before = now, h
    return x


@pytest.mark.parametrize("steps", [1, 2, 5, 30])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m_in_sigma_matches_the_published_algorithm(steps, shift):
    grid = sigmas(steps, shift=shift)
    expected = multistep_from_the_paper(curved, start(), grid)
    torch.testing.assert_close(solve(curved, start(), grid, "dpmpp_2m"), expected, rtol=0, atol=1e-12)


def test_the_two_coordinates_are_different_methods():
    grid = sigmas(10)
    for name in ("dpmpp_2m", "res_2m"):
        gap = solve(curved, start(), grid, name) - solve(curved, start(), grid, name + "_logsnr")
        assert gap.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("solver", "coordinate", "norm"),
    [("res_2m", MINUS_LOG_SIGMA, lambda s: 1.0), ("res_2m_logsnr", LOG_SNR, lambda s: 1 - s)],
)
def test_res_2m_is_exact_for_a_denoised_that_is_linear_in_lambda(solver, coordinate, norm):
    # With x = norm * y and time t: dy/dt = (a + b t) - y, so y = a + b (t - 1) + constant * exp(-t).
    a, b = 0.3, -0.7

    def point(sigma):
        t = coordinate.log(sigma)
        x = torch.tensor(norm(sigma) * (a + b * (t - 1) + 1.1 * math.exp(-t)), dtype=torch.float64)
        return Point(sigma, x, (x - (a + b * t)) / sigma)

    def refuse(*_):
        raise AssertionError("a two-step method evaluates no velocity and draws no noise")

    step = Step(point(0.6), 0.35, (point(0.8),), refuse, refuse, {})
    torch.testing.assert_close(SOLVERS[solver].advance(step), point(0.35).x, rtol=0, atol=1e-14)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*DETERMINISTIC, *ADAPTIVE]),
    st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True),
    st.booleans(),
)
def test_every_solver_is_exact_for_a_constant_velocity_on_any_grid(solver, thousandths, rising):
    grid = torch.tensor(sorted(thousandths, reverse=not rising), dtype=torch.float64) / 1000
    x, slope = start(), curved(start(), torch.tensor(0.5))
    end = solve(lambda x, sigma: slope, x, grid, solver)
    torch.testing.assert_close(end, x + (grid[-1] - grid[0]) * slope, rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", [name for name in SOLVERS if name not in WITHIN_THE_STEP])
def test_the_last_step_to_zero_ends_at_the_denoised(solver):
    called = []
    end = run(curved, start(), sigmas(6), solver, callback=lambda i, n, x, denoised, sigma: called.append(denoised))
    torch.testing.assert_close(end, called[-1], rtol=0, atol=1e-15)


def test_heun_forward_and_backward_returns_near_the_start():
    grid = torch.linspace(0.02, 1, 101, dtype=torch.float64)
    noise = solve(curved, start(), grid, "heun")
    back = solve(curved, noise, grid.flip(0), "heun")
    assert (noise - start()).abs().max() > 0.5
    torch.testing.assert_close(back, start(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("solver", STEPWISE)
def test_the_number_of_calls_is_the_stated_one_and_none_is_at_sigma_zero(solver):
    called = []

    def counted(x, sigma):
        called.append(sigma.item())
        return curved(x, sigma)

    run(counted, start(), sigmas(7), solver)
    calls = SOLVERS[solver].calls_per_step
    first = 1 if solver in OWN_VELOCITY else 0  # for the velocity that a run begins with
    assert len(called) == first + (7 * calls if solver in WITHIN_THE_STEP else 6 * calls + 1)
    assert min(called) > 0
    assert max(called) == 1


def test_heun_calls_at_exactly_the_scheduled_sigmas():
    called, grid = set(), [0.9, 0.2, 0.0]
    assert 0.9 + (0.2 - 0.9) != 0.2
    solve(lambda x, sigma: (called.add(sigma.item()), curved(x, sigma))[1], start(), grid, "heun")
    assert called == {0.9, 0.2}


@pytest.mark.parametrize("solver", [name for name in STEPWISE if name not in ("unipc", *OWN_VELOCITY)])
def test_the_callback_has_each_step_once_in_order(solver):
    grid, reports = sigmas(5), []
    run(curved, start(), grid, solver, callback=lambda *arguments: reports.append(arguments))
    assert [(step, steps) for step, steps, *_ in reports] == [(i, 5) for i in range(5)]
    assert [sigma.item() for *_, sigma in reports] == grid[:-1].tolist()
    assert torch.equal(reports[0][2], start())
    for _, _, x, denoised, sigma in reports:
        torch.testing.assert_close(denoised, x - sigma * curved(x, sigma), rtol=0, atol=1e-15)


def test_any_exception_of_the_callback_ends_the_run():
    class Stop(BaseException):
        pass

    calls = 0

    def counted(x, sigma):
        nonlocal calls
        calls += 1
        return curved(x, sigma)

    def stop_at_second(step, *_):
        if step == 1:
            raise Stop

    with pytest.raises(Stop):
        solve(counted, start(), sigmas(9), "euler", callback=stop_at_second)
    assert calls == 2


@pytest.mark.parametrize("solver", STEPWISE)
def test_no_step_reads_a_value_from_the_device(solver):
    # A meta tensor has no values: .item(), bool() or a copy to the CPU would raise.
    x = torch.empty(1, 4, 8, 8, device="meta")
    sigma_devices = set()

    def velocity(x, sigma):
        sigma_devices.add((sigma.device.type, sigma.ndim, sigma.dtype))
        return torch.empty_like(x)

    assert run(velocity, x, sigmas(4), solver, callback=lambda *_: None).shape == x.shape
    assert sigma_devices == {("meta", 0, torch.float32)}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_x_is_kept_and_sigma_is_float32(solver, dtype):
    def velocity(x, sigma):
        assert x.dtype == dtype and sigma.dtype == torch.float32
        return curved(x.float(), sigma)

    x = start(dtype)
    kept = x.clone()
    reports = set()
    end = run(
        velocity, x, sigmas(6), solver, callback=lambda i, n, x, denoised, s: reports.update((x.dtype, denoised.dtype))
    )
    assert end.dtype == dtype and reports == {dtype}
    assert torch.equal(x, kept)
    exact = run(curved, x.double(), sigmas(6), solver)
    tolerance = 12 * torch.finfo(dtype).eps * exact.abs().max().item()
    torch.testing.assert_close(end.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("solver", [*LOGARITHMIC, "ab2", "ab3", "ab4"])
def test_neighbouring_floats_in_a_schedule_give_no_infinity(solver):
    grid = [0.5, math.nextafter(0.5, 0), 0.25, math.nextafter(0.25, 0), 0.0]
    assert solve(curved, start(), grid, solver).isfinite().all()


def test_a_sigma_above_one_by_a_rounding_is_one():
    grid = [1 + 2**-23, 0.5, 0.0]
    assert torch.equal(
        solve(curved, start(), grid, "dpmpp_2m_logsnr"), solve(curved, start(), [1.0, 0.5, 0.0], "dpmpp_2m_logsnr")
    )


def test_a_sigma_above_one_by_more_than_a_rounding_is_an_error():
    assert torch.equal(solve(curved, start(), [1 + 0.9e-5, 0.5]), solve(curved, start(), [1.0, 0.5]))
    with pytest.raises(ValueError, match=r"sigmas\[0\] is 1.000011; it must be in \[0, 1\]"):
        solve(curved, start(), [1 + 1.1e-5, 0.5])


@pytest.mark.parametrize("rising", [False, True])
def test_a_history_at_the_first_sigma_is_an_error(rising):
    first, second, third = (0.2, 0.5, 0.9) if rising else (0.9, 0.5, 0.2)
    half, history = solve_with_history(curved, start(), [first, second], "ab2")
    solve_with_history(curved, half, [second, third], "ab2", history=history)
    with pytest.raises(ValueError, match=f"history has a point at sigma {first}, which does not precede {first}"):
        solve_with_history(curved, half, [first, third], "ab2", history=history)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([1.0], r"sigmas has shape \[1\]; expected \[steps \+ 1\] with at least one step"),
        (torch.rand(2, 2), r"sigmas has shape \[2, 2\]"),
        ([1.0, 0.5, 0.5, 0.0], r"sigmas\[1\] is 0.5 and sigmas\[2\] is 0.5; all steps must be strictly falling"),
        ([1.0, 0.2, 0.4, 0.0], r"sigmas\[1\] is 0.2 and sigmas\[2\] is 0.4"),
        ([0.0, 0.4, 0.2], r"sigmas\[1\] is 0.4 and sigmas\[2\] is 0.2"),
        ([0.0, 0.0], r"sigmas\[0\] is 0.0 and sigmas\[1\] is 0.0"),
        ([14.6, 1.0, 0.0], r"sigmas\[0\] is 14.6.*; it must be in \[0, 1\]"),
        ([1.0, math.nan, 0.0], r"sigmas\[1\] is nan"),
        ([1.0, 0.5, -0.1], r"sigmas\[2\] is -0.1"),
    ],
)
def test_a_wrong_schedule_is_an_error_before_any_call(grid, message):
    def refuse(x, sigma):
        raise AssertionError("the velocity was called")

    with pytest.raises(ValueError, match=message):
        solve(refuse, start(), grid)


def test_an_unknown_solver_is_an_error_with_the_known_ones():
    with pytest.raises(ValueError, match="'ddim' is unknown; choose one of euler, heun, midpoint"):
        solve(curved, start(), sigmas(4), "ddim")


def test_a_velocity_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"velocity returned shape \[1, 3, 4, 5\]; expected x's, \[2, 3, 4, 5\]"):
        solve(lambda x, sigma: x[:1], start(), sigmas(4))


def test_integer_latents_are_an_error():
    with pytest.raises(ValueError, match="x is torch.int64; it must be floating point"):
        solve(curved, torch.zeros(1, 4, dtype=torch.int64), sigmas(4))


def test_points_options_steps_and_problems_are_frozen():
    for kind in (Point, Option, Step, Problem, Method, Integrator, Coordinate):
        assert kind.__dataclass_params__.frozen, kind


def test_every_solver_has_a_source_and_is_frozen():
    for method in SOLVERS.values():
        assert method.source
        with pytest.raises(AttributeError):
            method.order = 3


def test_a_new_runge_kutta_is_one_row(monkeypatch):
    kutta = ((1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0))
    weights = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
    monkeypatch.setitem(SOLVERS, "kutta38", RungeKutta(order=4, stages=kutta, weights=weights, source="Kutta 1901"))
    assert observed_order(Logistic(), "kutta38", 0.9, 0.1, steps=80) == pytest.approx(4, abs=0.1)
