from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import pickle
import random
import socket
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from attributes.words import parse_caption
from attributes.world import arrange, draw_image
from evaluation.judges import Answer, JudgeError, make_judge
from evaluation.judges.answer_cache import AnswerCache
from evaluation.judges.client import KEY_VARIABLE
from evaluation.judges.endpoint import SYSTEM
from evaluation.judges.questions import VERSION, questions_of
from evaluation.judges.replies import read_reply
from evaluation.prompts import Prompt, read_prompts
from tests.evaluation.endpoint_server import Endpoint, completion, image_of, refuses, says, with_logprobs

KEY = "sk-test-0123456789abcdef-secret"
PROMPTS = read_prompts("shapes").prompts[:12]
UNREADABLE = Answer(None)


def drawn(prompt: Prompt) -> np.ndarray:
    """A right image of a prompt, uint8 [128, 128, 3]."""
    scene = parse_caption(prompt.text)
    scene = dataclasses.replace(scene, background=scene.background or "white")
    return (draw_image(scene, arrange(scene, random.Random(0))) * 255).round().astype(np.uint8)


RIGHT = np.stack([drawn(prompt) for prompt in PROMPTS])
WRONG = np.roll(RIGHT, 1, axis=0)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    server = Endpoint()
    yield server
    server.close()


def ask(endpoint: Endpoint, images: np.ndarray = RIGHT, *, number: int = 1, **options) -> list[list[Answer]]:
    """The answers of a new judge about the first images."""
    judge = make_judge("endpoint", url=endpoint.url, model="eyes", **options)
    return judge.answer(images[:number], PROMPTS[:number])


def values(answers: list[list[Answer]]) -> list[list[float | None]]:
    return [[answer.value for answer in row] for row in answers]


EXPECTED = make_judge("shapes").answer(RIGHT, PROMPTS)


@pytest.mark.parametrize("images", [RIGHT, WRONG], ids=["right", "wrong"])
def test_answers_over_the_wire_equal_those_of_the_image_analysis(endpoint, images):
    answers = ask(endpoint, images, number=len(PROMPTS))
    assert answers == make_judge("shapes").answer(images, PROMPTS)
    assert len(endpoint.requests) == len(PROMPTS)  # one call for all questions about an image


def test_the_image_arrives_as_a_png_of_the_same_pixels_with_fixed_settings(endpoint):
    ask(endpoint)
    body = endpoint.requests[0]
    assert (np.asarray(Image.open(io.BytesIO(image_of(body)))) == RIGHT[0]).all()
    assert (body["model"], body["temperature"], body["seed"]) == ("eyes", 0, 0)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: f"```json\n{text}\n```",
        lambda text: f"Here it is:\n```\n{text}\n```",
        lambda text: f"<think>is {{it}} ```yes```?</think>\n{text}",
        lambda text: f"a thought whose start is in the template</think>{text}",
        lambda text: text.replace('"yes"', "true").replace('"no"', "false"),
        lambda text: text.replace("yes", "Yes.").replace("no", "NO"),
    ],
    ids=["fence", "fence in prose", "thinking", "end of thinking", "booleans", "case"],
)
def test_answers_in_other_forms_are_read(endpoint, wrap):
    endpoint.always = [says(wrap)]
    assert ask(endpoint, number=2) == EXPECTED[:2]


@pytest.mark.parametrize(
    "content",
    [
        "",
        None,
        "yes",
        "All of it is there.",
        '{"1": "yes"',
        "[1]",
        "<think>" * 3,
        '{"a": "yes"}',
        "{" * 5000 + "[" * 99999,
    ],
    ids=["empty", "none", "word", "prose", "cut", "list", "thinking", "other keys", "deep"],
)
def test_anything_else_is_unreadable(endpoint, content, tmp_path):
    endpoint.always = [lambda body: completion(content)]
    assert ask(endpoint, cache=tmp_path) == [[UNREADABLE] * 3]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_one_unreadable_answer_leaves_the_others_and_is_requested_again(endpoint, tmp_path):
    endpoint.next = [completion(json.dumps({"1": "yes", "2": "maybe", "3": 1, "4": "no"}))]
    assert values(ask(endpoint, cache=tmp_path)) == [[1.0, None, None]]
    assert ask(endpoint, cache=tmp_path) == EXPECTED[:1]
    assert len(endpoint.requests) == 2


def test_no_choices_are_unreadable(endpoint):
    endpoint.next = [(200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": []})]
    assert ask(endpoint) == [[UNREADABLE] * 3]


def has_image_object(body: dict) -> bool:
    return isinstance(body["messages"][1]["content"][1]["image_url"], dict)


def has_schema(body: dict) -> bool:
    return "response_format" in body


@pytest.mark.parametrize("message", ["json: cannot unmarshal object into .image_url of type string", "Bad Request"])
def test_a_server_that_takes_the_image_as_a_string_gets_it(endpoint, message):
    endpoint.always = [refuses(has_image_object, message)]
    assert ask(endpoint, number=4) == EXPECTED[:4]
    assert has_schema(endpoint.requests[-1])  # nothing else is left out
    assert len(endpoint.requests) <= 4 + 5  # it is found once


@pytest.mark.parametrize("message", ["'response_format' must be text", "Bad Request"])
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_json_schema_is_used_without_it(endpoint, message, status):
    endpoint.always = [refuses(has_schema, message, status)]
    assert ask(endpoint, number=4) == EXPECTED[:4]
    assert has_image_object(endpoint.requests[-1]) and not has_schema(endpoint.requests[-1])


def test_a_server_that_takes_only_the_plainest_request_gets_it(endpoint):
    optional = ("response_format", "logprobs", "max_tokens", "seed")
    endpoint.always = [refuses(lambda body: has_image_object(body) or any(name in body for name in optional), "no")]
    assert ask(endpoint, number=2) == EXPECTED[:2]
    # Each is named by a message of its own.
    endpoint.always = [refuses(lambda body, name=name: name in body, f"unknown field {name}") for name in optional]
    endpoint.always.append(refuses(has_image_object, "invalid image_url"))
    endpoint.requests.clear()
    assert ask(endpoint, number=2) == EXPECTED[:2]
    assert len(endpoint.requests) == 5 + 2


def test_a_request_that_is_always_refused_is_an_error_with_the_servers_words(endpoint):
    endpoint.always = [refuses(lambda body: True, "this model cannot see images")]
    with pytest.raises(JudgeError, match="refuses the request: this model cannot see images"):
        ask(endpoint)
    assert len(endpoint.requests) < 15


def test_a_failing_server_is_asked_once_more(endpoint):
    endpoint.next = [(500, {"error": {"message": "loading"}}), None]
    assert ask(endpoint) == EXPECTED[:1]
    assert len(endpoint.requests) == 2
    endpoint.next = [(503, {"error": {"message": "loading"}})] * 2
    with pytest.raises(JudgeError, match="failed twice with status 503: loading"):
        ask(endpoint)
    assert len(endpoint.requests) == 4


def test_a_slow_server_is_an_error_after_the_timeout_twice(endpoint):
    endpoint.next = [1.5, 1.5]
    with pytest.raises(JudgeError, match="did not answer within 0.3 s, twice"):
        ask(endpoint, timeout=0.3)


def test_a_server_that_is_away_is_an_error(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(JudgeError, match="cannot be reached; is the server running"):
        make_judge("endpoint", url=url, model="m").answer(RIGHT[:1], PROMPTS[:1])


def test_an_address_without_v1_and_a_web_page_are_errors(endpoint):
    judge = make_judge("endpoint", url=endpoint.url.removesuffix("/v1"), model="m")
    with pytest.raises(JudgeError, match="mostly ends with /v1"):
        judge.answer(RIGHT[:1], PROMPTS[:1])
    endpoint.next = [(200, "<html>hello</html>")]
    with pytest.raises(JudgeError, match="mostly ends with /v1"):
        ask(endpoint)


# The key.


def test_the_key_is_sent_and_is_in_nothing_that_is_written(endpoint, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-another-service")
    judge = make_judge("endpoint", url=endpoint.url, model="eyes", cache=tmp_path)
    assert judge.answer(RIGHT, PROMPTS) == EXPECTED
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in endpoint.headers)
    assert not any("org-of-another-service" in str(headers) for headers in endpoint.headers)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == len(PROMPTS)
    for text in (*written, caplog.text, judge.identity, repr(judge), str(vars(judge)), str(pickle.dumps(judge))):
        assert KEY not in text
    assert KEY not in str(endpoint.requests)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500])
def test_an_error_never_shows_the_key_even_if_the_server_repeats_it(endpoint, monkeypatch, status, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    endpoint.always = [lambda body: (status, {"error": {"message": f"wrong key {KEY}"}})]
    with pytest.raises(JudgeError) as caught:
        ask(endpoint)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__) + caplog.text
    assert KEY not in shown
    if status in (401, 403):
        assert f"refuses the key ({status}): set {KEY_VARIABLE} to a valid one" in shown


def test_a_key_that_cannot_be_sent_is_an_error_without_it(endpoint, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "schlüssel\x01")
    with pytest.raises(JudgeError, match="characters that no key has") as caught:
        ask(endpoint)
    assert "schl" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:geheim@host/v1",
        "user:geheim@host",
        "https://host/v1?api_key=geheim",
        "https://host/v1#geheim",
        "https://host/geheim-0123456789/v1",
    ],
)
def test_an_address_with_a_secret_is_refused_and_not_repeated(monkeypatch, url):
    monkeypatch.setenv(KEY_VARIABLE, "geheim-0123456789")
    with pytest.raises(JudgeError, match=f"no user, password, key or query in it: set {KEY_VARIABLE}") as caught:
        make_judge("endpoint", url=url, model="m")
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "localhost:11434/v1", "http://", "http://host:port", "http://[", "http://a b"]
)
def test_what_is_no_address_is_refused(monkeypatch, url):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(JudgeError, match="is not the address of an endpoint; it looks like http://localhost"):
        make_judge("endpoint", url=url, model="m")


def test_a_missing_address_model_or_timeout_is_refused():
    with pytest.raises(JudgeError, match="needs the address"):
        make_judge("endpoint", model="m")
    with pytest.raises(JudgeError, match="needs a model's name; http://h/v1/models lists them"):
        make_judge("endpoint", url="http://h/v1/")
    with pytest.raises(JudgeError, match="timeout must be above 0"):
        make_judge("endpoint", url="http://h/v1", model="m", timeout=0)


# The cache.


def test_a_second_run_makes_no_request_and_another_image_model_or_caption_does(endpoint, tmp_path):
    assert ask(endpoint, number=5, cache=tmp_path) == ask(endpoint, number=5, cache=tmp_path) == EXPECTED[:5]
    assert len(endpoint.requests) == 5
    ask(endpoint, WRONG, cache=tmp_path)
    assert len(endpoint.requests) == 6
    make_judge("endpoint", url=endpoint.url, model="other", cache=tmp_path).answer(RIGHT[:1], PROMPTS[:1])
    assert len(endpoint.requests) == 7
    spelled = dataclasses.replace(PROMPTS[0], text=PROMPTS[0].text.upper())
    make_judge("endpoint", url=endpoint.url, model="eyes", cache=tmp_path).answer(RIGHT[:1], [spelled])
    assert len(endpoint.requests) == 8


@pytest.mark.parametrize(
    "damage", [lambda t: t[: len(t) // 2], lambda t: "", lambda t: "[]", lambda t: '{"answers": [[2, 0]]}']
)
def test_a_damaged_answer_is_requested_again_and_replaced(endpoint, tmp_path, damage):
    ask(endpoint, cache=tmp_path)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    text = path.read_text()
    path.write_text(damage(text))
    assert ask(endpoint, cache=tmp_path) == EXPECTED[:1]
    assert (len(endpoint.requests), path.read_text()) == (2, text)


def test_answers_before_a_failure_are_kept(endpoint, tmp_path):
    endpoint.next = [None, None, (401, {})]
    with pytest.raises(JudgeError):
        ask(endpoint, number=4, cache=tmp_path)
    endpoint.requests.clear()
    assert ask(endpoint, number=4, cache=tmp_path) == EXPECTED[:4]
    assert len(endpoint.requests) == 2


def test_all_that_is_in_the_cache_needs_no_server(endpoint, tmp_path):
    judge = make_judge("endpoint", url=endpoint.url, model="eyes", cache=tmp_path)
    judge.answer(RIGHT[:3], PROMPTS[:3])
    endpoint.always = [lambda body: (500, {})]
    assert pickle.loads(pickle.dumps(judge)).answer(RIGHT[:3], PROMPTS[:3]) == EXPECTED[:3]


def test_readers_of_an_answer_that_others_write_find_all_of_it_or_nothing(tmp_path):
    cache, answers = AnswerCache(tmp_path), [Answer(1.0, 0.5)] * 200
    found = []

    def work(_: int) -> None:
        for _ in range(50):
            cache.write("ab" * 32, answers)
            found.append(cache.read("ab" * 32, len(answers)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert found == [answers] * 200
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


def test_a_short_key_may_be_a_word_of_the_address(endpoint, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "ollama")
    assert make_judge("endpoint", url="http://ollama:11434/v1", model="m").identity


# Confidence, and the wording.


def test_the_confidence_is_the_probability_of_the_answer(endpoint, tmp_path):
    endpoint.always = [with_logprobs(0.8)]
    answers = ask(endpoint, WRONG, number=2, cache=tmp_path)
    assert values(answers) == values(make_judge("shapes").answer(WRONG[:2], PROMPTS[:2]))
    assert all(answer.confidence == pytest.approx(0.8, abs=1e-6) for row in answers for answer in row)
    assert ask(endpoint, WRONG, number=2, cache=tmp_path) == answers
    assert len(endpoint.requests) == 2


def test_questions_of_everyday_objects_arrive_numbered(endpoint):
    prompt = next(prompt for prompt in read_prompts("objects").prompts if prompt.category == "binding")
    judge = make_judge("endpoint", url=endpoint.url, model="eyes")
    assert [question.attribute for question in judge.questions(prompt)] == ["object", "colour"] * 2
    endpoint.always = [lambda body: completion('{"1": "yes", "2": "no", "3": "no", "4": "yes"}')]
    assert values(judge.answer(RIGHT[:1], [prompt])) == [[1.0, 0.0, 0.0, 1.0]]
    text = endpoint.requests[0]["messages"][1]["content"][0]["text"]
    lines = [f"{index}. {question.text}" for index, question in enumerate(questions_of(prompt), start=1)]
    assert text == "\n".join([f"Caption: {prompt.text}", "Questions:", *lines])


def test_a_changed_wording_needs_a_new_version():
    words = [
        SYSTEM,
        *(q.text for name in ("shapes", "objects") for p in read_prompts(name).prompts for q in questions_of(p)),
    ]
    assert (VERSION, hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]) == (1, "f195ce2a8153")


def test_the_identity_has_all_that_decides_the_answers():
    judge = make_judge("endpoint", url="http://localhost:11434/v1/", model="qwen2.5vl:7b")
    assert judge.identity == f"endpoint, model qwen2.5vl:7b, at http://localhost:11434/v1, wording {VERSION}"


@given(st.text() | st.none() | st.integers() | st.lists(st.text()), st.integers(0, 4))
def test_any_reply_is_read_without_an_error(text, number):
    assert len(read_reply(text, number)) == number


LEAVES = st.none() | st.booleans() | st.floats() | st.text()
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)


@given(st.dictionaries(st.sampled_from(["1", "2", "3", "x"]), JSON | st.sampled_from(["yes", "no"])))
@example({"1": "yes", "2": {"</THINK>": None}})
def test_only_yes_and_no_count(replied):
    for index, answer in enumerate(read_reply(json.dumps(replied), 3), start=1):
        value = replied.get(str(index))
        if value in ("yes", "no") and isinstance(value, str):
            assert answer.value == (value == "yes")
        if not isinstance(value, (str, bool)):
            assert answer == UNREADABLE
