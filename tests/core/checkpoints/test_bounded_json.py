"""JSON in bounded memory: the values that Python's parser gives, or a ValueError."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit_core.checkpoints import bounded_json
from mmdit_core.checkpoints.bounded_json import Scanner, parse

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLAT = st.dictionaries(TEXTS.filter(lambda text: not {"{", "}"} & set(text)), st.lists(st.integers(), max_size=3))
SPACES = st.sampled_from(["", " ", "\n\t ", "\r\n"])


@settings(max_examples=200, derandomize=True)
@given(value=st.dictionaries(TEXTS, FLAT), space=SPACES, ascii_only=st.booleans())
def test_the_scanner_gives_what_pythons_parser_gives(value, space, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only, separators=(f"{space},{space}", f"{space}:{space}"))
    scanner = Scanner(space + text + space)
    assert {name: scanner.flat_object() for name in scanner.members()} == value
    scanner.end()


def of_texts(text: str) -> dict[str, str]:
    scanner = Scanner(text)
    found = {name: scanner.string() for name in scanner.members()}
    scanner.end()
    return found


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", '{"a"}', '{"a":}', '{"a":1}', '{"a":"b",}', '{"a":"b"', '{"a":"b"} x', '{"a":"b","a":"c"}',
        '{"a":"\\ud800"}', '{"\\ud800":"b"}', '{a:"b"}', '{"a":"b" "c":"d"}', '{"a":["b"]}', '{"a":"\n"}', "nul",
    ],
)  # fmt: skip
def test_what_is_no_object_of_texts_is_a_value_error(text):
    with pytest.raises(ValueError):
        of_texts(text)


@pytest.mark.parametrize("text", ["", "[]", '{"a":{}}', '{"a":', '{"a":' + "[" * 5000 + "}", '{"a":1,"a":2}', "{"])
def test_what_is_no_flat_object_is_a_value_error(text):
    with pytest.raises(ValueError):
        Scanner(text).flat_object()


def test_members_and_lengths_are_bounded(monkeypatch):
    monkeypatch.setattr(bounded_json, "MOST_MEMBERS", 3)
    assert len(of_texts('{"a":"","b":"","c":""}')) == 3
    with pytest.raises(ValueError, match="more than 3 members"):
        of_texts('{"a":"","b":"","c":"","d":""}')
    assert parse("[1]") == [1] and parse(b"[1]", 3) == [1]
    with pytest.raises(ValueError, match="4 long, and at most 3"):
        parse("[12]", 3)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse("[" * 100_000)
    with pytest.raises(ValueError):
        Scanner('{"a":' + "1" * 20_000 + "}").flat_object()
