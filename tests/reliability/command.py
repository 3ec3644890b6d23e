"""What the commands of the fuzz have in common: options, the defects as they come, and the outcomes as JSON."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.installations import Installation, without_installing


def seeds_of(words: list[str], name: str, about: str | None, what: str, count: int) -> list[str]:
    """The seeds of the runs that a command line asks for. Args: what is counted; count, the default."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.reliability.{name}", description=about)
    parser.add_argument("--count", type=int, default=count, help=f"number of {what}s")
    parser.add_argument("--seed", default="0", help=f"a number, or seed/number of one {what} to repeat")
    given = parser.parse_args(words)
    return [given.seed] if "/" in given.seed else [f"{given.seed}/{number}" for number in range(given.count)]


@contextmanager
def comfyui() -> Iterator[tuple[Installation, Path]]:
    """The ComfyUI that the tests use, and a folder for a server's files."""
    installation = without_installing()
    assert installation is not None, "run `python scripts/test.py` once"
    with tempfile.TemporaryDirectory() as base:
        yield installation, Path(base)


def run_all(seeds: Iterable[str], one: Callable[[str], list[str]]) -> None:
    """Run each seed and say its defects at once."""
    for seed in seeds:
        for defect in one(seed):
            print(f"{seed}: {defect}", file=sys.stderr, flush=True)


def status(defects: list[Any], **found: Any) -> int:
    """Print what was found, with the number of defects. Returns: the exit status."""
    print(json.dumps({**found, "defects": len(defects)}, indent=1))
    return int(bool(defects))
