"""torch.compile: the model is one graph, without block controls, with each kind of them, with an AdaLN cache."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import ModelCall
from mmdit_core.control.spec import BlockControl
from tests.core.control.first_args import text_alone
from tests.core.models.tiny import CONFIGS, LEVELS, TOLERANCE, call, error, inputs, random_model

ROWS = ModelCall(double=4, single=0, branches=(0, 1), batch=2, first_args=text_alone(lambda context: context))


def hooked(*controls: BlockControl):
    def options() -> dict:
        return {"patches_replace": {"dit": compile_controls(controls, ROWS)}}

    return options


def second_text() -> dict:
    torch.manual_seed(4)
    return hooked(BlockControl("prompt", (0, 2), context=torch.randn(1, 9, 128)))()


def patches() -> dict:
    def attn1(q, k, v, **_):
        return {"v": v * 1.5}

    def double_block(args):
        return {"img": args["img"] * 1.1, "txt": args["txt"]}

    return {"patches": {"attn1_patch": [attn1], "double_block": [double_block]}}


OPTIONS = {
    "none": dict,
    "skip": hooked(BlockControl("skip", (1,))),
    "skip, negative": hooked(BlockControl("skip", (1, 2), branch="negative")),
    "boost": hooked(BlockControl("boost", (0,), strength=1.5)),
    "boost, attention": hooked(BlockControl("boost", (0, 1), strength=1.5, mode="attention")),
    "boost, value": hooked(BlockControl("boost", (0, 1), strength=1.5, mode="value", branch="positive")),
    "disable": hooked(BlockControl("disable", (0, 1))),
    "disable, one block": hooked(BlockControl("disable", (0, 1), scope="block")),
    "a second text": second_text,
    "patches of others": patches,
}


@pytest.fixture
def model():
    torch._dynamo.reset()
    counters.clear()
    yield random_model(CONFIGS["dual"])
    torch._dynamo.reset()


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "AdaLN cache"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_call_is_one_graph(model, inference, name, cached):
    given, backend = inputs(), CompileCounter()
    compiled = torch.compile(model, backend=backend)
    with model.adaln_cache(LEVELS, given["y"]) as run:
        more = run if cached else {}
        found = call(compiled, LEVELS[1], given, {**OPTIONS[name](), **more})
        expected = call(model, LEVELS[1], given, OPTIONS[name]())
    assert backend.frame_count == 1 and not counters["graph_break"]
    assert torch.equal(found, expected)
    assert name == "none" or error(found, call(model, LEVELS[1], given)) > 100 * TOLERANCE


def test_a_graph_break_would_be_counted(model, inference):
    def printing(args):
        print(float(args["img"].sum()))
        return {"img": args["img"], "txt": args["txt"]}

    backend = CompileCounter()
    call(torch.compile(model, backend=backend), LEVELS[1], inputs(), {"patches": {"double_block": [printing]}})
    assert backend.frame_count != 1 or counters["graph_break"]
