"""Generates an image from a prompt with this pack's nodes, in a real ComfyUI.

    python scripts/run.py                                     the prompt of the example workflow
    python scripts/run.py "a red circle and a blue square"    another prompt
    python scripts/run.py --ui                                leaves the server up and prints the address to open

The first run makes the environment in .venv/ and finds or fetches ComfyUI; later runs start within seconds. This file
needs the standard library only; scripts/generate.py does the rest with the Python of that environment.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).absolute().parents[1]
if str(ROOT) not in sys.path:  # it is there if this file is imported as scripts.run
    sys.path.insert(0, str(ROOT))
if sys.version_info < (3, 10):
    sys.exit(f"Python 3.10 or newer is needed; this is {sys.version.split()[0]}.")

from scripts import installations
from scripts.console import UserError


def options(words: list[str]) -> argparse.Namespace:
    """The command line, parsed."""
    parser = argparse.ArgumentParser(prog="run.py", description="An image from a prompt, generated in ComfyUI.")
    parser.add_argument("prompt", nargs="?", help="what the image shows (default: the example's prompt)")
    parser.add_argument("--ui", action="store_true", help="leave the server up and print the address to open")
    parser.add_argument("--output", type=Path, metavar="FILE.png", help="where to save (default: in output/)")
    parser.add_argument("--seed", type=int, help="another seed gives another image (default: the example's)")
    return parser.parse_args(words)


def main(words: list[str]) -> NoReturn:
    """Find or make a ComfyUI, then continue in scripts/generate.py with its Python."""
    options(words)  # a wrong option ends the run before anything is installed
    command = [str(installations.find().python), str(ROOT / "scripts" / "generate.py"), *words]
    sys.stdout.flush()
    if os.name == "nt":  # there, exec returns to the shell at once
        sys.exit(subprocess.run(command).returncode)
    os.execv(command[0], command)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped.")
