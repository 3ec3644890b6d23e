"""FlowEdit inside ComfyUI's guider: one run, in which the source prompt is predicted next to the target's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ....mmdit_core.control.model_call import ControlError
from ....mmdit_core.editing.flow_edit import EditState, flow_edit
from .. import patching
from ..run import nan_check
from ..run.state import RUN, Run
from .inversion import mask_at, noise_scale

SOURCE, SOURCE_NEGATIVE = "source", "source_negative"  # names of the source's lists of conditionings in the guider


class SourceControlError(Exception):
    """A control on the MODEL does not fit the source prompt."""


@dataclass(frozen=True)
class EditSteps:
    """The steps of an edit.

    Fields: sigmas [steps + 1] to run, float64 on the CPU, falling; refine_steps, how many of them sample the target
    alone; average, draws of noise in a step; seed of the noise; source_cfg, target_cfg; indices, the LATENT's
    batch_index; start, where a cancelled edit continues.
    """

    sigmas: Tensor
    source_cfg: float
    target_cfg: float
    seed: int
    refine_steps: int = 0
    average: int = 1
    indices: Sequence[int] | None = None
    start: EditState | None = None

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.sigmas) - 1


class EditGuider(comfy.samplers.CFGGuider):
    """The guider of an edit: target and negative prompt are its own, and the source's are predicted by another one.

    ComfyUI prepares the conditionings of both together: hooks, areas and the model's inputs. An area of one side is
    predicted on the other side, too, so that equal words cancel in it. ControlNets stay on their own side.
    Attributes: source, the other guider, in a run of its own, with its own controls and counts.
    """

    def __init__(self, model, source_model, steps: EditSteps):
        """Args: source_model, the same MODEL, with other block controls at most."""
        super().__init__(model)
        self.source = comfy.samplers.CFGGuider(model)
        self._controls = patching.attached(source_model)
        self.set_cfg(steps.target_cfg)
        self.source.set_cfg(steps.source_cfg)

    def set_prompts(self, target, negative, source, source_negative) -> None:
        """Set the CONDITIONINGs."""
        self.inner_set_conds(
            {"positive": target, "negative": negative, SOURCE: source, SOURCE_NEGATIVE: source_negative}
        )

    def outer_sample(self, noise, latent_image, sampler, sigmas, *args, **kwargs) -> Tensor:
        """Sample, with a run of the source's guider around it. Args: as ComfyUI's."""
        options = comfy.model_patcher.create_model_options_clone(self.model_options)
        options["transformer_options"][patching.KEY] = self._controls
        options["transformer_options"].pop(RUN, None)
        self.source.model_patcher, self.source.model_options = self.model_patcher, options
        self._share()
        with _source_run(self.source, sampler, sigmas):
            return super().outer_sample(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def inner_sample(self, noise, latent_image, device, sampler, *args, **kwargs) -> Tensor:
        """Sample. Args: as ComfyUI's."""
        _control_pairs(self.conds)
        sampler.before = self._share  # the conditionings are processed in between
        return super().inner_sample(noise, latent_image, device, sampler, *args, **kwargs)

    def _share(self) -> None:
        """Give the source's guider the loaded model and the source's conditionings."""
        self.source.inner_model = getattr(self, "inner_model", None)
        self.source.conds = {"positive": self.conds[SOURCE], "negative": self.conds[SOURCE_NEGATIVE]}


def _control_pairs(conds: dict[str, list[dict[str, Any]]]) -> None:
    """Give each side's negative prompt the ControlNets that are for both, as ComfyUI does in a sampler.

    ComfyUI would copy those of the list "positive" to all other lists, the source's too. Args: conds, changed.
    """
    for positive, negative in (("positive", "negative"), (SOURCE, SOURCE_NEGATIVE)):
        both = [entry for entry in conds[positive] if entry.get("control_apply_to_uncond")]
        conds[negative] = conds[negative][:]
        comfy.samplers.apply_empty_x_to_equal_area(both, conds[negative], "control", lambda found, index: found[index])
        conds[positive] = [{**entry, "control_apply_to_uncond": False} for entry in conds[positive]]


@contextmanager
def _source_run(guider, sampler, sigmas) -> Iterator[Run]:
    """A run of the source's guider. Raises: SourceControlError before the first step."""
    with ExitStack() as stack:
        try:
            run = stack.enter_context(patching.running(guider, sampler, sigmas))
        except (ControlError, ValueError) as error:
            raise SourceControlError(str(error)) from error
        yield run


class EditRun(comfy.samplers.Sampler):
    """A sampler for `EditGuider`; afterwards it holds what was done.

    Attributes: seconds that the steps took; sides, the predictions of source and target; state, the edit after the
    last complete step; unchanged [B, ...], True where the image is the one that came in; evaluated, the sigmas at which
    the model is called, for `patching.Run`; before, called before the first step.
    """

    def __init__(self, steps: EditSteps, node: str):
        """Args: node, whose name the error has when a value is not finite."""
        self.steps, self.node = steps, node
        self.evaluated = tuple(steps.sigmas[:-1].tolist())
        self.before: Callable[[], None] = lambda: None
        self.sides: tuple[_Side, ...] = ()
        self.seconds = 0.0
        self.state: EditState | None = steps.start
        self.unchanged: Tensor = torch.tensor(False)

    def sample(
        self, model, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        """Run the edit. Args: as ComfyUI's guider calls a sampler. Returns: the edited image."""
        self.before()
        steps, image, options = self.steps, latent_image, extra_args.get("model_options", {})
        seed = extra_args.get("seed")
        source_options = comfy.model_patcher.create_model_options_clone(model.source.model_options)
        source_options["transformer_options"]["sample_sigmas"] = sigmas
        source = _Side(SOURCE, model.source, source_options, seed)
        target = _Side("target", model, options, seed)
        self.sides = source, target
        mask = None if denoise_mask is None else mask_at(model, denoise_mask, options, sigmas)
        draw = self._noise_of(image, model.inner_model.model_sampling)
        began = time.perf_counter()

        def report(step: int, x: Tensor) -> None:
            if not nan_check.is_finite(x):
                raise self._not_finite(step)
            for side in self.sides:
                side.calls.clear()
            self.state, self.seconds = EditState(step + 1, x), time.perf_counter() - began
            if callback is not None:
                callback(step, x, x, steps.count)

        start = None if steps.start is None else EditState(steps.start.step, steps.start.x.to(image))
        edited = flow_edit(
            source,
            target,
            image,
            steps.sigmas.tolist(),
            draw,
            refine_steps=steps.refine_steps,
            average=steps.average,
            mask_at=mask,
            start=start,
            report=report,
        )
        if denoise_mask is not None and "denoise_mask_function" not in options:
            edited = torch.where(denoise_mask == 0, image, edited)  # refining ends there with a rounding
        self.unchanged = (edited == image).cpu()
        return edited

    def _noise_of(self, image: Tensor, sampling) -> Callable[[int, int], Tensor]:
        """The noise of a step and a draw, made on the CPU: it depends on nothing but the seed and their numbers."""
        steps = self.steps
        source = torch.Generator().manual_seed(steps.seed)
        seeds = torch.randint(2**63 - 1, (steps.count, steps.average), generator=source)
        scale = noise_scale(sampling)
        like = torch.zeros(image.shape)

        def noise(step: int, draw: int) -> Tensor:
            made = comfy.sample.prepare_noise(like, int(seeds[step, draw]), steps.indices)
            return scale * made.to(image)

        return noise

    def _not_finite(self, step: int) -> nan_check.NotFiniteError:
        where = f"{self.node}: step {step + 1} of {self.steps.count} (sigma {float(self.steps.sigmas[step]):.4g})"
        side = next((each for each in self.sides if not all(nan_check.is_finite(c.velocity) for c in each.calls)), None)
        side = side or self.sides[-1]
        words = {"positive": side.name, "negative": f"{side.name}'s negative"}
        return nan_check.error(where, side.calls, side.again, side.options, side.guider.inner_model, words)


class _Side:
    """The velocity of one side's guider.

    Attributes: name; predictions made; calls of the present step; run, its counts.
    """

    def __init__(self, name: str, guider, options: dict[str, Any], seed: int | None):
        self.name = name
        self.guider, self.options, self.seed = guider, options, seed
        self.run: Run = options["transformer_options"][RUN]
        self.predictions, self.calls = 0, list[nan_check.Call]()

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        # ComfyUI checks for a cancel in its own layers only.
        comfy.model_management.throw_exception_if_processing_interrupted()
        velocity = self._velocity(x, sigma, self.options)
        self.predictions += 1
        self.calls.append(nan_check.Call(x, sigma, velocity))
        return velocity

    def again(self, call: nan_check.Call, options: dict[str, Any]) -> None:
        """Repeat a call with other options."""
        self._velocity(call.x, call.sigma, options)

    def _velocity(self, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> Tensor:
        self.run.sigma = float(sigma)
        levels = x.new_full((len(x),), float(sigma))
        return (x - self.guider(x, levels, model_options=options, seed=self.seed)) / sigma
