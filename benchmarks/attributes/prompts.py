"""The fixed evaluation prompts: 512 on combinations that training never shows, 512 on combinations it shows.

`python -m benchmarks.attributes.prompts` writes `prompts.json` anew; a test holds the file to this code.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

from attributes.world import Group, Scene, sample_scene
from training.captions import describe

FILE = Path(__file__).with_name("prompts.json")
NUMBER, TWO_GROUPS = 512, 0.6
SETS = {"held_out": True, "seen": False}
SAID = ("count", "colour", "shape", "size")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A caption that names every attribute of its scene."""

    text: str
    scene: Scene


def sample_prompts(name: str, number: int = NUMBER) -> list[Prompt]:
    """The prompts of one set, drawn from its name; no two are the same."""
    rng = random.Random(f"attributes/{name}")
    prompts: dict[str, Prompt] = {}
    while len(prompts) < number:
        groups = 2 if rng.random() < TWO_GROUPS else 1
        scene = sample_scene(rng, groups=groups, held_out=SETS[name])
        text = describe(scene, rng, complete=True)
        prompts.setdefault(text.lower(), Prompt(text, scene))
    return list(prompts.values())


def read_prompts(name: str, number: int = NUMBER) -> list[Prompt]:
    """The first `number` prompts of a set, from the file."""
    entries = json.loads(FILE.read_text())[name][:number]
    return [
        Prompt(entry["text"], Scene(tuple(Group(**group) for group in entry["groups"]), *entry["scene"]))
        for entry in entries
    ]


def write_prompts() -> None:
    """Write both sets, one prompt to a line."""
    sets = {}
    for name in SETS:
        lines = [
            json.dumps(
                {
                    "text": prompt.text,
                    "groups": [{name: getattr(group, name) for name in SAID} for group in prompt.scene.groups],
                    "scene": [prompt.scene.relation, prompt.scene.background],
                }
            )
            for prompt in sample_prompts(name)
        ]
        sets[name] = "[\n" + ",\n".join(lines) + "\n]"
    FILE.write_text("{" + ",\n".join(f'"{name}": {lines}' for name, lines in sets.items()) + "}\n")


if __name__ == "__main__":
    write_prompts()
