"""Chat completions of an OpenAI-compatible endpoint: its address, its key, and its errors in words."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from .base import JudgeError

KEY_VARIABLE = "MMDIT_JUDGE_KEY"  # the only place that a key is read from
LONG = 12  # characters of a key that is a secret; for local servers it is often a word such as "ollama"
REFUSED = (400, 422)  # a field that the server does not take


def checked_url(url: str) -> str:
    """An endpoint's address without a slash at its end.

    Raises: JudgeError if it is no http(s) address, or has a user, a password, a query or the key in it. The message
        never repeats an address that may contain a secret.
    """
    hint = "it looks like http://localhost:11434/v1"
    if not url:
        raise JudgeError(f"the endpoint judge needs the address of the endpoint; {hint}")
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if "@" in url or "?" in url or "#" in url or (len(key) >= LONG and key in url):
        raise JudgeError(f"the endpoint's address must have no user, password, key or query in it: set {KEY_VARIABLE}")
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right or any(character.isspace() for character in url):
        raise JudgeError(f"{url!r} is not the address of an endpoint; {hint}")
    return url.rstrip("/")


class Refusal(Exception):
    """The server refuses the form of a request; with its message."""


class Client:
    """The openai client, made with its first request; its errors in our words and without the key."""

    def __init__(self, url: str, timeout: float):
        self.url, self.timeout = url, timeout
        self._client: Any = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def _open(self) -> Any:
        import openai

        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise JudgeError(f"the value of {KEY_VARIABLE} has characters that no key has")
        # Names of an OpenAI account in the environment are not for other servers.
        account: Any = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        return openai.OpenAI(
            api_key=key or "none", base_url=self.url, timeout=self.timeout, max_retries=1, default_headers=account
        )

    def complete(self, arguments: dict[str, Any]) -> Any:
        """A chat completion.

        Raises: Refusal for a status of REFUSED; JudgeError for any other failure.
        """
        import openai

        self._client = self._client or self._open()
        who = f"the judge at {self.url}"
        try:
            return self._client.chat.completions.create(**arguments)
        except openai.APITimeoutError:
            failure: Exception = JudgeError(f"{who} did not answer within {self.timeout:g} s, twice")
        except openai.APIConnectionError:
            failure = JudgeError(f"{who} cannot be reached; is the server running, and the address right?")
        except openai.APIStatusError as error:
            failure = _status_failure(who, error.status_code, _message(error))
        except (openai.OpenAIError, ValueError):  # such as a reply that is not JSON
            failure = JudgeError(f"{who} sends no chat completions; its address mostly ends with /v1")
        # Outside of the handlers, so that no error of the client, which holds the request, is chained to it.
        raise failure


def _message(error: Any) -> str:
    """The server's message, short, and without the key."""
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or body.get("detail") or body.get("error") or error.message)
    key = os.environ.get(KEY_VARIABLE, "").strip()
    return (text.replace(key, "***") if key else text)[:300]


def _status_failure(who: str, status: int, message: str) -> Exception:
    """An error for the status of a response."""
    if status in REFUSED:
        return Refusal(message)
    if status in (401, 403):  # the message may repeat a part of the key
        return JudgeError(f"{who} refuses the key ({status}): set {KEY_VARIABLE} to a valid one")
    if status == 404:
        return JudgeError(f"{who} does not know the model or the address (404), which mostly ends with /v1: {message}")
    return JudgeError(f"{who} failed {'twice ' if status >= 500 else ''}with status {status}: {message}")
