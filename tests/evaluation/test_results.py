"""What follows from the cells: the presets, the report and what a study cannot tell, on made-up answers."""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np
import pytest

from evaluation.controls import Control
from evaluation.judges import Answer, JudgeError, Question
from evaluation.prompts import Prompt
from evaluation.study.cells import Cells
from evaluation.study.presets import saved, to_presets
from evaluation.study.report import verdict, write_report
from evaluation.study.run import Proof, Study
from evaluation.study.settings import Plan, Settings
from evaluation.study.statistics import OVERALL, Interval
from mmdit_core.control.preset_files import read_presets

DAY = datetime.date(2026, 1, 2)
CATEGORY = "costs $5 <b>"


class Runner:
    """Images of one colour, brighter with each boost."""

    def run(self, units):
        for unit in units:
            value = 200 if unit.control is not None and unit.control.action == "boost" else 10
            yield unit, np.full((unit.prompts[1] - unit.prompts[0], 8, 8, 3), value, np.uint8)


class Judge:
    """A bright image is right."""

    identity = "judge " * 80

    def __init__(self, readable=True):
        self.readable = readable

    def questions(self, prompt):
        return (Question(prompt.category, "Is it bright?"),)

    def answer(self, images, prompts):
        return [[Answer(float(image.mean() > 100) if self.readable else None)] for image in images]


def plan_of(branches=("both",), graph=None, number=6, **more):
    settings = Settings(
        sweep=("skip", "boost"),
        blocks=(0, 1, 2, 3),
        branches=branches,
        modes=("value",),
        strengths=(2.0,),
        choose=number,
        prove=number,
        seeds=(0,),
        batch=2,
        threads=1,
        controls=2,
        most_loss=100.0,
    )
    prompts = tuple(Prompt(f"{index} & <i>", CATEGORY, {}) for index in range(2 * number))
    graph = graph or {"k": {"class_type": "KSampler", "inputs": {"model": ["m", 0], "negative": ["n", 0], "cfg": 4.0}}}
    sampling = {"steps": 4, "cfg": 4.0}
    plan = Plan(settings, "m.safetensors", "SD3, SD3.5", 4, 0, graph, sampling, {}, {}, Judge.identity, "own", prompts)
    return replace(plan, **more)


def run(folder, plan, **judge):
    with Cells(folder, plan.to_json(), plan.differences) as cells:
        study = Study(plan, cells, Runner(), Judge(**judge))
        return study.run(), study


def test_each_branch_has_its_own_preset_and_odd_names_fit_a_preset_file(tmp_path):
    plan = plan_of(("negative", "positive", "both"), model=f"模\n{'x' * 300}.safetensors", set_name="s" * 200)
    result, _ = run(tmp_path, plan)
    presets = read_presets(to_presets(result, DAY))
    assert [(each.action, each.branch) for each in presets] == [
        (action, branch) for branch in ("negative", "positive", "both") for action in ("boost", "skip")
    ]
    assert len({each.name for each in presets}) == 6 and all(len(each.made_for) <= 500 for each in presets)


def test_a_category_is_text_in_the_report_and_no_formula_or_html(tmp_path):
    result, study = run(tmp_path, plan_of())
    write_report(result, study, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "costs $5 &lt;b&gt;" in page and "<b>" not in page and "<i>" not in page


def test_a_judge_without_readable_answers_is_named(tmp_path):
    with pytest.raises(JudgeError, match=r"of all \d+ answers could not be read"):
        run(tmp_path, plan_of(), readable=False)


def test_a_gain_on_few_prompts_is_not_proven():
    control = Control("boost", (1,), "both", "value", 2.0)
    gain = Interval(50.0, 50.0, 50.0, 2)
    assert Proof(control, {}, {OVERALL: replace(gain, n=6)}, {}).helps
    few = Proof(control, {}, {OVERALL: gain}, {})
    assert not few.helps and "2 prompts are too few" in verdict(few)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"negative": ["n", 0], "cfg": 4.0}, {"both": 0.5, "positive": 0.25, "negative": 0.25}),
        ({"negative": ["n", 0], "cfg": 1.0}, {"both": 0.5, "positive": 0.5, "negative": 0.0}),
        ({}, {"both": 0.5, "positive": 0.5, "negative": 0.0}),
    ],
)
def test_what_a_skip_saves_depends_on_the_branches_that_run(tmp_path, inputs, expected):
    graph = {"k": {"class_type": "X", "inputs": {"model": ["m", 0], **inputs}}}
    result, _ = run(tmp_path, plan_of(graph=graph))
    (proof,) = [each for each in result.proofs if each.control.action == "skip"]
    for branch, share in expected.items():
        control = Control("skip", (0, 1), branch)
        assert saved(result, replace(proof, control=control)) == share
