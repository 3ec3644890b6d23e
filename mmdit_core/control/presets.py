"""Published settings of block controls, as data. Source of all: arXiv 2601.02211 and its public code.

No block lists are published for SD3.5 and Qwen-Image; BlockAnalysis finds them on the loaded model.
"""

from __future__ import annotations

from dataclasses import dataclass

from .spec import BlockControl


@dataclass(frozen=True)
class Preset:
    """Controls that were published for one model.

    Fields: name, that users see; model, with `double` and `single` blocks; controls; note, the setting in which it was
    published.
    """

    name: str
    model: str
    double: int
    single: int
    controls: tuple[BlockControl, ...]
    note: str


PRESETS = (
    Preset(
        name="FLUX.1-dev: text alignment",
        model="FLUX.1-dev",
        double=19,
        single=38,
        controls=(BlockControl("boost", (2, 7, 12, 17, 22), 1.5),),
        note="Better text alignment, not for spatial relations. Block 22 is a single block, the others are double.",
    ),
    Preset(
        name="FLUX.1-dev: fewer blocks with true CFG",
        model="FLUX.1-dev",
        double=19,
        single=38,
        controls=(BlockControl("skip", (30, 40, 50)), BlockControl("skip", tuple(range(5, 56, 5)), branch="negative")),
        note="The lists in the README of arXiv 2601.02211's code: 30, 40 and 50 on both branches, and every fifth "
        "block on the negative one. Published with true CFG at 1.5, 28 steps, on top of step caching at 0.4.",
    ),
    Preset(
        name="FLUX.1-dev: fewer blocks, as the published script skips",
        model="FLUX.1-dev",
        double=19,
        single=38,
        controls=(
            BlockControl("skip", (49,), branch="positive"),
            BlockControl("skip", (5, 10, 15, 24, 29, 34, 39, 44, 49, 54), branch="negative"),
        ),
        note="The script in arXiv 2601.02211's code compares the README's lists with the numbers of single blocks "
        "from 0, so that it skips 49 on the positive branch and 10 blocks on the negative one. The rest is as in the "
        "README.",
    ),
)
BY_NAME = {preset.name: preset for preset in PRESETS}


def presets_of(action: str) -> tuple[Preset, ...]:
    """The presets whose controls all have this action: "skip", "disable" or "boost"."""
    return tuple(preset for preset in PRESETS if all(control.action == action for control in preset.controls))
