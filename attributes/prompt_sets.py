"""The shipped prompt sets: prompts with an expectation that a judge can check, in categories, in a fixed order.

`python -m evaluation.make_prompt_sets` writes their files. Any first N prompts of a set are a fair mix of its
categories.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("prompts")
SETS = ("shapes", "objects")
# What a prompt states besides which objects there are.
CATEGORIES = ("object", "two_objects", "count", "colour", "spatial", "binding")


@dataclass(frozen=True)
class Entry:
    """A prompt of a shipped set.

    Fields: text; category, one of CATEGORIES; expected, what an image of it has. In "shapes" the scene as the text
        states it: groups, and where stated relation and background. In "objects" GenEval's schema: include, a list of
        {class, count, color?, position?}, and exclude, a list of {class, count} with the smallest count that is wrong.
    """

    text: str
    category: str
    expected: dict[str, Any] = field(hash=False)


def read_set(name: str) -> list[Entry]:
    """Read a shipped set.

    Args: name, one of SETS.
    Raises: ValueError for another name.
    """
    if name not in SETS:
        raise ValueError(f"unknown prompt set {name!r}; known: {', '.join(SETS)}")
    entries = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return [Entry(entry["text"], entry["category"], entry["expected"]) for entry in entries]
