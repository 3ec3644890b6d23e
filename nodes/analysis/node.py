"""BlockAnalysis: measures what each block of a model does, one operation on one block at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from ...mmdit_core import analysis
from ...mmdit_core.control.preset_files import MadeFor, MeasuredPreset
from .. import widgets
from ..comfyui import patching
from ..comfyui.families import family_of
from ..comfyui.fingerprint import fingerprint, of_model
from ..comfyui.frontend import messages
from ..comfyui.frontend.progress import model_name
from ..comfyui.run import sampling
from ..control import CATEGORY, MODEL, SUPPORTED, counts, read_blocks, require_text_controls
from ..errors import require
from ..links import require_model, require_vae
from ..plots.canvas import as_image
from ..sampler.checks import check_inputs, check_latent
from ..widgets import widget
from . import choice
from .attributes import ABOUT_CHANGE, JUDGED, NOTE, Scores, scores_for, scores_of
from .figures import draw_plot, draw_sheet, limits_of
from .prompts import MOST_PROMPTS, MOST_TEXT, PromptList, encode_prompts, read_prompts
from .saving import SavedResults, presets_of
from .sweep import Latents, Measures, Sweep, SweepSettings

NODE = "BlockAnalysis"
NO_JUDGE = "none"
JUDGES = (NO_JUDGE, "shapes")
CLIP_UNUSED = "clip is not used: prompts is empty, and the positive prompt is measured."
LISTED = f"More than {analysis.MOST_LISTED} prompts: the report lists no values of each."
SWEEPS = {"all": analysis.OPERATIONS, **{operation: (operation,) for operation in analysis.OPERATIONS}}


# fmt: off
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisInputs:
    """The values of the required widgets. Raises: InputError for a value that its widget would not allow."""

    operations: str = widget(widgets.choice(tuple(SWEEPS), "all",
        "skip: the block is not run. disable: the text is set to zero in this block and all later ones. boost: the "
        "text is scaled in this block (residual). all: the three, one after the other."))
    blocks: str = widget(widgets.blocks_widget("all"))
    strength: float = widget(widgets.number(2.0, 0.0, 10.0, 0.05, "Strength of the boost; 2 in the paper."))
    seed: int = widget(widgets.seed_widget(
        "The first seed. Keep it fixed: finished images are reused only for their own seed.", "fixed"))
    seeds: int = widget(widgets.integer(1, 1, 64,
        "Number of seeds to average, counted up from the first. The sheet shows the first."))
    steps: int = widget(widgets.steps_widget(12))
    cfg: float = widget(widgets.cfg_widget(4.5))
    speedup: float = widget(widgets.number(1.3, 1.0, 10.0, 0.05,
        "How many times as fast the suggested skip list should be. Needs skip."))
    early_late: bool = widget(widgets.switch(False,
        "Also measure each operation in the first and in the second half of the sampling. Takes three times as long."))

    def __post_init__(self) -> None:
        widgets.check_fields(NODE, self)


WIDGETS = widgets.widgets_of(AnalysisInputs)
# Appended after the first release; the defaults give its images and reports.
OPTIONAL: dict[str, widgets.Widget] = {
    "attributes": widgets.switch(False,
        "For the small model that comes with this pack: judge background, colour, shape, count and "
        "position in each image. Use 8 seeds or more. The same as judge shapes.", advanced=True),
    "clip": ("CLIP", {"tooltip": "Encodes prompts. Not needed if prompts is empty."}),
    "prompts": widgets.text("",
        "Measure over many prompts: one a line, or a set that comes with the pack, set:shapes or set:objects; "
        "set:shapes 64 is its first 64. Empty: the positive prompt. Everything but the text comes from positive. "
        "The time grows with the number of prompts.", multiline=True, longest=MOST_TEXT),
    "judge": widgets.choice(JUDGES, NO_JUDGE,
        "shapes: for the small model that comes with this pack, judge whether each image has its prompt's background, "
        "colours, shapes, counts and positions. Both suggested lists then follow the judge, and boost_blocks needs "
        "one. Use 32 prompts or more."),
    "save_as": widgets.text("",
        "A name to save the results under, in ComfyUI's user folder: the report, and the suggested blocks as a preset "
        "in the menu of the block strip. A file of that name from an earlier analysis is replaced. Empty: not saved.",
        advanced=True),
}
# fmt: on


class BlockAnalysis:
    """A sweep of skip, disable and boost over the blocks of a model."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples the image once without changes (the baseline), then once for each block with that block skipped, its "
        "text disabled, or its text boosted. Returns a contact sheet of all images, a plot of how much each block "
        "changes the image, and a list of blocks to skip. You can cancel at any time: finished images are kept, and "
        "the next run continues from them."
    )
    SEARCH_ALIASES = [
        "block sweep", "layer analysis", "which block", "ablation", "skip list", "block weight", "slg",
        "mmdit", "分析", "块分析", "块",
    ]  # fmt: skip
    FUNCTION = "analyse"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("sheet", "plot", "report", "skip_blocks", "boost_blocks")
    OUTPUT_TOOLTIPS = (
        "All images: one row for each operation, one column for each block, the baseline first.",
        "The distance of each block's image to the baseline, in latents and in pixels.",
        "All measurements as JSON, with a skip list for BlockSkip.",
        "For the blocks of BlockSkip, on both branches: blocks whose skip is nearly free, at most as many as speedup "
        "needs. Empty if there are none.",
        "For the blocks of TextBoost: the blocks whose boost alone gets more attributes right, beyond chance. Empty if "
        "there are none, and without a judge; TextBoost then does nothing.",
    )

    def __init__(self) -> None:
        # ComfyUI keeps a node's object between runs. The key holds all that determines a latent but seed and cell.
        self._key: Any = None
        self._latents: Latents = {}
        self._measures_key: Any = None
        self._measures: dict[Any, Measures] = {}  # fingerprint of the prompt -> its measures

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """ComfyUI's description of the inputs."""
        latent_tooltip = "An empty latent of the size to measure at. Of a batch, only the first image is used."
        return {
            "required": {
                "model": MODEL,
                "positive": widgets.POSITIVE,
                "negative": widgets.NEGATIVE,
                "latent_image": ("LATENT", {"tooltip": latent_tooltip}),
                "vae": ("VAE", {"tooltip": "Decodes the latents. Another VAE does not sample them again."}),
                **WIDGETS,
            },
            "optional": dict(OPTIONAL),
            "hidden": widgets.HIDDEN,
        }

    def analyse(
        self, model, positive, negative, latent_image, vae,
        attributes=False, clip=None, prompts="", judge=NO_JUDGE, save_as="", unique_id=None,
        **values,
    ):  # fmt: skip
        """Run the sweep. Returns: sheet and plot as IMAGE, report as JSON, two block lists. Raises: InputError."""
        inputs = AnalysisInputs(**values)
        given = {"attributes": attributes, "prompts": prompts, "judge": judge, "save_as": save_as}
        attributes = widgets.check_values(NODE, OPTIONAL, given)["attributes"]
        require_model(NODE, model)
        saved = SavedResults(save_as) if save_as.strip() else None
        facts = sampling.read_model(model)
        blocks = _check(model, facts, inputs)
        check_latent(NODE, latent_image)
        require_vae(NODE, vae, model)
        first, batch = sampling.first_image(latent_image)
        latent = sampling.fitted(model, first)
        check_inputs(NODE, facts, positive, negative, latent["samples"])
        listed = read_prompts(NODE, prompts)
        by = "attributes" if attributes else "judge" if judge != NO_JUDGE else ""
        scores = _scores(by, listed, positive) if by else None
        positives = [positive] if listed is None else encode_prompts(NODE, clip, listed, positive, unique_id)
        for each in positives:
            check_inputs(NODE, facts, each, negative, latent["samples"], names=("clip", "negative"))
        settings = SweepSettings(
            operations=SWEEPS[inputs.operations],
            blocks=blocks,
            boost_strength=inputs.strength,
            seeds=tuple((inputs.seed + index) % (widgets.MAX_SEED + 1) for index in range(inputs.seeds)),
            steps=inputs.steps,
            cfg=inputs.cfg,
            shift=facts.shift,
            early_late=inputs.early_late,
            controls_on_the_model=tuple(control.to_dict() for control in patching.controls_of(model)),
        )
        run = [negative, latent, inputs.steps, float(inputs.cfg)]
        self._keep_only((of_model(model), fingerprint([positives[0], *run])))
        key = (of_model(model), fingerprint([*run, vae, bool(by)]))
        done = (self._latents, self._measures_of(positives, key))
        kinds, several = facts.sections, listed is not None
        sweep = Sweep(model, positives, negative, latent, vae, kinds, settings, *done, several, unique_id, scores)
        sweep.run(lambda: draw_sheet(sweep))
        notes = _notes(batch, clip, listed)
        report, skips, boosts = _report(sweep, inputs, counts(NODE, model), notes, listed)
        compared = f"{len(report['cells'])} images compared."
        suggested = {"skip": skips, "boost": boosts}
        words = [*notes, compared, skips.words, boosts.words]
        found = {action: each.blocks for action, each in suggested.items() if each.blocks}
        messages.send_event(unique_id, "mmdit.report", {**analysis.effects(report), "suggested": found})
        numbers = {action: each.numbers for action, each in suggested.items()}
        sheet, plot = draw_sheet(sweep, numbers), draw_plot(sweep, numbers, limits_of(report))
        if saved is not None:
            words.append(saved.write(report, _presets(model, saved.name, report, suggested)))
        messages.show_text(unique_id, " ".join(words))
        text = json.dumps(report, indent=1, allow_nan=False)
        return as_image(sheet), as_image(plot), text, skips.blocks, boosts.blocks

    def _keep_only(self, key: Any) -> None:
        """Discard the finished latents unless they are of this key."""
        if key != self._key:
            self._key, self._latents = key, {}

    def _measures_of(self, positives: Sequence[Any], key: Any) -> list[Measures]:
        """The finished measures of each prompt; those of another key are discarded, and the oldest of very many."""
        if key != self._measures_key:
            self._measures_key, self._measures = key, {}
        wanted = [fingerprint(each) for each in positives]
        listed = set(wanted)
        others = [each for each in self._measures if each not in listed]
        for each in others[: max(0, len(others) + len(wanted) - MOST_PROMPTS)]:
            del self._measures[each]
        return [self._measures.setdefault(each, {}) for each in wanted]


def _presets(model, name: str, report: dict[str, Any], suggested: dict[str, choice.Suggestion]) -> list[MeasuredPreset]:
    family = family_of(model.model)
    assert family is not None  # `counts` has refused other models
    file = model_name(model).rpartition(" (")[0] or model_name(model)
    return presets_of(name, MadeFor(family.label, *counts(NODE, model)), file, report, suggested)


def _scores(name: str, prompts: PromptList | None, positive) -> Scores:
    """The judge's scores. Args: name, of the input that turns the judge on."""
    return scores_for(NODE, positive, name) if prompts is None else scores_of(NODE, prompts)


def _notes(batch: int, clip, prompts: PromptList | None) -> list[str]:
    """What the node and the report say about the inputs."""
    notes = [f"The latent held {batch} images: the first was used."] if batch > 1 else []
    if prompts is None:
        return [*notes, CLIP_UNUSED] if clip is not None else notes
    return [*notes, *prompts.notes]


def _report(
    sweep: Sweep, inputs: AnalysisInputs, blocks: tuple[int, int], notes: list[str], prompts: PromptList | None
) -> tuple[dict[str, Any], choice.Suggestion, choice.Suggestion]:
    """The report, and the suggested blocks for BlockSkip and TextBoost. Args: blocks, double and single."""
    scores, cells = sweep.scores, tuple(sweep.distances)
    number = 0 if prompts is None else len(prompts.texts)
    judged = [] if scores is None else [NOTE if prompts is None else JUDGED, ABOUT_CHANGE]
    report = analysis.report(
        model=model_name(sweep.model),
        double=blocks[0],
        single=blocks[1],
        settings={**dataclasses.asdict(sweep.settings), "width": sweep.size[0], "height": sweep.size[1]},
        distances=sweep.distances,
        speedup=inputs.speedup,
        calls_each=inputs.steps * (1 if inputs.cfg == 1 else 2),
        notes=[*notes, *[LISTED] * (number > analysis.MOST_LISTED), *judged],
        more={cell: scores.report(cell) for cell in cells} if scores else None,
        prompts=number,
        losses=scores.losses(choice.of_whole_runs(cells, "skip")) if scores else None,
        judge_decides=scores is None or scores.decides,
    )
    if scores:
        report["untouched"] = scores.report(None)
    if prompts is not None:
        report["prompts"] = prompts.report()
    skips, boosts = choice.skips(report), choice.boosts(scores, cells)
    if scores or prompts is not None:
        named = {"skip_blocks": skips, "boost_blocks": boosts}
        report["suggested"] = {name: each.as_json() for name, each in named.items()}
    return report, skips, boosts


def _check(model, facts: sampling.ModelFacts, inputs: AnalysisInputs) -> tuple[int, ...]:
    """The blocks to sweep. Raises: InputError."""
    require(facts.is_flow, NODE, "model", f"{facts.kind} is not a flow-matching model", f"Connect {SUPPORTED}")
    blocks = read_blocks(NODE, model, inputs.blocks)
    if SWEEPS[inputs.operations] != ("skip",):
        require_text_controls(NODE, "operations", model, "Set operations to skip")
    require(blocks, NODE, "blocks", "no block is named", 'Write "all", or numbers and ranges such as 0-5, 9')
    halves = not inputs.early_late or inputs.steps >= 2
    require(halves, NODE, "early_late", "1 step has no halves", "Set at least 2 steps, or turn it off")
    return blocks


NODES = {"BlockAnalysis": (BlockAnalysis, "Block Analysis")}
