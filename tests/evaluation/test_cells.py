"""The cells on disk: sorted, whole after a kill, and of one study alone."""

from __future__ import annotations

import json
import sys

import pytest

from evaluation.controls import Control
from evaluation.study.cells import CELLS, PROGRESS, Cell, Cells, FolderError, Unit, units

PLAN = {"settings": {"steps": 4}, "model": "a"}
SKIP = Control("skip", (1,))


def differences(other):
    return [] if other == PLAN else ["model"]


def opened(folder):
    return Cells(folder, PLAN, differences)


def cells_of(unit):
    return [Cell(unit.name, number, unit.seed, (("count", 0.5), ("shape", None))) for number in range(*unit.prompts)]


def test_units_cover_all_prompts_once():
    found = units(SKIP, 3, 10, 4, (0, 1))
    assert [(unit.prompts, unit.seed) for unit in found] == [((3, 7), 0), ((3, 7), 1), ((7, 10), 0), ((7, 10), 1)]


def test_cells_are_sorted_whatever_the_order_they_came_in(tmp_path):
    wanted = [*units(None, 0, 4, 2, (0, 1)), *units(SKIP, 0, 4, 2, (0, 1))]
    texts = []
    for place, order in enumerate((wanted, wanted[::-1])):
        with opened(tmp_path / str(place)) as cells:
            for unit in order:
                cells.add(unit, cells_of(unit))
            texts.append(cells.write().read_bytes())
    assert texts[0] == texts[1]
    lines = [json.loads(line) for line in texts[0].splitlines()]
    assert [line["control"] for line in lines] == ["baseline"] * 8 + ["skip both 1"] * 8
    assert lines[0] == {"control": "baseline", "prompt": 0, "seed": 0, "answers": [["count", 0.5], ["shape", None]]}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_cut_short_is_measured_again(tmp_path, cut):
    wanted = units(SKIP, 0, 4, 2, (0,))
    with opened(tmp_path) as cells:
        for unit in wanted:
            cells.add(unit, cells_of(unit))
        whole = cells.write().read_bytes()
    path = tmp_path / PROGRESS
    path.write_bytes(path.read_bytes()[:-cut])
    with opened(tmp_path) as cells:
        assert cells.missing(wanted) == wanted[1:]
        cells.add(wanted[1], cells_of(wanted[1]))
        assert cells.write().read_bytes() == whole
    with opened(tmp_path) as cells:
        assert not cells.missing(wanted)


def test_the_cells_of_a_control_are_in_order_and_of_one_part_of_the_prompts(tmp_path):
    with opened(tmp_path) as cells:
        for unit in [*units(SKIP, 0, 8, 2, (0, 1)), *units(None, 0, 8, 2, (0, 1))][::-1]:
            cells.add(unit, cells_of(unit))
        found = [(cell.control, cell.prompt, cell.seed) for cell in cells.of(SKIP, 2, 5)]
    assert found == [("skip both 1", number, seed) for number in (2, 3, 4) for seed in (0, 1)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_two_processes_do_not_write_one_study(tmp_path):
    with opened(tmp_path), pytest.raises(FolderError, match="another process"):
        opened(tmp_path)
    opened(tmp_path).__exit__()


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_file_that_is_no_plan_is_named(tmp_path, text):
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(FolderError, match=r"study\.json"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "line",
    ["[]", "null", '{"unit": []}', '{"unit": [[], 0, 0, 1], "cells": []}', '{"unit": ["a", 0, 0, 1], "cells": [{}]}']
    + ["[" * 100_000],
)
def test_a_line_of_another_program_is_named(tmp_path, line):
    with opened(tmp_path):
        pass
    (tmp_path / PROGRESS).write_text(line + "\n")
    with pytest.raises(FolderError, match=r"progress\.jsonl, line 1 is not a part of a study"):
        opened(tmp_path)
    assert (tmp_path / PROGRESS).read_text() == line + "\n"


def test_a_folder_of_another_study_is_refused_and_left_as_it_is(tmp_path):
    with opened(tmp_path) as cells:
        cells.add(unit := Unit(None, (0, 2), 0), cells_of(unit))
        cells.write()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FolderError, match="other model"):
        Cells(tmp_path, {"other": 1}, lambda stored: ["model"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before and CELLS in before
