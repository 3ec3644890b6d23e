"""From FlowMatchingSampler's inputs to the steps of a run: sigmas, noise, guidance. Wrong combinations are refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ...mmdit_core.control.spec import BlockControl
from ..comfyui import patching
from ..comfyui.run import sampling
from ..comfyui.run.guidance import FORMS
from ..comfyui.run.solver import RunSteps
from ..errors import require
from ..links import require_model
from .checks import check_inputs, check_latent
from .inputs import MIN_DENOISE, NODE, SamplerInputs
from .schedule import OWN, shift_for, sigmas_for
from .start import Start, part_notes, start_of


@dataclass(frozen=True)
class SamplerPlan:
    """What is to be run.

    Fields: inputs of the node; facts of the model; model, a clone with the shift; controls, the block controls on it;
    shift_from and sigmas_from, in words where they come from; sigmas [steps + 1] of the whole schedule, float64 on the
    CPU; first and last, the steps of it to run, last left out; prepared, the latent and its noise, with add_noise False
    if the noise is zero or an earlier run's; steps to run, None if there are none; notes, lines on where they start.
    """

    inputs: SamplerInputs
    facts: sampling.ModelFacts
    model: Any
    controls: tuple[BlockControl, ...]
    shift: float
    shift_from: str
    sigmas: Tensor
    sigmas_from: str
    first: int
    last: int
    prepared: sampling.PreparedLatent
    add_noise: bool
    steps: RunSteps | None
    notes: tuple[str, ...] = ()

    @property
    def why_nothing(self) -> str:
        """In words, the input that leaves no step to run, and what to set."""
        inputs, steps = self.inputs, max(0, len(self.sigmas) - 1)
        if inputs.denoise < MIN_DENOISE:
            return "denoise is 0; raise it"
        if not steps:
            return "The schedule has no steps"
        if inputs.end_step <= inputs.start_step:
            return f"end_step {inputs.end_step} is not after start_step {inputs.start_step}; raise it"
        return f"start_step is {inputs.start_step}, and the schedule has {steps} steps; lower it"


def make_plan(model, positive, negative, latent: dict[str, Any], inputs: SamplerInputs) -> SamplerPlan:
    """Check the model, the prompts and the latent, and plan the run. Raises: InputError."""
    require_model(NODE, model)
    per_image = inputs.seeds.each or inputs.seeds.variation > 0
    check_latent(NODE, latent, one_kind=per_image, each=inputs.seeds.each)
    fitted = sampling.fitted(model, latent)
    samples = fitted["samples"]
    facts = sampling.read_model(model)
    check_inputs(NODE, facts, positive, negative, samples, others=", or use KSampler")
    found = f"{inputs.guidance!r} would replace another node's guidance on this model"
    free = FORMS[inputs.guidance] is None or not facts.has_guidance
    require(free, NODE, "guidance", found, "Set guidance to cfg to use that node's, or remove that node")
    tokens, pixels = partial(sampling.tokens_of, model, samples), partial(sampling.pixels_of, model, samples)
    shift, shift_from = shift_for(inputs, facts.shift, tokens, pixels)
    sigmas, sigmas_from = sigmas_for(inputs, shift)
    count = max(0, len(sigmas) - 1)
    first, last = inputs.part(count)
    zero_steps = inputs.zero_steps if inputs.guidance == "cfg_zero_star" else 0
    found = f"the velocity would be zero in {zero_steps} of {count} steps, and nothing but noise would come out"
    right = "Set it to a few of the first steps, usually 0 or 1"
    require(not 0 < count <= zero_steps, NODE, "zero_steps", found, right)
    runs = first < last and inputs.denoise >= MIN_DENOISE
    begun = start_of(latent, float(sigmas[first]), inputs) if runs else Start()
    start = begun.state
    add_noise = start is None and inputs.add_noise != "disable"
    prepared = sampling.prepare(fitted, inputs.seeds, add_noise=add_noise)
    if start is not None:
        # What the earlier run began with, under the mask that came in.
        prepared = replace(prepared, samples=start.image, noise=start.noise)
        start = start.for_run(inputs.solver, inputs.cfg, model, positive, sigmas, latent.get("noise_mask"))
    sampled = model.clone() if shift_from == OWN else sampling.with_shift(model, shift)
    patching.prepare(sampled)
    steps = RunSteps(
        inputs.solver,
        sigmas[first : last + 1],
        inputs.cfg_guidance,
        inputs.seeds.step_seeds(samples.shape[0], latent.get("batch_index")),
        inputs.solver_options,
        max(0, zero_steps - first),
        start,
        tuple(sigmas[last + 1 :].tolist()),
    )
    notes = (*begun.notes, *part_notes(sampled, latent, steps, add_noise)) if runs else ()
    return SamplerPlan(
        inputs=inputs,
        facts=facts,
        model=sampled,
        controls=patching.controls_of(sampled),
        shift=shift,
        shift_from=shift_from,
        sigmas=sigmas,
        sigmas_from=sigmas_from,
        first=first,
        last=last,
        prepared=prepared,
        add_noise=add_noise,
        steps=steps if runs else None,
        notes=notes,
    )
