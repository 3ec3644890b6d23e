"""Checks the types of everything that is shipped, of the scripts and of evaluation/.

    python -m scripts.check_types

ComfyUI loads the repository as a package, so the modules in nodes/ import `..mmdit_core`. mypy resolves such an import
only below a package with a valid name; a link gives the repository one, whatever its folder is called.
"""

from __future__ import annotations

import subprocess
import sys

from scripts.console import UserError
from scripts.environment import ROOT
from scripts.in_process import PACK
from scripts.server import link_folder

FOLDER = ROOT / ".test-output" / "types"
OTHERS = ("scripts", "evaluation")
SHIPPED = ("__init__.py", "nodes", "attributes", "mmdit_core")


def main() -> int:
    """Run mypy on the code around the pack, and on the pack; returns the exit status."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    link_folder(ROOT, FOLDER / PACK)
    # One cache for both: most of a first run is spent on the types of the libraries.
    cache = ("--cache-dir", FOLDER / "cache")
    mypy = (sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", *cache)
    others = subprocess.run([*mypy, *OTHERS], cwd=ROOT)
    pack = subprocess.run([*mypy, *(f"{PACK}/{name}" for name in SHIPPED)], cwd=FOLDER)
    return others.returncode or pack.returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"\n{error}")
