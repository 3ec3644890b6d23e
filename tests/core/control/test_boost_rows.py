"""Boosts as rows of text."""

from __future__ import annotations

import pytest

from mmdit_core.control.boost_rows import BoostRow, RowTextError, parse_rows

READ = [
    ("", ()),
    (" \n\n\t\n", ()),
    ("on|3-5|1.5|red hat", (BoostRow(1, True, "3-5", 1.5, "red hat"),)),
    ("  On |  | 2. |", (BoostRow(1, True, "", 2.0, ""),)),
    ("off | d3, s7:2 | .5", (BoostRow(1, False, "d3, s7:2", 0.5, ""),)),
    ("on | 0 | 1 | a | b || c ", (BoostRow(1, True, "0", 1.0, "a | b || c"),)),
    ("\non | 0 | 1 |\r\n\r\noff | 1 | 2 | x", (BoostRow(1, True, "0", 1.0), BoostRow(2, False, "1", 2.0, "x"))),
    ("ｏｎ｜０－３、９｜１．５｜红色，帽子｜１", (BoostRow(1, True, "0-3,9", 1.5, "红色，帽子｜１"),)),
    ("on | 0 | 1 | a\u2028b", (BoostRow(1, True, "0", 1.0, "a\u2028b"),)),
    ("on | 0 | −1 | x", (BoostRow(1, True, "0", -1.0, "x"),)),  # the node words the range
]


@pytest.mark.parametrize(("text", "rows"), READ)
def test_rows_are_read_as_written(text, rows):
    assert parse_rows(text) == rows


WRONG = [
    ("off | 0 | 1 |\n" * 101, "row 101: there are 101 rows"),
    ("3-5", "row 1: '3-5' has 1 of its 4 parts"),
    ("on | 3 | 1 |\n\non | 3", "row 2: 'on | 3' has 2 of its 4 parts"),
    ("yes | 3 | 1 | x", "row 1: 'yes' is neither on nor off"),
    ("| 3 | 1 | x", "row 1: '' is neither on nor off"),
    *(
        (f"off | 3 | {strength} | x", f"row 1: the strength {strength!r} is not a number")
        for strength in ("", "strong", "1,5", "nan", "inf", "1e3", "1_0", ".", "--1")
    ),
]


@pytest.mark.parametrize(("text", "found"), WRONG)
def test_a_row_of_another_form_is_refused_with_its_number(text, found):
    with pytest.raises(RowTextError) as caught:
        parse_rows(text)
    assert caught.value.found == found and caught.value.right.startswith("Write")
