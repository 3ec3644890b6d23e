"""The fixed evaluation prompts: 512 with held-out combinations, 512 with combinations of the training.

`python -m benchmarks.attributes.prompts` writes `prompts.json`; a test compares the file with this code. A third set,
`headroom`, has a file of its own, see `headroom.py`.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from attributes.words import parse_caption
from attributes.world import Group, Scene, sample_scene
from training.captions import describe

FILE, HEADROOM = (Path(__file__).with_name(name) for name in ("prompts.json", "headroom.json"))
NUMBER, TWO_GROUPS = 512, 0.6
SETS = {"held_out": True, "seen": False}
ATTRIBUTES = ("count", "colour", "shape", "size")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A caption that names the groups and the relation of its scene, and often more."""

    text: str
    scene: Scene

    @property
    def stated(self) -> Scene:
        """The scene as the text has it, for the judge: without a background and sizes that it does not name."""
        return parse_caption(self.text)


def sample_prompts(name: str, number: int = NUMBER) -> list[Prompt]:
    """Sample the prompts of a set, seeded by its name; all differ."""

    def scene(rng: random.Random) -> Scene:
        groups = 2 if rng.random() < TWO_GROUPS else 1
        return sample_scene(rng, groups=groups, held_out=SETS[name])

    return describe_scenes(scene, random.Random(f"attributes/{name}"), number)


def describe_scenes(sample: Callable[[random.Random], Scene], rng: random.Random, number: int) -> list[Prompt]:
    """Sample scenes and describe them, until so many prompts differ."""
    prompts: dict[str, Prompt] = {}
    while len(prompts) < number:
        scene = sample(rng)
        text = describe(scene, rng, complete=True)
        prompts.setdefault(text.lower(), Prompt(text, scene))
    return list(prompts.values())


def read_prompts(name: str, number: int = NUMBER) -> list[Prompt]:
    """Read the first `number` prompts of a set, one of `SETS` or "headroom", from its file."""
    entries = json.loads(HEADROOM.read_text()) if name == "headroom" else json.loads(FILE.read_text())[name]
    return [
        Prompt(entry["text"], Scene(tuple(Group(**group) for group in entry["groups"]), *entry["scene"]))
        for entry in entries[:number]
    ]


def to_json(prompts: Sequence[Prompt]) -> str:
    """A list of prompts, one on each line."""
    lines = [
        json.dumps(
            {
                "text": prompt.text,
                "groups": [{name: getattr(group, name) for name in ATTRIBUTES} for group in prompt.scene.groups],
                "scene": [prompt.scene.relation, prompt.scene.background],
            }
        )
        for prompt in prompts
    ]
    return "[\n" + ",\n".join(lines) + "\n]"


def write_prompts() -> None:
    """Write both sets, one prompt on each line."""
    FILE.write_text("{" + ",\n".join(f'"{name}": {to_json(sample_prompts(name))}' for name in SETS) + "}\n")


if __name__ == "__main__":
    write_prompts()
