"""The tensor names in a GGUF file's header: enough to count a model's blocks. No tensor is read.

Source of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from os import PathLike
from typing import BinaryIO

from .errors import DamagedError, NotSafetensorsError, UnreadableError

SUFFIX = ".gguf"
MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_BYTES = 100_000_000  # of a header, as of a safetensors file
MOST_TENSORS, MOST_VALUES, LONGEST = 100_000, 10_000_000, 1_000_000  # tensors, values of a list, bytes of a text
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type of a value -> bytes
TEXT, LIST = 8, 9  # the types without a fixed size


def tensor_names(path: str | PathLike[str]) -> list[str]:
    """The names of a file's tensors, in the file's order.

    Raises: UnreadableError if it cannot be read; NotSafetensorsError if it is no GGUF file, or of a version that is
        not known here; DamagedError if its header ends early or holds impossible sizes.
    """
    try:
        with open(path, "rb") as file:
            return _Reader(file, path).names()
    except OSError as error:
        raise UnreadableError(path, f"it cannot be read: {error.strerror or error}") from error


class _Reader:
    """The header of an open file, read from its beginning."""

    def __init__(self, file: BinaryIO, path: object):
        self.file, self.path, self.left = file, path, MOST_BYTES

    def names(self) -> list[str]:
        if self.bytes(4) != MAGIC:
            raise NotSafetensorsError(self.path, "it is no GGUF file", "Take the file whose name it has")
        version = self.number("I")
        if version not in VERSIONS:
            right = "Take one of version 2 or 3"
            raise NotSafetensorsError(self.path, f"it is a GGUF file of version {version}", right)
        tensors, settings = self.count(MOST_TENSORS, "tensors"), self.count(MOST_TENSORS, "settings")
        for _ in range(settings):
            self.text()
            self.skip(self.number("I"))
        found = []
        for _ in range(tensors):
            found.append(self.text())
            dimensions = self.number("I")
            if dimensions > 8:
                raise DamagedError(self.path, f"a tensor has {dimensions} dimensions")
            self.bytes(8 * dimensions + 4 + 8)  # shape, type, offset
        return found

    def skip(self, kind: int, depth: int = 0) -> None:
        """Pass over one value. Args: kind, its type."""
        if kind in FIXED:
            self.bytes(FIXED[kind])
        elif kind == TEXT:
            self.text()
        elif kind == LIST and depth < 2:
            of, count = self.number("I"), self.count(MOST_VALUES, "values of a setting")
            if of in FIXED:
                self.bytes(FIXED[of] * count)
            else:
                for _ in range(count):
                    self.skip(of, depth + 1)
        else:
            raise DamagedError(self.path, f"a setting is of the unknown type {kind}")

    def text(self) -> str:
        return self.bytes(self.count(LONGEST, "bytes of a text")).decode("utf-8", errors="replace")

    def count(self, most: int, what: str) -> int:
        found = self.number("Q")
        if found > most:
            raise DamagedError(self.path, f"its header states {found} {what}")
        return found

    def number(self, kind: str) -> int:
        return struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]

    def bytes(self, length: int) -> bytes:
        self.left -= length
        if self.left < 0:
            raise DamagedError(self.path, f"its header has more than {MOST_BYTES} bytes")
        found = self.file.read(length)
        if len(found) < length:
            raise DamagedError(self.path, "its header ends early")
        return found
