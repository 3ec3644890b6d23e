"""Block lists as text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit_core.control.grammar import BlockOutOfRange, BlockTextError, parse_block_strengths, parse_blocks, plain
from mmdit_core.control.preset_files import read_presets
from tests.core.control.keyboards import KEYBOARDS, REFUSED


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
        ("40", "block 40 does not exist. This model has blocks 0 to 23"),
        ("3-40", r"block 40 does not exist \(in '3-40'\). This model has blocks 0 to 23"),
        ("2, frog", "'frog' cannot be read as blocks. This model has blocks 0 to 23"),
        ("5-3", "'5-3' runs backwards"),
        ("-3", "'-3' cannot be read"),
        ("1.5", "'1.5' cannot be read"),
        ("first 101%", "more than all"),
        ("s1", "block s1 does not exist. This model has blocks 0 to 23"),
        ("3:2", "'3:2' has a strength. Write the block alone"),
        ("!", "'!' cannot be read"),
        ("9" * 5000, "9... is no block. This model has"),
        ("0-" + "9" * 5000, "9... is no block"),
        ("!40", r"block 40 does not exist \(in '!40'\)"),
    ],
)
def test_what_cannot_be_read_is_named(text, words):
    with pytest.raises(BlockTextError, match=words):
        parse_blocks(text, 24)


@pytest.mark.parametrize(
    ("text", "facts"), [("40", (40, 24, "")), ("2, d30", (30, 19, "d")), ("s1-s38", (38, 38, "s"))]
)
def test_a_block_out_of_range_is_an_error_with_its_number_and_the_count_of_its_kind(text, facts):
    sizes = (24, 0) if text == "40" else (19, 38)
    with pytest.raises(BlockOutOfRange) as caught:
        parse_blocks(text, *sizes)
    error = caught.value
    assert (error.block, error.count, error.kind) == facts
    assert str(error) == f"{error.found}. {error.right}"


def test_an_error_on_flux_names_both_kinds():
    with pytest.raises(BlockTextError, match="double d0 to d18 .0 to 18. and single s0 to s37 .19 to 56."):
        parse_blocks("s38", 19, 38)


def test_a_block_or_range_may_carry_its_own_strength():
    assert parse_block_strengths("3:1.5, 7-9:2, 1", 24, default=1.2) == {1: 1.2, 3: 1.5, 7: 2.0, 8: 2.0, 9: 2.0}
    for text in ("3:x", "3:-1", "3:inf", "3:"):
        with pytest.raises(BlockTextError, match="no strength of at least 0"):
            parse_block_strengths(text, 24)


@pytest.mark.parametrize(("text", "written"), KEYBOARDS.items())
def test_the_signs_of_other_keyboards_are_read_and_have_a_plain_form(text, written):
    assert plain(text) == written and plain(written) == written
    assert parse_block_strengths(text, 24) == parse_block_strengths(written, 24) != {}


@pytest.mark.parametrize("text", REFUSED)
def test_a_space_divides_nothing_that_may_mean_two_things(text):
    with pytest.raises(BlockTextError, match="cannot be read"):
        parse_blocks(text, 24)


def test_a_preset_file_may_have_the_signs_of_other_keyboards():
    model = {"family": "SD3, SD3.5", "double": 24, "single": 0, "file": "a.safetensors"}
    widgets = {"blocks": "4、5：2", "branch": "both", "strength": 1.5, "mode": "residual"}
    preset = {"name": "a", "action": "boost", "model": model, "widgets": widgets, "evidence": None}
    (read,) = read_presets(json.dumps({"format": "mmdit-presets", "version": 1, "presets": [preset]}))
    assert parse_block_strengths(read.blocks, 24) == {4: 1.0, 5: 2.0}


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
