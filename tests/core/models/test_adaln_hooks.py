"""Block hooks in a run with an AdaLN cache: they may change the vector; block controls keep rows of the table."""

from __future__ import annotations

import pytest
import torch

from mmdit_core.control.hooks import compile_controls
from mmdit_core.control.model_call import ModelCall
from mmdit_core.control.spec import BlockControl
from mmdit_core.models import adaln
from tests.core.control.first_args import text_alone
from tests.core.models.tiny import LEVELS, TOLERANCE, call, error, inputs, reads


def unchanged(args, extra):
    return extra["original_block"](args)


def another_vector(args, extra):
    return extra["original_block"]({**args, "vec": 1.5 * args["vec"]})


def in_place(args, extra):
    args["vec"].mul_(1.5)
    return extra["original_block"](args)


def in_place_through_a_view(args, extra):
    args["vec"][:1].add_(1.0)
    return extra["original_block"](args)


def some_rows(args, extra):
    rows = {name: args[name][1:] for name in ("img", "txt", "vec")}
    out = extra["original_block"]({**args, **rows})
    return {name: torch.cat((args[name][:1], out[name])) for name in ("img", "txt")}


@pytest.mark.parametrize("hook", [unchanged, another_vector, in_place, in_place_through_a_view, some_rows])
def test_a_hook_that_changes_the_vector_acts_as_on_the_plain_path(model, without_gradients, hook):
    given = inputs()
    replace = {"patches_replace": {"dit": {("double_block", 1): hook}}}
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS[:3]:
            found, expected = call(model, level, given, {**options, **replace}), call(model, level, given, replace)
            assert error(found, expected) <= TOLERANCE
            untouched = error(found, call(model, level, given)) <= TOLERANCE
            assert untouched == (hook is unchanged)


CONTROLS = {
    "skip": BlockControl("skip", (1, 2)),
    "skip, negative": BlockControl("skip", (0, 2), branch="negative"),
    "skip, positive": BlockControl("skip", (1, 3), branch="positive"),
    "boost": BlockControl("boost", (1, 2), strength=1.7),
    "boost, attention": BlockControl("boost", (1, 2), strength=1.7, mode="attention", branch="positive"),
    "disable": BlockControl("disable", (1, 3), scope="block"),
}


def controlled(names, branches, batch, previous=None):
    """Options with the hooks of some controls."""
    what = ModelCall(double=4, single=0, branches=branches, batch=batch)
    controls = [CONTROLS[name] for name in names]
    hooks = compile_controls(controls, what, previous)
    return what, controls, hooks


@pytest.mark.parametrize("branches", [(0, 1), (1, 0), (0, 1, 0), (1, 1, 0)])
@pytest.mark.parametrize("names", [*([name] for name in CONTROLS), ["skip, negative", "boost"]], ids=", ".join)
def test_block_controls_read_no_adaln_weights_either(model, inference, monkeypatch, names, branches):
    monkeypatch.setattr(adaln, "TILE_CPU", 4 * 2 * len(branches))  # the four steps are in one tile
    given = inputs(2 * len(branches))
    hooks = controlled(names, branches, 2 * len(branches))[2]
    replace = {"patches_replace": {"dit": hooks}}
    with model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, {**options, **replace})
        with reads(model) as counts:
            found = [call(model, level, given, {**options, **replace}) for level in LEVELS[1:4]]
        assert not counts
    for level, output in zip(LEVELS[1:4], found, strict=True):
        assert error(output, call(model, level, given, replace)) <= TOLERANCE


def test_a_second_text_reads_no_adaln_weights_either(model, inference):
    given, context = inputs(3), torch.randn(1, 9, 48)
    embedded = model.context_embedder(context)
    controls = [CONTROLS["skip, negative"], BlockControl("prompt", (1, 2), context=context)]

    def replace():
        what = ModelCall(double=4, single=0, branches=(1, 0, 0), batch=3, first_args=text_alone(lambda _: embedded))
        made = compile_controls(controls, what)
        return {"patches_replace": {"dit": made}}

    with model.adaln_cache(LEVELS, given["y"]) as options:
        call(model, LEVELS[0], given, options)
        with reads(model) as counts:
            found = call(model, LEVELS[1], given, {**options, **replace()})
        assert not counts
    assert error(found, call(model, LEVELS[1], given, replace())) <= TOLERANCE


@pytest.mark.parametrize("hook", [another_vector, in_place])
def test_a_control_around_a_hook_that_changes_the_vector(model, inference, hook):
    """The rows that a control picks leave the table as soon as another hook changes their vector."""
    given = inputs(4)
    hooks = controlled(["skip, negative"], (1, 0), 4, {("double_block", 0): hook, ("double_block", 1): hook})[2]
    replace = {"patches_replace": {"dit": {("double_block", 1): hook, **hooks}}}
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS[:2]:
            found = call(model, level, given, {**options, **replace})
            assert error(found, call(model, level, given, replace)) <= TOLERANCE


def test_hooks_may_write_into_the_embedded_text(model, inference):
    given = inputs()

    def patch(args):
        args["txt"].mul_(2.0)
        return args

    patches = {"patches": {"post_input": [patch]}}
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS[:3]:
            found = call(model, level, given, {**options, **patches})
            assert error(found, call(model, level, given, patches)) <= TOLERANCE


class Wrapped(torch.nn.Module):
    """A layer of another pack around one of ours."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        return 2 * self.inner(x)


ADALN = "joint_blocks.1.x_block.adaLN_modulation"


@pytest.mark.parametrize("name", [f"{ADALN}.1", ADALN, "context_embedder", "y_embedder.mlp.0"])
def test_a_wrapped_layer_acts_as_on_the_plain_path(model, inference, name):
    owner, _, last = name.rpartition(".")
    parent, given = model.get_submodule(owner), inputs()
    setattr(parent, last, Wrapped(getattr(parent, last)))
    with model.adaln_cache(LEVELS, given["y"]) as options:
        for level in LEVELS[:2]:
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE
