"""`python -m benchmarks.judge`: how often the judge errs, on right images and on images with one fault each.

The images are drawn by benchmarks/judge/images.py and benchmarks/judge/faults.py; docs/judge.md defines both sets. A
right image is judged wrongly if any column is False; a faulty one if a column that its fault makes wrong is True.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from attributes.judge import COLUMNS, score, wilson
from attributes.world import Scene

from .faults import FAULTS, faulty_image
from .images import right_image

RIGHT = "right"
Through = Callable[[np.ndarray], np.ndarray]  # an image [H, W, 3] in [0, 1] -> another


def images_of(kind: str, seed: int, number: int) -> list[tuple[Scene, np.ndarray]]:
    """Scenes and images of a fault, or of RIGHT; each image has its own seed."""
    rngs = [random.Random(f"{seed}/{kind}/{index}") for index in range(number)]
    return [right_image(rng) if kind == RIGHT else faulty_image(kind, rng) for rng in rngs]


def judged_right(kind: str, found: dict[str, bool]) -> bool:
    """True if the judge's answer is correct."""
    return found["all"] if kind == RIGHT else not any(found.get(column, False) for column in (*FAULTS[kind][1], "all"))


def small_models_vae() -> Through:
    """Encoding and decoding by the small model's VAE."""
    import torch

    from benchmarks.attributes.__main__ import MODEL, ROOT
    from training.render import Renderer

    renderer = Renderer(MODEL, ROOT / ".host" / "ComfyUI")
    return lambda image: renderer.through_vae(torch.from_numpy(image[None]))[0].numpy()


def measure(seed: int, number: int, through: Through | None = None) -> dict[str, dict]:
    """Judge `number` right images and as many faulty ones, in equal parts for each fault.

    Args: through, a change of all images before they are judged.
    Returns: by kind, the images, the errors, the images passed as right in all, and the columns True in percent.
    """
    out = {}
    each = -(-number // len(FAULTS))
    for kind in (RIGHT, *FAULTS):
        images = images_of(kind, seed, number if kind == RIGHT else each)
        scores = [score(through(image) if through else image, scene) for scene, image in images]
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
    """Mean processor time of one image."""
    images = images_of(RIGHT, seed, number)
    score(images[0][1], images[0][0])  # makes what is computed once
    start = time.process_time()
    for scene, image in images:
        score(image, scene)
    return 1000 * (time.process_time() - start) / number


def contact_sheet(seed: int, columns: int = 8, width: int = 168, height: int = 206) -> Image.Image:
    """One image of each kind with the columns that the judge finds wrong."""
    kinds = (RIGHT, *FAULTS)
    sheet = Image.new("RGB", (columns * width, -(-len(kinds) // columns) * height), (70, 70, 70))
    pen = ImageDraw.Draw(sheet)
    for index, kind in enumerate(kinds):
        left, top = index % columns * width, index // columns * height
        ((scene, image),) = images_of(kind, seed, 1)
        found = score(image, scene)
        wrong = [column for column in COLUMNS[:-1] if not found.get(column, True)]
        groups = [f"{group.count} {group.size} {group.colour} {group.shape}" for group in scene.groups]
        lines = (kind, f"{groups[0]} {scene.relation}")
        lines += (f"{groups[1] if len(groups) > 1 else ''} ({scene.background})", "wrong: " + (", ".join(wrong) or "-"))
        for row, line in enumerate(lines):
            colour = ((255, 255, 160), (230, 230, 230), (230, 230, 230), (255, 160, 160))[row]
            pen.text((left + 4, top + 10 * row), line.replace("  ", " "), fill=colour)
        sheet.paste(Image.fromarray((image * 255).round().astype(np.uint8)), (left + 4, top + 44))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--number", type=int, default=1000, help="right images, and faulty ones, of each seed")
    parser.add_argument(
        "--vae", action="store_true", help="encode and decode all images by the small model's VAE first"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--sheet", type=Path, help="only write one judged image of each kind to this file")
    given = parser.parse_args()
    if given.sheet:
        contact_sheet(given.seeds[0]).save(given.sheet, quality=80)
        return
    figures, through = {}, small_models_vae() if given.vae else None
    for seed in given.seeds:
        figures[seed] = found = measure(seed, given.number, through)
        print(f"seed {seed}")
        for kind, row in found.items():
            print(line_of(kind, row["errors"], row["images"]), "".join(f"  {k} {v:g}" for k, v in row["true"].items()))
        faulty = [row for kind, row in found.items() if kind != RIGHT]
        print(line_of("all faulty", sum(row["errors"] for row in faulty), sum(row["images"] for row in faulty)))
        print(line_of("passed as right", sum(row["passed"] for row in faulty), sum(row["images"] for row in faulty)))
    print(f"{milliseconds(given.seeds[0]):.1f} ms of processor time an image")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
