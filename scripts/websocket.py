"""A small WebSocket client (RFC 6455): enough to listen to a ComfyUI server on this machine."""

from __future__ import annotations

import base64
import os
import socket
import struct

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """One connection; `receive` returns text as str and binary messages as bytes."""

    def __init__(self, host: str, port: int, path: str, *, timeout: float = 10.0):
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.socket.sendall(request.encode())
        while b"\r\n\r\n" not in self.buffer:
            self._fill()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].decode(errors="replace")
        if " 101 " not in f"{status} ":
            raise ConnectionError(f"The server refused the WebSocket: {status}")

    def receive(self, timeout: float | None = None) -> str | bytes | None:
        """The next message; None if the server closed the connection.

        Raises: TimeoutError if nothing arrives in time; what had arrived is kept for the next call.
        """
        self.socket.settimeout(timeout)
        kind, payload = TEXT, b""
        while True:
            try:
                opcode, final, data = self._frame()
            except ConnectionError:
                return None
            if opcode == CLOSE:
                return None
            if opcode == PING:
                self._send(PONG, data)
            elif opcode != PONG:
                kind, payload = opcode or kind, payload + data
                if final:
                    return payload.decode() if kind == TEXT else payload

    def send(self, text: str) -> None:
        self._send(TEXT, text.encode())

    def close(self) -> None:
        try:
            self._send(CLOSE, b"")
        except OSError:
            pass
        self.socket.close()

    def _frame(self) -> tuple[int, bool, bytes]:
        self._need(2)
        first, second = self.buffer[0], self.buffer[1] & 0x7F
        start, form = {126: (4, ">H"), 127: (10, ">Q")}.get(second, (2, ""))
        self._need(start)
        length = struct.unpack(form, self.buffer[2:start])[0] if form else second
        self._need(start + length)
        data, self.buffer = self.buffer[start : start + length], self.buffer[start + length :]
        return first & 0x0F, bool(first & 0x80), data

    def _need(self, count: int) -> None:
        while len(self.buffer) < count:
            self._fill()

    def _fill(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("The server closed the connection.")
        self.buffer += data

    def _send(self, opcode: int, data: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        length = bytes([0x80 | len(data)]) if len(data) < 126 else struct.pack(">BH", 0x80 | 126, len(data))
        self.socket.sendall(bytes([0x80 | opcode]) + length + mask + masked)
