"""Block hooks in a prepared run keep their rights over the vector, and our own controls keep what was prepared."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch

from mmdit_core.control.block_prompt import SecondText, add_second_texts
from mmdit_core.control.hooks import BlockCallCount, ModelCall, compile_controls
from mmdit_core.control.spec import BlockControl
from mmdit_core.models.adaln import ROWS, RUN
from tests.core.models.prepared import CONFIGS, LEVELS, TOLERANCE, call, error, inputs, random_model, reads


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
def test_a_hook_may_do_with_the_vector_what_it_may_on_the_plain_path(model, without_gradients, hook):
    given = inputs()
    replace = {"patches_replace": {"dit": {("double_block", 1): hook}}}
    with model.prepared(LEVELS) as options:
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
    what = ModelCall(double=4, single=0, branches=branches, batch=batch, place=0.0)
    controls = [CONTROLS[name] for name in names]
    hooks = compile_controls(controls, what, previous)
    return what, controls, hooks


@pytest.mark.parametrize("branches", [(0, 1), (1, 0), (0, 1, 0), (1, 1, 0)])
@pytest.mark.parametrize("names", [*([name] for name in CONTROLS), ["skip, negative", "boost"]], ids=", ".join)
def test_block_controls_read_no_adaln_weights_either(model, inference, names, branches):
    given = inputs(2 * len(branches))
    hooks = controlled(names, branches, 2 * len(branches))[2]
    replace = {"patches_replace": {"dit": hooks}}
    with model.prepared(LEVELS) as options:
        call(model, LEVELS[0], given, {**options, **replace})
        with reads(model) as counts:
            found = [call(model, level, given, {**options, **replace}) for level in LEVELS[1:4]]
        assert not counts
    for level, output in zip(LEVELS[1:4], found, strict=True):
        assert error(output, call(model, level, given, replace)) <= TOLERANCE


def test_a_second_text_reads_no_adaln_weights_either(model, inference):
    given, second = inputs(3), SecondText((1, 2), model.context_embedder(torch.randn(1, 9, 48)))

    def replace():
        what, controls, hooks = controlled(["skip, negative"], (1, 0, 0), 3)
        made = add_second_texts([second], what, hooks, {}, BlockCallCount(), controls)
        return {"patches_replace": {"dit": made}}

    with model.prepared(LEVELS) as options:
        call(model, LEVELS[0], given, options)
        with reads(model) as counts:
            found = call(model, LEVELS[1], given, {**options, **replace()})
        assert not counts
    assert error(found, call(model, LEVELS[1], given, replace())) <= TOLERANCE


@pytest.mark.parametrize("hook", [another_vector, in_place])
def test_a_control_around_a_hook_that_changes_the_vector(model, inference, hook):
    """The rows that a control picks lose what was prepared for them as soon as another hook lays hands on them."""
    given = inputs(4)
    hooks = controlled(["skip, negative"], (1, 0), 4, {("double_block", 0): hook, ("double_block", 1): hook})[2]
    replace = {"patches_replace": {"dit": {("double_block", 1): hook, **hooks}}}
    with model.prepared(LEVELS) as options:
        for level in LEVELS[:2]:
            found = call(model, level, given, {**options, **replace})
            assert error(found, call(model, level, given, replace)) <= TOLERANCE


def test_hooks_may_write_into_the_embedded_text(model, inference):
    given = inputs()

    def patch(args):
        args["txt"].mul_(2.0)
        return args

    patches = {"patches": {"post_input": [patch]}}
    with model.prepared(LEVELS) as options:
        for level in LEVELS[:3]:
            found = call(model, level, given, {**options, **patches})
            assert error(found, call(model, level, given, patches)) <= TOLERANCE


@pytest.mark.parametrize("fails", [False, True], ids=["", "and the call fails"])
def test_a_hook_that_keeps_copies_of_its_options_keeps_no_table_and_no_weights(inference, fails):
    model, given, kept = random_model(CONFIGS["dual"]), inputs(), []

    def in_attention(q, k, v, extra_options=None, **_):
        kept.append(extra_options)
        return {}

    def around_block(args, extra):
        kept.append(dict(args["transformer_options"]))
        if fails:
            raise RuntimeError("in the middle")
        return extra["original_block"](args)

    hooks = {
        "patches": {"attn1_patch": [in_attention]},
        "patches_replace": {"dit": {("double_block", 1): around_block}},
    }
    with model.prepared(LEVELS) as options:
        with contextlib.suppress(RuntimeError):
            call(model, LEVELS[0], given, {**options, **hooks})
        pages = [weakref.ref(page) for page, _ in options[RUN]._table.places.values()]
    weights = [weakref.ref(weight) for name, weight in model.named_parameters() if "adaLN" in name]
    assert len(kept) >= 2 and pages and all(page() is not None for page in weights)
    del model, hooks, options
    gc.collect()
    assert not any(each() is not None for each in (*pages, *weights))
    assert all(rows.block(0, torch.zeros(2, 128)) is None for each in kept if (rows := each.get(ROWS)) is not None)


class Wrapped(torch.nn.Module):
    """Somebody's layer around one of ours; what it holds cannot be told from outside."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        return 2 * self.inner(x)


ADALN = "joint_blocks.1.x_block.adaLN_modulation"


@pytest.mark.parametrize("name", [f"{ADALN}.1", ADALN, "context_embedder", "y_embedder.mlp.0"])
def test_a_wrapped_layer_takes_the_plain_path(model, inference, name):
    owner, _, last = name.rpartition(".")
    parent, given = model.get_submodule(owner), inputs()
    setattr(parent, last, Wrapped(getattr(parent, last)))
    with model.prepared(LEVELS) as options:
        for level in LEVELS[:2]:
            assert error(call(model, level, given, options), call(model, level, given)) <= TOLERANCE
