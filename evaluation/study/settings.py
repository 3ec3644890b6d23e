"""What a study measures, as data: its sweep, its prompts, and how its choices are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..controls import Control
from ..prompts import Prompt

SWEEPS = ("skip", "disable", "boost")


class SettingsError(Exception):
    """An option of a study that cannot be used: its name, what was found, what would be right."""


@dataclass(frozen=True)
class Settings:
    """The options that decide the cells.

    Fields: sweep, of SWEEPS; modes and strengths, of the boosts; blocks, global numbers; branches, of all controls;
        choose and prove, numbers of prompts; seeds; batch, images in one call; threads, of torch; controls, random
        block sets for each choice; most_loss, points of the overall score that skipping may cost where it is chosen.
    """

    sweep: tuple[str, ...]
    blocks: tuple[int, ...]
    branches: tuple[str, ...]
    modes: tuple[str, ...]
    strengths: tuple[float, ...]
    choose: int
    prove: int
    seeds: tuple[int, ...]
    batch: int
    threads: int
    controls: int
    most_loss: float

    def single_blocks(self) -> list[Control]:
        """The controls of the block map: each operation on one block."""
        made = []
        for branch in self.branches:
            for block in self.blocks:
                for action in self.sweep:
                    if action == "boost":
                        made += [
                            Control("boost", (block,), branch, mode, strength)
                            for mode in self.modes
                            for strength in self.strengths
                        ]
                    else:
                        made.append(Control(action, (block,), branch))
        return sorted(made)


@dataclass(frozen=True)
class Plan:
    """A study: its settings, and all that a second start must find unchanged.

    Fields: model, graph, files, software and judge, that images and answers depend on; sampling, of the report;
        prompts, those to choose on and then those to prove on.
    """

    settings: Settings
    model: str
    family: str
    double: int
    single: int
    graph: Mapping[str, Any]
    sampling: Mapping[str, Any]
    files: Mapping[str, str]
    software: Mapping[str, str]
    judge: str
    set_name: str
    prompts: tuple[Prompt, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """The names of what differs from the JSON of another plan."""
        own, names = self.to_json(), []
        for name, value in own.items():
            if name == "settings":
                names += [each for each in value if value[each] != other.get(name, {}).get(each)]
            elif value != other.get(name):
                names.append(name)
        return names
