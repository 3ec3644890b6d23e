"""The judge by a vision-language model at an OpenAI-compatible endpoint: yes/no questions about each image."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..prompts import Prompt
from .answer_cache import AnswerCache, cache_key
from .base import Answer, JudgeError, Question, check_images
from .client import Client, Refusal, checked_url
from .questions import VERSION, questions_of
from .replies import read_reply

SEED, MAX_TOKENS, TOP_LOGPROBS = 0, 4096, 5
SYSTEM = (
    "You check images that were made from a caption. Answer each numbered question about the image with yes or no. "
    "Answer no if what a question names is missing or cannot be seen. Reply with one JSON object and nothing else: "
    'each question\'s number, and "yes" or "no", such as {"1": "yes", "2": "no"}.'
)

# Part of a request that a server may refuse -> words of its message that name it.
OPTIONAL: dict[str, tuple[str, ...]] = {
    "logprobs": ("logprobs",),
    "response_format": ("response_format", "json_schema", "structured", "grammar"),
    "max_tokens": ("max_tokens",),
    "seed": ("seed",),
    "image object": ("image", ".content", "messages"),
}


@dataclass(frozen=True)
class Form:
    """The optional parts of a request that a server takes. Without "image object", image_url is a plain string."""

    parts: frozenset[str] = frozenset(OPTIONAL)

    def without(self, *parts: str) -> Form:
        """The form without some parts."""
        return replace(self, parts=self.parts - set(parts))

    def named(self, message: str) -> list[Form]:
        """The form without the part that the message of a refusal names; nothing if it names none."""
        parts = (part for part in OPTIONAL if part in self.parts)
        return [self.without(part) for part in parts if any(word in message.lower() for word in OPTIONAL[part])][:1]

    def simpler(self) -> list[Form]:
        """The form without each of its parts, and without all of them."""
        left = [part for part in OPTIONAL if part in self.parts]
        return [*(self.without(part) for part in left), self.without(*left)]


class EndpointJudge:
    """Asks a vision-language model all questions about an image in one call.

    Args: url of the endpoint, such as http://localhost:11434/v1; model, its name there; cache, a folder for answers;
        timeout of a call in seconds, long enough to load the model.
    Raises: JudgeError for a url or a model that cannot be right, or without the package openai.
    """

    def __init__(self, url: str, model: str, *, cache: Path | None = None, timeout: float = 300.0):
        self.url = checked_url(url)
        if not model:
            raise JudgeError(f"the endpoint judge needs a model's name; {self.url}/models lists them")
        if not timeout > 0:
            raise JudgeError(f"the timeout must be above 0 seconds, not {timeout:g}")
        if importlib.util.find_spec("openai") is None:
            raise JudgeError("the endpoint judge needs the package openai: pip install 'openai>=3,<4'")
        self.model, self.timeout = model, timeout
        self.identity = f"endpoint, model {model}, at {self.url}, wording {VERSION}"
        self._cache = AnswerCache(cache) if cache else None
        self._form = Form()  # what the server takes, found by its refusals

    def questions(self, prompt: Prompt) -> tuple[Question, ...]:
        """The questions of the prompt's expectation, or one about its whole text."""
        return questions_of(prompt)

    def answer(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """Answers from the cache, else from the model, one call an image. Only complete answers are cached."""
        check_images(images, prompts)
        out: list[list[Answer]] = []
        with Client(self.url, self.timeout) as client:
            for image, prompt in zip(images, prompts, strict=True):
                questions = self.questions(prompt)
                key = cache_key(self.identity, image, prompt.text, questions) if self._cache else ""
                answers = self._cache.read(key, len(questions)) if self._cache else None
                if answers is None:
                    answers = self._ask(client, image, prompt.text, questions)
                    if self._cache and all(answer.value is not None for answer in answers):
                        self._cache.write(key, answers)
                out.append(answers)
        return out

    def _ask(self, client: Client, image: np.ndarray, caption: str, questions: Sequence[Question]) -> list[Answer]:
        """One call; where the server refuses a part of the request, again without it."""
        address = data_url(image)
        waiting, refusal = [self._form], ""
        tried: set[Form] = set()
        while waiting:
            form = waiting.pop(0)
            if form in tried:
                continue
            try:
                reply = client.complete(request(form, self.model, address, caption, questions))
            except Refusal as error:
                waiting = [*form.named(str(error)), *(waiting if tried else form.simpler())]
                refusal = refusal or str(error)
                tried.add(form)
            else:
                self._form = form
                return reply_answers(reply, len(questions), self.url)
        raise JudgeError(f"the judge at {self.url} refuses the request: {refusal}")


def data_url(image: np.ndarray) -> str:
    """An image [H, W, 3], uint8, as a data URL of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def request(form: Form, model: str, image: str, caption: str, questions: Sequence[Question]) -> dict[str, Any]:
    """The arguments of a chat completion."""
    lines = [f"{index}. {question.text}" for index, question in enumerate(questions, start=1)]
    text = "\n".join([f"Caption: {' '.join(caption.split())}", "Questions:", *lines])
    numbers = [str(index) for index in range(1, len(questions) + 1)]
    schema = {
        "type": "object",
        "properties": {number: {"type": "string", "enum": ["yes", "no"]} for number in numbers},
        "required": numbers,
        "additionalProperties": False,
    }
    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": image} if "image object" in form.parts else image},
    ]
    optional: dict[str, dict[str, Any]] = {
        "logprobs": {"logprobs": True, "top_logprobs": TOP_LOGPROBS},
        "response_format": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answers", "strict": True, "schema": schema},
            }
        },
        "max_tokens": {"max_tokens": MAX_TOKENS},
        "seed": {"seed": SEED},
    }
    arguments: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}],
        "temperature": 0,
    }
    for part, values in optional.items():
        if part in form.parts:
            arguments |= values
    return arguments


def reply_answers(reply: Any, number: int, url: str) -> list[Answer]:
    """The answers of a chat completion.

    Raises: JudgeError if it is something else, such as a web page.
    """
    if not hasattr(reply, "choices"):
        raise JudgeError(f"{url} is no OpenAI-compatible endpoint; its address mostly ends with /v1")
    if not reply.choices:
        return read_reply(None, number)
    choice = reply.choices[0]
    logprobs = getattr(getattr(choice, "logprobs", None), "content", None) or ()
    return read_reply(getattr(choice.message, "content", None), number, logprobs)
