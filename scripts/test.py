"""Runs all checks of this project: lint, format, types, versions and all tests.

    python scripts/test.py [pytest arguments]        for instance: python scripts/test.py tests/core -k schedule
    python scripts/test.py --comfyui 0.27.0          the tests marked `floor`, on another release of ComfyUI

Without arguments all tests run in several processes, each with a ComfyUI of its own, and those marked `floor` on the
oldest release that the pack supports and those marked `frontend` on the newest frontend too. The first run makes the
environment in .venv/ and finds or fetches ComfyUI; later runs start within seconds.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
if str(ROOT) not in sys.path:  # it is there if this file is imported as scripts.test
    sys.path.insert(0, str(ROOT))
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")

from scripts import browser, installations
from scripts.console import UserError, say
from scripts.installations import OLDEST, REFUSED, RELEASES

# (name, arguments of `python -m`)
CHECKS = (
    ("lint", ("ruff", "check", ".")),
    ("format", ("ruff", "format", "--check", ".")),
    ("versions", ("scripts.check_versions",)),
)
TYPES = ("types", ("scripts.check_types",))  # a minute on one core, next to the other checks and the first tests

MOST_PROCESSES = 4  # each has a ComfyUI and a browser, 3 GB together
Result = tuple[str, int, float]  # name, exit status, seconds


def main(words: list[str]) -> int:
    """Make the environment, run all checks and print a summary; returns the exit status."""
    given, arguments = options(words)
    installation, python = installations.find_for_tests()
    if not installation.owned:
        say(f"ComfyUI: {installation.folder} (its Python: {installation.python})")
    if given.comfyui:
        return summary([on_release(python, given.comfyui, arguments)])
    if browser.ensure() is None:
        say("No Chromium, Chrome or Edge was found: the browser tests will be skipped.")
    everything = not arguments
    if everything and installation.owned:  # packages of the user's own ComfyUI may not fit the older ones
        installations.fetch(python, RELEASES[OLDEST])
        installations.fetch(python, RELEASES[REFUSED])
    with ThreadPoolExecutor() as pool:
        types = pool.submit(timed, TYPES[0], python, TYPES[1], quiet=True)
        results = [timed(name, python, check) for name, check in CHECKS]
        if everything and installation.owned:
            results.append(on_release(python, OLDEST, []))
        results.append(types.result())
    if everything and installation.owned:
        newest = ("pytest", "tests/browser", "--frontend", "newest", "-m", "frontend", *in_parallel())
        results.append(timed("frontend", python, newest))
    results.append(timed("tests", python, ("pytest", *(arguments or in_parallel()))))
    return summary(results)


def options(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line: the options of this script, and the arguments for pytest."""
    parser = argparse.ArgumentParser(prog="test.py", description="All checks; other arguments are pytest's.")
    versions = [version for version in RELEASES if version != REFUSED]
    parser.add_argument("--comfyui", choices=versions, help="run the tests marked `floor` on this release alone")
    return parser.parse_known_args(words)


def on_release(python: Path, version: str, arguments: list[str]) -> Result:
    """Run the tests marked `floor`, or those that the arguments choose, on the copy of a release."""
    folder = installations.fetch(python, RELEASES[version])
    words = ("pytest", *(arguments or ("tests/nodes", "-m", "floor", *in_parallel())))
    return timed(f"on {version}", python, words, COMFYUI_PATH=str(folder))


def in_parallel() -> tuple[str, ...]:
    """pytest's arguments for a process on each core, at most MOST_PROCESSES; a file's tests stay in one process."""
    return ("-n", str(min(os.cpu_count() or 1, MOST_PROCESSES)), "--dist", "loadfile", "--durations", "25")


def timed(name: str, python: Path, words: tuple[str, ...], *, quiet: bool = False, **variables: str) -> Result:
    """Run one check in the project's folder, with these environment variables besides the present ones.

    Args: quiet, to print what it says at its end, in one piece.
    """
    command = "\n$ " + " ".join((*(f"{key}={value}" for key, value in variables.items()), *words))
    if not quiet:
        say(command)
    start = time.monotonic()
    # The tests' models are tiny, and threads of several processes on the same cores wait for each other.
    environment = {"OMP_NUM_THREADS": "1"} | os.environ | variables
    output = subprocess.PIPE if quiet else None
    ended = subprocess.run(
        [python, "-m", *words],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if quiet:
        say(f"{command}\n{ended.stdout}")
    return name, ended.returncode, time.monotonic() - start


def summary(results: list[Result]) -> int:
    """Print what each check gave; returns the exit status."""
    say("\nSummary")
    for name, code, seconds in results:
        say(f"    {name:9} {'passed' if code == 0 else 'FAILED':8} {seconds:6.0f} s")
    return int(any(code for _, code, _ in results))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
