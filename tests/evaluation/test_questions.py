from __future__ import annotations

from evaluation.judges.questions import questions_of
from evaluation.prompts import Prompt


def asked(**expected) -> list[tuple[str, str]]:
    return [(question.attribute, question.text) for question in questions_of(Prompt("", "", expected))]


def test_each_entry_of_genevals_schema_is_asked_for():
    car = {"class": "car", "count": 1, "color": "orange"}
    assert asked(include=[car, {"class": "owl", "count": 1, "position": ["left of", 0]}]) == [
        ("object", "Is there a car in the image?"),
        ("colour", "Is the car orange?"),
        ("object", "Is there an owl in the image?"),
        ("spatial", "Is the owl to the left of the car?"),
    ]


def test_a_count_is_exact_whether_exclude_limits_it_or_not():
    three = [("count", "Are there exactly 3 butterflies in the image?")]
    entry = {"class": "butterfly", "count": 3}
    assert asked(include=[entry]) == three
    assert asked(include=[entry], exclude=[{"class": "butterfly", "count": 4}]) == three
    one = asked(include=[{"class": "bus"}], exclude=[{"class": "bus", "count": 2}])
    assert one == [("count", "Is there exactly 1 bus in the image?")]


def test_what_must_not_be_there_is_asked_for():
    assert asked(exclude=[{"class": "bench"}, {"class": "bus", "count": 2}]) == [
        ("count", "Are there no benches in the image?"),
        ("count", "Are there fewer than 2 buses in the image?"),
    ]


def test_other_relations_keep_their_words():
    two = [{"class": "cup"}, {"class": "plate", "count": 2, "position": ["on the upper  left of", 0]}]
    assert asked(include=two)[-1] == ("spatial", "Are all the plates on the upper left of the cup?")


def test_a_plain_caption_is_one_question_for_its_category():
    for category, attribute in (("texture", "texture"), ("", "all")):
        (question,) = questions_of(Prompt("a wooden cat", category, {}))
        assert question.attribute == attribute
        assert question.text == "Does the image show everything that the caption says?"
