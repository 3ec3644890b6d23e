"""Messages for the person at the keyboard: one line for each long step, with its time and its current detail."""

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
from types import TracebackType


class UserError(Exception):
    """An error that the user can mend; shown without a traceback."""


ROUTINE = ("WARNING", "Requirement already", "  ")  # starts of output lines that are not shown as a step's detail


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


class Step:
    """A long step: `with Step("Installing torch") as step: step.update("its current detail")`.

    On a terminal the line is redrawn in place. Elsewhere the step prints its start, a line every 20 seconds and its
    end, so that a log stays readable.
    """

    def __init__(self, title: str, *, interval: float | None = None):
        self.title, self.detail, self.printed_at = title, "", 0.0
        self.on_terminal = sys.stdout.isatty()
        self.interval = interval or (0.2 if self.on_terminal else 20.0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._print_regularly, daemon=True)

    def __enter__(self) -> Step:
        self.start = time.monotonic()
        if not self.on_terminal:
            say(f"{self.title} ...")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        word = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "failed"
        self.end(word)

    def end(self, word: str) -> None:
        """Print how the step ended and its time."""
        self._done.set()
        self._thread.join()
        self._print(f"{self.title}: {word} ({self.seconds:.0f} s)", end="\n")

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.start

    def update(self, detail: str, *, now: bool = False) -> None:
        """Set the current detail; `now` prints it at once, for steps with rare updates."""
        self.detail = " ".join(detail.split())[:100]
        if now and (self.on_terminal or self.seconds - self.printed_at >= 1):
            self.printed_at = self.seconds
            self._print_detail()

    def _print_regularly(self) -> None:
        while not self._done.wait(self.interval):
            self._print_detail()

    def _print_detail(self) -> None:
        self._print(f"{self.title} ({self.seconds:.0f} s) {self.detail}", end="" if self.on_terminal else "\n")

    def _print(self, text: str, end: str) -> None:
        if self.on_terminal:
            width = shutil.get_terminal_size().columns - 1
            text = f"\r{text[:width]:<{width}}"
        print(text, end=end, flush=True)


def bar(value: int, total: int, width: int = 30) -> str:
    """A progress bar as text: `[######......] 5/20`."""
    filled = round(width * value / total) if total else 0
    return f"[{'#' * filled}{'.' * (width - filled)}] {value}/{total}"


def run(command: Sequence[str | Path], *, title: str, log: Path, hints: Sequence[tuple[str, str]] = ()) -> None:
    """Run a command as one step and append its output to a log.

    Args: hints, pairs of (a phrase in the output, its meaning for the user); the first that is found is shown.
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
                if not line.startswith(ROUTINE):
                    step.update(line)
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            process.stdout.close()
        if code:
            output = "\n".join(tail)
            meaning = next((f"{hint}\n" for phrase, hint in hints if phrase in output), "")
            last = "\n".join(f"    {line}" for line in list(tail)[-12:])
            raise UserError(f"{title} failed.\n{meaning}The last lines were:\n{last}\nThe whole output is in {log}.")
