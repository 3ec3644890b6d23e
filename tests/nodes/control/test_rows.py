"""Controls of one branch act on the rows of the right prompt, whatever another node does with the rows of the batch."""

from __future__ import annotations

import pytest

from tests.nodes.control.rows_bench import (
    CHANGES,
    NAMES,
    ROUNDING,
    WRAPPERS,
    attached,
    controls,
    guided,
    guider,
    prompts,
    sample,
)
from tests.nodes.families.oracles import Bench, difference
from tests.nodes.families.tiny import FEW


@pytest.fixture(scope="module", params=[name for name in FEW if name != "JoyImage"])
def case(bench, request):
    """A tiny model, its prompts, and the right value of each control."""
    made = Bench.make(bench.module, request.param, batch=2)
    conds = prompts(made)
    return made, conds, {name: guided(made, conds, control) for name, control in controls(made).items()}


@pytest.mark.parametrize("name", NAMES)
def test_without_another_nodes_wrapper(case, name):
    made, conds, right = case
    ours = sample(made, guider(attached(made, controls(made)[name]), conds))
    assert difference(ours, right[name]) <= ROUNDING


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", WRAPPERS)
@pytest.mark.parametrize("name", NAMES)
def test_under_another_nodes_wrapper(case, name, kind, change):
    made, conds, right = case
    model = WRAPPERS[kind](attached(made, controls(made)[name]), CHANGES[change])
    assert difference(sample(made, guider(model, conds)), right[name]) <= ROUNDING
