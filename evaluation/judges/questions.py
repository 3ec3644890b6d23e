"""The questions about a prompt: from its expectation, a scene or GenEval's schema, or else about its whole text."""

from __future__ import annotations

from typing import Any

from attributes.world import Group, Scene

from ..nouns import plural, with_article
from ..prompts import Prompt
from .base import Question

VERSION = 1  # of the wording of questions and instructions; part of an identity
RELATIONS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def questions_of(prompt: Prompt) -> tuple[Question, ...]:
    """The questions about an image of a prompt; about the whole text if it expects nothing else."""
    expected = prompt.expected
    if expected.get("groups"):
        groups = tuple(Group(**group) for group in expected["groups"])
        return scene_questions(Scene(groups, expected.get("relation", ""), expected.get("background", "")))
    if expected.get("include") or expected.get("exclude"):
        return _object_questions(expected)
    return (whole_question(prompt),)


def whole_question(prompt: Prompt) -> Question:
    """One question about the whole text; it counts for the prompt's category."""
    return Question(prompt.category or "all", "Does the image show everything that the caption says?")


def scene_questions(scene: Scene) -> tuple[Question, ...]:
    """One question for each column of `attributes.judge.score` that a scene states."""
    groups = scene.groups
    colours = [group.colour for group in groups]
    kinds = [f"{group.colour} {_noun('object', group.count)}" for group in groups]
    out = {
        "colour": f"Is every object {' or '.join(colours)}, and is each of these colours there?",
        "shape": "Is "
        + " and ".join(f"every {group.colour} object a {_sized(group.size, group.shape)}" for group in groups)
        + "?",
        "count": ("Is" if groups[0].count == 1 else "Are")
        + " there exactly "
        + " and ".join(f"{group.count} {kind}" for group, kind in zip(groups, kinds, strict=True))
        + ", and no other objects?",
    }
    if scene.background:
        out = {"background": f"Is the background plain {scene.background}?"} | out
    if scene.relation:
        verb = "Is" if groups[0].count == 1 else "Are all"
        out["spatial"] = f"{verb} the {kinds[0]} {RELATIONS[scene.relation]} the {kinds[1]}?"
    return tuple(Question(attribute, text) for attribute, text in out.items())


def _object_questions(expected: Any) -> tuple[Question, ...]:
    """Questions about each entry of GenEval's schema.

    GenEval itself takes `count` as "at least", and limits it by `exclude`; here any count above 1 is exact.
    """
    include = list(expected.get("include", ()))
    exclude = [(entry["class"], entry.get("count", 1)) for entry in expected.get("exclude", ())]
    out = []
    for entry in include:
        noun, count = entry["class"], entry.get("count", 1)
        exact = count > 1 or (noun, count + 1) in exclude
        if exact:
            exclude = [item for item in exclude if item != (noun, count + 1)]
            verb = "Is" if count == 1 else "Are"
            out.append(Question("count", f"{verb} there exactly {count} {_noun(noun, count)} in the image?"))
        else:
            out.append(Question("object", f"Is there {with_article(noun)} in the image?"))
        if colour := entry.get("color"):
            out.append(Question("colour", f"{_the(noun, count)} {colour}?"))
        if entry.get("position"):
            relation, index = entry["position"]
            other = include[index]
            second = _noun(other["class"], other.get("count", 1))
            out.append(Question("spatial", f"{_the(noun, count)} {_relation(relation)} the {second}?"))
    for noun, count in exclude:
        text = f"no {plural(noun)}" if count == 1 else f"fewer than {count} {plural(noun)}"
        out.append(Question("count", f"Are there {text} in the image?"))
    return tuple(out)


def _noun(noun: str, count: int) -> str:
    return noun if count == 1 else plural(noun)


def _sized(size: str, shape: str) -> str:
    return f"{size} {shape}".strip()


def _the(noun: str, count: int) -> str:
    return f"Is the {noun}" if count == 1 else f"Are all the {plural(noun)}"


def _relation(relation: str) -> str:
    """GenEval's "left of" as a sentence has it; other words as they are."""
    words = " ".join(relation.split())
    return RELATIONS.get(words.lower().removesuffix(" of"), words)
