"""Errors and summaries in Chinese: every text of the pack has one, with the same values."""

from __future__ import annotations

import json
import re

from scripts.message_texts import CHINESE, templates

FILE = json.loads(CHINESE.read_text(encoding="utf-8"))
KNOWN = FILE["messages"]
ALL = KNOWN | FILE["words"]  # and what holds short values alone, of which the script does not look for all
HOLE = re.compile(r"\{(\d*)\}")


def test_every_message_has_a_chinese_text_and_there_is_no_other():
    found = templates()
    assert len(found) > 600
    assert {text: place for text, place in found.items() if text not in ALL} == {}, "see scripts/message_texts.py"
    assert sorted(KNOWN.keys() - found) == []


def test_a_chinese_text_has_the_values_of_the_english_one():
    for english, chinese in ALL.items():
        holes, count = HOLE.findall(chinese), english.count("{}")
        numbers = [int(number or place) for place, number in enumerate(holes)]
        assert sorted(numbers) == list(range(count)), english


def test_a_chinese_text_ends_a_sentence_where_the_english_one_does():
    ends = {text: text.endswith(".") and not text.endswith("...") for text in KNOWN}
    assert [text for text, chinese in KNOWN.items() if ends[text] != chinese.endswith("。")] == []
