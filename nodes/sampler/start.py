"""What a run starts from: noise, an earlier run, or the latent as it is; in words what is not plain about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...mmdit_core.flow.sigma import same_sigma
from ..comfyui import patching
from ..comfyui.fingerprint import fingerprint
from ..comfyui.run import resume
from ..comfyui.run.solver import RunSteps
from ..errors import InputError, require
from .inputs import NODE, SamplerInputs

CHANGED = "and was changed since"
DIVERGED = 2.0  # times the spread of the image that was inverted


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Fields: state of the run that it continues, None if it continues none; notes, lines for the node and its summary.
    """

    state: resume.ResumeState | None = None
    notes: tuple[str, ...] = ()


def start_of(latent: dict[str, Any], sigma: float, inputs: SamplerInputs) -> Start:
    """Decide what a run starts from.

    Args: latent, as it came into the node; sigma at the first step to run.
    Raises: InputError if the latent holds another amount of noise than the step, or an unknown one.
    """
    own, changed = resume.resume_state(latent), resume.changed_since(latent)
    found, mode = own or changed, inputs.add_noise
    if mode == "enable":
        what = "took its place" if same_sigma(sigma, 1.0) else "was added to the noise that it holds"
        return Start(notes=() if found is None else (f"Latent: it {_origin(found, changed)}; new noise {what}",))
    if mode == "auto" and changed is not None:
        raise InputError(NODE, "add_noise", f"the latent {_origin(changed, changed)}{_held(changed)}", _right(changed))
    if own is not None and same_sigma(own.sigma, sigma):
        return Start(own, _mask_notes(latent, own))
    if mode == "disable":
        problem = f"without noise there is nothing to start from at step {inputs.start_step}, sigma {sigma:g}"
        right = "Set start_step to the step that the latent is at, or add_noise to auto"
        require(not same_sigma(sigma, 1.0), NODE, "add_noise", problem, right if changed is None else _right(changed))
        return Start(notes=_as_it_is(latent, sigma, found, changed))
    if own is not None:
        problem = f"the latent comes from a run that ended at sigma {own.sigma:g}"
        problem += f", and step {inputs.start_step} is at {sigma:g}"
        right = "Give both samplers the same schedule and this one the first one's end_step, or set add_noise to enable"
        raise InputError(NODE, "start_step", problem, right)
    samples = latent["samples"]
    begun = sigma < 1 and (inputs.start_step > 0 or resume.sampled_since(latent))
    if not begun or samples.is_nested or not samples.any():
        return Start()
    right = "If it holds noise already, as from KSampler (Advanced) or a file, set add_noise to disable"
    return Start(notes=(f"Latent: it was taken for an image, and noise was added to it. {right}",))


def way_back_notes(base, start: resume.ResumeState | None, samples: Tensor, end: float) -> tuple[str, ...]:
    """A note if the way back of an inversion left the range of images.

    Args: base, ComfyUI's model; samples at the end; end, the sigma.
    """
    if start is None or start.flow is None or end > 0:
        return ()
    # In the model's scale images spread by about 1; a plain one far less, and its edits are no divergence.
    ours, image = (float(base.process_latent_in(each.float()).std()) for each in (samples, start.image))
    spread = ours / max(image, 1.0)
    if spread < DIVERGED:
        return ()
    right = "Lower cfg, raise steps, sample with heun, or use Flow Edit"
    return (f"Latent: the way back diverged: its values spread {spread:.1f} times as wide as an image's. {right}",)


def refuse_unfinished(node: str, latent: dict[str, Any], right: str, name: str = "latent_image") -> None:
    """Refuse a latent that still holds the noise of a run. Args: name, of the input. Raises: InputError."""
    changed = resume.changed_since(latent)
    found = resume.resume_state(latent) or changed
    if found is not None:
        raise InputError(node, name, f"it {_origin(found, changed)}, so that it still holds noise", right)


def part_notes(model, latent: dict[str, Any], steps: RunSteps, add_noise: bool) -> tuple[str, ...]:
    """In lines, what in a part of a run depends on the other parts, which this run or another sampler does not know.

    Args: model, with all that acts in the run; add_noise, whether new noise was added.
    """
    mask, notes = latent.get("noise_mask") is not None, []
    scaled = [
        *(["the soft mask"] if mask and "denoise_mask_function" in model.model_options else []),
        *(["the speed plan"] if patching.step_cache_of(model) is not None else []),
    ]
    both = " and ".join(scaled)
    if scaled and steps.start is None and not add_noise:
        notes.append(f"Parts: the steps of another sampler are not known: {both} began with this one's first step")
    if scaled and float(steps.whole[-1]) > 0:
        right = "To split a run, give both samplers the whole schedule and set end_step and start_step"
        notes.append(f"Parts: the schedule ends at sigma {float(steps.whole[-1]):g}, and so did {both}. {right}")
    elif float(steps.sigmas[-1]) > 0 and (scaled or mask):
        does = [*(["leaves noise outside the mask"] if mask else []), *([f"begins {both} again"] if scaled else [])]
        notes.append(f"Parts: continue with Flow Matching Sampler. KSampler (Advanced) {', and '.join(does)}")
    return tuple(notes)


def _origin(state: resume.ResumeState, changed: resume.ResumeState | None) -> str:
    origin = "comes from FlowInvert" if state.flow is not None else "comes from a run that ended early"
    return origin if changed is None else f"{origin} {CHANGED}"


def _held(state: resume.ResumeState) -> str:
    return ": it is noise, and no image" if state.flow is not None else f": it holds the noise of sigma {state.sigma:g}"


def _right(state: resume.ResumeState) -> str:
    if state.sigma == 1:
        return "Connect the latent as it was before the change, or set add_noise to enable, which replaces it by noise"
    return "Set add_noise to disable to continue from the changed latent, or to enable to add new noise to it"


def _as_it_is(
    latent: dict[str, Any], sigma: float, found: resume.ResumeState | None, changed: resume.ResumeState | None
) -> tuple[str, ...]:
    """Notes on a latent to which nothing is added, and which is not an earlier run's at this sigma."""
    notes = []
    if changed is not None:
        notes.append(f"Latent: it {_origin(changed, changed)}; it was sampled as it came")
    if found is not None and not same_sigma(found.sigma, sigma):
        notes.append(f"Latent: it holds the noise of sigma {found.sigma:g}, and the first step is at sigma {sigma:g}")
    if latent.get("noise_mask") is not None:
        notes.append("Latent: outside the noise mask it stays as it came, with the noise that it holds")
    return tuple(notes)


def _mask_notes(latent: dict[str, Any], state: resume.ResumeState) -> tuple[str, ...]:
    """A note if the noise mask is not the one that the earlier run had."""
    mask = latent.get("noise_mask")
    if fingerprint(mask) == state.mask:
        return ()
    if mask is None:
        return ("Latent: its noise mask was removed since the last run; all of the latent is sampled",)
    how = "set" if state.mask == resume.NO_MASK else "changed"
    what = "the image that the run began with" if state.image.any() else "empty, as the run began"
    return (f"Latent: its noise mask was {how} since the last run; outside the mask the latent becomes {what}",)
