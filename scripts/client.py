"""Talks to a ComfyUI server: queue a prompt, follow it, fetch what it made."""

from __future__ import annotations

import json
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from scripts.websocket import WebSocket

Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on this machine


class ComfyUIError(Exception):
    """The host refused a prompt or failed to run it; `details` holds its answer."""

    def __init__(self, message: str, details: Any = None):
        super().__init__(message)
        self.details = details


class Interrupted(ComfyUIError):
    """The run was cancelled."""


@dataclass(frozen=True)
class Event:
    """One message of the server: a JSON one, or a preview image (`kind` "preview", the file's bytes in `image`)."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    image: bytes = b""


class Client:
    """A ComfyUI server at an address such as http://127.0.0.1:8188."""

    def __init__(self, url: str):
        self.url = url

    def alive(self) -> bool:
        try:
            self.get("/system_stats", timeout=2)
        except (OSError, ComfyUIError, json.JSONDecodeError):
            return False
        return True

    def fetch(self, path: str, *, body: bytes | None = None, kind: str = "", timeout: float = 60) -> bytes:
        """The bytes that a GET (or, with a body, a POST) returns.

        Raises: ComfyUIError with the server's answer where it reports an error.
        """
        headers = {"Content-Type": kind} if kind else {}
        request = urllib.request.Request(self.url + path, data=body, headers=headers)
        try:
            with DIRECT.open(request, timeout=timeout) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise ComfyUIError(f"{path}: HTTP {error.code}: {readable(text)}", parsed(text)) from None

    def get(self, path: str, *, timeout: float = 60) -> Any:
        return json.loads(self.fetch(path, timeout=timeout))

    def post(self, path: str, data: Any = None, *, timeout: float = 60) -> Any:
        body = b"" if data is None else json.dumps(data).encode()
        return parsed(self.fetch(path, body=body, kind="application/json", timeout=timeout).decode())

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """What the server says about one node, or about all.

        Raises: ComfyUIError if the server does not know the node.
        """
        if node is None:
            return self.get("/object_info")
        found = self.get("/object_info/" + urllib.parse.quote(node))
        if node not in found:
            raise ComfyUIError(f"The host does not know the node {node}.")
        return found[node]

    def queue(self, prompt: Prompt, *, client_id: str = "", extra: dict[str, Any] | None = None) -> str:
        """Queue a prompt in API format; returns its id.

        Raises: ComfyUIError that says which node and input the server refused.
        """
        answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id, **(extra or {})})
        if answer.get("node_errors"):
            # The server runs what is left of a prompt of which it refused a part.
            raise ComfyUIError(readable(json.dumps({"error": "A part was refused.", **answer})), answer)
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The record of a finished prompt; None while it has not finished."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def run(
        self, prompt: Prompt, *, timeout: float = 300, on_event: Callable[[Event], None] | None = None
    ) -> dict[str, Any]:
        """Queue a prompt and wait for its end; returns its history record (`["outputs"]`, `["status"]`).

        Raises: ComfyUIError with the node and the reason if it fails; Interrupted if it was cancelled; TimeoutError.
        """
        with self.events() as events:
            prompt_id = self.queue(prompt, client_id=events.client_id)
            try:
                for event in events.until_done(prompt_id, timeout=timeout):
                    if on_event:
                        on_event(event)
            except TimeoutError:
                self.interrupt()
                raise
        return self.finished(prompt_id)

    def finished(self, prompt_id: str, *, timeout: float = 20) -> dict[str, Any]:
        """The history record of a prompt that has ended; raises as `run` does if it failed."""
        limit = time.monotonic() + timeout
        while (record := self.history(prompt_id)) is None:
            if time.monotonic() > limit:
                raise TimeoutError(f"The server keeps no record of prompt {prompt_id}.")
            time.sleep(0.05)
        for kind, data in record["status"]["messages"]:
            if kind == "execution_error":
                where = f"{data['node_type']} (node {data['node_id']})"
                raise ComfyUIError(f"{where}: {data['exception_message'].strip()}", data)
            if kind == "execution_interrupted":
                raise Interrupted("The run was cancelled.", data)
        return record

    def images(self, record: dict[str, Any]) -> list[bytes]:
        """The image files that a finished prompt saved or previewed, as bytes."""
        files = [file for output in record["outputs"].values() for file in output.get("images", [])]
        return [self.fetch("/view?" + urllib.parse.urlencode(file)) for file in files]

    def upload(self, name: str, content: bytes, *, overwrite: bool = True) -> str:
        """Put an image into the server's input folder; returns the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        fields = f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\n{str(overwrite).lower()}\r\n'
        file = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = f"{fields}{file}".encode() + content + f"\r\n--{boundary}--\r\n".encode()
        answer = self.fetch("/upload/image", body=body, kind=f"multipart/form-data; boundary={boundary}")
        return json.loads(answer)["name"]

    def interrupt(self) -> None:
        """Cancel what runs now."""
        self.post("/interrupt")

    @contextmanager
    def events(self) -> Iterator[Events]:
        """Listen to the server; queue with `client_id=events.client_id` to hear about a prompt."""
        events = Events(self.url)
        try:
            yield events
        finally:
            events.socket.close()


class Events:
    """The stream of a server's messages; iterate for as long as wanted, or call `next` with a time limit."""

    END = {"execution_success", "execution_error", "execution_interrupted"}

    def __init__(self, url: str):
        self.client_id = uuid.uuid4().hex
        place = urllib.parse.urlsplit(url)
        self.socket = WebSocket(place.hostname or "127.0.0.1", place.port or 80, f"/ws?clientId={self.client_id}")
        hello = {"type": "feature_flags", "data": {"supports_preview_metadata": False}}
        self.socket.send(json.dumps(hello))

    def next(self, timeout: float = 60) -> Event:
        """The next message.

        Raises: TimeoutError if none comes in time; ComfyUIError if the server closed the connection.
        """
        message = self.socket.receive(timeout)
        if message is None:
            raise ComfyUIError("The server closed the connection: has it ended?")
        if isinstance(message, str):
            told = json.loads(message)
            return Event(told["type"], told.get("data") or {})
        (kind,) = struct.unpack(">I", message[:4])
        # 1: a preview, after four bytes that name the image format; others (text) are passed on as they are.
        return Event("preview", image=message[8:]) if kind == 1 else Event(f"binary_{kind}", image=message[4:])

    def until_done(self, prompt_id: str, *, timeout: float = 300) -> Iterator[Event]:
        """All messages up to the one that says that the prompt has ended, that one included."""
        limit = time.monotonic() + timeout
        while True:
            if time.monotonic() > limit:
                raise TimeoutError(f"The prompt did not finish within {timeout:.0f} s.")
            event = self.next(timeout=max(0.1, limit - time.monotonic()))
            yield event
            if event.kind in self.END and event.data.get("prompt_id") == prompt_id:
                return


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def readable(text: str) -> str:
    """The server's error answer in words: each refused node, its input and the reason."""
    answer = parsed(text)
    if not isinstance(answer, dict) or "error" not in answer:
        return text.strip()[:2000]
    error = answer["error"]
    head = error.get("message", "") if isinstance(error, dict) else str(error)
    details = error.get("details", "") if isinstance(error, dict) else ""
    lines = [f"{head} {details}".strip()]
    for node_id, node in (answer.get("node_errors") or {}).items():
        for reason in node["errors"]:
            lines.append(f"{node['class_type']} (node {node_id}): {reason['message']}: {reason['details']}")
    return "\n".join(lines)
