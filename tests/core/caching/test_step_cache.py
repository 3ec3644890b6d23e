"""Step cache: which predictions are computed, what replaces the others, and that nothing stale is used."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mmdit_core.caching.plans import MEASURED_ON, PLANS, STEPS
from mmdit_core.caching.step_cache import Extrapolation, StepCache, StepCacheRun, StepPlan
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.load import check_transformer
from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import SOLVERS, solve
from mmdit_core.solvers.adaptive import EmbeddedPair

CONTEXT = torch.tensor([1.0, 2.0, -1.0])


def cond_at(x, sigma):
    return x * 0.3 + sigma * CONTEXT


def uncond_at(x, sigma):
    return x * 0.1 - CONTEXT


class Model:
    """Two predictions that change with sigma; `calls` has (sigma, with uncond) of each call."""

    def __init__(self):
        self.calls = []

    def predict(self, run, x, sigma, *, has_uncond=True, kind="same"):
        """One prediction under a step cache, as a sampler makes it."""
        sigma = float(sigma)
        prediction = run.begin(sigma, has_uncond=has_uncond, kind=kind)
        if not prediction.computes:
            return run.finish(prediction)
        self.calls.append((round(sigma, 6), prediction.computes_uncond))
        return run.finish(prediction, cond_at(x, sigma), uncond_at(x, sigma) if prediction.computes_uncond else None)


def run_over(step_cache, levels, *, has_uncond=True, kind="same", solver="euler", scale=3.0):
    """The end of a guided run, the model and the run."""
    run, model = StepCacheRun(step_cache, levels.tolist()), Model()

    def velocity(x, sigma):
        cond, uncond = model.predict(run, x, sigma, has_uncond=has_uncond, kind=kind)
        return cond if uncond is None else uncond + scale * (cond - uncond)

    source = torch.Generator().manual_seed(0)
    end = solve(velocity, torch.zeros(1, 3, dtype=torch.float64), levels, solver, generator=source)
    return end, model, run


def even(steps):
    return sigmas(steps, shift=1.0)


def test_a_step_cache_that_does_nothing_computes_both_in_each_step():
    _, model, run = run_over(StepCache(), even(5))
    assert model.calls == [(pytest.approx(1 - n / 5), True) for n in range(5)]
    assert run.count.work == 1 and run.count.uncond == 5
    assert StepCache().does_nothing


@pytest.mark.parametrize("changed", [{"every": 2}, {"uncond_every": 2}])
def test_a_step_cache_that_leaves_something_out_does_something(changed):
    assert not StepCache(**changed).does_nothing


def test_the_number_of_the_step_decides_what_it_computes():
    assert [StepCache(uncond_every=3).plan(n, 7).uncond for n in range(7)] == [
        True, False, False, True, False, False, True
    ]  # fmt: skip
    assert [StepCache(every=2).plan(n, 4).cond for n in range(4)] == [True, False, True, False]
    both = StepCache(every=2, uncond_every=2)
    assert [both.plan(n, 6) for n in range(6)] == [
        StepPlan(True, True), StepPlan(False, False), StepPlan(True, False), StepPlan(False, False),
        StepPlan(True, True), StepPlan(False, False),
    ]  # fmt: skip
    ends = StepCache(every=3, warmup=0.25, tail=0.75)
    assert [ends.plan(n, 8).cond for n in range(8)] == [True, True, True, False, False, True, True, True]
    warm = StepCache(uncond_every=2, warmup=0.5)
    assert [warm.plan(n, 6).uncond for n in range(6)] == [True, True, True, True, False, True]


@pytest.mark.parametrize("steps", [10, 20, 28, 30, 100])
def test_a_fraction_of_the_steps_is_not_rounded_up_by_floating_point(steps):
    """0.1 * 30 is 3.0000000000000004 in floating point: the warmup is 3 steps all the same."""
    plan = StepCache(every=steps, warmup=0.1, tail=0.7)
    computed = [step for step in range(steps) if plan.plan(step, steps).cond]
    warmup, tail = -(-steps // 10), -(-7 * steps // 10)
    assert computed == sorted({*range(warmup + 1), *range(tail, steps)})


def test_the_stored_difference_is_that_of_the_last_computed_step():
    run, model = StepCacheRun(StepCache(uncond_every=2, order=0), even(4).tolist()), Model()
    x, later = torch.ones(1, 3), torch.full((1, 3), 2.0)
    first = model.predict(run, x, 1.0)
    cond, uncond = model.predict(run, later, 0.75)
    assert torch.equal(cond, cond_at(later, 0.75))
    torch.testing.assert_close(uncond, cond - (first[0] - first[1]), rtol=0, atol=0)
    assert model.calls == [(1.0, True), (0.75, False)]


def test_a_line_through_the_last_two_is_exact_for_values_on_a_line():
    line = Extrapolation(order=1)
    assert line.at(0.9) is None
    line.add(1.0, torch.tensor([1.0]))
    assert line.at(0.9) == torch.tensor([1.0])
    line.add(0.8, torch.tensor([3.0]))
    torch.testing.assert_close(line.at(0.7), torch.tensor([4.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(line.at(0.1), torch.tensor([5.0]), rtol=0, atol=1e-6)  # no further than they are apart
    line.add(0.5, torch.tensor([0.0]))
    torch.testing.assert_close(line.at(0.4), torch.tensor([-1.0]), rtol=0, atol=1e-6)  # of the last two alone


def test_values_at_lower_sigmas_are_dropped_when_a_solver_goes_back():
    line = Extrapolation(order=1)
    for sigma, value in ((1.0, 1.0), (0.5, 2.0), (0.4, 3.0)):
        line.add(sigma, torch.tensor([value]))
    assert line.at(0.6) is None
    line.add(0.6, torch.tensor([9.0]))
    assert line.at(0.55) == torch.tensor([9.0])


def test_a_value_at_the_same_sigma_is_replaced_whatever_the_rounding():
    line = Extrapolation(order=1)
    line.add(1.0, torch.tensor([1.0]))
    line.add(0.5, torch.tensor([7.0]))
    line.add(0.5 * (1 - 1e-7), torch.tensor([2.0]))
    torch.testing.assert_close(line.at(0.25), torch.tensor([2.5]), rtol=0, atol=1e-5)
    assert line.at(0.5 * (1 + 1e-7)) is not None


@pytest.mark.parametrize("cache", [StepCache(every=2), StepCache(uncond_every=2), StepCache(every=3, uncond_every=2)])
def test_the_work_that_is_predicted_is_the_work_that_is_done(cache):
    for steps in (5, 8, 28):
        assert run_over(cache, even(steps))[2].count.work == pytest.approx(cache.work(steps))


def test_the_work_of_small_runs_by_hand():
    assert StepCache(every=2).work(4) == 0.5
    assert StepCache(uncond_every=2).work(4) == 0.75
    assert StepCache(uncond_every=4).work(4) == pytest.approx(5 / 8)


def test_extrapolated_steps_are_closer_to_the_full_run_with_a_line_than_without():
    levels = even(24)
    whole = run_over(StepCache(), levels)[0]
    repeated, line = (run_over(StepCache(every=2, order=order), levels)[0] for order in (0, 1))
    assert (line - whole).norm() < 0.2 * (repeated - whole).norm()


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_ends_near_its_full_run_and_saves_the_fraction(solver):
    levels = even(24)
    whole, full, _ = run_over(StepCache(), levels, solver=solver)
    for cache in (StepCache(uncond_every=2), StepCache(every=2)):
        end, _, run = run_over(cache, levels, solver=solver)
        assert (end - whole).norm() < 0.05 * whole.norm()
        if not isinstance(SOLVERS[solver], EmbeddedPair):
            assert run.count.predictions == len(full.calls)
            assert run.count.work == pytest.approx(cache.work(24), abs=0.06)


def test_all_calls_of_a_step_are_treated_alike():
    _, model, _ = run_over(StepCache(uncond_every=2), even(4), solver="midpoint")
    assert [with_uncond for _, with_uncond in model.calls] == [True, True, False, False, True, True, False, False]


def test_a_prediction_of_another_kind_or_of_an_unknown_one_is_computed():
    run, model = StepCacheRun(StepCache(uncond_every=4), even(8).tolist()), Model()
    for step, kind in enumerate(["a", "a", "b", "b", None, None]):
        model.predict(run, torch.ones(1, 3), 1 - step / 8, kind=kind)
    assert [with_uncond for _, with_uncond in model.calls] == [True, False, True, False, True, True]


def test_a_kind_that_a_step_did_not_use_is_gone_in_the_next():
    run, model = StepCacheRun(StepCache(uncond_every=8), even(8).tolist()), Model()
    for step, kind in enumerate(["a", "b", "a", "b", "b", "a"]):
        model.predict(run, torch.ones(1, 3), 1 - step / 8, kind=kind)
    # Each is there while it was used in the step before.
    assert [with_uncond for _, with_uncond in model.calls] == [True, True, True, True, False, True]


def test_two_kinds_in_one_step_are_each_extrapolated_from_their_own():
    run = StepCacheRun(StepCache(every=2, order=0), even(6).tolist())
    for step in range(6):
        found = []
        for kind, value in (("plain", 1.0), ("perturbed", -1.0)):
            prediction = run.begin(1 - step / 6, has_uncond=False, kind=kind)
            computed = (torch.full((1, 3), value + step // 2),) if prediction.computes else ()
            found.append(run.finish(prediction, *computed)[0])
        assert [each[0, 0].item() for each in found] == [1.0 + step // 2, -1.0 + step // 2]
    assert run.count.extrapolated == 6


def test_without_uncond_only_whole_steps_are_saved():
    _, model, run = run_over(StepCache(uncond_every=2), even(6), has_uncond=False)
    assert run.count.work == 1 and len(model.calls) == 6 and run.count.without_uncond == 6
    _, model, run = run_over(StepCache(every=2), even(6), has_uncond=False)
    assert run.count.work == 0.5 and len(model.calls) == 3


def test_a_schedule_that_rises_is_computed_in_full():
    levels = even(6).flip(0)[1:]
    run, model = StepCacheRun(StepCache(every=2, uncond_every=2), levels.tolist()), Model()
    for level in levels[:-1].tolist():
        model.predict(run, torch.ones(1, 3), level)
    assert all(with_uncond for _, with_uncond in model.calls) and run.count.work == 1


def test_a_sigma_is_in_the_step_that_begins_there_or_contains_it():
    run = StepCacheRun(StepCache(), [1.0, 0.7, 0.4, 0.0])
    levels = (1.1, 1.0, 0.9, 0.7, 0.7000001, 0.6999999, 0.69, 0.5, 0.4, 0.1, 0.0)
    assert [run.step_of(level) for level in levels] == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]


WRONG = [("every", 0), ("uncond_every", 0), ("warmup", 2.0), ("tail", -1.0), ("tail", math.nan), ("order", 2)]


@pytest.mark.parametrize(("field", "value"), [*WRONG, ("meant_for", -1)])
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        StepCache(**{field: value})


def test_every_plan_reaches_its_speedup():
    assert [plan.speedup for plan in PLANS] == sorted({plan.speedup for plan in PLANS})
    for plan in PLANS:
        assert 1 / plan.step_cache.work(STEPS) >= plan.speedup
        assert plan.cost is None or 1 / plan.cost.flops >= plan.speedup * 0.98
        assert plan.cost is None or plan.cost.low <= plan.cost.points <= plan.cost.high


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.speedup:g}x")
def test_a_plan_in_a_shorter_run_has_no_larger_gaps(plan):
    cache, for_any = plan.step_cache, replace(plan.step_cache, meant_for=0)
    assert all(cache.plan(step, STEPS) == for_any.plan(step, STEPS) for step in range(STEPS))
    for steps in range(1, 100):
        computed = [step for step in range(steps) if cache.plan(step, steps).cond]
        first = min(steps, math.ceil(cache.warmup * STEPS))
        assert computed[:first] == list(range(first)) and computed[-1] == steps - 1
        gaps = [b - a for a, b in pairwise(computed)]
        assert max(gaps, default=0) <= max(1, math.ceil(cache.every * min(1, steps / STEPS)))
    assert cache.work(4) == 1


def test_the_costs_are_of_the_shipped_model():
    shipped = Path(__file__).parents[3] / "models" / "mmdit-small.safetensors"
    assert check_transformer(read_header(shipped))[0] == MEASURED_ON


@pytest.mark.parametrize("cache", [StepCache(every=3), StepCache(uncond_every=2, order=0), PLANS[2].step_cache])
@pytest.mark.parametrize("cut", [1, 4, 7])
def test_a_part_with_all_sigmas_and_the_stored_predictions_continues_the_run(cache, cut):
    """And the predictions that it was given stay as they were, so that a run may be continued twice."""
    levels = sigmas(9, "linear", 3.0)

    def part(x, run, first, last):
        model = Model()

        def velocity(x, sigma):
            cond, uncond = model.predict(run, x, sigma)
            return uncond + 3.0 * (cond - uncond)

        return solve(velocity, x, levels[first : last + 1], "heun"), model.calls

    begin = torch.zeros(1, 3, dtype=torch.float64)
    whole, calls = part(begin, StepCacheRun(cache, levels.tolist()), 0, 9)
    first = StepCacheRun(cache, levels.tolist())
    middle, before = part(begin, first, 0, cut)
    for _ in range(2):
        second = StepCacheRun(cache, levels.tolist(), first.stored)
        end, after = part(middle, second, cut, 9)
        assert torch.equal(end, whole) and before + after == calls
        assert second.count.predictions + first.count.predictions == 18 - 1


def test_the_count_holds_the_last_sigma_of_a_schedule_that_falls():
    assert StepCacheRun(StepCache(every=2), [1.0, 0.5]).count.ends_at == 0.5
    assert StepCacheRun(StepCache(every=2), [1.0, 0.0]).count.ends_at == 0
    assert StepCacheRun(StepCache(every=2), [0.0, 1.0]).count.ends_at == 0  # an inversion is no part of a run
