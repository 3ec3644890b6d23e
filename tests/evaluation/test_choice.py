"""The choices of a study on made-up gains, the random sets, and the statistics behind them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from evaluation.controls import Control
from evaluation.study.cells import Cell
from evaluation.study.choose import choose_boost, choose_skips, random_sets
from evaluation.study.statistics import ALL, OVERALL, Interval, gains, interval, scores, shares, unreadable


def by_blocks(points):
    """A measure in which a control gains the sum of its blocks' points."""
    return lambda controls: [
        {OVERALL: Interval(sum(points.get(block, 0) for block in control.blocks), 0, 0, 9)} for control in controls
    ]


def singles(action, blocks, **more):
    return [Control(action, (block,), **more) for block in blocks]


BOOST = {"branch": "both", "mode": "value", "strength": 1.5}


def test_the_best_boost_joins_blocks_that_gain():
    chosen = choose_boost("both", singles("boost", range(6), **BOOST), by_blocks({1: 2, 4: 3, 5: -1}))
    assert chosen == Control("boost", (1, 4), **BOOST)


def test_one_block_is_chosen_where_more_gain_less():
    def measure(controls):
        return [{OVERALL: Interval(5 if c.blocks == (3,) else 1, 0, 0, 9)} for c in controls]

    assert choose_boost("both", singles("boost", range(6), **BOOST), measure).blocks == (3,)


def test_no_boost_is_chosen_where_none_gains():
    assert choose_boost("both", singles("boost", range(6), **BOOST), by_blocks({2: 0, 3: -4})) is None
    assert choose_boost("negative", singles("boost", range(6), **BOOST), by_blocks({2: 9})) is None


def test_skips_grow_until_they_cost_too_much():
    found = choose_skips("both", singles("skip", range(8)), by_blocks({0: -9, 1: -0.5, 2: -1, 6: -1}), 2.0)
    assert found.blocks == (3, 4, 5, 7), "at most half of the blocks"
    found = choose_skips("both", singles("skip", range(4)), by_blocks({0: -1.5, 1: -1.5, 2: -9, 3: -9}), 2.0)
    assert found.blocks == (0,)
    assert choose_skips("both", singles("skip", range(4)), by_blocks(dict.fromkeys(range(4), -3)), 2.0) is None


@given(some.integers(1, 5), some.integers(0, 20))
def test_random_sets_are_of_equal_size_all_different_and_never_the_choice(size, number):
    chosen = Control("skip", tuple(range(size)), "negative")
    found = random_sets(chosen, range(12), number)
    assert len(found) == len(set(found)) == min(number, len(found)) and chosen not in found
    assert all(len(set(each.blocks)) == size and each.branch == "negative" for each in found)
    assert found == random_sets(chosen, range(12), number)
    assert len(found) == number or size == 1 and len(found) == 11


def cell(prompt, *answers, seed=0, control="x"):
    return Cell(control, prompt, seed, tuple(answers))


def test_scores_average_the_answers_of_an_image_and_the_images_of_a_prompt():
    cells = [
        cell(0, ("colour", 1.0), ("colour", 0.0), ("count", 1.0)),
        cell(0, ("colour", 1.0), ("colour", 1.0), ("count", 1.0), seed=1),
        cell(1, ("colour", None), ("count", 0.0)),
    ]
    found = scores(cells)
    assert found["colour"] == {0: 0.75} and found["count"] == {0: 1.0, 1: 0.0}
    assert found[OVERALL] == {0: (0.75 + 1.0) / 2, 1: 0.0} and found[ALL] == {0: 0.5}
    assert unreadable(cells) == (1, 8)


def test_a_judge_of_degrees_has_no_all():
    assert ALL not in scores([cell(0, ("all of it", 0.3))])


def test_gains_are_paired_by_prompt():
    before = [cell(number, ("count", value)) for number, value in enumerate((0.0, 1.0, 0.0, 1.0))]
    after = [cell(number, ("count", value)) for number, value in enumerate((1.0, 1.0, 1.0, 1.0))]
    found = gains(after, before)["count"]
    # Differences 1, 0, 1, 0: mean 0.5, standard deviation 0.5774, Student's t of 3 degrees 3.1824.
    assert found.mean == 50 and found.low == pytest.approx(50 - 100 * 3.1824 * 0.57735 / 2, abs=0.01) and found.n == 4


def test_a_prompt_that_only_one_side_answers_is_left_out():
    found = gains([cell(0, ("a", 1.0)), cell(1, ("a", 1.0))], [cell(1, ("a", 0.0)), cell(2, ("a", 1.0))])
    assert found["a"].mean == 100 and found["a"].n == 1


def test_an_attribute_without_a_common_prompt_has_no_gain():
    assert not gains([cell(0, ("a", 1.0))], [cell(1, ("a", 0.0))])


def test_a_share_of_all_right_images_is_not_certain():
    found = shares([cell(number, ("a", 1.0)) for number in range(20)])["a"]
    assert (found.mean, found.low, found.high) == pytest.approx((100, 83.9, 100), abs=0.1)


def test_one_value_says_nothing():
    assert interval([0.5]) == Interval(50.0, -100, 100, 1)
