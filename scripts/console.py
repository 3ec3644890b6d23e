"""Telling a person what goes on: one line for each long step, its time, and what it is doing now."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path


class UserError(Exception):
    """Something that the person at the keyboard has to know; shown without a traceback."""


UNREMARKABLE = ("WARNING", "Requirement already", "  ")  # lines of a command's output that tell a person nothing


def say(text: str) -> None:
    print(text, flush=True)


class Step:
    """A long step: `with Step("Installing torch") as step: step.update("now this")`.

    On a terminal the line is redrawn in place. Elsewhere the step prints its start, a sign of life every 20 seconds
    and its end, so that a log stays readable.
    """

    def __init__(self, title: str, *, tick: float | None = None):
        self.title, self.detail, self.told = title, "", 0.0
        self.live = sys.stdout.isatty()
        self.tick = tick or (0.2 if self.live else 20.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Step:
        self.start = time.monotonic()
        if not self.live:
            say(f"{self.title} ...")
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._done.set()
        self._thread.join()
        word = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "failed"
        self._line(f"{self.title}: {word} ({self.seconds:.0f} s)", end="\n")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def update(self, detail: str, *, now: bool = False) -> None:
        """Say what the step does; `now` draws it at once, for steps that come slowly."""
        self.detail = " ".join(detail.split())[:100]
        if now and (self.live or self.seconds - self.told >= 1):
            self.told = self.seconds
            self._line(f"{self.title} ({self.seconds:.0f} s) {self.detail}", end="" if self.live else "\n")

    def _beat(self) -> None:
        while not self._done.wait(self.tick):
            self._line(f"{self.title} ({self.seconds:.0f} s) {self.detail}", end="" if self.live else "\n")

    def _line(self, text: str, end: str) -> None:
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            text = f"\r{text[:width]:<{width}}"
        print(text, end=end, flush=True)


def bar(value: int, total: int, width: int = 30) -> str:
    """A progress bar as text: `[######......] 5/20`."""
    filled = round(width * value / total) if total else 0
    return f"[{'#' * filled}{'.' * (width - filled)}] {value}/{total}"


def run(command: Sequence[str | Path], *, title: str, log: Path, hints: Sequence[tuple[str, str]] = ()) -> None:
    """Run a command as one step, its output kept in a log.

    Args: hints, pairs of (a phrase in the output, what it means for the user); the first that is found is shown.
    Raises: UserError with the end of the output if the command fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: deque[str] = deque(maxlen=400)
    words = [str(word) for word in command]
    with Step(title) as step, log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"\n$ {' '.join(words)}\n")
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                tail.append(line.rstrip())
                if not line.startswith(UNREMARKABLE):
                    step.update(line)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if code:
            output = "\n".join(tail)
            meaning = next((f"{hint}\n" for phrase, hint in hints if phrase in output), "")
            last = "\n".join(f"    {line}" for line in list(tail)[-12:])
            raise UserError(f"{title} failed.\n{meaning}The last lines were:\n{last}\nThe whole output is in {log}.")
