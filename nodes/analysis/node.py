"""BlockAnalysis: measures what each block of a model does, one operation on one block at a time."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from ...mmdit_core import analysis
from .. import widgets
from ..comfyui import patching
from ..comfyui.fingerprint import fingerprint, of_model
from ..comfyui.frontend import messages
from ..comfyui.frontend.progress import model_name
from ..comfyui.run import sampling
from ..control import CATEGORY, MODEL, SUPPORTED, counts, read_blocks, require_text_controls
from ..errors import require
from ..plots.canvas import as_image
from ..sampler.checks import check_inputs
from ..widgets import widget
from .attributes import NOTE, scores_for
from .figures import draw_plot, draw_sheet
from .sweep import Latents, Sweep, SweepSettings

NODE = "BlockAnalysis"
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
    # fmt: on

    def __post_init__(self) -> None:
        widgets.check_values(NODE, WIDGETS, vars(self))


WIDGETS = widgets.widgets_of(AnalysisInputs)


class BlockAnalysis:
    """A sweep of skip, disable and boost over the blocks of a model."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples the image once without changes (the baseline), then once for each block with that block skipped, its "
        "text disabled, or its text boosted. Returns a contact sheet of all images, a plot of how much each block "
        "changes the image, and a list of blocks to skip. You can cancel at any time: finished images are kept, and "
        "the next run continues from them."
    )
    SEARCH_ALIASES = ["block sweep", "layer analysis", "which block", "ablation", "skip list"]
    FUNCTION = "analyse"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "plot", "report")
    OUTPUT_TOOLTIPS = (
        "All images: one row for each operation, one column for each block, the baseline first.",
        "The distance of each block's image to the baseline, in latents and in pixels.",
        "All measurements as JSON, with a skip list for BlockSkip.",
    )

    def __init__(self) -> None:
        # ComfyUI keeps a node's object between runs. The key holds all that determines a latent but seed and cell.
        self._key: Any = None
        self._latents: Latents = {}

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
            "optional": {
                "attributes": widgets.switch(
                    False,
                    "For the small model that comes with this pack: judge background, colour, shape, count and "
                    "position in each image. Use 8 seeds or more.",
                    advanced=True,
                ),
            },
            "hidden": widgets.HIDDEN,
        }

    def analyse(self, model, positive, negative, latent_image, vae, attributes=False, unique_id=None, **values):
        """Run the sweep. Returns: contact sheet and plot as IMAGE, report as JSON. Raises: InputError."""
        inputs = AnalysisInputs(**values)
        facts = sampling.read_model(model)
        blocks = _check(model, facts, inputs)
        double, single = counts(NODE, model)
        first, batch = _first(latent_image)
        latent = sampling.fitted(model, first)
        check_inputs(NODE, facts, positive, negative, latent["samples"])
        scores = scores_for(NODE, positive) if attributes else None
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
        key = (of_model(model), fingerprint([positive, negative, latent, inputs.steps, float(inputs.cfg)]))
        if key != self._key:
            self._key, self._latents = key, {}
        kinds, done = facts.sections, self._latents
        sweep = Sweep(model, positive, negative, latent, vae, kinds, settings, done, unique_id, scores)
        sweep.run(lambda: draw_sheet(sweep))
        notes = [f"The latent held {batch} images: the first was used."] if batch > 1 else []
        report = analysis.report(
            model=model_name(model),
            double=double,
            single=single,
            settings={**dataclasses.asdict(settings), "width": sweep.size[0], "height": sweep.size[1]},
            distances=sweep.distances,
            speedup=inputs.speedup,
            calls_each=inputs.steps * (1 if inputs.cfg == 1 else 2),
            notes=[*notes, NOTE] if scores else notes,
            more={cell: scores.report(cell) for cell in sweep.distances} if scores else None,
        )
        if scores:
            report["untouched"] = scores.report(None)
        messages.show_text(unique_id, " ".join([*notes, _summary(report)]))
        messages.send_event(unique_id, "mmdit.report", analysis.effects(report))
        return as_image(draw_sheet(sweep)), as_image(draw_plot(sweep)), json.dumps(report, indent=1, allow_nan=False)


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


def _first(latent: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A LATENT with only its first image, and the number of its images."""
    batched = [name for name in ("samples", "noise_mask", "batch_index") if latent.get(name) is not None]
    return {**latent, **{name: latent[name][:1] for name in batched}}, latent["samples"].shape[0]


def _summary(report: dict[str, Any]) -> str:
    compared = f"{len(report['cells'])} images compared."
    skips = report["skip_list"]
    if skips is None:
        return compared
    if not skips["for_block_skip"]:
        return f"{compared} This speedup needs no skipped block."
    return (
        f"For BlockSkip: {skips['for_block_skip']} (both branches, about {skips['reached_speedup']:.2f} times as fast, "
        f"{skips['block_calls_saved']:,} of {skips['block_calls']:,} block calls saved). Measured one block at a time: "
        "check an image with the whole list skipped."
    )


NODES = {"BlockAnalysis": (BlockAnalysis, "Block Analysis")}
