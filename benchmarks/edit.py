"""What an edit with FlowInvert keeps: the prompt changes one group's colour, as in workflows/inversion-and-edit.json.

    python -m benchmarks.edit [--model FILE] [--images 16] [--steps 28] [--json FILE]

Each image is sampled from a prompt that names everything, the background too, in combinations that occur in training
(euler, cfg 4.5). It is inverted with that prompt by leapfrog, then sampled with another colour for its first group, by
several solvers and cfgs. The negative prompt is empty, or is the old prompt: then cfg amplifies only what the two
prompts differ in. Measured against the old image: the fraction of the area outside the group whose RGB distance is
below 0.1; the intersection over union of the objects' outlines; and how often the judge finds the new colours, and
everything, right.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import numpy as np
import torch

from attributes.judge import score
from attributes.objects import BACKGROUND_RGB, COLOUR_RGB
from attributes.words import BACKGROUND_WORDS, parse_caption
from attributes.world import BACKGROUNDS, COLOURS, Scene, is_held_out
from benchmarks.attributes.prompts import Prompt, read_prompts
from benchmarks.inversion import SMALL, Bench
from scripts import in_process

# Negative prompt, cfg and solver of the edit.
SETTINGS = (
    ("empty", 1.0, "leapfrog"),
    ("empty", 2.0, "leapfrog"),
    ("old", 2.0, "heun"),
    ("old", 3.0, "heun"),
    ("old", 4.5, "heun"),
)
SAME = 0.1  # RGB distance below which a pixel is unchanged
MIN_CONTRAST = 0.19  # RGB distance of an object from the background: half of the smallest one (purple on gray)


def recoloured(prompt: Prompt) -> tuple[str, Scene] | None:
    """The prompt with another colour for its first group, in a combination that occurs in training.

    Returns: None if there is none, or if the prompt does not name the background.
    """
    first, *rest = prompt.scene.groups
    if not any(word in prompt.text.lower().split() for word in BACKGROUND_WORDS[prompt.scene.background]):
        return None  # an edit does not keep what the inversion's prompt does not name
    for colour in COLOURS:
        scene = dataclasses.replace(prompt.scene, groups=(dataclasses.replace(first, colour=colour), *rest))
        text = prompt.text.lower()
        if colour not in text and text.count(first.colour) == 1 and not is_held_out(scene):
            return text.replace(first.colour, colour), scene
    return None


def objects(image: np.ndarray, scene: Scene) -> np.ndarray:
    """True where a pixel is not of the background."""
    background = BACKGROUND_RGB[list(BACKGROUNDS).index(scene.background)]
    return np.linalg.norm(image - background, axis=-1) > MIN_CONTRAST


def of_colour(image: np.ndarray, scene: Scene, colour: str) -> np.ndarray:
    """True where a pixel of an object is nearest to a colour."""
    nearest = np.linalg.norm(image[:, :, None] - COLOUR_RGB, axis=-1).argmin(-1)
    return objects(image, scene) & (nearest == list(COLOURS).index(colour))


def compare(before: np.ndarray, after: np.ndarray, old: Scene, new: Scene, text: str) -> dict[str, float]:
    """The measures of one edit to a text, each in [0, 1]."""
    group = of_colour(before, old, old.groups[0].colour) | of_colour(after, new, new.groups[0].colour)
    same = np.linalg.norm(before - after, axis=-1) < SAME
    both, either = (op(objects(before, old), objects(after, new)) for op in (np.logical_and, np.logical_or))
    judged = score(after, parse_caption(text))
    return {
        "area_kept": float(same[~group].mean()),
        "outlines": float(both.sum() / max(1, either.sum())),
        "colours": float(judged["colour"]),
        "all": float(judged["all"]),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = parser.parse_args()
    in_process.prepare("--cpu")
    bench = Bench(in_process.load_pack(), given.model)

    def encode(text: str):
        return bench.clip.encode_from_tokens_scheduled(bench.clip.tokenize(text))

    def decode(latent: dict) -> np.ndarray:
        return bench.vae.decode(latent["samples"]).clamp(0, 1)[0].float().numpy()

    found: dict[tuple[str, float, str], list[dict[str, float]]] = {setting: [] for setting in SETTINGS}
    empty = encode("")
    for prompt in read_prompts("seen"):
        edit = recoloured(prompt)
        if edit is None:
            continue
        source = encode(prompt.text)
        start = {"samples": torch.zeros(1, 16, 16, 16)}
        seed, steps = len(found[SETTINGS[0]]), given.steps
        latent, *_ = bench.sample(bench.model, source, empty, start, seed=seed, steps=steps, cfg=4.5)
        before = decode(latent)
        if not score(before, prompt.stated)["all"]:
            continue  # the judge could not tell an edit's mistakes from those of the image itself
        (noise,) = bench.invert(bench.model, source, {"samples": latent["samples"]}, steps, "leapfrog", 0.0)
        target = encode(edit[0])
        for negative, cfg, solver in SETTINGS:
            away = {"empty": empty, "old": source}[negative]
            back, *_ = bench.sample(bench.model, target, away, noise, steps=steps, cfg=cfg, solver=solver)
            found[negative, cfg, solver].append(compare(before, decode(back), prompt.scene, edit[1], edit[0]))
        if len(found[SETTINGS[0]]) == given.images:
            break
    figures = {}
    for (negative, cfg, solver), rows in found.items():
        means = {name: round(100 * statistics.mean(row[name] for row in rows), 1) for name in rows[0]}
        figures[f"{negative}, cfg {cfg:g}, {solver}"] = {"pictures": len(rows), **means}
        print(
            f"negative prompt: {negative}, cfg {cfg:g}, {solver}, {len(rows)} images, percent: {means}",
            flush=True,
        )
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
