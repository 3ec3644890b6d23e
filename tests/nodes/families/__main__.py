"""`python -m tests.nodes.families` prints the page docs/families.md: what each node does on each family of models.

`--only NAME` limits it to the families whose names contain NAME.
"""

from __future__ import annotations

import argparse
import sys

from scripts import in_process


def main() -> None:
    """Run all cells and print the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.nodes.families", description=__doc__)
    parser.add_argument("--only", default="", metavar="NAME", help="limit it to the families with NAME in their names")
    only = parser.parse_args().only
    in_process.prepare("--cpu")
    import torch

    from tests.nodes.families import page  # ComfyUI must be on sys.path before

    torch.set_num_threads(1)
    names = [name for name in page.FAMILIES if only.lower() in name.lower()]
    sys.stdout.write(page.page(in_process.load_pack(), names))


if __name__ == "__main__":
    main()
