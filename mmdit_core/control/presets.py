"""Published settings of block controls, as data.

Sources: arXiv 2601.02211 and its public code for FLUX.1-dev; Stability AI's sd3_infer.py for SD3.5 Medium. The paper
publishes no block lists for SD3.5 and Qwen-Image; BlockAnalysis finds them on the loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .preset_files import MadeFor
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


@dataclass(frozen=True)
class FilledPreset:
    """A published setting that fills the inputs of its node, where all of it is visible and can be edited.

    Fields: name, that users see; action, "skip" or "boost"; model and about, what it is for; widgets, input -> value;
    notes, language -> what is published, and what differs.
    """

    name: str
    action: str
    model: MadeFor
    about: str
    widgets: Mapping[str, str | float]
    notes: Mapping[str, str]

    @property
    def made_for(self) -> str:
        """The line that `read_made_for` reads back."""
        return f"{self.model}: {self.about}"


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
FILLED_PRESETS = (
    FilledPreset(
        name="SD3.5 Medium: skip-layer guidance 7, 8, 9",
        action="skip",
        model=MadeFor("SD3.5 Medium", 24, 0),
        about="skip-layer guidance 7, 8, 9",
        widgets={"blocks": "7-9", "branch": "negative", "start_percent": 0.01, "end_percent": 0.2},
        notes={
            "en": "Published with scale 2.5, cfg 4, from 1% to 20% of the steps. Here the negative prediction skips "
            "the blocks: like skip-layer guidance folded into cfg, without a third model call. ComfyUI's node "
            "SkipLayerGuidanceSD3 is the exact published method.",
            "zh": "原作发布的设置：scale 2.5、cfg 4，作用于 1% 到 20% 的步数。此处由负面预测跳过这些块："
            "相当于把跳层引导并入 cfg，不需要第三次模型调用。"
            "与原作完全相同的方法是 ComfyUI 的节点 SkipLayerGuidanceSD3。",
        },
    ),
)
BY_NAME = {preset.name: preset for preset in PRESETS}


def presets_of(action: str) -> tuple[Preset, ...]:
    """The presets whose controls all have this action: "skip", "disable" or "boost"."""
    return tuple(preset for preset in PRESETS if all(control.action == action for control in preset.controls))
