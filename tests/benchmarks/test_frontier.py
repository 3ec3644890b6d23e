"""The frontier's own arithmetic: paired intervals, and figures that stay right while rounds are added."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.frontier import FULL, POINTS, begun, distances, lengthened, paired, settings_of, summed
from mmdit_core.caching.plans import PLANS


def outcome(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Ours and the full run's."""
    pairs = [(True, True)] * both + [(False, True)] * lost + [(True, False)] * won + [(False, False)] * neither
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_images_that_stay_the_same_leave_the_difference_uncertain_by_more_the_fewer_they_are():
    widths = []
    for scale in (1, 4, 16):
        found = paired(*outcome(28 * scale, 0, 0, 4 * scale))
        assert found["points"] == 0 and found["low"] < 0 < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[0] > widths[1] > widths[2] > 0


def test_what_is_lost_one_way_is_won_the_other():
    ours, full = outcome(80, 12, 4, 32)
    ahead, back = paired(ours, full), paired(full, ours)
    assert ahead["points"] == pytest.approx(-100 * 8 / 128) and (ahead["lost"], ahead["won"]) == (12, 4)
    assert ahead["low"] == pytest.approx(-back["high"]) and ahead["high"] == pytest.approx(-back["low"])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Pairs drawn with a known difference of 5 points, of which the intervals must hold about 95%."""
    source, held, trials = torch.Generator().manual_seed(0), 0, 600
    for _ in range(trials):
        draws = torch.rand(128, generator=source)
        full = (draws < 0.90).tolist()
        ours = ((draws < 0.83) | ((draws > 0.90) & (draws < 0.92))).tolist()
        found = paired(ours, full)
        held += found["low"] <= -5 <= found["high"]
    assert 0.92 < held / trials <= 1


def test_a_point_grows_by_rounds_and_is_compared_with_as_many_images():
    full, point = begun(POINTS[0]), begun(POINTS[1])
    yes, no = {"colour": True, "all": True}, {"colour": True, "all": False}
    lengthened(full, [yes, yes], 100, torch.zeros(2))
    lengthened(full, [no, yes], 100, torch.zeros(2))
    lengthened(point, [yes, no], 50, torch.tensor([0.1, 0.3]))
    summed(point, full)
    assert point["images"] == 2 and point["fraction"] == 0.5 and point["change"]["points"] == -50
    assert point["scores"]["all"]["percent"] == 50 and point["distance"]["mean"] == pytest.approx(0.2)
    assert point["marks"]["spatial"] == "--" and "spatial" not in point["scores"]
    lengthened(point, [no, yes], 50, torch.tensor([0.1, 0.3]))
    summed(point, full)
    assert point["images"] == 4 and point["change"] == {**point["change"], "points": -25, "lost": 1, "won": 0}


def test_the_distance_is_of_each_image_by_itself():
    full = torch.stack((torch.ones(1, 2, 2), torch.full((1, 2, 2), 10.0)))
    torch.testing.assert_close(distances(full + 1, full), torch.tensor([1.0, 0.1]))


def test_every_plan_is_a_point_and_every_point_has_a_name_of_its_own():
    assert POINTS[0].name == FULL and len({point.name for point in POINTS}) == len(POINTS)
    alone = [point.step_cache for point in POINTS if not (point.cache or point.both or point.negative)]
    assert all(plan.step_cache in alone for plan in PLANS)


def test_a_plan_that_has_changed_is_another_point():
    plan = next(point for point in POINTS if point.name == "plan 2x")
    entry = begun(plan)
    lengthened(entry, [{"all": True}], 7, torch.zeros(1))
    assert settings_of(entry) == settings_of(begun(plan))
    changed = replace(plan, step_cache=replace(plan.step_cache, every=plan.step_cache.every + 1))
    assert settings_of(entry) != settings_of(begun(changed)) and settings_of({}) != settings_of(begun(plan))
