"""A sweep as data: its plan, its distances and the suggested skip list."""

from __future__ import annotations

import json
import math

import pytest
import scipy.stats
import torch

from mmdit_core.analysis import (
    Cell,
    Change,
    Distances,
    effects,
    mean,
    nearly_free,
    paired_change,
    plan,
    relative_l2,
    report,
    student_quantile,
    suggest_boosts,
    suggest_skips,
)
from mmdit_core.control.spec import BlockControl


def test_a_plan_has_each_operation_on_each_block_once_and_a_strength_for_boosts_only():
    cells = plan(("skip", "boost"), (0, 3), strength=1.5)
    assert cells == (Cell("skip", 0), Cell("skip", 3), Cell("boost", 0, "whole", 1.5), Cell("boost", 3, "whole", 1.5))


def test_halves_come_after_whole_runs_and_meet_in_the_middle():
    cells = plan(("disable",), (1, 2), early_late=True)
    windows = ["whole", "whole", "early", "early", "late", "late"]
    assert [(cell.window, cell.block) for cell in cells] == list(zip(windows, [1, 2] * 3, strict=True))
    spans = [(c.window.start, c.window.end) for c in (cells[2].control(), cells[4].control())]
    assert spans == [(0.0, 0.5), (0.5, 1.0)]


def test_the_controls_are_the_papers_operations():
    found = [cell.control() for cell in plan(("skip", "disable", "boost"), (4,))]
    assert found == [
        BlockControl("skip", (4,)),
        BlockControl("disable", (4,), scope="onward"),
        BlockControl("boost", (4,), 2.0, mode="residual"),
    ]


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match="'melt' is unknown; choose one of skip, disable, boost"):
        plan(("skip", "melt"), (0,))


def test_relative_l2_is_the_norm_of_the_difference_by_the_norm_of_the_baseline():
    assert relative_l2(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 5.0]])) == pytest.approx(math.sqrt(10) / 5)
    assert relative_l2(torch.ones(2, 3), torch.ones(2, 3)) == 0
    assert relative_l2(torch.full((4, 4), 0.5), torch.zeros(4, 4)) == pytest.approx(0.5)  # a black baseline
    with pytest.raises(ValueError, match=r"shapes are \[2\] and \[3\]"):
        relative_l2(torch.ones(2), torch.ones(3))


def test_the_mean_over_seeds_is_none_if_a_value_is_not_finite():
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert mean([]) is None and mean([1.0, math.nan]) is None and mean([math.inf]) is None


EFFECTS = {0: 1.7, 1: 0.6, 2: 0.2, 3: 0.4, 4: 0.1, 5: 0.4, 6: 0.3, 7: 0.9}


@pytest.mark.parametrize(
    ("speedup", "blocks", "reached"),
    [
        (1.0, (), 1.0),
        (1.1, (4,), 8 / 7),
        (1.3, (4, 2), 8 / 6),
        (1.6, (4, 2, 6), 8 / 5),  # exactly 3 blocks: no fourth for rounding
        (2.0, (4, 2, 6, 3), 2.0),  # of equal distances the earlier block
        (100.0, (4, 2, 6, 3, 5, 1, 7), 8.0),  # one block stays
    ],
)
def test_the_suggestion_takes_the_least_effect_first_and_no_more_than_needed(speedup, blocks, reached):
    assert suggest_skips(EFFECTS, 8, speedup) == blocks
    cells = {Cell("skip", block): Distances([distance], [0.0]) for block, distance in EFFECTS.items()}
    cells = {cell: Distances([found.latent[0] / 10], [0.0]) for cell, found in cells.items()}  # all are nearly free
    found = made(cells, double=8, speedup=speedup, calls_each=24)["skip_list"]
    assert found["blocks_least_effect_first"] == list(blocks) and found["wanted_speedup"] == speedup
    assert found["reached_speedup"] == pytest.approx(reached, abs=1e-4)
    assert found["nearly_free"] == [4, 2, 6, 3, 5, 1, 7, 0] and found["not_free"] == []
    assert (found["block_calls_saved"], found["block_calls"]) == (24 * len(blocks), 192)
    assert found["for_block_skip"] == ", ".join(map(str, sorted(blocks)))


def test_the_suggestion_does_not_overshoot_by_rounding():
    assert len(suggest_skips({block: 0.1 for block in range(24)}, 24, 1.2)) == 4


def test_blocks_without_a_finite_distance_are_never_suggested():
    assert suggest_skips({2: 0.5, 3: None, 5: 0.1}, 8, 2.0) == (5, 2)


def test_a_block_whose_skip_harms_is_never_suggested_whatever_the_speedup():
    """Distances of the small model's single skips: without block 4 the image stays, without block 5 a shape is lost."""
    distances = {0: 1.23, 1: 1.23, 2: 1.32, 3: 0.87, 4: 0.13, 5: 0.57, 6: 0.67, 7: 0.75}
    cells = {Cell("skip", block): Distances([distance], [0.0]) for block, distance in distances.items()}
    for speedup in (1.1, 1.3, 10.0):
        found = made(cells, double=8, speedup=speedup)["skip_list"]
        assert found["for_block_skip"] == "4" and found["reached_speedup"] == pytest.approx(8 / 7, abs=1e-4)
    assert found["limits"] == {"latent_distance": 0.25}
    assert found["not_free"][0] == {"block": 5, "latent_distance": 0.57} and len(found["not_free"]) == 7
    del cells[Cell("skip", 4)]
    assert made(cells, double=8)["skip_list"]["for_block_skip"] == ""


def test_a_judge_decides_what_is_nearly_free_and_with_too_few_images_the_distance_too():
    distances = {0: 0.1, 1: 0.9, 2: 0.2, 3: None}
    losses = {0: 14.0, 1: 0.0, 2: 5.0, 3: 0.0}
    assert nearly_free(distances, losses) == {1, 2}
    assert nearly_free(distances, losses, judge_decides=False) == {2}
    assert nearly_free(distances) == {0, 2}


@pytest.mark.parametrize("speedup", [0.9, 0.0, math.nan])
def test_a_speedup_below_1_is_refused(speedup):
    with pytest.raises(ValueError, match="at least 1"):
        suggest_skips(EFFECTS, 8, speedup)


def made(distances, **changed):
    given = dict(model="m", double=4, single=0, settings={"steps": 2}, speedup=1.3, calls_each=4)
    return report(**{**given, **changed}, distances=distances)


def test_a_report_is_json_with_every_cell_and_ranks_by_whole_runs_only():
    cells = plan(("skip", "boost"), range(4), early_late=True)
    distances = {cell: Distances([0.4 - 0.1 * cell.block, 0.2], [0.5, 0.7]) for cell in cells}
    for cell in cells:
        if cell.window != "whole":
            distances[cell] = Distances([0.0, 0.0], [0.0, 0.0])
    found = json.loads(json.dumps(made(distances), allow_nan=False))
    assert [(c["operation"], c["block"], c["window"]) for c in found["cells"]] == [
        (c.operation, c.block, c.window) for c in cells
    ]
    assert found["cells"][0]["latent"] == 0.3 and found["cells"][0]["image_by_seed"] == [0.5, 0.7]
    skips = found["skip_list"]
    assert skips["blocks_least_effect_first"] == [3] and skips["latent_distance_alone"] == [0.15]
    assert skips["block_calls_saved"] == 4 and skips["block_calls"] == 16
    assert any("alone" in note for note in skips["notes"])
    assert any("last block" in note for note in found["notes"])


def test_a_report_without_skip_suggests_nothing_and_a_nan_is_null():
    found = made({Cell("disable", 0): Distances([math.nan], [0.1])})
    assert found["skip_list"] is None and found["cells"][0]["latent"] is None and found["cells"][0]["image"] == 0.1
    assert any("null" in note for note in found["notes"])


def test_effects_are_the_distances_of_whole_runs_by_block():
    cells = plan(("skip", "boost"), (0, 2), early_late=True)
    found = made({cell: Distances([0.1 + cell.block], [0.5]) for cell in cells if cell != cells[0]})
    short = effects(found)
    total = found["blocks"]["total"]
    assert short["effects"]["skip"] == [None, None, 2.1] + [None] * (total - 3)
    assert short["effects"]["boost"] == [0.1, None, 2.1] + [None] * (total - 3)
    assert (short["model"], short["double"], short["single"]) == (found["model"], total, 0)


@pytest.mark.parametrize("freedom", [1, 2, 3, 5, 7, 20, 200])
def test_students_quantile_equals_scipys(freedom):
    assert student_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=2e-3)


def test_a_paired_change_is_the_mean_difference_with_students_interval():
    # By hand: differences 10, 0, 20, 10; mean 10, deviation sqrt(200 / 3), half = 3.1824 * 8.16497 / 2.
    found = paired_change([60, 50, 70, 20], [50, 50, 50, 10])
    assert (found.mean, found.pairs) == (10, 4)
    assert (found.low, found.high) == pytest.approx((10 - 12.9923, 10 + 12.9923), abs=0.02)
    assert paired_change([100.0], [0.0]) == Change(100.0, None, None, 1)
    for wrong in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="paired_change: lengths"):
            paired_change(*wrong)


def test_a_boost_is_suggested_for_a_gain_beyond_chance_only_and_the_largest_comes_first():
    changes = {
        0: Change(2.0, 0.5, 3.5, 16),
        1: Change(6.0, -1.0, 13.0, 16),  # a large gain that chance can explain
        2: Change(-4.0, -6.0, -2.0, 16),
        3: Change(5.0, 1.0, 9.0, 16),
        4: Change(0.0, 0.0, 0.0, 16),  # no image changed
        5: Change(20.0, 20.0, 20.0, 5),  # too few prompts
        6: Change(20.0, None, None, 1),
        7: Change(2.0, 0.1, 3.9, 6),
    }
    assert suggest_boosts(changes) == (3, 0, 7)
    assert suggest_boosts({}) == ()


def test_a_gain_in_every_prompt_is_found_and_noise_around_zero_is_not():
    baseline = [60.0, 40.0, 80.0, 60.0, 100.0, 40.0, 80.0, 60.0]
    better = [value + gain for value, gain in zip(baseline, [20, 20, 0, 20, 0, 40, 20, 20], strict=True)]
    noise = [value + gain for value, gain in zip(baseline, [20, -20, 0, 20, 0, -20, 20, 0], strict=True)]
    assert suggest_boosts({2: paired_change(better, baseline), 5: paired_change(noise, baseline)}) == (2,)


def test_with_losses_the_skip_list_takes_the_smallest_loss_first_and_ties_by_distance():
    distances = {0: 0.1, 1: 0.9, 2: 0.5, 3: 0.4, 4: None}
    losses = {0: 50.0, 1: -2.0, 2: 0.0, 3: 0.0, 4: -9.0}
    assert suggest_skips(distances, 5, 2.0, losses) == (1, 3, 2)
    cells = {Cell("skip", block): Distances([distance], [0.0]) for block, distance in distances.items() if distance}
    plain, judged = made(cells, double=5, speedup=2.0), made(cells, double=5, speedup=2.0, losses=losses)
    assert "skip_list_by_judge" not in plain and judged["skip_list"] == plain["skip_list"]
    found = judged["skip_list_by_judge"]
    assert found["for_block_skip"] == "1, 2, 3" and found["loss_alone"] == [-2.0, 0.0, 0.0]


def test_a_report_of_prompts_lists_the_mean_over_seeds_of_each_on_one_line():
    cells = {Cell("skip", 1): Distances([0.1, 0.3, 0.5, 0.7, 1.0, math.nan], [0.0] * 6)}
    cell = made(cells, prompts=3)["cells"][0]
    assert cell["latent_by_prompt"] == "0.2 0.6 null" and "latent_by_seed" not in cell and cell["latent"] is None
    many = made({Cell("skip", 1): Distances([0.5] * 300, [0.5] * 300)}, prompts=300)
    assert "latent_by_prompt" not in many["cells"][0] and "prompts" in many["metric"]
