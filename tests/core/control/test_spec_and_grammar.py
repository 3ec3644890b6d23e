"""Block controls as values, and block lists as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit_core.control.spec import BlockControl, BlockTextError, parse_block_strengths, parse_blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("", ()),
        (" , ;\n", ()),
        ("0-5, 9, 12-", (*range(6), 9, *range(12, 24))),
        ("3;1\n2", (1, 2, 3)),
        ("5, 5, 4-6", (4, 5, 6)),
        ("last", (23,)),
        ("first", (0,)),
        ("first 25%", (0, 1, 2, 3, 4, 5)),
        ("last 12.5 %", (21, 22, 23)),
        ("middle 50%", tuple(range(6, 18))),
        ("all", tuple(range(24))),
        ("none", ()),
        ("EVEN", tuple(range(0, 24, 2))),
        ("odd", tuple(range(1, 24, 2))),
        ("early", tuple(range(8))),
        ("middle", tuple(range(8, 16))),
        ("late", tuple(range(16, 24))),
        ("!3", tuple(i for i in range(24) if i != 3)),
        ("!0-21", (22, 23)),
        ("0-5, !3, 3", (0, 1, 2, 3, 4, 5)),
        ("0 - 2", (0, 1, 2)),
    ],
)
def test_block_lists_of_a_model_with_24_blocks(text, blocks):
    assert parse_blocks(text, 24) == blocks


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("d3, s7", (3, 26)),
        ("d17-", (17, 18)),
        ("s36-", (55, 56)),
        ("d17-s1", (17, 18, 19, 20)),
        ("s0-2", (19, 20, 21)),
        ("19", (19,)),
        ("single, !s1-", (19,)),
        ("double", tuple(range(19))),
        ("last", (56,)),
    ],
)
def test_flux_counts_its_single_blocks_after_the_double_ones(text, blocks):
    assert parse_blocks(text, 19, 38) == blocks


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("40", "block 40 does not exist: this model has blocks 0 to 23"),
        ("3-40", r"block 40 does not exist \(in '3-40'\): this model has blocks 0 to 23"),
        ("2, frog", "'frog' cannot be read as blocks; this model has blocks 0 to 23"),
        ("5-3", "'5-3' runs backwards"),
        ("-3", "'-3' cannot be read"),
        ("1.5", "'1.5' cannot be read"),
        ("first 101%", "more than all"),
        ("s1", "no single blocks"),
        ("3:2", "'3:2': a strength cannot be given here"),
        ("!", "'!' cannot be read"),
        ("!40", r"block 40 does not exist \(in '!40'\)"),
    ],
)
def test_what_cannot_be_read_is_named(text, words):
    with pytest.raises(BlockTextError, match=words):
        parse_blocks(text, 24)


def test_an_error_on_flux_tells_both_kinds():
    with pytest.raises(BlockTextError, match="double d0 to d18 .0 to 18. and single s0 to s37 .19 to 56."):
        parse_blocks("s38", 19, 38)


def test_a_block_or_range_may_carry_its_own_strength():
    assert parse_block_strengths("3:1.5, 7-9:2, 1", 24, default=1.2) == {1: 1.2, 3: 1.5, 7: 2.0, 8: 2.0, 9: 2.0}
    for text in ("3:x", "3:-1", "3:inf", "3:"):
        with pytest.raises(BlockTextError, match="number of at least 0"):
            parse_block_strengths(text, 24)


@given(st.text(max_size=30), st.integers(1, 60), st.integers(0, 40))
def test_any_text_gives_blocks_of_the_model_or_a_named_error(text, double, single):
    try:
        blocks = parse_blocks(text, double, single)
    except BlockTextError as error:
        assert str(error)
    else:
        assert list(blocks) == sorted(set(blocks)) and all(0 <= b < double + single for b in blocks)


@given(st.sets(st.integers(0, 56)))
def test_numbers_written_out_come_back(blocks):
    assert parse_blocks(", ".join(map(str, blocks)), 19, 38) == tuple(sorted(blocks))


controls = st.builds(
    BlockControl,
    action=st.sampled_from(["skip", "disable", "boost"]),
    blocks=st.lists(st.integers(0, 56), max_size=5).map(tuple),
    strength=st.floats(0, 10),
    mode=st.sampled_from(["residual", "attention", "value"]),
    scope=st.sampled_from(["onward", "block"]),
    phrases=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    branch=st.sampled_from(["both", "positive", "negative"]),
    start_percent=st.floats(0, 1),
    end_percent=st.floats(0, 1),
    fade=st.sampled_from(["constant", "in", "out", "cosine"]),
)


@given(controls)
def test_a_control_survives_json(control):
    assert BlockControl.from_json(control.to_json()) == control


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object"),
        ('{"action": "skip"}', "with action and blocks"),
        ('{"action": "skip", "blocks": [1], "speed": 2}', "expected a JSON object"),
        ('{"action": "jump", "blocks": [1]}', "action is 'jump'; choose one of skip, disable, boost"),
        ('{"action": "boost", "blocks": [1], "strength": -1}', "strength is -1"),
        ('{"action": "skip", "blocks": [-1]}', "count from 0"),
        ('{"action": "skip", "blocks": [1], "end_percent": 2}', "between 0 and 1"),
    ],
)
def test_bad_controls_are_refused_with_words(text, words):
    with pytest.raises(ValueError, match=words):
        BlockControl.from_json(text)


def test_fades_go_where_their_names_say():
    def at(fade: str, place: float) -> float:
        return BlockControl("boost", (0,), 2.0, start_percent=0.2, end_percent=0.6, fade=fade).share_at(place)

    assert [at("constant", p) for p in (0.2, 0.4)] == [1, 1]
    assert [at("in", p) for p in (0.2, 0.4, 0.6)] == pytest.approx([0, 0.5, 1])
    assert [at("out", p) for p in (0.2, 0.4, 0.6)] == pytest.approx([1, 0.5, 0])
    assert [at("cosine", p) for p in (0.2, 0.3, 0.4, 0.6)] == pytest.approx([0, 0.5, 1, 0])
