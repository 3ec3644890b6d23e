"""The errors of checkpoints: one class a kind, with the facts as attributes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

DOWNLOAD_AGAIN = "Download it again, and compare its size with the one on its download page"


class CheckpointError(ValueError):
    """A checkpoint cannot be used.

    Attributes: source, the file or folder; found, what is wrong with it; right, what would be right: `usual` unless it
    is given.
    """

    usual: ClassVar[str] = "Take another file of this model"

    def __init__(self, source: object, found: str, right: str = ""):
        self.source, self.found, self.right = source, _shown(found), right or self.usual
        super().__init__(_shown(f"{source}: {found}. {self.right.removesuffix('.')}."))


class UnreadableError(CheckpointError):
    """A file does not exist, cannot be read, or does not say which model is meant."""

    usual = "Name a file that exists and that this program may read"


class NotSafetensorsError(CheckpointError):
    """A file is of another format: a pickle, GGUF, a web page."""

    usual = "Take the .safetensors version of this model"


class DamagedError(CheckpointError):
    """A safetensors file is truncated, or its header or index is damaged."""

    usual = DOWNLOAD_AGAIN


class UnknownModelError(CheckpointError):
    """A file holds no transformer of this family."""


class TensorsError(CheckpointError):
    """A transformer's tensors do not fit: missing, surplus, or of a wrong shape or dtype. Attribute: names of them."""

    usual = "Take the file as its makers published it"

    def __init__(self, source: object, found: str, right: str = "", *, names: Iterable[str] = ()):
        self.names = tuple(names)
        super().__init__(source, found, right)


def _shown(words: str) -> str:
    """Words that can be shown: names in a file may hold half a surrogate pair."""
    return words.encode("utf-8", errors="backslashreplace").decode()


def listing(names: Iterable[object], most: int = 4) -> str:
    """The first names and the number of the others: 'a, b, c, d and 20 more'."""
    shown = [str(name)[:100] for name in names]
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {more} more" if more > 0 else "")


def are(count: int) -> str:
    """'1 tensor is', '3 tensors are'."""
    return "1 tensor is" if count == 1 else f"{count} tensors are"
