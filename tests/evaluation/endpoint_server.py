"""A server of chat completions on this machine: it answers by image analysis, or as a test says."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from attributes.judge import score
from attributes.words import parse_caption
from evaluation.judges.questions import scene_questions

Reply = tuple[int, Any]
Behaviour = Callable[[dict], Reply | None]


def image_of(body: dict) -> bytes:
    """The PNG file in a request."""
    address = body["messages"][1]["content"][1]["image_url"]
    address = address["url"] if isinstance(address, dict) else address
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return base64.b64decode(data, validate=True)


def words_of(body: dict) -> tuple[str, dict[str, str]]:
    """The caption and the questions by number, from the text of a request."""
    caption, title, *questions = body["messages"][1]["content"][0]["text"].split("\n")
    assert caption.startswith("Caption: ") and title == "Questions:"
    return caption.removeprefix("Caption: "), dict(line.split(". ", 1) for line in questions)


def judged(body: dict) -> dict[str, str]:
    """Each question answered by image analysis."""
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["temperature"], body.get("stream", False)) == (0, False)
    caption, questions = words_of(body)
    scene = parse_caption(caption)
    image = np.asarray(Image.open(io.BytesIO(image_of(body)))).astype(np.float32) / 255
    scores = score(image, scene)
    right = {question.text: scores[question.attribute] for question in scene_questions(scene)}
    return {number: "yes" if right[text] else "no" for number, text in questions.items()}


def completion(content: Any, logprobs: Any = None) -> Reply:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": logprobs}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def says(wrap: Callable[[str], Any]) -> Behaviour:
    """Reply with the right JSON, changed."""
    return lambda body: completion(wrap(json.dumps(judged(body))))


def refuses(present: Callable[[dict], bool], message: str, status: int = 400) -> Behaviour:
    """Refuse requests that have something."""
    return lambda body: (status, {"error": {"message": message}}) if present(body) else None


def with_logprobs(probability: float) -> Behaviour:
    """Reply with tokens whose answers have this probability, the rest is on the other answer."""

    def behave(body: dict) -> Reply:
        tokens = []
        for number, word in judged(body).items():
            other = {"yes": "no", "no": "yes"}[word]
            sure = {"token": "", "logprob": 0.0, "bytes": None, "top_logprobs": []}
            tokens += [sure | {"token": text} for text in ("{" if number == "1" else ",", f'"{number}', '":', ' "')]
            choices = ((word, probability * 0.9), (other, (1 - probability) * 0.9), ("maybe", 0.1))
            top = [{"token": text, "logprob": math.log(p), "bytes": None} for text, p in choices]
            tokens += [sure | {"token": word, "logprob": top[0]["logprob"], "top_logprobs": top}, sure | {"token": '"'}]
        tokens.append(sure | {"token": "}"})
        return completion("".join(token["token"] for token in tokens), {"content": tokens, "refusal": None})

    return behave


class Endpoint:
    """The server: its address, the requests that it got, and what it does with the next ones."""

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.always: list[Behaviour] = []  # the first that gives a reply is used, else the right answers
        self.next: list[Reply | float | None] = []  # for one request each: a reply, a delay, or the right answers
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append(body)
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                status, value = endpoint.reply(body, self.path)
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                kind = "text/html" if isinstance(value, str) else "application/json"
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client waits no longer
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def reply(self, body: dict, path: str) -> Reply:
        if path != "/v1/chat/completions":
            return 404, {"error": {"message": f"no {path}"}}
        once = self.next.pop(0) if self.next else None
        if isinstance(once, tuple):
            return once
        if once is not None:
            time.sleep(once)
        for behave in self.always:
            if (reply := behave(body)) is not None:
                return reply
        return completion(json.dumps(judged(body)))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
