"""The prompts of a sweep: read from BlockAnalysis' input, a line each or a shipped set, and encoded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...attributes import prompt_sets
from ...mmdit_core.typed import plain_signs
from ..comfyui.text.limits import why_too_much
from ..comfyui.text.prompt_list import Conditioning, encode_each
from ..errors import InputError, require
from ..links import require_clip

MOST_PROMPTS = 1000
MOST_TEXT = 1_000_000  # characters of all together
NO_CLIP = "Connect the CLIP that belongs to the model, or empty prompts"
ALL_BUT_TEXT = "With prompts, everything but the text comes from positive"
_SET = re.compile(r"set\s*:(.*)", re.IGNORECASE)
_NAME = re.compile(r"\s*(\S+)(?:\s+(\d+))?\s*")


@dataclass(frozen=True)
class PromptList:
    """Prompts in order, each once.

    Fields: texts; origins, where each comes from: "line 3"; sets, the names of the sets among them; repeated, the
    number of those that were left out because they came before.
    """

    texts: tuple[str, ...]
    origins: tuple[str, ...]
    sets: tuple[str, ...]
    repeated: int

    @property
    def notes(self) -> list[str]:
        """What the report says about them."""
        return [f"{self.repeated} repeated prompts were left out."] if self.repeated else []

    def report(self) -> dict[str, Any]:
        """The entry of the report."""
        return {"number": len(self.texts), "sets": list(self.sets), "texts": list(self.texts)}


def read_prompts(node: str, text: str) -> PromptList | None:
    """Read the input. Returns: None for an empty one. Raises: InputError."""
    if not text:
        return None
    found: dict[str, str] = {}  # text -> origin
    sets, number = [], 0
    for index, line in enumerate(text.splitlines(), start=1):
        named, origin = _SET.fullmatch(plain_signs(line).strip()), f"line {index}"
        if named is None:
            added = [(line.strip(), origin)] if line.strip() else []
        else:
            name, texts = _read_set(node, named[1], origin)
            added = [(each, f"{origin}, prompt {place} of set {name}") for place, each in enumerate(texts, start=1)]
            sets.append(name)
        number += len(added)
        for each, where in added:
            found.setdefault(each, where)
    right = f"Write one prompt a line, or set:{prompt_sets.SETS[0]}; empty it to use the positive prompt"
    require(found, node, "prompts", "it holds no prompt", right)
    for each, where in found.items():
        if too_much := why_too_much(each):
            raise InputError(node, "prompts", f"{where}: {too_much[0]}", too_much[1])
    right = f"Write at most {MOST_PROMPTS:,}"
    require(len(found) <= MOST_PROMPTS, node, "prompts", f"it holds {len(found):,} prompts", right)
    return PromptList(tuple(found), tuple(found.values()), tuple(dict.fromkeys(sets)), number - len(found))


def _read_set(node: str, words: str, origin: str) -> tuple[str, list[str]]:
    """The name of a set and its prompts, or the first so many. Raises: InputError."""
    known = ", ".join(f"set:{each}" for each in prompt_sets.SETS)
    right = f"Write one of {known}, or a number of prompts after it: set:{prompt_sets.SETS[0]} 64"
    named = _NAME.fullmatch(words)
    if named is None:
        raise InputError(node, "prompts", f"{origin}: {words.strip()!r} is not the name of a set", right)
    name, count = named[1].lower(), named[2]
    require(name in prompt_sets.SETS, node, "prompts", f"{origin}: set {named[1]!r} is unknown", right)
    texts = [entry.text for entry in prompt_sets.read_set(name)]
    wanted = len(texts) if count is None else int(count)
    found = f"{origin}: {wanted:,} prompts of set {name}, which has {len(texts):,}"
    require(1 <= wanted <= len(texts), node, "prompts", found, f"Write a number from 1 to {len(texts)}, or none")
    return name, texts[:wanted]


def encode_prompts(node: str, clip, prompts: PromptList, positive: Conditioning, unique_id) -> list[Conditioning]:
    """Encode each prompt, with everything but the text from the positive prompt. Raises: InputError."""
    require(clip is not None, node, "clip", "prompts are set and no CLIP is connected", NO_CLIP)
    require_clip(node, clip, NO_CLIP)
    right = f"{ALL_BUT_TEXT}: connect one prompt, without areas or combinations"
    require(len(positive) == 1, node, "positive", f"it holds {len(positive)} prompts", right)
    _, options = positive[0]
    for name in ("area", "mask"):
        found = f"the prompt is for a part of the image: it has {name}"
        require(options.get(name) is None, node, "positive", found, right)
    return encode_each(clip, prompts.texts, options, unique_id)
