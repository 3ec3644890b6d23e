"""The edits: pairs of scenes that differ in one thing, with captions that name everything.

Source and target have combinations of colours, shapes and relations that occur in training. The captions of the two
purposes, choosing settings and measuring, are disjoint.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from attributes.words import NUMBERS, RELATION_WORDS, SIZE_WORDS
from attributes.world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, Group, Scene, is_held_out, sample_scene

KINDS = ("colour", "shape", "count", "position", "background")
CHOOSE, MEASURE = "choose", "measure"  # purposes
CHOOSING_SHARE = 4  # one of so many captions is for choosing
TWO_GROUPS = 0.6  # fraction of the scenes, as in the evaluation prompts
MOST_IN_GROUP, MOST_OBJECTS = 4, 6  # as in training


@dataclass(frozen=True)
class Edit:
    """One edit.

    Fields: kind, one of KINDS; source and target, the scenes; group, index of the group that changes, None for all.
    """

    kind: str
    source: Scene
    target: Scene
    group: int | None = None

    @property
    def texts(self) -> tuple[str, str]:
        """The captions of source and target."""
        return caption(self.source), caption(self.target)

    def seed(self, use: str) -> int:
        """The seed of the noise for a use; it depends on the captions, not on the batch."""
        return zlib.crc32("/".join((use, self.kind, *self.texts)).encode())


def caption(scene: Scene) -> str:
    """A caption that names everything: "a large blue star above two red circles on a white background"."""
    first, *rest = (_describe(group) for group in scene.groups)
    words = [first, *(f"{RELATION_WORDS[scene.relation][0]} {each}" for each in rest)]
    return f"{' '.join(words)} on a {scene.background} background"


def _describe(group: Group) -> str:
    size = f"{SIZE_WORDS[group.size][0]} " if group.size else ""
    noun = f"{size}{group.colour} {group.shape}"
    if group.count > 1:
        return f"{NUMBERS[group.count][0]} {noun}s"
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def changes(kind: str, scene: Scene) -> list[Edit]:
    """All edits of a kind whose target occurs in training."""
    if kind == "position":
        others = [each for each in RELATIONS if scene.relation and each != scene.relation]
        found = [Edit(kind, scene, replace(scene, relation=each)) for each in others]
    elif kind == "background":
        others = [each for each in BACKGROUNDS if each != scene.background]
        found = [Edit(kind, scene, replace(scene, background=each)) for each in others]
    else:
        found = [
            Edit(
                kind, scene, replace(scene, groups=(*scene.groups[:index], changed, *scene.groups[index + 1 :])), index
            )
            for index, group in enumerate(scene.groups)
            for changed in _changed_groups(kind, group, {each.colour for each in scene.groups})
        ]
    return [edit for edit in found if _occurs(edit.target)]


def _changed_groups(kind: str, group: Group, colours: set[str]) -> list[Group]:
    if kind == "colour":
        return [replace(group, colour=each) for each in COLOURS if each not in colours]
    if kind == "shape":
        return [replace(group, shape=each) for each in SHAPES if each != group.shape]
    counts = (group.count - 1, group.count + 1)
    return [replace(group, count=each) for each in counts if 1 <= each <= MOST_IN_GROUP]


def _with_group(scene: Scene, index: int, group: Group) -> Scene:
    return replace(scene, groups=(*scene.groups[:index], group, *scene.groups[index + 1 :]))


def _occurs(scene: Scene) -> bool:
    return sum(group.count for group in scene.groups) <= MOST_OBJECTS and not is_held_out(scene)


def sample_edits(purpose: str, kind: str) -> Iterator[Edit]:
    """Sample edits without end, seeded by purpose and kind; the source captions differ. Args: purpose, kind."""
    rng, used = random.Random(f"edit/{purpose}/{kind}"), set()
    while True:
        groups = 2 if kind == "position" or rng.random() < TWO_GROUPS else 1
        scene = sample_scene(rng, groups=groups)
        found, text = changes(kind, scene), caption(scene)
        if found and text not in used and purpose_of(text) == purpose:
            used.add(text)
            yield rng.choice(found)


def purpose_of(text: str) -> str:
    """What a source caption is for: CHOOSE or MEASURE."""
    return MEASURE if zlib.crc32(text.encode()) % CHOOSING_SHARE else CHOOSE
