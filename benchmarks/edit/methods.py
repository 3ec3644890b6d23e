"""The methods of editing, in batches through the core, each with the settings to choose from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmdit_core.editing.flow_edit import flow_edit
from mmdit_core.editing.inversion import Field
from mmdit_core.editing.rf_inversion import Pull, drawn_to_noise
from mmdit_core.flow.schedules import sigmas
from mmdit_core.flow.sigma import shift_sigma
from mmdit_core.flow.window import Window
from mmdit_core.guidance.cfg import cfg as combine
from mmdit_core.solvers import SOLVERS, solve
from training.render import Renderer
from training.vae import CHANNELS, FACTOR

from .edits import Edit

STEPS = 28
SIDE = 128  # pixels
ROWS = 10  # images of one model call; more do not fit into the caches of a CPU
SOURCE_CFG = 3.0  # of the images to edit
GAMMA = 0.5  # of RF-Inversion
Prompt = tuple[Tensor, Tensor]  # context [B, 154, 64], pooled [B, 64]
Settings = dict[str, Any]


class Sampler:
    """A model's parts in batches. Attributes: rows, how many images its transformer was called with."""

    def __init__(self, renderer: Renderer):
        self.renderer, self.shift, self.rows = renderer, renderer.shift, 0
        self.schedule = sigmas(STEPS, shift=self.shift)
        self._empty = renderer.encode([""])

    def encode(self, texts: Sequence[str]) -> Prompt:
        """Encode prompts."""
        return self.renderer.encode(list(texts))

    def empty(self, batch: int) -> Prompt:
        """The empty prompt."""
        context, pooled = self._empty
        return context.expand(batch, -1, -1), pooled.expand(batch, -1)

    def predict(self, x: Tensor, sigma: Tensor, prompt: Prompt) -> Tensor:
        """The velocity of one prompt for each image."""
        self.rows += len(x)
        parts = (each.split(ROWS) for each in (x, *prompt))
        timestep = sigma.float() * 1000
        return torch.cat(
            [
                self.renderer.model(rows, timestep.expand(len(rows)), context=context, y=pooled)
                for rows, context, pooled in zip(*parts, strict=True)
            ]
        )

    def guided(self, positive: Prompt, negative: Prompt, scale: float) -> Field:
        """The velocity with cfg; at scale 1 without the negative prompt."""

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            cond = self.predict(x, sigma, positive)
            return cond if scale == 1 else combine(cond, self.predict(x, sigma, negative), scale)

        return velocity

    def sample(self, edits: Sequence[Edit]) -> Tensor:
        """Sample the images to edit. Returns: latents [B, C, H, W]."""
        noise = make_noise(edits, "source")[:, 0]
        velocity = self.guided(self.encode([e.texts[0] for e in edits]), self.empty(len(edits)), SOURCE_CFG)
        return solve(velocity, noise, self.schedule, "euler")

    def decode(self, latent: Tensor) -> Tensor:
        """Latents as images [B, H, W, 3], uint8."""
        image = self.renderer.decoder(latent.float()).clamp(0, 1).permute(0, 2, 3, 1)
        return (image * 255).round().to(torch.uint8)


def make_noise(edits: Sequence[Edit], use: str, number: int = 1) -> Tensor:
    """Noise [B, number, C, H, W], a seed for each edit and use."""
    shape = (number, CHANNELS, SIDE // FACTOR, SIDE // FACTOR)
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(e.seed(use))) for e in edits])


@dataclass
class Batch:
    """Images to edit. Fields: latent [B, C, H, W]; source and target, prompts; shared, what settings have in common."""

    edits: Sequence[Edit]
    latent: Tensor
    source: Prompt
    target: Prompt
    empty: Prompt
    shared: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """What `make` returns at the first call with a key."""
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]


def make_batch(sampler: Sampler, edits: Sequence[Edit], latent: Tensor) -> Batch:
    """A batch. Args: latent, of the images to edit."""
    sources, targets = zip(*(edit.texts for edit in edits), strict=True)
    return Batch(edits, latent, sampler.encode(sources), sampler.encode(targets), sampler.empty(len(edits)))


def by_flow_edit(sampler: Sampler, batch: Batch, *, edit_steps: int, source_cfg: float, target_cfg: float) -> Tensor:
    """FlowEdit with one draw of noise in each step; a step has the same noise under all settings."""
    noise = batch.once("noise", lambda: make_noise(batch.edits, "FlowEdit", STEPS))
    first = STEPS - edit_steps

    def source(x: Tensor, sigma: Tensor) -> Tensor:
        # The source's input is the same under all settings.
        parts = {"cond": batch.source, "uncond": batch.empty}
        names = ("cond",) if source_cfg == 1 else ("cond", "uncond")
        found = [
            batch.once((name, float(sigma)), lambda name=name: sampler.predict(x, sigma, parts[name])) for name in names
        ]
        return found[0] if source_cfg == 1 else combine(*found, source_cfg)

    target = sampler.guided(batch.target, batch.empty, target_cfg)
    schedule = sampler.schedule[first:].tolist()
    return flow_edit(source, target, batch.latent, schedule, lambda step, draw: noise[:, first + step])


def _inverted(sampler: Sampler, batch: Batch, solver: str) -> Tensor:
    velocity = sampler.guided(batch.source, batch.empty, 1.0)
    return batch.once(solver, lambda: solve(velocity, batch.latent, sampler.schedule.flip(0), solver))


def by_inversion(sampler: Sampler, batch: Batch, *, inversion: str, solver: str, negative: str, cfg: float) -> Tensor:
    """Inversion with the source prompt, then sampling with the target. Args: negative, "empty" or "old", the source."""
    away = {"empty": batch.empty, "old": batch.source}[negative]
    return solve(
        sampler.guided(batch.target, away, cfg), _inverted(sampler, batch, inversion), sampler.schedule, solver
    )


def by_rf_inversion(sampler: Sampler, batch: Batch, *, eta: float, end: float, cfg: float) -> Tensor:
    """RF-Inversion: the inversion is drawn to random noise, and the sampling to the source image until `end`."""
    noise = make_noise(batch.edits, "RF-Inversion")[:, 0]
    drawn = drawn_to_noise(sampler.guided(batch.source, batch.empty, 1.0), noise, GAMMA)
    start = batch.once("drawn", lambda: solve(drawn, batch.latent, sampler.schedule.flip(0), "euler"))
    target, pull = sampler.guided(batch.target, batch.empty, cfg), Pull(eta, window=Window(end=end))

    def pulled(x: Tensor, sigma: Tensor) -> Tensor:
        velocity = target(x, sigma)
        strength = pull.strength_at(float(sigma), lambda percent: shift_sigma(1 - percent, sampler.shift))
        return torch.lerp(velocity, (x - batch.latent) / sigma, strength)

    return solve(pulled, start, sampler.schedule, "euler")


def by_noise(sampler: Sampler, batch: Batch, *, denoise: float, cfg: float) -> Tensor:
    """Image to image: noise is added to the image, and the target sampled from there."""
    schedule = sigmas(STEPS, shift=sampler.shift, denoise=denoise)
    noise, sigma = make_noise(batch.edits, "noise")[:, 0], float(schedule[0])
    velocity = sampler.guided(batch.target, batch.empty, cfg)
    return solve(velocity, (1 - sigma) * batch.latent + sigma * noise, schedule, "euler")


@dataclass(frozen=True)
class Method:
    """A way to edit. Fields: run(sampler, batch, **settings) -> latents; choices, the settings to choose from."""

    name: str
    run: Callable[..., Tensor]
    choices: tuple[Settings, ...]


DEFAULTS = {"edit_steps": 24, "source_cfg": 1.5, "target_cfg": 5.5}  # the node's


def _by(name: str, *values: tuple, **fixed: Any) -> tuple[Settings, ...]:
    return tuple({**fixed, **dict(zip(name.split(), each, strict=True))} for each in values)


ANEW = {"denoise": 1.0, "cfg": SOURCE_CFG}  # of image to image: nothing of the image is left


METHODS = (
    Method(
        "FlowEdit",
        by_flow_edit,
        _by(
            "edit_steps source_cfg target_cfg",
            *((24, 1.0, 1.5), (24, 1.0, 2.0), (28, 1.0, 2.0), (20, 1.0, 3.0), (24, 1.0, 3.0), (28, 1.0, 3.0)),
            *((24, 1.5, 3.5), (24, 1.5, 5.5), (24, 2.5, 7.5)),
        ),
    ),
    Method(
        "inversion, leapfrog",
        by_inversion,
        _by(
            "solver negative cfg",
            *(("euler", "empty", 2.0), ("heun", "old", 2.0), ("euler", "old", 3.0), ("euler", "old", 4.5)),
            inversion="leapfrog",
        ),
    ),
    Method(
        "RF-Inversion",
        by_rf_inversion,
        _by("eta end cfg", (0.9, 0.15, 3.0), (0.9, 0.25, 2.0), (0.9, 0.25, 3.0), (0.9, 0.5, 3.0), (0.9, 0.5, 5.5)),
    ),
    Method(
        "inversion, FireFlow",
        by_inversion,
        _by("negative cfg", ("empty", 2.0), ("empty", 3.0), ("old", 3.0), inversion="fireflow", solver="fireflow"),
    ),
    Method(
        "image to image",
        by_noise,
        _by("denoise cfg", (0.3, 3.0), (0.5, 3.0), (0.7, 2.0), (0.7, 3.0), (0.8, 3.0)),
    ),
)


def rows_of(method: Method, settings: Settings) -> int:
    """About how many images the transformer is called with for one edit, for the time left."""
    sides = 1 if settings.get("cfg", settings.get("target_cfg")) == 1 else 2
    if method.run is by_flow_edit:
        return settings["edit_steps"] * sides
    return STEPS * sides * SOLVERS[settings.get("solver", "euler")].calls_per_step
