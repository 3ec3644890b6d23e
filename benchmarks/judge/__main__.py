"""`python -m benchmarks.judge`: how often the judge errs, on right images and on images with one fault each.

The images are drawn by benchmarks/judge/images.py and benchmarks/judge/faults.py; docs/judge.md defines both sets. A
right image is judged wrongly if any column is False; a faulty one if a column that its fault makes wrong is True.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np

from attributes.judge import COLUMNS, score, wilson
from attributes.world import Scene

from .faults import FAULTS, faulty_image
from .images import right_image

RIGHT = "right"


def images_of(kind: str, seed: int, number: int) -> list[tuple[Scene, np.ndarray]]:
    """Scenes and images of a fault, or of RIGHT; each image has its own seed."""
    rngs = [random.Random(f"{seed}/{kind}/{index}") for index in range(number)]
    return [right_image(rng) if kind == RIGHT else faulty_image(kind, rng) for rng in rngs]


def judged_right(kind: str, found: dict[str, bool]) -> bool:
    """True if the judge's answer is correct."""
    return found["all"] if kind == RIGHT else not any(found.get(column, False) for column in (*FAULTS[kind][1], "all"))


def measure(seed: int, number: int) -> dict[str, dict]:
    """Judge `number` right images and as many faulty ones, in equal parts for each fault.

    Returns: by kind, the images, the errors, the images passed as right in all, and the columns True in percent.
    """
    out = {}
    each = -(-number // len(FAULTS))
    for kind in (RIGHT, *FAULTS):
        scores = [score(image, scene) for scene, image in images_of(kind, seed, number if kind == RIGHT else each)]
        rows = {column: [found[column] for found in scores if column in found] for column in COLUMNS}
        out[kind] = {
            "images": len(scores),
            "errors": sum(not judged_right(kind, found) for found in scores),
            "passed": sum(found["all"] for found in scores),
            "true": {column: round(100 * sum(row) / len(row), 1) for column, row in rows.items() if row},
        }
    return out


def line_of(kind: str, errors: int, images: int) -> str:
    low, high = wilson(errors, images)
    return f"{kind:>20} {errors:5d} of {images:5d}  {100 * errors / images:5.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def milliseconds(seed: int, number: int = 100) -> float:
    """Mean time of one image."""
    images = images_of(RIGHT, seed, number)
    score(images[0][1], images[0][0])  # makes what is computed once
    start = time.perf_counter()
    for scene, image in images:
        score(image, scene)
    return 1000 * (time.perf_counter() - start) / number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--number", type=int, default=1000, help="right images, and faulty ones, of each seed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    figures = {}
    for seed in given.seeds:
        figures[seed] = found = measure(seed, given.number)
        print(f"seed {seed}")
        for kind, row in found.items():
            print(line_of(kind, row["errors"], row["images"]), "".join(f"  {k} {v:g}" for k, v in row["true"].items()))
        faulty = [row for kind, row in found.items() if kind != RIGHT]
        print(line_of("all faulty", sum(row["errors"] for row in faulty), sum(row["images"] for row in faulty)))
        print(line_of("passed as right", sum(row["passed"] for row in faulty), sum(row["images"] for row in faulty)))
    print(f"{milliseconds(given.seeds[0]):.1f} ms an image")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
