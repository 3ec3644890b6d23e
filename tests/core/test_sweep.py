"""Values of a sweep's axes as text: numbers, ranges, names, windows, block lists, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit_core.control.grammar import parse_blocks
from mmdit_core.sweep import ValuesError, parse_block_lists, parse_names, parse_numbers, parse_windows

SEEDS = 2**64 - 1


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1, 1.5", (1.0, 1.5)),
        ("1-3 (5)", (1.0, 1.5, 2.0, 2.5, 3.0)),
        ("3 - 1 ( 3 )", (3.0, 2.0, 1.0)),
        ("0.1-0.3 (3)", (0.1, 0.2, 0.3)),  # not 0.1 + 0.1 + 0.1
        ("1;2\n3, ", (1.0, 2.0, 3.0)),
        (".5, 2., 1e-1, 1E1", (0.5, 2.0, 0.1, 10.0)),
        ("1e-2-1e-1 (2)", (0.01, 0.1)),
        ("2, 2, 1-2 (2)", (2.0, 2.0, 1.0, 2.0)),
    ],
)
def test_numbers_are_those_that_the_text_lists(text, numbers):
    assert parse_numbers(text, 0, 100) == numbers


def test_whole_numbers_are_exact_and_ints():
    assert parse_numbers(f"4-8 (5), {SEEDS}", 0, SEEDS, whole=True) == (4, 5, 6, 7, 8, SEEDS)
    assert all(type(value) is int for value in parse_numbers("1, 2.0, 3-5 (3)", 1, 9, whole=True))


@given(
    st.integers(0, 10_000), st.integers(0, 10_000), st.integers(2, 50), st.sampled_from(["{}-{} ({})", "{} - {}({})"])
)
def test_a_range_has_so_many_even_values_between_its_ends(start, end, count, form):
    found = parse_numbers(form.format(start / 100, end / 100, count), 0, 100)
    assert len(found) == count and (found[0], found[-1]) == (start / 100, end / 100)
    assert found == pytest.approx([start / 100 + (end - start) / 100 * i / (count - 1) for i in range(count)])


@given(st.lists(st.floats(0, 100).map(lambda value: round(value, 9)), min_size=1, max_size=20))
def test_numbers_as_python_writes_them_come_back_unchanged(values):
    assert parse_numbers(", ".join(map(repr, values)), 0, 100) == tuple(values)


@given(st.text(max_size=30))
def test_any_text_gives_numbers_within_the_limits_or_an_error_in_words(text):
    try:
        found = parse_numbers(text, 0, 10)
    except ValuesError as error:
        assert error.found and error.right
    else:
        assert found and all(0 <= value <= 10 for value in found)


@pytest.mark.parametrize(
    ("text", "whole", "words"),
    [
        ("", False, "it holds no value. Write numbers"),
        (" , ,", False, "it holds no value"),
        ("one", False, "'one' is not a number"),
        ("1 2", False, "'1 2' is not a number"),
        ("nan", False, "'nan' is not a number"),
        ("inf", False, "'inf' is not a number"),
        ("1/2", False, "'1/2' is not a number"),
        ("１", False, "is not a number"),
        ("1-3", False, r"does not say how many values.*1-3 \(5\)"),
        ("1-3 (1)", False, "has 1 values. Write 2 values or more"),
        ("1-3 (0)", False, "has 0 values"),
        ("1-3 (100000000)", False, "has 100,000,000 values. Write at most 400"),
        ("1-3 (2.5)", False, "is not a number"),
        ("11", False, "11 is out of range. Write numbers from 0 to 10"),
        ("-1", False, "-1 is out of range"),
        ("5-11 (3)", False, r"11 \(in '5-11 \(3\)'\) is out of range"),
        ("1e99", False, "is out of range"),
        ("1e999999999", False, "is not a number"),
        ("9" * 5000, False, "is not a number"),
        ("2.5", True, "2.5 is not whole"),
        ("1-2 (3)", True, r"1.5 \(in '1-2 \(3\)'\) is not whole"),
        (", ".join("1" for _ in range(401)), False, "more than 400 values"),
        ("0-1 (300), 0-1 (300)", False, "more than 400 values"),
    ],
)
def test_a_text_that_is_no_list_of_numbers_is_refused(text, whole, words):
    with pytest.raises(ValuesError, match=words):
        parse_numbers(text, 0, 10, whole=whole)


def test_names_are_listed_in_order_and_unknown_ones_refused():
    assert parse_names("heun, euler,heun", ("euler", "heun")) == ("heun", "euler", "heun")
    with pytest.raises(ValuesError, match="'Euler' is unknown. Write names of euler, heun"):
        parse_names("Euler", ("euler", "heun"))
    with pytest.raises(ValuesError, match="it holds no value"):
        parse_names("", ("euler",))


def test_windows_are_pairs_of_start_and_end():
    assert parse_windows("0-0.5 | 0.5-1") == ((0.0, 0.5), (0.5, 1.0))
    assert parse_windows(" 0 - 1, 0.25-0.25") == ((0.0, 1.0), (0.25, 0.25))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no value. Write start-end"),
        ("0.5", "'0.5' is not a window"),
        ("0-1-2", "is not a window"),
        ("0-1 (3)", "is not a window"),
        ("0-1.5", "the end of '0-1.5' is not from 0 to 1"),
        ("0.6-0.5", "'0.6-0.5' runs backwards"),
        ("0-0.5 | | 0.5-1", "part 2 of 3 is empty"),
    ],
)
def test_a_text_that_is_no_list_of_windows_is_refused(text, words):
    with pytest.raises(ValuesError, match=words):
        parse_windows(text)


@given(st.lists(st.sampled_from(["0-3", "4-7", "even", "!3", "first 25%", "none", "d1, s0", "last"]), min_size=1))
def test_block_lists_are_those_of_the_block_nodes(lists):
    found = parse_block_lists(" | ".join(lists), 6, 2)
    assert [each.text for each in found] == lists
    assert [each.groups for each in found] == [((parse_blocks(text, 6, 2), None),) for text in lists]


def test_a_block_list_of_boosts_may_have_strengths():
    found = parse_block_lists("0-2 | 0, 3:1.5, 5:1.5 | none", 8, strengths=True)
    assert [each.groups for each in found] == [
        (((0, 1, 2), None),),
        (((0,), None), ((3, 5), 1.5)),
        (((), None),),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no value. Write block lists"),
        ("0-3 |", "part 2 of 2 is empty"),
        ("0-3 | 9", "block 9 does not exist. This model has blocks 0 to 7"),
        ("3:1.5", "has a strength"),
        ("three", "'three' cannot be read as blocks"),
    ],
)
def test_a_text_that_is_no_list_of_block_lists_is_refused(text, words):
    with pytest.raises(ValuesError, match=words):
        parse_block_lists(text, 8)
