from __future__ import annotations

import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attributes.prompt_sets import SETS, read_set
from evaluation.prompts import Prompt, PromptSetError, default_set, read_prompts

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "violin", "count": 1}], "prompt": "a photo of a violin"},
    {
        "tag": "counting",
        "include": [{"class": "mug", "count": 3}],
        "exclude": [{"class": "mug", "count": 4}],
        "prompt": "a photo of three mugs",
    },
    {
        "tag": "position",
        "include": [{"class": "lamp", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a cat left of a lamp",
    },
    {"tag": "colors", "include": [{"class": "kite", "count": 1, "color": "red"}], "prompt": "a photo of a red kite"},
]
FEW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", SETS)
def test_a_shipped_set_is_read_in_its_order(name):
    prompts = read_prompts(name)
    assert (prompts.name, prompts.kind) == (name, name)
    assert prompts.prompts == tuple(Prompt(e.text, e.category, e.expected) for e in read_set(name))


def test_half_a_character_is_refused(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text('{"prompt": "a \\ud83d cat"}\n')
    with pytest.raises(PromptSetError, match="not Unicode"):
        read_prompts(str(path))


def test_each_judge_has_a_shipped_set():
    assert [default_set(kind) for kind in ("shapes", "endpoint", "clip")] == ["shapes", "objects", "objects"]


def test_genevals_lines_keep_their_tag_and_their_expectation(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in GENEVAL) + "\n")
    prompts = read_prompts(str(path))
    assert (prompts.kind, prompts.name) == ("geneval", "evaluation_metadata")
    for prompt, entry in zip(prompts.prompts, GENEVAL, strict=True):
        expected = {name: entry[name] for name in ("include", "exclude") if name in entry}
        assert prompt == Prompt(entry["prompt"], entry["tag"], expected)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", 'line 2 has no "prompt"'),
        ('{"prompt": "x", "include": {}, "exclude": {"a": 1}}', 'line 2: "exclude" must be a list'),
        ('{"prompt": "x", "include": [{"count": 1}]}', 'needs a "class"'),
        ('{"prompt": "x", "include": [{"class": "a", "count": 0}]}', '"count" is a number above 0'),
        ('{"prompt": "x", "include": [{"class": "a", "position": ["left of", 1]}]}', '"position" is'),
        ('{"prompt": "x", "include": [{"class": "a", "color": 3}]}', '"color" is a word'),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(GENEVAL[0]) + "\n" + line)
    with pytest.raises(PromptSetError) as error:
        read_prompts(str(path))
    assert words in str(error.value)


def test_the_name_of_a_compbench_file_gives_the_category(tmp_path):
    for name, category in (("color_val", "color"), ("3d_spatial_train", "3d_spatial"), ("complex_val", "complex")):
        (tmp_path / f"{name}.txt").write_text("a green bench\r\n\r\na blue bowl\n")
        prompts = read_prompts(str(tmp_path / f"{name}.txt"))
        assert prompts.kind == "compbench"
        assert prompts.prompts == (Prompt("a green bench", category, {}), Prompt("a blue bowl", category, {}))


def test_a_folder_gives_one_prompt_of_each_category_in_turn_and_no_training_prompts(tmp_path):
    (tmp_path / "color_val.txt").write_text("c1\nc2\nc3")
    (tmp_path / "shape_val.txt").write_text("s1\n")
    (tmp_path / "shape_train.txt").write_text("t1\n")
    prompts = read_prompts(str(tmp_path))
    assert prompts.name == tmp_path.name
    assert [(p.text, p.category) for p in prompts.prompts] == [
        *[("c1", "color"), ("s1", "shape"), ("c2", "color"), ("c3", "color")]
    ]


def test_plain_text_has_no_comments_and_takes_the_given_category(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff# a hash\n\n  two owls \n", encoding="utf-8")
    prompts = read_prompts(str(path), "style")
    assert prompts.kind == "text"
    assert prompts.prompts == (Prompt("# a hash", "style", {}), Prompt("two owls", "style", {}))
    assert read_prompts(str(path)).prompts[0].category == ""


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (
            ["caption", "colors"],
            ["a red car and a blue tree", '{"car": "red", "tree": "blue"}'],
            {"include": [{"class": "car", "color": "red"}, {"class": "tree", "color": "blue"}]},
        ),
        (
            ["caption", "object1", "relation", "object2"],
            ["a cat left of a dog", "cat", "left of", "dog"],
            {"include": [{"class": "dog"}, {"class": "cat", "position": ["left of", 0]}]},
        ),
        (
            ["Caption", "number", "object"],
            ["five pears", "5", "pear"],
            {"include": [{"class": "pear", "count": 5}], "exclude": [{"class": "pear", "count": 6}]},
        ),
        (["text"], ["a plain one"], {}),
    ],
)
def test_probing_columns_become_genevals_schema(tmp_path, header, row, expected):
    path = tmp_path / "probing.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, row, [""] * len(row)])
    assert read_prompts(str(path), "c").prompts == (Prompt(row[0], "c", expected),)


def test_a_csv_has_categories_and_negative_prompts_of_its_own(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("prompt,category,negative\na,x,blur\nb,x,\nc,y,\nd,,\n")
    prompts = read_prompts(str(path), "z").prompts
    assert [(p.text, p.category, p.negative) for p in prompts] == [
        *[("a", "x", "blur"), ("c", "y", ""), ("d", "z", ""), ("b", "x", "")]
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "no column caption, prompt, text"),
        ("caption,colors\nx,red\n", "line 2: 'red' is not a JSON object"),
        ("caption,number,object\nx,two,cat\n", "line 2: the number 'two' is not a whole number from 1 to 999999"),
        (f"caption,number,object\nx,{'9' * 5000},cat\n", "line 2: the number '999"),
        (f"caption,colors\nx,{'[' * 100_000}\n", "is not a JSON object"),
        ('caption\n"open\n', "is not CSV"),
        ("caption\n", "has no prompts"),
    ],
)
def test_a_wrong_csv_is_refused_with_what_is_right(tmp_path, text, words):
    path = tmp_path / "set.csv"
    path.write_text(text)
    with pytest.raises(PromptSetError) as error:
        read_prompts(str(path))
    assert words in str(error.value)


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(PromptSetError, match="neither a prompt set \\(shapes, objects\\) nor a file or folder"):
        read_prompts("shape")
    (tmp_path / "set.json").write_text("[]")
    with pytest.raises(PromptSetError, match="ends with .jsonl, .csv, .txt"):
        read_prompts(str(tmp_path / "set.json"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(PromptSetError, match="byte 3 is not UTF-8"):
        read_prompts(str(tmp_path / "latin.txt"))


LINE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


@FEW
@given(st.lists(LINE, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_plain_text_is_read_back(tmp_path, texts, newline):
    path = tmp_path / "any.txt"
    path.write_bytes(newline.join(texts).encode("utf-8-sig"))
    assert [prompt.text for prompt in read_prompts(str(path)).prompts] == texts


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
CELL = CELL.map(str.strip).filter(bool)


@FEW
@given(st.lists(st.tuples(CELL, st.dictionaries(CELL, CELL, max_size=3)), min_size=1, max_size=5))
def test_a_csv_with_quotes_commas_and_newlines_is_read_back(tmp_path, rows):
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("caption", "colors"), *((text, json.dumps(pairs)) for text, pairs in rows)])
    found = read_prompts(str(path)).prompts
    assert [prompt.text for prompt in found] == [text for text, _ in rows]
    assert [{e["class"]: e["color"] for e in p.expected.get("include", [])} for p in found] == [p for _, p in rows]
