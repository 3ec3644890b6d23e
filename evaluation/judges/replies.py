"""A model's reply as answers: JSON, robustly read, and the probability of each answer if the server gives it."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from .base import Answer

VALUES: dict[Any, float] = {"yes": 1.0, "no": 0.0, True: 1.0, False: 0.0}
LETTERS = {"y": 1.0, "t": 1.0, "n": 0.0, "f": 0.0}  # the first letters of yes, true, no and false
_THINKING = re.compile(r"<(think|thinking|thought)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_THINKING_END = re.compile(r"^.*</(think|thinking|thought)>", re.DOTALL | re.IGNORECASE)  # its start is in the template
_FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)```", re.DOTALL)


def read_reply(text: Any, number: int, logprobs: Sequence[Any] = ()) -> list[Answer]:
    """Read a reply such as {"1": "yes", "2": "no"}, also after thinking or in a code fence.

    Args: text of the reply, of any type; number of questions; logprobs, the tokens of the reply with `token`, `logprob`
        and `top_logprobs`.
    Returns: the answers to questions 1, 2, ...; Answer(None) for one that is not yes or no, or if the text is not JSON.
    """
    values = _object(text) if isinstance(text, str) else {}
    answers = []
    for index in range(1, number + 1):
        value = _value(values.get(str(index)))
        answers.append(Answer(value, None if value is None else _confidence(value, index, logprobs)))
    return answers


def _object(text: str) -> dict[str, Any]:
    """The JSON object of a reply, empty if there is none."""
    spoken = _THINKING_END.sub("", _THINKING.sub("", text)).strip()
    fenced = _FENCE.findall(spoken)
    # As it is first: an answer may quote the mark of thinking.
    for candidate in (text, fenced[0] if len(fenced) == 1 else spoken):
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(candidate)
            return values if isinstance(values, dict) else {}
    return {}


def _value(word: Any) -> float | None:
    if isinstance(word, str):
        word = word.strip().rstrip(".").lower()
    return VALUES.get(word) if isinstance(word, (str, bool)) else None


def _confidence(value: float, index: int, logprobs: Sequence[Any]) -> float | None:
    """The probability of an answer, of yes and no together, at the token with which it begins."""
    starts = [0]
    for token in logprobs:
        starts.append(starts[-1] + len(token.token))
    places = list(re.finditer(rf'"{index}"\s*:\s*"?\s*', "".join(token.token for token in logprobs)))
    if not places:
        return None
    place = places[-1].end()  # the last one, because thinking may have quoted it
    token = next((token for token, end in zip(logprobs, starts[1:], strict=True) if place < end), None)
    if token is None or not token.top_logprobs:
        return None
    mass = {1.0: 0.0, 0.0: 0.0}
    for choice in token.top_logprobs:
        letters = re.sub(r"[\W\d_]", "", choice.token).lower()
        if letters and letters[0] in LETTERS and math.isfinite(choice.logprob):
            mass[LETTERS[letters[0]]] += math.exp(choice.logprob)
    return mass[value] / sum(mass.values()) if mass[value] > 0 else None
