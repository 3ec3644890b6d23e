"""The client of a ComfyUI server, against a small server of the test's own."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator

import pytest
from aiohttp import WSMsgType, web

from scripts.client import Client, ComfyUIError, background_loop, readable, wait_for

PREVIEW, TEXT = 1, 3  # kinds of ComfyUI's binary messages


def message(kind: str, **data) -> str:
    return json.dumps({"type": kind, "data": data})


class SmallServer:
    """Sends `messages` to each WebSocket, then closes it if `closes`; remembers the requests' bodies."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.closes = False
        self.received: list[str] = []
        app = web.Application(client_max_size=0)
        app.router.add_get("/ws", self.websocket)
        app.router.add_route("*", "/echo", self.echo)
        app.router.add_get("/refused", self.refused)
        app.router.add_get("/slow", self.slow)
        app.router.add_post("/upload/image", self.upload)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start(self) -> str:
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.received.append(request.query["clientId"])
        self.received.append(await socket.receive_str())
        for content in self.messages:
            await (socket.send_str(content) if isinstance(content, str) else socket.send_bytes(content))
        while not self.closes:
            if (await socket.receive()).type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                break
        return socket

    async def echo(self, request: web.Request) -> web.Response:
        return web.json_response([request.method, request.path_qs, await request.text()])

    async def refused(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "Not this one."}, status=400)

    async def slow(self, request: web.Request) -> web.Response:
        await asyncio.sleep(30)
        return web.Response()

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField) and form["overwrite"] == "true"
        return web.json_response({"name": f"{image.filename}: {len(image.file.read())}"})


@pytest.fixture
def server() -> Iterator[SmallServer]:
    server = SmallServer()
    yield server
    wait_for(server.runner.cleanup())


@pytest.fixture
def client(server) -> Client:
    return Client(wait_for(server.start()))


def test_messages_arrive_whole_and_in_order_whatever_their_size(server, client):
    large = bytes(range(256)) * 40_000  # more than aiohttp's usual limit of 4 MB
    image, text = struct.pack(">II", PREVIEW, 2) + large, struct.pack(">I", TEXT) + b"words"
    server.messages = [message("status", queue=1), image, text, message("progress", value=1, max=2)]
    with client.events() as events:
        first, preview, other, last = (events.next(5) for _ in range(4))
    assert (first.kind, first.data) == ("status", {"queue": 1})
    assert (preview.kind, preview.image) == ("preview", large)
    assert (other.kind, other.image) == ("binary_3", b"words")
    assert (last.kind, last.data) == ("progress", {"value": 1, "max": 2})
    assert server.received[0] == events.client_id and json.loads(server.received[1])["type"] == "feature_flags"


def test_the_stream_ends_with_the_prompt_that_is_followed(server, client):
    server.messages = [message("execution_success", prompt_id=which) for which in ("another", "this", "later")]
    with client.events() as events:
        assert [event.data["prompt_id"] for event in events.until_done("this", timeout=5)] == ["another", "this"]


def test_silence_is_a_timeout_and_later_messages_still_arrive(server, client):
    with client.events() as events:
        with pytest.raises(TimeoutError):
            events.next(0.1)
        with pytest.raises(TimeoutError):
            list(events.until_done("this", timeout=0.1))


def test_a_closed_connection_is_an_error_that_says_so(server, client):
    server.closes = True
    with client.events() as events, pytest.raises(ComfyUIError, match="closed the connection"):
        events.next(5)


def test_a_path_is_sent_as_it_is_written_and_a_body_as_json(client):
    assert client.get("/echo?name=a%20b%2Fc") == ["GET", "/echo?name=a%20b%2Fc", ""]
    method, _, body = client.post("/echo", {"a": [1, None]})
    assert method == "POST" and json.loads(body) == {"a": [1, None]}
    assert client.post("/echo") == ["POST", "/echo", ""]


def test_an_image_is_uploaded_with_its_name(client):
    assert client.upload("a.png", b"12345") == "a.png: 5"


def test_an_error_answer_is_an_error_with_the_servers_words(client):
    with pytest.raises(ComfyUIError, match="/refused: HTTP 400: Not this one") as caught:
        client.get("/refused")
    assert caught.value.details == {"error": "Not this one."}


def test_a_server_that_does_not_answer_is_not_alive_and_a_slow_one_a_timeout(client):
    assert not Client("http://127.0.0.1:9").alive()
    with pytest.raises(TimeoutError):
        client.get("/slow", timeout=0.1)


def test_the_client_works_in_a_thread_that_runs_an_event_loop(client):
    async def inside() -> str:
        return client.get("/echo")[0]

    assert asyncio.run(inside()) == "GET" and background_loop().is_running()


def test_a_refused_prompt_names_each_node_and_input():
    reason = {"message": "Value too small", "details": "width"}
    answer = '{"error": {"message": "Bad", "details": ""}, "node_errors": {"7": {"class_type": "N", "errors": [%s]}}}'
    text = readable(answer % str(reason).replace("'", '"'))
    assert text == "Bad\nN (node 7): Value too small: width"
