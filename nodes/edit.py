"""FlowEdit: an image changed as two prompts differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..mmdit_core.editing.flow_edit import EditState
from ..mmdit_core.flow.schedules import SCHEDULES, sigmas
from ..mmdit_core.flow.sigma import flux_mu, mu_to_shift
from .comfyui import patching
from .comfyui.editing.flow_edit import EditGuider, EditRun, EditSteps, SourceControlError
from .comfyui.fingerprint import fingerprint, of_model
from .comfyui.frontend import messages
from .comfyui.run import run_cache, sampling
from .errors import InputError, require
from .links import require_model
from .sampler.checks import check_inputs, check_latent
from .sampler.report import control_label
from .sampler.schedule import OWN
from .sampler.start import refuse_unfinished
from .widgets import (
    MAX_STEPS,
    SHIFT,
    Widget,
    check_fields,
    choice,
    integer,
    number,
    seed_widget,
    steps_widget,
    widget,
    widgets_of,
)

NODE = "FlowEdit"
NO_PRESET = "none"
SIDES = ("Source", "Target")
HOST_CACHE = "easycache"  # in the transformer_options of a MODEL with ComfyUI's EasyCache or LazyCache


@dataclass(frozen=True)
class Preset:
    """The authors' settings for a model.

    Fields: kind, ComfyUI's class of the model; as of `EditInputs`; flux_shift, True for FLUX's rule of the shift.
    """

    kind: str
    steps: int
    edit_steps: int
    source_cfg: float
    target_cfg: float
    schedule: str
    source_guidance: float = 0.0
    target_guidance: float = 0.0
    flux_shift: bool = False


# Kulikov et al. 2024, github fallenshock/FlowEdit: SD3_exp.yaml and FLUX_exp.yaml.
PRESETS = {
    "SD3": Preset("SD3", 50, 33, 3.5, 13.5, "sd3"),
    "FLUX.1-dev": Preset("Flux", 28, 24, 1.0, 1.0, "linear", 1.5, 5.5, flux_shift=True),
}


def _cfg(default: float, tooltip: str) -> Widget:
    return number(default, 0.0, 100.0, 0.1, tooltip, round=0.01)


def _advanced(make: Callable[..., Widget], *values: Any) -> Any:
    return widget(make(*values, advanced=True))


# Shared workflows store values by position: new inputs go to the end.
# fmt: off
@dataclass(frozen=True, kw_only=True)
class EditInputs:
    """The values of FlowEdit's widgets. Raises: InputError for a value that its widget would not allow."""

    seed: int = widget(seed_widget("The seed of the noise; each step draws new noise. Made on the CPU."))
    steps: int = widget(steps_widget(28))
    edit_steps: int = widget(integer(24, 0, MAX_STEPS,
        "How many of the steps edit, counted from the end: the strength. Fewer keep more of the image; near the number "
        "of steps, objects may move and multiply. More than steps: all."))
    source_cfg: float = widget(_cfg(1.5, "How strongly the source prompt is followed in its own prediction."))
    target_cfg: float = widget(_cfg(5.5, "How strongly the target prompt is followed. Raise it if the edit is weak."))
    shift: float = widget(SHIFT)
    refine_steps: int = _advanced(integer, 0, 0, MAX_STEPS,
        "In this many of the last steps the target alone is sampled: sharper, and less of the image is kept. At most "
        "edit_steps.")
    average: int = _advanced(integer, 1, 1, 64,
        "How many draws of noise each step averages. More are steadier and cost as many times as much.")
    schedule: str = _advanced(choice, tuple(SCHEDULES), "linear", "How the sigmas are spaced.")
    source_guidance: float = _advanced(number, 0.0, 0.0, 100.0, 0.1,
        "Guidance of distilled models such as FLUX.1-dev, for the source. 0: as the conditioning has it.")
    target_guidance: float = _advanced(number, 0.0, 0.0, 100.0, 0.1,
        "The same for the target. 0: as the conditioning has it.")
    preset: str = _advanced(choice, (NO_PRESET, *PRESETS), NO_PRESET,
        "The settings that the authors of FlowEdit published for a model, instead of all values here but the seed.")
    # fmt: on

    def __post_init__(self) -> None:
        check_fields(NODE, self)

    def settled(self, tokens: Callable[[], int]) -> EditInputs:
        """The inputs with the preset in place. Args: tokens of the image."""
        if self.preset == NO_PRESET:
            return self
        found = PRESETS[self.preset]
        names = ("steps", "edit_steps", "source_cfg", "target_cfg", "schedule", "source_guidance", "target_guidance")
        shift = mu_to_shift(flux_mu(tokens())) if found.flux_shift else 0.0
        values = {name: getattr(found, name) for name in names}
        return replace(self, preset=NO_PRESET, shift=shift, refine_steps=0, average=1, **values)


WIDGETS = widgets_of(EditInputs)
REQUIRED = ("seed", "steps", "edit_steps", "source_cfg", "target_cfg", "shift")
LINKS: dict[str, Widget] = {
    "model": ("MODEL", {"tooltip": "SD3, SD3.5, FLUX, Qwen-Image, Z-Image or another rectified-flow model."}),
    "source": ("CONDITIONING", {"tooltip": "A description of the image as it is."}),
    "target": ("CONDITIONING", {"tooltip": "The same description with the change in it."}),
    "negative": ("CONDITIONING", {"tooltip": "The negative prompt, usually empty. Not computed where cfg is 1."}),
    "latent_image": (
        "LATENT",
        {"tooltip": "The image, from VAE Encode. With a noise mask only the part inside it changes."},
    ),
}
OPTIONAL_LINKS: dict[str, Widget] = {
    "source_negative": ("CONDITIONING", {"tooltip": "Another negative prompt for the source. Usually not needed."}),
    "source_model": (
        "MODEL",
        {"tooltip": "The same MODEL with other block controls, for the source's prediction. Usually not needed."},
    ),
}


@dataclass(frozen=True)
class _Stopped:
    """An edit that was cancelled: what it was of, and how far it came."""

    key: Any
    state: EditState


class FlowEdit:
    """An image changed as a target prompt differs from a source prompt, without inversion."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Edits an image by words: describe it as it is (source) and as it should be (target). What the two have in "
        "common stays. No inversion; works with every rectified-flow model and with block controls."
    )
    SEARCH_ALIASES = [
        "edit", "flowedit", "rf edit", "prompt edit", "image edit", "change object", "img2img",
        "inversion-free", "mmdit", "编辑", "图像编辑", "改图",
    ]  # fmt: skip
    FUNCTION = "edit"
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("LATENT", "summary")
    OUTPUT_TOOLTIPS = ("The edited image, for VAE Decode.", "What was run: steps, guidance, model calls, time.")

    def __init__(self) -> None:
        self._stopped: _Stopped | None = None  # ComfyUI keeps a node's object between runs

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs: links, the required widgets, then the optional ones."""
        optional = {name: made for name, made in WIDGETS.items() if name not in REQUIRED and name != "preset"}
        return {
            "required": {**LINKS, **{name: WIDGETS[name] for name in REQUIRED}},
            "optional": {**optional, **OPTIONAL_LINKS, "preset": WIDGETS["preset"]},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def edit(
        self,
        model,
        source,
        target,
        negative,
        latent_image,
        *,
        source_negative=None,
        source_model=None,
        unique_id=None,
        **given,
    ):
        """Run the edit. Args: given, the fields of EditInputs. Returns: LATENT, summary."""
        inputs = EditInputs(**given)
        source_negative = negative if source_negative is None else source_negative
        _check(model, source_model, latent_image)
        fitted = sampling.fitted(model, latent_image)
        facts, samples = sampling.read_model(model), fitted["samples"]
        check_inputs(NODE, facts, target, negative, samples, names=("target", "negative"))
        check_inputs(NODE, facts, source, source_negative, samples, names=("source", "source_negative"))
        found = inputs.settled(lambda: sampling.tokens_of(model, samples))
        steps = _steps(found, facts.shift, latent_image)
        if not steps.count:
            said = "Nothing was run: the image is unchanged. edit_steps is 0; raise it"
            messages.show_text(unique_id, said)
            return latent_image, said
        sampled = sampling.with_shift(model, found.shift) if found.shift else model.clone()
        patching.prepare(sampled)
        others = source_model if source_model is not None else model
        texts = (
            _guided(target, found.target_guidance),
            negative,
            _guided(source, found.source_guidance),
            source_negative,
        )
        key = partial(_key, model, others, texts, latent_image, inputs)  # costs a hash of all that comes in
        if self._stopped is not None and self._stopped.key == key():
            steps = replace(steps, start=self._stopped.state)
        self._stopped = None
        guider, run = EditGuider(sampled, others, steps), EditRun(steps, NODE)
        guider.set_prompts(*texts)
        call = sampling.call(sampling.prepare(fitted, 0, add_noise=False), model, run, steps.sigmas)
        try:
            edited = sampling.to_output(guider.sample(**call, seed=steps.seed))
        except SourceControlError as error:
            right = "Connect the MODEL without that control as source_model"
            raise InputError(NODE, "source_model", f"a control does not fit the source: {error}", right) from error
        except BaseException:
            if run.state is not None and (made := key()) is not None:
                self._stopped = _Stopped(made, EditState(run.state.step, run.state.x.cpu()))
            raise
        # ComfyUI scales a latent for the model and back, which rounds. What the edit left alone stays bit for bit.
        edited = torch.where(run.unchanged.to(edited.device), samples.to(edited), edited)
        report = _Report(facts.name, model, others, found, steps, run, inputs.preset, facts.shift)
        messages.show_text(unique_id, report.short)
        return sampling.finish(latent_image, edited), report.summary


def _check(model, source_model, latent: dict[str, Any]) -> None:
    require_model(NODE, model)
    if source_model is not None:
        require_model(NODE, source_model, "source_model")
    check_latent(NODE, latent)
    refuse_unfinished(NODE, latent, "Connect a finished image's latent")
    right = "Connect an image's latent, from VAE Encode or a sampler"
    require(latent["samples"].any(), NODE, "latent_image", "it is empty", right)
    for name, given in (("model", model), ("source_model", source_model)):
        if given is not None and patching.step_cache_of(given) is not None:
            found = "it has a Speed Plan, which extrapolates along one run; an edit draws new noise in each step"
            raise InputError(NODE, name, found, "Connect the MODEL from before Speed Plan")
        if given is not None and HOST_CACHE in given.model_options["transformer_options"]:
            found = "it has EasyCache or LazyCache, which reuse predictions; an edit draws new noise in each step"
            raise InputError(NODE, name, found, "Connect the MODEL from before that node")
    if source_model is None:
        return
    ours, theirs = (of_model(each, **run_cache.others_on(each)) for each in (model, source_model))
    found = "it is not the same MODEL: its weights, LoRA, shift or another node's patches differ"
    right = "Connect a copy of the MODEL on the input model that differs in this pack's block nodes alone"
    require(ours == theirs, NODE, "source_model", found, right)


def _steps(inputs: EditInputs, own_shift: float, latent: dict[str, Any]) -> EditSteps:
    """The steps that edit: the last `edit_steps` of the schedule."""
    schedule = sigmas(inputs.steps, inputs.schedule, inputs.shift or own_shift)
    edited = min(inputs.edit_steps, inputs.steps)
    return EditSteps(
        sigmas=schedule[inputs.steps - edited :],
        source_cfg=inputs.source_cfg,
        target_cfg=inputs.target_cfg,
        seed=inputs.seed,
        refine_steps=min(inputs.refine_steps, edited),
        average=inputs.average,
        indices=latent.get("batch_index"),
    )


def _guided(conditioning, guidance: float):
    """A CONDITIONING with a guidance embedding; as it is at 0."""
    return [[text, {**entry, "guidance": guidance}] for text, entry in conditioning] if guidance else conditioning


def _key(model, source_model, texts, latent: dict[str, Any], inputs: EditInputs) -> Any:
    """What decides an edit; None if it cannot continue from the middle."""
    others = run_cache.others_on(model)
    if run_cache.memory_of(model, others, *texts) is not None:
        return None
    both = [patching.controls_of(each) for each in (model, source_model)]
    image = [latent["samples"], latent.get("noise_mask"), latent.get("batch_index")]
    return of_model(model, **others), fingerprint([*both, *texts, *image, inputs])


@dataclass(frozen=True)
class _Report:
    """What an edit did, in words. Fields: model and source_model, as sampled; inputs, with the preset in place."""

    name: str
    model: Any
    source_model: Any
    inputs: EditInputs
    steps: EditSteps
    run: EditRun
    preset: str
    own_shift: float

    @property
    def short(self) -> str:
        """For the node."""
        return "\n".join([f"{self._calls} model calls, {self._time}", *self._notes])

    @property
    def summary(self) -> str:
        """All lines."""
        inputs, steps, (source, target) = self.inputs, self.steps, self.run.sides
        shift = f"{inputs.shift:g} (as set)" if inputs.shift else f"{self.own_shift:g} ({OWN})"
        refined = f", of which the last {steps.refine_steps} sample the target alone" if steps.refine_steps else ""
        lines = [
            f"Model: {self.name}",
            *([] if self.preset == NO_PRESET else [f"Preset: {self.preset}, the authors' settings"]),
            *self._controls,
            f"Schedule: {inputs.schedule}, shift {shift}",
            f"Steps: the last {steps.count} of {inputs.steps}, from sigma {float(steps.sigmas[0]):.4g}{refined}",
            f"Guidance: cfg {inputs.source_cfg:g} of the source, {inputs.target_cfg:g} of the target",
            f"Noise: seed {inputs.seed}, {steps.average} in each step",
            f"Model calls: {self._calls}; predictions: {source.predictions} of the source, {target.predictions} of "
            "the target",
            *self._modulation,
            f"Time: {self._time}",
            *self._notes,
        ]
        return "\n".join(lines)

    @property
    def _calls(self) -> int:
        return sum(side.run.calls.calls for side in self.run.sides)

    @property
    def _time(self) -> str:
        done = self.steps.count - (self.steps.start.step if self.steps.start else 0)
        return f"{self.run.seconds / max(done, 1):.3g} s a step, {self.run.seconds:.3g} s in all"

    @property
    def _controls(self) -> list[str]:
        """The block controls, and guidance that is not in the conditionings."""
        lines = [f"Control: {control_label(control)}" for control in patching.controls_of(self.model)]
        if patching.controls_of(self.model) != patching.controls_of(self.source_model):
            own = [control_label(control) for control in patching.controls_of(self.source_model)]
            lines += [f"Control of the source: {label}" for label in own or ["none"]]
        values = (("source", self.inputs.source_guidance), ("target", self.inputs.target_guidance))
        return lines + [f"Guidance embedding of the {name}: {value:g}" for name, value in values if value]

    @property
    def _modulation(self) -> list[str]:
        sides = zip(SIDES, self.run.sides, strict=True)
        return [f"{name}: {side.run.modulation}" for name, side in sides if side.run.modulation is not None]

    @property
    def _preset_notes(self) -> list[str]:
        wanted, kinds = PRESETS.get(self.preset), [kind.__name__ for kind in type(self.model.model).__mro__]
        if wanted is None or wanted.kind in kinds:
            return []
        return [f"Preset: {self.preset} is not for this model, {kinds[0]}. Set preset to none"]

    @property
    def _notes(self) -> list[str]:
        """What is not plain about the run."""
        edit_steps, steps, start = self.inputs.edit_steps, self.inputs.steps, self.steps.start
        memory = run_cache.memory_of(self.model, run_cache.others_on(self.model))
        return [
            *self._preset_notes,
            *([] if start is None else [f"Continued: {start.step} steps are of the edit that was cancelled"]),
            *([f"Steps: edit_steps is {edit_steps}, so all {steps} edit"] if edit_steps > steps else []),
            *([] if memory is None else [f"Note: {memory}; each step of an edit has new noise"]),
        ]


NODES = {NODE: (FlowEdit, "Flow Edit")}
