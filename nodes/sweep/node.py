"""SweepXY: one image for each combination of two settings, on a labelled contact sheet."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from .. import widgets
from ..comfyui import patching
from ..comfyui.fingerprint import fingerprint, of_model
from ..comfyui.frontend import messages
from ..comfyui.frontend.progress import model_name
from ..comfyui.run import run_cache, sampling
from ..control import MODEL
from ..errors import require
from ..links import require_model, require_vae
from ..plots.canvas import as_image
from ..sampler.checks import check_inputs, check_latent
from ..sampler.inputs import MIN_DENOISE
from ..sampler.inputs import WIDGETS as SAMPLER
from ..sampler.schedule import require_length
from ..sampler.start import refuse_unfinished
from ..widgets import widget
from .axes import AXES, MOST_CELLS, NODE, NONE, Axis, CellSettings, grid, read_axis
from .figures import draw_sheet
from .run import Finished, Kept, Sweep

METRIC = (
    "relative L2: the norm of (image - first) divided by the norm of the first, over all values of the latent, or of "
    "the decoded image in [0, 1]"
)
NOT_FINITE = "A distance of null: the image, or the first one, has values that are not finite numbers."
WHAT = (
    "strength, blocks and window change the last block control on the model, as its own node would; the other controls "
    "stay."
)
VALUES = (
    "Numbers: 1, 1.5; 1-3 (5) is 5 even values from 1 to 3. Names by comma. Block lists such as 0-3, and windows such "
    f"as 0-0.5, with a vertical bar between them. At most {MOST_CELLS} images in all."
)


# fmt: off
@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """The values of the widgets. Raises: InputError for a value that its widget would not allow."""

    x: str = widget(widgets.choice(AXES, "cfg",
        f"What changes from column to column. {WHAT} none: one column."))
    x_values: str = widget(widgets.text("2, 3.5, 5", f"The values of the columns. {VALUES}"))
    y: str = widget(widgets.choice(AXES, NONE,
        f"What changes from row to row. {WHAT} none: one row."))
    y_values: str = widget(widgets.text("", f"The values of the rows. {VALUES} Not used if y is none."))
    seed: int = widget(widgets.seed_widget(
        "The seed of the noise, of all images if seed_step is 0. Keep it fixed: finished images are reused only for "
        "their own seed.", "fixed"))
    steps: int = widget(SAMPLER["steps"])
    cfg: float = widget(SAMPLER["cfg"])
    solver: str = widget(SAMPLER["solver"])
    schedule: str = widget(SAMPLER["schedule"])
    shift: float = widget(SAMPLER["shift"])
    denoise: float = widget(SAMPLER["denoise"])
    seed_step: int = widget(widgets.integer(0, 0, 1_000_000,
        "0: all images have the same seed, so that only the settings differ. Above 0: image number i, counted from 0 "
        "row by row, has seed + i * seed_step."))
    # fmt: on

    def __post_init__(self) -> None:
        widgets.check_fields(NODE, self)
        right = "Choose another axis, or none for y"
        require(self.x != self.y, NODE, "y", f"both axes are {self.x}", right)
        found = f"{self.denoise:g}: nothing would be sampled"
        require(self.denoise >= MIN_DENOISE, NODE, "denoise", found, f"Set at least {MIN_DENOISE:g}")

    @property
    def settings(self) -> CellSettings:
        """The settings of a cell without its axes' values."""
        names = [each.name for each in dataclasses.fields(CellSettings)]
        return CellSettings(**{name: getattr(self, name) for name in names})


WIDGETS = widgets.widgets_of(SweepInputs)
OPTIONAL = ("seed_step",)


class SweepXY:
    """A grid of images over two settings."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Samples one image for each combination of two settings: cfg, steps, solver, shift, seed, or the strength, "
        "blocks or window of the last block control on the model. Returns a labelled contact sheet and all images. "
        "You can cancel at any time: finished images are kept, and the next run continues from them."
    )
    SEARCH_ALIASES = ["xy plot", "x/y plot", "xyz plot", "grid", "compare", "sweep", "parameter sweep", "batch test"]
    FUNCTION = "sweep"
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("sheet", "images", "report")
    OUTPUT_TOOLTIPS = (
        "All images, labelled: x from left to right, y from top to bottom.",
        "All images in full size as a batch, row by row.",
        "Each image's settings, seed, distance to the first image and model calls, as JSON.",
    )

    def __init__(self) -> None:
        # ComfyUI keeps a node's object between runs. The key holds what decides a latent but for its cell.
        self._key: Any = None
        self._kept: Kept = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """ComfyUI's description of the inputs."""
        latent = "An empty latent, or an encoded image with denoise below 1. Of a batch, only the first image is used."
        return {
            "required": {
                "model": MODEL,
                "positive": widgets.POSITIVE,
                "negative": widgets.NEGATIVE,
                "latent_image": ("LATENT", {"tooltip": f"{latent} Noise masks are kept."}),
                "vae": ("VAE", {"tooltip": "Decodes the latents. Another VAE does not sample them again."}),
                **{name: made for name, made in WIDGETS.items() if name not in OPTIONAL},
            },
            "optional": {name: WIDGETS[name] for name in OPTIONAL},
            "hidden": widgets.HIDDEN,
        }

    def sweep(self, model, positive, negative, latent_image, vae, *, unique_id=None, **values):
        """Run the sweep. Args: values, the fields of SweepInputs. Returns: sheet and images as IMAGE, report as JSON.

        Raises: InputError.
        """
        inputs = SweepInputs(**values)
        require_model(NODE, model)
        require_vae(NODE, vae, model)
        check_latent(NODE, latent_image)
        refuse_unfinished(NODE, latent_image, "Finish it with Flow Matching Sampler, or connect an empty latent")
        facts = sampling.read_model(model)
        first, batch = sampling.first_image(latent_image)
        latent = sampling.fitted(model, first)
        check_inputs(NODE, facts, positive, negative, latent["samples"])
        x, y = read_axis(model, "x", inputs.x, inputs.x_values), read_axis(model, "y", inputs.y, inputs.y_values)
        cells = grid(model, x, y, inputs.settings, inputs.seed_step)
        for cell in cells:
            require_length(NODE, cell.settings.steps, cell.settings.denoise)
        self._keep_only(_key(model, positive, negative, latent))
        sweep = Sweep(
            model=model,
            positive=positive,
            negative=negative,
            latent=latent,
            vae=vae,
            shift=facts.shift,
            cells=cells,
            columns=len(x.values),
            seeds_differ=inputs.seed_step > 0,
            kept=self._kept,
            node_id=unique_id,
        )
        sweep.run(lambda: draw_sheet(sweep))
        notes = _notes(batch, inputs)
        report = _report(sweep, x, y, inputs, notes)
        made = f"{len(cells)} images" + (f", {sweep.reused} of them from earlier runs" if sweep.reused else "")
        messages.show_text(unique_id, "\n".join([f"{made}.", *notes]))
        return as_image(draw_sheet(sweep)), sweep.images, json.dumps(report, indent=1, allow_nan=False)

    def _keep_only(self, key: Any) -> None:
        """Discard the finished cells unless they are of this key."""
        if key != self._key:
            self._key, self._kept = key, {}


def _key(model, positive, negative, latent: dict[str, Any]) -> Any:
    """What decides all cells alike. The block controls on the MODEL are in each cell's own key."""
    given = fingerprint([patching.other_values(model), positive, negative, latent])
    return of_model(model, **run_cache.others_on(model)), given


def _notes(batch: int, inputs: SweepInputs) -> list[str]:
    """What the node and the report say about the inputs."""
    notes = [f"The latent held {batch} images: the first was used."] if batch > 1 else []
    for name in ("x", "y"):
        if getattr(inputs, name) == NONE and getattr(inputs, f"{name}_values").strip():
            notes.append(f"{name}_values is not used: {name} is none.")
    return notes


def _report(sweep: Sweep, x: Axis, y: Axis, inputs: SweepInputs, notes: list[str]) -> dict[str, Any]:
    """The report as plain data."""
    finite = all(math.isfinite(each) for pair in sweep.distances for each in pair)
    settings = {**dataclasses.asdict(inputs.settings), "seed_step": inputs.seed_step}
    controls = [control.to_dict() for control in patching.controls_of(sweep.model)]
    size = {"width": sweep.size[0], "height": sweep.size[1]}
    return {
        "model": model_name(sweep.model),
        "x": x.report(),
        "y": y.report(),
        "settings": {**settings, **size, "controls_on_the_model": controls},
        "metric": METRIC,
        "cells": [_cell(sweep, index, made) for index, made in enumerate(sweep.finished)],
        "notes": [*notes, *[NOT_FINITE] * (not finite)],
    }


def _cell(sweep: Sweep, index: int, made: Finished) -> dict[str, Any]:
    cell = sweep.cells[index]
    latent, image = (float(f"{each:.6g}") if math.isfinite(each) else None for each in sweep.distances[index])
    settings = dataclasses.asdict(cell.settings)
    seed = settings.pop("seed")
    return {
        "row": index // sweep.columns,
        "column": index % sweep.columns,
        **{name: value.text for name, value in (("x", cell.x), ("y", cell.y)) if value is not None},
        "settings": settings,
        "seed": seed,
        "distance": {"latent": latent, "image": image},
        "ran": made.ran,
    }


NODES = {"SweepXY": (SweepXY, "Sweep X/Y")}
