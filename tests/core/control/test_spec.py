"""Block controls as values: what they refuse, and how they act at a sigma."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdit_core.control.spec import NEGATIVE, OTHER, POSITIVE, BlockControl, ControlValueError
from mmdit_core.flow.window import Window

CONTEXT = torch.ones(1, 2, 3)


def straight(percent: float) -> float:
    return 1.0 - percent


@pytest.mark.parametrize(
    ("changed", "field", "words"),
    [
        ({"action": "jump"}, "action", "'jump'; it must be one of skip, disable, boost, prompt"),
        ({"mode": "loud"}, "mode", "one of residual, attention, value"),
        ({"scope": "x"}, "scope", "one of onward, block"),
        ({"part": "g"}, "part", "one of all, clip, t5"),
        ({"branch": "x"}, "branch", "one of both, positive, negative"),
        ({"strength": -1.0}, "strength", "-1.0; it must be finite and at least 0"),
        ({"strength": float("nan")}, "strength", "finite"),
        ({"strength": float("inf")}, "strength", "finite"),
        ({"blocks": (3, -1)}, "blocks", "at least 0"),
        ({"action": "prompt"}, "context", "given for a prompt"),
        ({"context": CONTEXT}, "context", "for a prompt alone"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(changed, field, words):
    with pytest.raises(ControlValueError, match=words) as caught:
        BlockControl(**{"action": "boost", "blocks": (1,), **changed})
    assert caught.value.field == field


def test_blocks_are_sorted_and_each_is_there_once():
    assert BlockControl("skip", (3, 1, 3)).blocks == (1, 3)


@pytest.mark.parametrize(
    ("control", "branches"),
    [
        (BlockControl("skip", (1,)), (POSITIVE, NEGATIVE, OTHER)),
        (BlockControl("skip", (1,), branch="negative"), (NEGATIVE,)),
        (BlockControl("boost", (1,), phrases=("red",)), (POSITIVE,)),
        (BlockControl("boost", (1,), phrases=("red",), branch="negative"), (POSITIVE,)),
        (BlockControl("prompt", (1,), context=CONTEXT), (POSITIVE,)),
    ],
)
def test_a_phrase_and_a_prompt_act_on_the_positive_branch_alone(control, branches):
    assert control.branches == branches


@pytest.mark.parametrize(
    ("control", "nothing"),
    [
        (BlockControl("skip", ()), True),
        (BlockControl("skip", (1,)), False),
        (BlockControl("skip", (1,), window=Window(0.5, 0.5)), True),
        (BlockControl("boost", (1,), 1.0), True),
        (BlockControl("boost", (1,), 1.01), False),
        (BlockControl("disable", (1,)), False),
        (BlockControl("prompt", (), context=CONTEXT), True),
    ],
)
def test_what_has_no_effect_anywhere(control, nothing):
    assert control.does_nothing == nothing


# 1 + f * (s - 1) by hand: f is the fade at a quarter, half and three quarters of the window.
FADED = {
    ("constant", 3.0): (3.0, 3.0, 3.0),
    ("in", 3.0): (1.5, 2.0, 2.5),
    ("out", 3.0): (2.5, 2.0, 1.5),
    ("cosine", 3.0): (2.0, 3.0, 2.0),
    ("in", 0.0): (0.75, 0.5, 0.25),
    ("out", 0.2): (0.4, 0.6, 0.8),
}


@pytest.mark.parametrize(("fade", "strength"), FADED)
@pytest.mark.parametrize("mode", ["residual", "attention", "value"])
def test_a_fading_boost_goes_from_1_to_its_strength(fade, strength, mode):
    control = BlockControl("boost", (1,), strength, mode=mode, window=Window(0.2, 0.6, fade))
    acting = [control.at(straight(percent), straight) for percent in (0.3, 0.4, 0.5)]
    assert [each.strength for each in acting] == pytest.approx(FADED[fade, strength], abs=1e-6)
    assert all(each.mode == mode and each.blocks == (1,) for each in acting)
    assert control.at(straight(0.1), straight) is None and control.at(straight(0.6), straight) is None


@pytest.mark.parametrize("action", ["skip", "disable", "prompt"])
@pytest.mark.parametrize("fade", ["in", "cosine"])
def test_only_a_boost_fades(action, fade):
    control = BlockControl(action, (1,), context=CONTEXT if action == "prompt" else None, window=Window(0.2, 0.6, fade))
    for percent in (0.2, 0.3, 0.59):
        acting = control.at(straight(percent), straight)
        assert acting is not None and acting.strength == 1 and not acting.does_nothing
        assert acting.context is control.context


@pytest.mark.parametrize(
    ("control", "effect", "factor"),
    [
        (BlockControl("skip", (1,)), "skip", 1.0),
        (BlockControl("disable", (1,)), "residual", 0.0),
        (BlockControl("disable", (1,), scope="block"), "attention", 0.0),
        (BlockControl("boost", (1,), 1.5), "residual", 1.5),
        (BlockControl("boost", (1,), 1.5, mode="value"), "value", 1.5),
        (BlockControl("prompt", (1,), context=CONTEXT), "prompt", 1.0),
    ],
)
def test_a_control_has_one_effect_in_a_block(control, effect, factor):
    assert (control.effect, control.factor) == (effect, factor)


def test_a_report_holds_the_fields_that_are_not_at_their_defaults():
    assert BlockControl("skip", (1, 2)).to_dict() == {"action": "skip", "blocks": [1, 2]}
    boost = BlockControl("boost", (3,), 1.5, phrases=("red",), window=Window(0.1, 0.5, "in"))
    assert boost.to_dict() == {
        "action": "boost", "blocks": [3], "strength": 1.5, "phrases": ["red"],
        "start_percent": 0.1, "end_percent": 0.5, "fade": "in",
    }  # fmt: skip
    assert BlockControl("prompt", (0,), context=CONTEXT).to_dict() == {"action": "prompt", "blocks": [0]}


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 10))
def test_a_faded_strength_is_between_1_and_the_boosts(start, end, percent, strength):
    control = BlockControl("boost", (1,), strength, window=Window(start, end, "cosine"))
    acting = control.at(straight(percent), straight)
    if acting is not None:
        low, high = sorted((1.0, strength))
        assert low - 1e-9 <= acting.strength <= high + 1e-9
