"""Write the shipped prompt sets, `attributes/prompts/*.json`, each from a seed of its own.

python -m evaluation.make_prompt_sets
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from attributes.prompt_sets import CATEGORIES, FOLDER, Entry
from attributes.words import parse_caption
from attributes.world import Scene, sample_scene
from training.captions import describe

from .nouns import COLOURS, LIVING, NUMBERS, THINGS, plural, with_article

NUMBER = 480  # prompts of a set
OPENINGS = ("A photograph showing {}.", "A picture with {}.", "A sharp snapshot of {}.", "{} in daylight.")
RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def _counts(scene: Scene) -> tuple[int, ...]:
    return tuple(group.count for group in scene.groups)


def _shapes(scene: Scene) -> int:
    return len({group.shape for group in scene.groups})


# Category -> True for the scenes, as a caption states them, that are in it. Two groups always differ in colour and have
# a relation, so "spatial" has two objects of one shape, and "binding" more objects than one of each kind.
SCENES: dict[str, Callable[[Scene], bool]] = {
    "object": lambda scene: _counts(scene) == (1,) and not scene.background,
    "two_objects": lambda scene: _counts(scene) == (1, 1) and _shapes(scene) == 2,
    "count": lambda scene: len(scene.groups) == 1 and scene.groups[0].count > 1,
    "colour": lambda scene: _counts(scene) == (1,) and bool(scene.background),
    "spatial": lambda scene: _counts(scene) == (1, 1) and _shapes(scene) == 1,
    "binding": lambda scene: len(scene.groups) == 2 and sum(_counts(scene)) > 2 and _shapes(scene) == 2,
}


def stated(scene: Scene) -> dict[str, Any]:
    """A scene as JSON, without what it leaves open."""
    groups = []
    for group in scene.groups:
        entry = {"count": group.count, "colour": group.colour, "shape": group.shape}
        groups.append(entry | ({"size": group.size} if group.size else {}))
    named = {"relation": scene.relation, "background": scene.background}
    return {"groups": groups} | {name: value for name, value in named.items() if value}


def _shapes_prompt(category: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A caption of a scene of the training, with all counts, colours, shapes and the relation."""
    while True:
        text = describe(sample_scene(rng), rng, complete=True)
        if SCENES[category](scene := parse_caption(text)):
            return text, stated(scene)


def _objects_prompt(category: str, rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A sentence about everyday objects. Colours are given to things that are made in many colours."""
    first, second = rng.sample(THINGS if category in ("colour", "binding") else THINGS + LIVING, 2)
    include: list[dict[str, Any]] = [{"class": first, "count": 1}]
    extra: dict[str, Any] = {}
    phrase = with_article(first)
    if category == "two_objects":
        include.append({"class": second, "count": 1})
        phrase += f" and {with_article(second)}"
    elif category == "count":
        count = rng.choice(list(NUMBERS))
        include[0]["count"] = count
        extra = {"exclude": [{"class": first, "count": count + 1}]}
        phrase = f"{NUMBERS[count]} {plural(first)}"
    elif category == "colour":
        include[0]["color"] = rng.choice(COLOURS)
        phrase = with_article(f"{include[0]['color']} {first}")
    elif category == "spatial":
        # As in GenEval's files the object with the position is the second, and names the first by its index.
        relation = rng.choice(list(RELATIONS))
        include.append({"class": second, "count": 1, "position": [relation, 0]})
        phrase = f"{with_article(second)} {RELATIONS[relation]} {with_article(first)}"
    elif category == "binding":
        colours = rng.sample(COLOURS, 2)
        include = [{"class": noun, "count": 1, "color": c} for noun, c in zip((first, second), colours, strict=True)]
        phrase = " and ".join(with_article(f"{entry['color']} {entry['class']}") for entry in include)
    text = rng.choice(OPENINGS).format(phrase)
    return text[0].upper() + text[1:], {"include": include, **extra}


Sampler = Callable[[str, random.Random], tuple[str, dict[str, Any]]]
SAMPLERS: dict[str, Sampler] = {"shapes": _shapes_prompt, "objects": _objects_prompt}


def make_set(name: str, number: int = NUMBER) -> list[Entry]:
    """Sample a set; all its texts differ. Each run of six prompts has one of each category, in a random order."""
    rng = random.Random(f"prompt_sets/{name}")
    return list(_entries(SAMPLERS[name], rng, number))


def _entries(sample: Sampler, rng: random.Random, number: int) -> Iterator[Entry]:
    used: set[str] = set()
    for index in range(number):
        if index % len(CATEGORIES) == 0:
            order = rng.sample(CATEGORIES, len(CATEGORIES))
        category = order[index % len(CATEGORIES)]
        text, expected = sample(category, rng)
        while text.lower() in used:
            text, expected = sample(category, rng)
        used.add(text.lower())
        yield Entry(text, category, expected)


def to_json(entries: list[Entry]) -> str:
    """A set as JSON, one prompt on each line."""
    lines = [json.dumps({"text": e.text, "category": e.category, "expected": e.expected}) for e in entries]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    for set_name in SAMPLERS:
        (FOLDER / f"{set_name}.json").write_text(to_json(make_set(set_name)), encoding="utf-8", newline="\n")
