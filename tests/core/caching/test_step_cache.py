"""StepCache: which predictions are computed, what stands in for the others, and that nothing stale is ever used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mmdit_core.caching.plans import MEASURED_ON, PLANS, STEPS
from mmdit_core.caching.step_cache import COMPUTED, LEFT_OUT, REUSED, StepCache, StepCacheRun, Track, Turn
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.load import check_transformer
from mmdit_core.flow.schedules import sigmas
from mmdit_core.solvers import SOLVERS, solve

CONTEXT = torch.tensor([1.0, 2.0, -1.0])


def positive_at(x, sigma):
    return x * 0.3 + sigma * CONTEXT


def negative_at(x, sigma):
    return x * 0.1 - CONTEXT


class Model:
    """Two predictions that move with the noise level; it notes what was asked of it."""

    def __init__(self):
        self.asked = []

    def at(self, x, sigma):
        def compute(with_negative):
            self.asked.append((round(float(sigma), 6), with_negative))
            return positive_at(x, sigma), negative_at(x, sigma) if with_negative else None

        return compute


def run_over(step_cache, levels, *, negative=True, seen="same", solver="euler", scale=3.0):
    """Where a guided run ends, the model and the run."""
    run, model = StepCacheRun(step_cache, levels.tolist()), Model()

    def velocity(x, sigma):
        place = 1 - float(sigma)
        found = run.predict(float(sigma), place, model.at(x, sigma), negative=negative, seen=seen)
        return found[0] if found[1] is None else found[1] + scale * (found[0] - found[1])

    source = torch.Generator().manual_seed(0)
    end = solve(velocity, torch.zeros(1, 3, dtype=torch.float64), levels, solver, generator=source)
    return end, model, run


def even(steps):
    return sigmas(steps, shift=1.0)


def test_a_step_cache_that_does_nothing_computes_both_each_time():
    _, model, run = run_over(StepCache(), even(5))
    assert model.asked == [(pytest.approx(1 - n / 5), True) for n in range(5)]
    assert run.count.work == 1 and run.count.uncond == 5


def test_a_turn_is_decided_by_step_and_place():
    assert [StepCache(uncond_every=3).turn(n, 7, n / 7).negative == COMPUTED for n in range(7)] == [
        True, False, False, True, False, False, True
    ]  # fmt: skip
    assert [StepCache(every=2).turn(n, 4, 0.0).positive for n in range(4)] == [True, False, True, False]
    both = StepCache(every=2, uncond_every=2)
    assert [both.turn(n, 6, 0.0) for n in range(6)] == [
        Turn(True, COMPUTED), Turn(False, REUSED), Turn(True, REUSED), Turn(False, REUSED),
        Turn(True, COMPUTED), Turn(False, REUSED),
    ]  # fmt: skip
    ends = StepCache(every=3, warmup=0.25, tail=0.75)
    assert [ends.turn(n, 8, 0.0).positive for n in range(8)] == [True, True, True, False, False, True, True, True]
    settled = StepCache(uncond_every=2, warmup=0.5)
    assert [settled.turn(n, 6, 0.0).negative == COMPUTED for n in range(6)] == [True, True, True, True, False, True]


def test_a_window_holds_its_start_and_not_its_end():
    window = StepCache(start=0.25, end=0.75)
    found = [window.turn(0, 4, place).negative for place in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 0.9)]
    assert found == [LEFT_OUT, LEFT_OUT, COMPUTED, COMPUTED, COMPUTED, LEFT_OUT, LEFT_OUT]


def test_outside_its_window_the_positive_stands_for_the_negative():
    run, model, x = StepCacheRun(StepCache(end=0.5), even(4).tolist()), Model(), torch.ones(1, 3)
    ahead, behind = run.predict(0.25, 0.75, model.at(x, 0.25), negative=True, seen=1)
    assert behind is ahead and model.asked == [(0.25, False)] and run.count.left_out == 1


def test_the_kept_difference_is_that_of_the_last_computed_step():
    levels = even(4)
    run, model = StepCacheRun(StepCache(uncond_every=2, order=0), levels.tolist()), Model()
    x, later = torch.ones(1, 3), torch.full((1, 3), 2.0)
    first = run.predict(1.0, 0.0, model.at(x, 1.0), negative=True, seen=1)
    ahead, behind = run.predict(0.75, 0.25, model.at(later, 0.75), negative=True, seen=1)
    assert torch.equal(ahead, positive_at(later, 0.75))
    torch.testing.assert_close(behind, ahead - (first[0] - first[1]), rtol=0, atol=0)
    assert model.asked == [(1.0, True), (0.75, False)]


def test_a_line_through_the_last_two_is_exact_where_predictions_lie_on_one():
    track = Track(order=1)
    assert track.at(0.9) is None
    track.add(1.0, torch.tensor([1.0]))
    assert track.at(0.9) == torch.tensor([1.0])
    track.add(0.8, torch.tensor([3.0]))
    torch.testing.assert_close(track.at(0.7), torch.tensor([4.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(track.at(0.1), torch.tensor([5.0]), rtol=0, atol=1e-6)  # no further than they lie apart


def test_what_a_solver_comes_back_behind_is_not_used():
    track = Track(order=1)
    for level, value in ((1.0, 1.0), (0.5, 2.0), (0.4, 3.0)):
        track.add(level, torch.tensor([value]))
    assert track.at(0.6) is None
    track.add(0.6, torch.tensor([9.0]))
    assert track.at(0.55) == torch.tensor([9.0])


@pytest.mark.parametrize("dial", [StepCache(every=2), StepCache(uncond_every=2), StepCache(every=3, uncond_every=2)])
def test_the_work_that_is_foretold_is_the_work_that_is_done(dial):
    for steps in (5, 8, 28):
        _, _, run = run_over(dial, even(steps))
        assert run.count.work == pytest.approx(dial.work(steps))
    windowed = StepCache(start=0.25, end=0.75, uncond_every=2)
    assert run_over(windowed, even(8))[2].count.work == pytest.approx(windowed.work(8))


def test_steps_that_go_on_by_themselves_stay_closer_with_a_line_than_without():
    levels = even(24)
    whole = run_over(StepCache(), levels)[0]
    kept, drawn = (run_over(StepCache(every=2, order=order), levels)[0] for order in (0, 1))
    assert (drawn - whole).norm() < 0.2 * (kept - whole).norm()


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_every_solver_ends_near_where_it_would_and_saves_the_share(solver):
    levels = even(24)
    whole, full, _ = run_over(StepCache(), levels, solver=solver)
    for dial in (StepCache(uncond_every=2), StepCache(every=2)):
        end, model, run = run_over(dial, levels, solver=solver)
        assert (end - whole).norm() < 0.05 * whole.norm()
        if not SOLVERS[solver].adaptive:
            assert run.count.predictions == len(full.asked)
            assert run.count.work == pytest.approx(dial.work(24), abs=0.06)


def test_all_calls_of_a_step_are_treated_alike():
    levels = even(4)
    _, model, _ = run_over(StepCache(uncond_every=2), levels, solver="midpoint")
    assert [asked for _, asked in model.asked] == [True, True, False, False, True, True, False, False]


def test_a_run_forgets_what_is_of_another_shape_or_prompt():
    run, model = StepCacheRun(StepCache(uncond_every=4), even(8).tolist()), Model()
    for step, seen in enumerate(["a", "a", "b", "b", None, None]):
        x = torch.ones(1, 3)
        run.predict(1 - step / 8, step / 8, model.at(x, 1 - step / 8), negative=True, seen=seen)
    assert [asked for _, asked in model.asked] == [True, False, True, False, True, True]


def test_what_is_asked_for_twice_in_a_step_goes_on_from_its_own_kind():
    run = StepCacheRun(StepCache(every=2, order=0), even(6).tolist())
    for step in range(6):
        sigma, found = 1 - step / 6, []
        for kind, value in (("plain", 1.0), ("perturbed", -1.0)):
            made = torch.full((1, 3), value + step // 2)
            found.append(run.predict(sigma, step / 6, lambda _, v=made: (v, None), negative=False, seen=kind)[0])
        assert [each[0, 0].item() for each in found] == [1.0 + step // 2, -1.0 + step // 2]
    assert run.count.extrapolated == 6


def test_without_a_negative_only_whole_steps_are_saved():
    _, model, run = run_over(StepCache(uncond_every=2), even(6), negative=False)
    assert run.count.work == 1 and len(model.asked) == 6
    _, model, run = run_over(StepCache(every=2), even(6), negative=False)
    assert run.count.work == 0.5 and len(model.asked) == 3


def test_levels_that_rise_are_followed_exactly():
    levels = even(6).flip(0)[1:]
    run, model = StepCacheRun(StepCache(every=2, uncond_every=2), levels.tolist()), Model()
    for level in levels[:-1].tolist():
        run.predict(level, 1 - level, model.at(torch.ones(1, 3), level), negative=True, seen=1)
    assert all(asked for _, asked in model.asked) and run.count.work == 1


def test_a_level_belongs_to_the_step_that_begins_there_or_holds_it():
    run = StepCacheRun(StepCache(), [1.0, 0.7, 0.4, 0.0])
    assert [run.step_of(level) for level in (1.0, 0.9, 0.7, 0.7000001, 0.69999, 0.5, 0.4, 0.1)] == [
        0, 0, 1, 1, 1, 1, 2, 2
    ]  # fmt: skip


def test_json_brings_it_back_and_leaves_out_what_is_usual():
    step_cache = StepCache(every=2, end=0.5)
    assert json.loads(step_cache.to_json()) == {"every": 2, "end": 0.5}
    assert StepCache.from_json(step_cache.to_json()) == step_cache and StepCache.from_json("{}") == StepCache()
    with pytest.raises(ValueError, match="expected a JSON object"):
        StepCache.from_json('{"evry": 2}')


@pytest.mark.parametrize(
    ("field", "value"),
    [("every", 0), ("uncond_every", 0), ("warmup", 2.0), ("tail", -1.0), ("order", 2), ("end", -0.1)],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match="guidance" if field == "end" else field):
        StepCache(**{field: value})


def test_every_plan_reaches_what_it_is_chosen_for():
    assert [plan.speedup for plan in PLANS] == sorted({plan.speedup for plan in PLANS})
    for plan in PLANS:
        assert 1 / plan.step_cache.work(STEPS) >= plan.speedup
        assert plan.price is None or 1 / plan.price.share >= plan.speedup * 0.98
        assert plan.price is None or plan.price.low <= plan.price.points <= plan.price.high


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan.speedup:g}x")
def test_a_plan_in_a_shorter_run_passes_over_no_more_of_the_sampling(plan):
    step_cache, anyhow = plan.step_cache, replace(plan.step_cache, meant_for=0)
    assert all(step_cache.turn(step, STEPS, 0) == anyhow.turn(step, STEPS, 0) for step in range(STEPS))
    for steps in range(1, 100):
        computed = [step for step in range(steps) if step_cache.turn(step, steps, 0).positive]
        first = min(steps, math.ceil(step_cache.warmup * STEPS))
        assert computed[:first] == list(range(first)) and computed[-1] == steps - 1
        gaps = [b - a for a, b in pairwise(computed)]
        assert max(gaps, default=0) <= max(1, math.ceil(step_cache.every * min(1, steps / STEPS)))
    assert step_cache.work(4) == 1


def test_the_prices_are_the_shipped_models():
    shipped = Path(__file__).parents[3] / "models" / "mmdit-small.safetensors"
    assert check_transformer(read_header(shipped))[0] == MEASURED_ON
