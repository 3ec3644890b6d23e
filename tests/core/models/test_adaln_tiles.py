"""How much of a run's modulation is computed ahead, and when: in as few tiles as hold it, each row the same in any."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.models.adaln import PACES, RUN, UNUSED, layout_of
from tests.core.models.prepared import TOLERANCE, adaln_layers, call, error, inputs, reads


def rows_of(options, model) -> float:
    """How many rows of modulation, in float32, a run holds."""
    return options[RUN].nbytes / (4 * layout_of(model).width)


def test_a_long_run_reads_them_once_for_each_tile(model, inference, pace):
    levels = torch.linspace(1000, 10, 40)  # with two prompts 80 rows
    tiles = -(-80 // pace.tile)
    with model.prepared(levels) as options, reads(model) as counts:
        call(model, levels[0], inputs(), options)
        assert counts["adaln"] == (tiles if pace.whole else 1) * adaln_layers(model)
        assert rows_of(options, model) == (80 if pace.whole else pace.tile)
        for level in levels[1:]:
            call(model, level, inputs(), options)
    assert counts["adaln"] == tiles * adaln_layers(model)


@pytest.mark.parametrize("prompts", [1, 2, 3, 5, 17, 30, 33, 70])
def test_as_few_tiles_as_hold_the_rows_for_any_number_of_prompts(model, inference, prompts):
    """A pass that took the missing rows' texts alone would fall apart where they do not fill a tile."""
    given, levels, tile = inputs(prompts), torch.linspace(1000, 10, 28), PACES["cpu"].tile
    with model.prepared(levels) as options, reads(model) as counts:
        for level in levels:
            call(model, level, given, options)
        assert rows_of(options, model) == 28 * prompts
    passes, rest = divmod(28 * prompts, tile)
    assert counts["adaln"] == (passes + (rest > 0)) * adaln_layers(model)


def test_a_branch_that_is_left_out_at_times_is_computed_when_it_is_asked_for(model, inference):
    both, levels = inputs(), torch.linspace(1000, 10, 28)
    one = {name: value[:1] for name, value in both.items()}
    with model.prepared(levels) as options:
        for number, level in enumerate(levels):
            given = one if number % 3 else both
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE


@pytest.mark.parametrize("count", [31, 32, 33, 70])
def test_runs_of_any_length_at_any_pace(model, inference, pace, count):
    """One prompt: runs that end within a tile, with it, just after it, and in the third."""
    given, levels = inputs(1), torch.linspace(1000, 10, count)
    with model.prepared(levels) as options:
        for number in (*range(0, count, 7), count - 1):
            found = call(model, levels[number], given, options)
            assert error(found, call(model, levels[number], given)) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_is_the_same_whatever_else_is_prepared_with_it(model, inference, pace, dtype):
    """Else a run in two parts, or one taken up in its middle, would make another picture than a run in one go."""
    model.to(dtype)
    levels = torch.linspace(1000, 10, 40)
    given, four = ({name: value.to(dtype) for name, value in inputs(*some).items()} for some in ((2,), (4, 2)))
    alone = {name: value[:1] for name, value in given.items()}
    for name, value in four.items():
        value[2] = given[name][0]
    outputs = []
    # Asked for before: on a CPU its row then lies in the second tile of the run, in the first, in one with other texts,
    # and in one without.
    for first, steps in ((given, (0, 16)), (given, (18,)), (four, (26,)), (alone, (30,))):
        with model.prepared(levels[steps[0] :]) as options, reads(model) as counts:
            for step in steps:
                call(model, levels[step], first, options)
            before = counts["adaln"]
            outputs.append(call(model, levels[30], alone, options))
            assert counts["adaln"] == before  # it was known
    assert all(torch.equal(outputs[0], each) for each in outputs[1:])


def test_the_table_stays_within_its_limit(model, inference, pace):
    row = 4 * layout_of(model).width
    given, levels = inputs(), torch.linspace(1000, 10, 30)
    for limit in (0, 3 * row, 7 * row, 40 * row):
        with model.prepared(levels, limit=limit) as options:
            run = options["mmdit_prepared"]
            for level in (*levels, 512.5, *torch.linspace(900, 100, 20), levels[1]):
                assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE
                assert run.nbytes <= limit


def test_a_text_that_changes_in_every_step_is_not_prepared_for_all_of_them(model, inference, pace):
    levels = torch.linspace(1000, 10, 30)
    held = []
    with model.prepared(levels) as options:
        for number, level in enumerate(levels):
            given = inputs(1, seed=number)
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE
            held.append(rows_of(options, model))
    assert held == [*range(30, 30 * UNUSED + 1, 30), *range(30 * UNUSED + 1, 30 * UNUSED + 1 + 30 - UNUSED)]


@pytest.mark.parametrize("apart", [False, True], ids=["in one call", "in calls of their own"])
def test_a_constant_text_is_known_beside_one_that_changes_in_every_step(model, inference, pace, apart):
    """A host that is short of memory asks for the two branches one after the other."""
    levels, constant = torch.linspace(1000, 10, 30), inputs(1, seed=99)
    with model.prepared(levels) as options:
        for number, level in enumerate(levels):
            other = inputs(1, seed=number)
            together = [{name: torch.cat((other[name], constant[name])) for name in other}]
            for given in (other, constant) if apart else together:
                assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE
            if number == UNUSED + 2:
                settled = rows_of(options, model)
        # Two rows in each of the 19 other steps, and a tile: not the 30 that each text would take.
        assert rows_of(options, model) <= settled + 2 * 19 + 32


def test_a_text_that_stays_after_many_changes_is_prepared_ahead_again(model, inference, pace):
    levels = torch.linspace(1000, 10, 30)
    with model.prepared(levels) as options:
        for number, level in enumerate(levels[:12]):
            call(model, level, inputs(1, seed=number), options)
        for level in levels[12:14]:
            call(model, level, inputs(1, seed=50), options)
        with reads(model) as counts:
            for level in levels[14:]:
                call(model, level, inputs(1, seed=50), options)
        assert not counts


def test_timesteps_asked_for_from_the_end_are_computed_in_as_few_tiles(model, inference, pace):
    levels = torch.linspace(1000, 10, 28)
    with model.prepared(levels) as options, reads(model) as counts:
        for level in levels.flip(0):
            call(model, level, inputs(), options)
    assert counts["adaln"] == -(-56 // pace.tile) * adaln_layers(model)
