"""A synchronous client of a ComfyUI server: queues a prompt, follows its run, fetches its images."""

from __future__ import annotations

import asyncio
import functools
import json
import struct
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from scripts.workflow import Prompt

T = TypeVar("T")


class ComfyUIError(Exception):
    """ComfyUI refused a prompt or failed to run it; `details` holds its answer."""

    def __init__(self, message: str, details: Any = None):
        super().__init__(message)
        self.details = details


class Interrupted(ComfyUIError):
    """The run was cancelled."""


@dataclass(frozen=True)
class Event:
    """One message of the server: a JSON message, or a preview image (`kind` "preview", the file's bytes in `image`)."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    image: bytes = b""


@functools.cache
def background_loop() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own, because Playwright already runs one in the thread of the browser tests."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="ComfyUI client", daemon=True).start()
    return loop


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background loop and return its result; Ctrl+C cancels it."""
    future = asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    try:
        return future.result()
    finally:
        future.cancel()


class Client:
    """A ComfyUI server at an address such as http://127.0.0.1:8188."""

    def __init__(self, url: str):
        self.url = url

    def alive(self) -> bool:
        """Whether the server answers."""
        try:
            self.get("/system_stats", timeout=2)
        except (OSError, TimeoutError, aiohttp.ClientError, ComfyUIError, json.JSONDecodeError):
            return False
        return True

    def fetch(self, path: str, *, method: str = "GET", timeout: float = 60, **body: Any) -> bytes:
        """The bytes of the server's answer.

        Args: path, with its query encoded; body, `json=` or `data=` as aiohttp takes them.
        Raises: ComfyUIError with the server's answer if it reports an error; TimeoutError.
        """
        return wait_for(self._fetch(path, method, timeout, body))

    async def _fetch(self, path: str, method: str, timeout: float, body: dict[str, Any]) -> bytes:
        address, limit = URL(self.url + path, encoded=True), aiohttp.ClientTimeout(timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.request(method, address, **body) as answer,
            ):
                content = await answer.read()
        except asyncio.TimeoutError:  # Python 3.10 has a TimeoutError of its own for asyncio
            raise TimeoutError(f"{path}: the server did not answer within {timeout:.0f} s.") from None
        if answer.status >= 400:
            text = content.decode(errors="replace")
            raise ComfyUIError(f"{path}: HTTP {answer.status}: {readable(text)}", parsed(text))
        return content

    def get(self, path: str, *, timeout: float = 60) -> Any:
        """The JSON that a GET returns."""
        return json.loads(self.fetch(path, timeout=timeout))

    def post(self, path: str, data: Any = None, *, timeout: float = 60) -> Any:
        """The JSON, or else the text, that a POST of JSON data returns."""
        return parsed(self.fetch(path, method="POST", timeout=timeout, json=data).decode())

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The definition of one node, or of all nodes by name.

        Raises: ComfyUIError if the server has no such node.
        """
        if node is None:
            return self.get("/object_info")
        found = self.get("/object_info/" + quote(node))
        if node not in found:
            raise ComfyUIError(f"ComfyUI has no node {node}.")
        return found[node]

    def queue(self, prompt: Prompt, *, client_id: str = "", extra: dict[str, Any] | None = None) -> str:
        """Queue a prompt in API format; returns its id.

        Raises: ComfyUIError that names the node and the input that the server refused.
        """
        answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id, **(extra or {})})
        if answer.get("node_errors"):
            # The server runs the rest of a prompt if it refuses a part of it.
            raise ComfyUIError(readable(json.dumps({"error": "A part was refused.", **answer})), answer)
        return answer["prompt_id"]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The record of a finished prompt; None before its end."""
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
                raise TimeoutError(f"The server has no record of prompt {prompt_id}.")
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
        return [self.fetch("/view?" + urlencode(file)) for file in files]

    def images_by_node(self, record: dict[str, Any]) -> dict[str, list[bytes]]:
        """The same by node: nodes that do not depend on each other run in any order."""
        return {
            node: self.images({"outputs": {node: output}})
            for node, output in record["outputs"].items()
            if output.get("images")
        }

    def upload(self, name: str, content: bytes, *, overwrite: bool = True) -> str:
        """Put an image into the server's input folder; returns the name that LoadImage takes."""
        form = aiohttp.FormData({"overwrite": str(overwrite).lower()})
        form.add_field("image", content, filename=name)
        return json.loads(self.fetch("/upload/image", method="POST", data=form))["name"]

    def interrupt(self) -> None:
        """Cancel the current run."""
        self.post("/interrupt")

    @contextmanager
    def events(self) -> Iterator[Events]:
        """The server's messages; a prompt queued with `client_id=events.client_id` reports its progress here."""
        events = Events()
        wait_for(events.connect(self.url))
        try:
            yield events
        finally:
            wait_for(events.close())


class Events:
    """The stream of a server's messages: `next` returns one, `until_done` yields those of a run."""

    END = {"execution_success", "execution_error", "execution_interrupted"}

    def __init__(self) -> None:
        self.client_id = uuid.uuid4().hex

    async def connect(self, url: str) -> None:
        """Open the WebSocket."""
        self.session = aiohttp.ClientSession()
        try:
            # 0: no limit, because a preview of a large image exceeds the default of 4 MB.
            self.socket = await self.session.ws_connect(f"{url}/ws?clientId={self.client_id}", max_msg_size=0)
            await self.socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": False}})
        except BaseException:
            await self.session.close()
            raise

    async def close(self) -> None:
        """Close the WebSocket."""
        await self.socket.close()
        await self.session.close()

    def next(self, timeout: float = 60) -> Event:
        """The next message.

        Raises: TimeoutError if none comes in time; ComfyUIError if the server closed the connection.
        """
        try:
            message = wait_for(self.socket.receive(timeout))
        except asyncio.TimeoutError:  # Python 3.10 has a TimeoutError of its own for asyncio
            raise TimeoutError(f"The server sent no message within {timeout:.1f} s.") from None
        if message.type == aiohttp.WSMsgType.TEXT:
            content = json.loads(message.data)
            return Event(content["type"], content.get("data") or {})
        if message.type != aiohttp.WSMsgType.BINARY:
            raise ComfyUIError("The server closed the connection: has it ended?")
        (kind,) = struct.unpack(">I", message.data[:4])
        # 1: a preview, after four bytes for the image format. The other kinds, such as text, are returned as they are.
        return (
            Event("preview", image=message.data[8:]) if kind == 1 else Event(f"binary_{kind}", image=message.data[4:])
        )

    def until_done(self, prompt_id: str, *, timeout: float = 300) -> Iterator[Event]:
        """All messages up to the end of a prompt, the last one included."""
        limit = time.monotonic() + timeout
        while True:
            if time.monotonic() > limit:
                raise TimeoutError(f"The prompt did not finish within {timeout:.0f} s.")
            event = self.next(timeout=max(0.1, limit - time.monotonic()))
            yield event
            if event.kind in self.END and event.data.get("prompt_id") == prompt_id:
                return


def parsed(text: str) -> Any:
    """The value of a JSON text; the text itself if it is no JSON."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def readable(text: str) -> str:
    """The server's error answer as a message: each refused node, its input and the reason."""
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
