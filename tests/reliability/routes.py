"""Random requests to the pack's routes: an answer or a refusal, never a failure, and nothing that they change.

    python -m tests.reliability.routes --count 1000 --seed 0

prints the number of requests by status as JSON, and each defect with the command that repeats it.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote_from_bytes

from scripts.client import Client, ComfyUIError
from scripts.server import Server
from tests.reliability import command
from tests.reliability.json_damage import ODD, as_bytes, damaged

ROUTES = ("/mmdit/blocks", "/mmdit/presets", "/mmdit/tokens", "/mmdit/curve")
METHODS = ("GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD")
MOST = 1_000_000  # bytes of a body that may be read
UNCHANGED = {"server.log", "comfyui.db", "comfyui.db-wal", "comfyui.db-shm", "comfyui.db-journal"}  # ComfyUI's own
INPUTS = {
    "steps": 5, "cfg": 4.5, "solver": "euler", "schedule": "linear", "shift": 0.0, "denoise": 1, "cfg_start": 0.0,
    "cfg_end": 0.5, "start_step": 0, "end_step": 10_000, "custom_sigmas": "", "cfg_curve": "constant",
    "size_shift": "off",
}  # fmt: skip
BODIES: dict[str, Any] = {
    "/mmdit/tokens": {"prompt": "a red circle", "negative": "", "clip_l": "x", "t5xxl": "", "t5_length": "77"},
    "/mmdit/curve": {
        "inputs": INPUTS,
        "model": {"name": "mmdit-small.safetensors", "folder": ""},
        "windows": [{"start": 0.5, "end": 1.0, "fade": "constant"}],
        "width": 512,
        "height": 512,
        "model_shift": 3.0,
    },
}
NAMES = (
    "mmdit-small.safetensors", "../mmdit-small.safetensors", "/etc/hostname", "", "*", "\u0000", "x" * 5000, "é",
    "..\\x", "C:\\x", "checkpoints", "mmdit", "custom_nodes", "%2e%2e%2f", "a\nb", "\ud800",
)  # fmt: skip
CHARSETS = (
    "utf-8",
    "utf-16",
    "latin-1",
    "x",
    "hex",
    "undefined",
    "idna",
    "unicode_escape",
    "",
    '"',
    "utf-8; charset=x",
)


@dataclass(frozen=True)
class Request:
    """Fields: method; path with its query; headers; body, None for none."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


def make_request(random: Random) -> Request:
    """A request to one of the routes."""
    route = random.choice(ROUTES)
    usual = random.random() < 0.7
    method = ("POST" if route in BODIES else "GET") if usual else random.choice(METHODS)
    path = route + ("" if random.random() < 0.3 else f"?{_query(random)}")
    if method in ("GET", "HEAD") and random.random() < 0.9:
        return Request(method, path)
    body, headers = _body(BODIES.get(route, {}), random), {"Content-Type": "application/json"}
    if random.random() < 0.2:
        headers["Content-Type"] = f"application/json; charset={random.choice(CHARSETS)}"
    if random.random() < 0.1:
        headers["Content-Encoding"] = random.choice(("gzip", "deflate", "br", "x"))
        body = random.choice((body, gzip.compress(body), zlib.compress(body), gzip.compress(body)[:-9]))
    return Request(method, path, headers, body)


def _query(random: Random) -> str:
    keys = random.choices(("name", "folder", "name", "x", ""), k=random.choice((1, 2, 3)))
    quoted = [quote_from_bytes(random.choice(NAMES).encode("utf-8", "surrogatepass"), safe="") for _ in keys]
    return "&".join(f"{key}={value}" for key, value in zip(keys, quoted, strict=True))


def _body(usual: Any, random: Random) -> bytes:
    kind = random.random()
    if kind < 0.6:
        value = usual
        for _ in range(random.choice((0, 1, 1, 1, 3))):
            value = damaged(value, random)
        return as_bytes(value)
    if kind < 0.7:
        return as_bytes(random.choice(ODD))
    if kind < 0.8:
        return random.randbytes(random.choice((0, 1, 10, 1000)))
    if kind < 0.9:
        return as_bytes(usual).decode().encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    size = random.choice((MOST - 100, MOST + 1, 3 * MOST))
    return random.choice((b"[" * size, b" " * size, b'{"prompt": "' + b"a" * size + b'"}', b"[" + b"[]," * (size // 3)))


class Fuzzer:
    """Sends requests to a server. Fields: statuses; defects, (seed of the request, what went wrong)."""

    def __init__(self, client: Client, base: Path):
        self.client, self.base = client, base
        self.statuses: Counter[str] = Counter()
        self.defects: list[tuple[str, str]] = []
        self.before = self.state()

    def one(self, seed: str) -> list[str]:
        """Send the request of a seed. Returns: its defects."""
        request = make_request(Random(seed))
        status = self.send(request)
        self.statuses[str(status)] += 1
        shown = f"{request.method} {request.path[:100]} {request.headers} {(request.body or b'')[:200]!r}"
        found = [f"HTTP {status}: {shown}"] if not (status == 200 or 400 <= status < 500) else []
        if len(request.body or b"") > MOST and status == 200 and request.method == "POST":
            found.append(f"a body of {len(request.body or b'')} bytes is read: {shown}")
        self.defects += [(seed, words) for words in found]
        return found

    def send(self, request: Request) -> int:
        """The status of the answer."""
        try:
            body = None if request.body is None else io.BytesIO(request.body)  # aiohttp warns of large bytes
            self.client.fetch(request.path, method=request.method, timeout=20, data=body, headers=request.headers)
        except ComfyUIError as error:
            found = re.search(r"HTTP (\d+)", str(error))
            assert found is not None
            return int(found[1])
        return 200

    def state(self) -> Any:
        """What no request may change: the files, and the queue."""
        files = {
            str(path.relative_to(self.base)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.base.rglob("*")
            if path.is_file() and path.name not in UNCHANGED and "custom_nodes" not in path.parts
        }
        return files, self.client.get("/queue"), self.client.get("/history")

    def changes(self) -> list[str]:
        """What the requests changed."""
        after = self.state()
        words = ("files", "the queue", "the history")
        found = [name for name, old, new in zip(words, self.before, after, strict=True) if old != new]
        self.defects += [("", f"changed: {name}") for name in found]
        return found


def main(words: list[str]) -> int:
    seeds = command.seeds_of(words, "routes", __doc__, "request", 1000)
    with command.comfyui() as (installation, base), Server(installation, base) as server:
        fuzzer = Fuzzer(server.client, server.base)
        command.run_all(seeds, fuzzer.one)
        for name in fuzzer.changes():
            print(f"changed: {name}", file=sys.stderr)
    return command.status(fuzzer.defects, requests=len(seeds), statuses=fuzzer.statuses)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
