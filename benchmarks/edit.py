"""What an edit by FlowInvert keeps: one group's colour changed by the prompt, as in workflows/inversion-and-edit.json.

    python -m benchmarks.edit [--model FILE] [--pictures 16] [--steps 28] [--json FILE]

Each picture is sampled from a prompt that names everything, background and all, on combinations that training shows
(euler, cfg 4.5), inverted with that prompt by leapfrog, and sampled back with another colour for its first group, by
several solvers and cfgs, away from the empty prompt and away from the prompt of the picture before: the latter
strengthens only what the two prompts differ in. Measured against the picture before: the share of the area outside that
group whose RGB stays within 0.1; how well the objects' outlines lie on the old ones (intersection over union); and how
often the judge sees the new colours, and everything else as it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from attributes.judge import BACKGROUND_RGB, COLOUR_RGB, MIN_CONTRAST, score  # noqa: E402
from attributes.words import BACKGROUND_WORDS  # noqa: E402
from attributes.world import BACKGROUNDS, COLOURS, Scene, is_held_out  # noqa: E402
from benchmarks.attributes.prompts import Prompt, read_prompts  # noqa: E402
from benchmarks.inversion import SMALL, Bench  # noqa: E402
from scripts import in_process  # noqa: E402

# Negative prompt, cfg and solver of the way down.
WAYS = (
    ("empty", 1.0, "leapfrog"),
    ("empty", 2.0, "leapfrog"),
    ("old", 2.0, "heun"),
    ("old", 3.0, "heun"),
    ("old", 4.5, "heun"),
)
SAME = 0.1  # RGB distance


def recoloured(prompt: Prompt) -> tuple[str, Scene] | None:
    """The prompt with another colour for its first group, one that training shows with that shape.

    Returns: None where there is none, and where the prompt says nothing of the background.
    """
    first, *rest = prompt.scene.groups
    if not any(word in prompt.text.lower().split() for word in BACKGROUND_WORDS[prompt.scene.background]):
        return None  # what the inversion is not told, an edit does not keep
    for colour in COLOURS:
        scene = dataclasses.replace(prompt.scene, groups=(dataclasses.replace(first, colour=colour), *rest))
        said = prompt.text.lower()
        if colour not in said and said.count(first.colour) == 1 and not is_held_out(scene):
            return said.replace(first.colour, colour), scene
    return None


def objects(picture: np.ndarray, scene: Scene) -> np.ndarray:
    paper = BACKGROUND_RGB[list(BACKGROUNDS).index(scene.background)]
    return np.linalg.norm(picture - paper, axis=-1) > MIN_CONTRAST


def of_colour(picture: np.ndarray, scene: Scene, colour: str) -> np.ndarray:
    nearest = np.linalg.norm(picture[:, :, None] - COLOUR_RGB, axis=-1).argmin(-1)
    return objects(picture, scene) & (nearest == list(COLOURS).index(colour))


def compare(before: np.ndarray, after: np.ndarray, old: Scene, new: Scene) -> dict[str, float]:
    group = of_colour(before, old, old.groups[0].colour) | of_colour(after, new, new.groups[0].colour)
    same = np.linalg.norm(before - after, axis=-1) < SAME
    both, either = (op(objects(before, old), objects(after, new)) for op in (np.logical_and, np.logical_or))
    seen = score(after, new)
    return {
        "area_kept": float(same[~group].mean()),
        "outlines": float(both.sum() / max(1, either.sum())),
        "colours": float(seen["colour"]),
        "all": float(seen["all"]),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    in_process.prepare("--cpu")
    bench = Bench(in_process.load_pack(), given.model)

    def encode(text: str):
        return bench.clip.encode_from_tokens_scheduled(bench.clip.tokenize(text))

    def decode(latent: dict) -> np.ndarray:
        return bench.vae.decode(latent["samples"]).clamp(0, 1)[0].float().numpy()

    found: dict[tuple[str, float, str], list[dict[str, float]]] = {way: [] for way in WAYS}
    empty = encode("")
    for prompt in read_prompts("seen"):
        edit = recoloured(prompt)
        if edit is None:
            continue
        said = encode(prompt.text)
        start = {"samples": torch.zeros(1, 16, 16, 16)}
        seed, steps = len(found[WAYS[0]]), given.steps
        picture, *_ = bench.sample(bench.model, said, empty, start, seed, steps, 4.5, "euler", "linear", 0.0, 1.0)
        before = decode(picture)
        if not score(before, prompt.scene)["all"]:
            continue  # an edit of a picture that is wrong already would say nothing
        (noise,) = bench.invert(bench.model, said, {"samples": picture["samples"]}, steps, "leapfrog", 0.0)
        wanted = encode(edit[0])
        for negative, cfg, solver in WAYS:
            away = {"empty": empty, "old": said}[negative]
            back, *_ = bench.sample(bench.model, wanted, away, noise, 0, steps, cfg, solver, "linear", 0.0, 1.0)
            found[negative, cfg, solver].append(compare(before, decode(back), prompt.scene, edit[1]))
        if len(found[WAYS[0]]) == given.pictures:
            break
    figures = {}
    for (negative, cfg, solver), rows in found.items():
        means = {name: round(100 * statistics.mean(row[name] for row in rows), 1) for name in rows[0]}
        figures[f"{negative}, cfg {cfg:g}, {solver}"] = {"pictures": len(rows), **means}
        print(
            f"away from the {negative} prompt, cfg {cfg:g}, {solver}, {len(rows)} pictures, percent: {means}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
