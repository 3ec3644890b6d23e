"""Runs all checks of this project: lint, format, types and all tests.

    python scripts/test.py [pytest arguments]        for instance: python scripts/test.py tests/core -k schedule

Without arguments the tests run in several processes, each with a ComfyUI of its own. The first run makes the
environment in .venv/ and finds or fetches ComfyUI; later runs start within seconds.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
if str(ROOT) not in sys.path:  # it is there if this file is imported as scripts.test
    sys.path.insert(0, str(ROOT))
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")

from scripts import browser, installations
from scripts.console import UserError, say

# (name, arguments of `python -m`)
CHECKS = (
    ("lint", ("ruff", "check", ".")),
    ("format", ("ruff", "format", "--check", ".")),
    ("types", ("scripts.check_types",)),
)

MOST_PROCESSES = 4  # each has a ComfyUI and a browser, 3 GB together


def main(arguments: list[str]) -> int:
    """Make the environment, run all checks and print a summary; returns the exit status."""
    installation, python = installations.find_for_tests()
    if not installation.owned:
        say(f"ComfyUI: {installation.folder} (its Python: {installation.python})")
    if browser.ensure() is None:
        say("No Chromium, Chrome or Edge was found: the browser tests will be skipped.")
    results = [(name, *timed(python, words)) for name, words in CHECKS]
    results.append(("tests", *timed(python, ("pytest", *(arguments or in_parallel())))))
    say("\nSummary")
    for name, code, seconds in results:
        say(f"    {name:8} {'passed' if code == 0 else 'FAILED':8} {seconds:6.0f} s")
    return int(any(code for _, code, _ in results))


def in_parallel() -> tuple[str, ...]:
    """pytest's arguments for a process on each core, at most MOST_PROCESSES; a file's tests stay in one process."""
    return ("-n", str(min(os.cpu_count() or 1, MOST_PROCESSES)), "--dist", "loadfile", "--durations", "25")


def timed(python: Path, words: tuple[str, ...]) -> tuple[int, float]:
    """Run one check in the project's folder; returns its exit status and seconds."""
    say(f"\n$ {' '.join(words)}")
    start = time.monotonic()
    # The tests' models are tiny, and threads of several processes on the same cores wait for each other.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    code = subprocess.run([python, "-m", *words], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL).returncode
    return code, time.monotonic() - start


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
