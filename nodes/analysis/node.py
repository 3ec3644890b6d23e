"""BlockAnalysis: what each block of the loaded model does, found by switching blocks one at a time."""

from __future__ import annotations

import json
from typing import Any

from ...mmdit_core import analysis
from ..comfyui import controls
from ..comfyui.fingerprint import fingerprint, of_model
from ..comfyui.frontend import messages as ui
from ..comfyui.frontend.progress import model_name
from ..comfyui.run import sampling
from ..control import CATEGORY, HIDDEN, MODEL, NUMBERS, counts, read_blocks
from ..errors import InputError
from ..plots.canvas import as_image
from ..sampler.checks import check_inputs
from ..widgets import MAX_SEED, NEGATIVE, POSITIVE, cfg_widget, steps_widget
from .attributes import NOTE, scores_for
from .sweep import Kept, Sweep

NODE = "BlockAnalysis"
SWEEPS = {"all": analysis.OPERATIONS, **{operation: (operation,) for operation in analysis.OPERATIONS}}

LATENT = (
    "LATENT",
    {"tooltip": "An empty latent of the size to measure at. Of a batch, the first picture alone is used."},
)
VAE = ("VAE", {"tooltip": "Turns the results into pictures. What it makes does not change what is kept between runs."})


class BlockAnalysis:
    """A sweep of skip, disable and boost over the blocks of a model."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Samples the picture once as it is, then again with each block skipped, blind to the text, or its text "
        "boosted, one block at a time. Shows all pictures in a sheet, plots how far each block moves the picture, and "
        "suggests blocks to skip. Cancel whenever you like: what is finished is kept, and the next run goes on there."
    )
    SEARCH_ALIASES = ["block sweep", "layer analysis", "which block", "ablation", "skip list"]
    FUNCTION = "analyse"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "plot", "report")
    OUTPUT_TOOLTIPS = (
        "All pictures: a row for each operation, a column for each block, the untouched picture first.",
        "How far each block moves the picture, in latents and in pixels.",
        "Everything measured, as JSON, with a skip list for BlockSkip.",
    )

    def __init__(self) -> None:
        self._kept = Kept()  # the host keeps a node's object between runs

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "latent_image": LATENT,
                "vae": VAE,
                "operations": (
                    list(SWEEPS),
                    {
                        "default": "all",
                        "tooltip": "skip: the block is not run. disable: the text is zeroed there and from there on. "
                        "boost: the text is scaled there (residual). all: the three, one after the other.",
                    },
                ),
                "blocks": ("STRING", {"default": "all", "tooltip": NUMBERS}),
                "strength": (
                    "FLOAT",
                    {
                        "default": 2.0,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "Of the boost. 2 is the paper's for this analysis.",
                    },
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": MAX_SEED,
                        "control_after_generate": "fixed",
                        "tooltip": "The first seed. Leave it fixed: another seed is another analysis, and what is "
                        "finished counts for its own seed only.",
                    },
                ),
                "seeds": (
                    "INT",
                    {
                        "default": 1,
                        "min": 1,
                        "max": 64,
                        "tooltip": "How many seeds are averaged, counted up from the first. The sheet shows the first.",
                    },
                ),
                "steps": steps_widget(12),
                "cfg": cfg_widget(4.5),
                "speedup": (
                    "FLOAT",
                    {
                        "default": 1.3,
                        "min": 1.0,
                        "max": 10.0,
                        "step": 0.05,
                        "tooltip": "How many times as fast the suggested skip list should be. Needs skip in the sweep.",
                    },
                ),
                "early_late": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Measure each operation in the first and in the second half of the steps, too. "
                        "Three times the work.",
                    },
                ),
            },
            "optional": {
                "attributes": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "With the small model that comes with this pack: also judge colour, shape, count "
                        "and place in each picture. Take 8 seeds or more.",
                    },
                ),
            },
            "hidden": HIDDEN,
        }

    def analyse(
        self,
        model,
        positive,
        negative,
        latent_image,
        vae,
        operations,
        blocks,
        strength,
        seed,
        seeds,
        steps,
        cfg,
        speedup,
        early_late,
        attributes=False,
        unique_id=None,
    ):
        chosen = _checked(model, operations, blocks, seeds, steps, speedup, early_late)
        latent, batch = _first(latent_image)
        check_inputs(NODE, model, positive, negative, sampling.prepare(model, latent, seed).samples)
        scores = scores_for(NODE, positive) if attributes else None
        cells = analysis.plan(SWEEPS[operations], chosen, strength=strength, early_late=early_late)
        self._kept.open((of_model(model), fingerprint([positive, negative, latent, steps, float(cfg)])))
        settings = {
            "operations": list(SWEEPS[operations]),
            "blocks": list(chosen),
            "boost_strength": strength,
            "seeds": [(seed + number) % (MAX_SEED + 1) for number in range(seeds)],
            "steps": steps,
            "cfg": cfg,
            "solver": "euler",
            "schedule": "linear",
            "shift": sampling.shift_of(model),
            "early_late": early_late,
            "controls_on_the_model": [json.loads(control.to_json()) for control in controls.attached(model)],
        }
        run = Sweep(model, positive, negative, latent, vae, cells, settings, self._kept, unique_id, scores)
        run.run()
        notes = [f"The latent held {batch} pictures: the first was used."] if batch > 1 else []
        double, single = counts(NODE, model)
        found = analysis.report(
            model=model_name(model),
            double=double,
            single=single,
            settings={**settings, "width": run.size[0], "height": run.size[1]},
            distances=run.distances,
            speedup=speedup,
            calls_each=steps * (1 if cfg == 1 else 2),
            notes=[*notes, NOTE] if scores else notes,
            more={cell: scores.report(cell) for cell in cells} if scores else None,
        )
        if scores:
            found["untouched"] = scores.report(None)
        ui.show_text(unique_id, " ".join([*notes, _summary(found)]))
        ui.send_event(unique_id, "mmdit.report", analysis.effects(found))
        return as_image(run.sheet()), as_image(run.plot()), json.dumps(found, indent=1, allow_nan=False)


def _checked(model, operations, text, seeds, steps, speedup, early_late) -> tuple[int, ...]:
    """The blocks to sweep. Raises: InputError."""
    if not sampling.is_flow(model):
        raise InputError(
            NODE,
            "model",
            f"{type(model.model).__name__} is not a flow-matching model",
            "Connect SD3, SD3.5, FLUX.1, Qwen-Image, Chroma or AuraFlow",
        )
    blocks = read_blocks(NODE, model, text)
    wrong = (
        ("operations", operations not in SWEEPS, f"{operations!r} is unknown", f"Choose of {', '.join(SWEEPS)}"),
        ("blocks", not blocks, "no block is named", 'Write "all", or numbers and ranges such as 0-5, 9'),
        ("seeds", seeds < 1, f"{seeds}", "Average at least 1 seed"),
        ("speedup", not speedup >= 1, f"{speedup:g} is slower than the whole model", "Set 1 or more"),
        ("early_late", early_late and steps < 2, f"{steps} step has no halves", "Set at least 2 steps, or turn it off"),
    )
    for name, is_wrong, found, right in wrong:
        if is_wrong:
            raise InputError(NODE, name, found, right)
    return blocks


def _first(latent: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A LATENT's first picture alone, and how many it held."""
    batch = latent["samples"].shape[0]
    alone = {**latent, "samples": latent["samples"][:1]}
    for name in ("noise_mask", "batch_index"):
        if latent.get(name) is not None:
            alone[name] = latent[name][:1]
    return alone, batch


def _summary(found: dict[str, Any]) -> str:
    skips = found["skip_list"]
    if skips is None:
        return f"{len(found['cells'])} pictures compared."
    if not skips["for_block_skip"]:
        return f"{len(found['cells'])} pictures compared. No block needs to be skipped for this speed-up."
    return (
        f"For BlockSkip: {skips['for_block_skip']} (both branches, about {skips['reached_speedup']:.2f} times as fast, "
        f"{skips['block_calls_saved']:,} of {skips['block_calls']:,} block calls saved). Measured one block at a time: "
        "look before you rely on it."
    )


NODES = {"BlockAnalysis": (BlockAnalysis, "Block Analysis")}
