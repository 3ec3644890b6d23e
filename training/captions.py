"""Captions of scenes in plain English: many phrasings of one meaning, some of them incomplete."""

from __future__ import annotations

import random

from attributes.words import BACKGROUND_WORDS, NUMBERS, POSITION_WORDS, RELATION_WORDS, SIZE_WORDS
from attributes.world import OPPOSITE, SHAPES, Group, Scene

OPENINGS = ("a picture of", "an image of", "a photo of", "there is", "a drawing of", "picture:", "we see")
GROUNDS = ("on a {} background", "against a {} background", "with a {} background", "on {}", "{} background")


def describe_group(group: Group, rng: random.Random, *, complete: bool = False) -> str:
    """A noun phrase such as "three small red circles"; parts may be left out unless `complete`."""
    say_count, say_colour, say_shape = True, True, True
    if not complete:
        say_count, say_colour, say_shape = rng.random() > 0.06, rng.random() > 0.06, rng.random() > 0.06
    say_colour, say_shape = say_colour and group.named, say_shape and group.shape in SHAPES
    plural = "s" if group.count > 1 else ""
    noun = (group.shape if say_shape else rng.choice(("shape", "object"))) + plural
    size = rng.choice(SIZE_WORDS[group.size]) if group.size and rng.random() < 0.75 else ""
    colour = group.colour if say_colour else ""
    number = rng.choice(NUMBERS[group.count]) if say_count else ("some" if plural and rng.random() < 0.5 else "")
    if group.count == 1 and (not say_count or rng.random() < 0.7):
        number = "a"
    if colour and rng.random() < 0.06:
        words = [number, size, noun, rng.choice(("in", "of colour", "that are" if plural else "that is")), colour]
    else:
        words = [number, size, colour, noun]
    words = [word for word in words if word]
    if words[0] == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    return " ".join(words)


def describe(scene: Scene, rng: random.Random, *, complete: bool = False) -> str:
    """Sample a caption of a scene.

    Args: complete, True to name all counts, colours, shapes and the relation, as evaluation prompts do.
    """
    ground = ""
    if rng.random() < (0.5 if not complete else 0.6):
        ground = rng.choice(GROUNDS).format(rng.choice(BACKGROUND_WORDS[scene.background]))
    body = _body(scene, rng, complete)
    if ground:
        body = f"{ground}, {body}" if rng.random() < 0.2 else f"{body}{rng.choice((' ', ' ', ', '))}{ground}"
    if rng.random() < 0.2:
        body = f"{rng.choice(OPENINGS)} {body}"
    if rng.random() < 0.15:
        body = body[0].upper() + body[1:]
    return body + ("." if rng.random() < 0.15 else "")


def _body(scene: Scene, rng: random.Random, complete: bool) -> str:
    names = [describe_group(group, rng, complete=complete) for group in scene.groups]
    if len(names) == 1:
        return names[0]
    relation = scene.relation
    if rng.random() < 0.5:  # the same meaning from the other group's position
        names, relation = names[::-1], OPPOSITE[relation]
    if not complete and rng.random() < 0.06:
        return names[0] if rng.random() < 0.5 else f"{names[0]} {rng.choice(('and', 'with', 'beside'))} {names[1]}"
    first, second = (rng.choice(POSITION_WORDS[side]) for side in (relation, OPPOSITE[relation]))
    form = rng.random()
    if form < 0.7:
        verb = (
            rng.choice(("", "", "", "is ", "located ")) if scene.groups[0].count == scene.groups[1].count == 1 else ""
        )
        return f"{names[0]} {verb}{rng.choice(RELATION_WORDS[relation])} {names[1]}"
    if form < 0.85:
        return f"{names[0]} {first} {rng.choice(('and', ','))} {names[1]} {second}".replace(" ,", ",")
    return f"{first} {names[0]}, {second} {names[1]}"
