"""`python -m benchmarks.edit`: choose each method's settings, then measure 200 edits, 40 of each kind.

The images to edit are sampled by the model (28 steps of euler, cfg 3) and right in everything. Results are stored as
they are made; a stopped run continues where it was. Another --model repeats everything with that file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from training.render import Renderer

from .edits import KINDS, MEASURE
from .measures import rest_of
from .methods import Sampler
from .report import by_kind, contact_sheet, overlay, tables
from .run import Job, Run, measured, reference
from .store import Store

ROOT = Path(__file__).resolve().parents[2]
EXACT = "exact edit, drawn, through the VAE"
SHEET_ROWS = 2 * len(KINDS)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "mmdit-small.safetensors")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="for its tokenizers")
    parser.add_argument(
        "--number", type=int, default=40, help="measured edits of each kind; a multiple of 4 if it is raised later"
    )
    parser.add_argument("--choose", type=int, default=3, help="edits of each kind for the choice of settings")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--store", type=Path, default=ROOT / ".test-output" / "edit", help="folder of stored results")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "edit.json", help="file for the figures")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs" / "edit.png", help="PNG file, two edits a kind")
    parser.add_argument("--masks", type=Path, help="PNG file: the sheet's edits with what may change in magenta")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    """Choose, measure, print the tables."""
    given = parse()
    torch.set_num_threads(given.threads)
    renderer = Renderer(given.model, given.comfyui)
    run = Run(Sampler(renderer), Store(given.store, given.model))
    jobs, tried = run.choose(given.choose)
    for job in jobs:
        print(f"{job.label}: {job.settings}", flush=True)
    sources = run.sources(MEASURE, given.number)
    exact = reference(renderer, sources.edits)
    rows: dict[str, list[dict]] = {job.label: [] for job in jobs}
    shown = {}
    for job, start, images in run.edit(sources, jobs):
        rows[job.label] += measured(sources, start, images)
        if start == 0:
            shown[job.label] = images[:SHEET_ROWS]
        _write(given.json, run.store.model, jobs, tried, sources.refused, {**rows, EXACT: exact})
    edits, before = sources.edits[:SHEET_ROWS], sources.images[:SHEET_ROWS].numpy()
    after = {label: (images, rows[label]) for label, images in shown.items()}
    contact_sheet(edits, before, after).save(given.sheet, optimize=True)
    if given.masks:
        masked = {
            label: ([_mark(*each) for each in zip(edits, before, images, strict=True)], rows[label])
            for label, images in shown.items()
        }
        contact_sheet(edits, before, masked).save(given.masks)
    print(tables({label: by_kind(each) for label, each in {**rows, EXACT: exact}.items()}))


def _mark(edit, before, after):
    return overlay(after, rest_of(edit, before, after))


def _write(path: Path, model: str, jobs: list[Job], tried: list[dict], refused: dict, rows: dict) -> None:
    found = {
        "model": model,
        "refused images to edit": refused,
        "settings": {job.label: job.settings for job in jobs},
        "methods": {label: by_kind(each) for label, each in rows.items() if each},
        "tried": tried,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
