"""What the tests of rows share: controls of one branch, the right values from single predictions, and wrappers.

A right value needs no code of ours but the control itself in a run of one prompt: at cfg 1 the model is called for the
positive prompt alone, and a control of both branches there is what a control does to a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from tests.nodes.families.oracles import Bench

SIGMAS = (0.9, 0.5)  # one step: linear in the predictions
CFG = 3.0
ROUNDING = 2e-5  # another batch is computed with other kernels
NAMES = (  # of controls, as `controls` makes them
    "skip negative",
    "skip positive",
    "skip both",
    "boost positive",
    "boost negative",
    "phrase",
    "disable negative",
    "prompt",
)


def prompts(bench: Bench) -> dict[str, list]:
    """Three prompts; the positive one has a token map."""
    return {"positive": bench.with_map(bench.prompt(1)), "negative": bench.prompt(3), "third": bench.prompt(4)}


def controls(bench: Bench) -> dict[str, Any]:
    """One control of each kind, each acting on some of the branches."""
    other = bench.prompt(2)[0]
    some, cross = bench.numbers[:2], bench.family.text.cross
    return {
        "skip negative": bench.control("skip", some[:1], branch="negative"),
        "skip positive": bench.control("skip", some[:1], branch="positive"),
        "skip both": bench.control("skip", some[:1]),
        "boost positive": bench.control("boost", some, 2.0, "value" if cross else "attention", branch="positive"),
        "boost negative": bench.control("boost", some, 2.0, "residual", branch="negative"),
        "phrase": bench.control("boost", some, 3.0, "value", phrases=("red circle",)),
        "disable negative": bench.control("disable", some, branch="negative"),
        "prompt": bench.control("prompt", some, context=other[0], context_inputs=other[1]),
    }


def guider(model: Any, conds: Mapping[str, list], cfg: float = CFG) -> Any:
    """ComfyUI's guider."""
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(conds["positive"], conds["negative"])
    made.set_cfg(cfg)
    return made


def sample(bench: Bench, made: Any, sigmas: Sequence[float] = SIGMAS, latent: Tensor | None = None) -> Tensor:
    """The latent after Euler steps of a guider of ComfyUI's."""
    latent = bench.latent if latent is None else latent
    shape = (bench.batch, *latent.shape[1:])
    source = torch.Generator().manual_seed(5)
    noise = torch.randn(shape, generator=source)
    euler = comfy.samplers.sampler_object("euler")
    return made.sample(noise, torch.zeros(shape), euler, torch.tensor(sigmas), disable_pbar=True, seed=5)


def attached(bench: Bench, *given: Any, model: Any = None) -> Any:
    """A MODEL with controls."""
    return bench.of("comfyui.patching").attach(model or bench.model, given)


def alone(bench: Bench, prompt: list, *given: Any, latent: Tensor | None = None) -> Tensor:
    """One step with one prompt's prediction, on which all controls act."""
    conds = {"positive": prompt, "negative": prompt}
    whole = [control if control.branches == (0,) else replace(control, branch="both") for control in given]
    return sample(bench, guider(attached(bench, *whole), conds, 1.0), latent=latent)


def single(bench: Bench, prompt: list, branch: int, control: Any) -> Tensor:
    """One step with one prompt's prediction, on which a control acts if it is of that branch."""
    return alone(bench, prompt, *([control] if branch in control.branches else []))


def guided(bench: Bench, conds: Mapping[str, list], control: Any) -> Tensor:
    """The right value of a step with guidance, from the two predictions alone."""
    cond, uncond = single(bench, conds["positive"], 0, control), single(bench, conds["negative"], 1, control)
    return uncond + CFG * (cond - uncond)


# Other nodes' wrappers of a model call: (apply, x, t, inputs) -> output. `apply` runs the model on rows.
Apply = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]


def taken(value: Any, rows: Sequence[int], batch: int) -> Any:
    """Some rows of whatever has a row for each of the batch."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value[list(rows)]
    return [taken(item, rows, batch) for item in value] if isinstance(value, list) else value


def on_rows(apply: Apply, x: Tensor, t: Tensor, given: dict[str, Any], rows: Sequence[int]) -> Tensor:
    """The model's output for rows of the batch, in their order."""
    inputs = {
        name: value if name == "transformer_options" else taken(value, rows, len(x)) for name, value in given.items()
    }
    return apply(x[list(rows)], t[list(rows)], inputs)


def repeated(apply: Apply, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
    """Rows [a, b, a, b], as tiled diffusion makes them."""
    return on_rows(apply, x, t, given, [*range(len(x))] * 2)[: len(x)]


def reversed_rows(apply: Apply, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
    """The rows turned round."""
    return on_rows(apply, x, t, given, range(len(x))[::-1]).flip(0)


def interleaved(apply: Apply, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
    """Rows [a0, b0, a1, b1] of [a0, a1, b0, b1]."""
    half = len(x) // 2
    order = [row for pair in zip(range(half), range(half, len(x)), strict=False) for row in pair] or [0]
    back = [order.index(row) for row in range(len(x))]
    return on_rows(apply, x, t, given, order)[back]


def one_by_one(apply: Apply, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
    """A call for each row."""
    return torch.cat([on_rows(apply, x, t, given, [row]) for row in range(len(x))])


def halves(apply: Apply, x: Tensor, t: Tensor, given: dict[str, Any]) -> Tensor:
    """Two calls, the first with the larger half."""
    cut = -(-len(x) // 2)
    parts = [rows for rows in (range(cut), range(cut, len(x))) if rows]
    return torch.cat([on_rows(apply, x, t, given, rows) for rows in parts])


CHANGES = {change.__name__: change for change in (repeated, reversed_rows, interleaved, one_by_one, halves)}


def function_wrapper(model: Any, change: Callable[..., Tensor]) -> Any:
    """A clone of a MODEL with a model_function_wrapper."""

    def wrapper(apply_model, args):
        def apply(x, t, inputs):
            return apply_model(x, t, **inputs)

        return change(apply, args["input"], args["timestep"], args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def apply_wrapper(model: Any, change: Callable[..., Tensor]) -> Any:
    """A clone of a MODEL with another pack's APPLY_MODEL wrapper, after ours."""

    def wrapper(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        def apply(x, t, given):
            return executor(
                x, t, given.pop("c_concat"), given.pop("c_crossattn"), control, transformer_options, **given
            )

        return change(apply, x, t, {"c_concat": c_concat, "c_crossattn": c_crossattn, **kwargs})

    clone = model.clone()
    clone.add_wrapper_with_key("apply_model", "another_pack", wrapper)
    return clone


WRAPPERS = {"function": function_wrapper, "apply": apply_wrapper}


class Apart(comfy.samplers.CFGGuider):
    """Guidance of predictions that are computed one list at a time, each with its own controls, of no branch.

    Fields: given, the values on the MODEL for each list.
    """

    given: Mapping[str, Any]

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        """The guided prediction."""
        out = {}
        for name, entries in self.conds.items():
            options = {**model_options["transformer_options"], "mmdit": self.given[name]}
            (out[name],) = comfy.samplers.calc_cond_batch(
                self.inner_model, [entries], x, timestep, {**model_options, "transformer_options": options}
            )
        return out["negative"] + self.cfg * (out["positive"] - out["negative"])


def apart(bench: Bench, conds: Mapping[str, list], control: Any, model: Any = None) -> Any:
    """A guider that gives the right value of any number of steps."""
    made = Apart(attached(bench, bench.control("boost", (0,), 1.0), model=model))
    made.set_conds(conds["positive"], conds["negative"])
    made.set_cfg(CFG)
    made.given = {}
    for branch, name in enumerate(("positive", "negative")):
        whole = control if control.phrases or control.action == "prompt" else replace(control, branch="both")
        acting = [whole] if branch in control.branches else []
        made.given[name] = bench.of("comfyui.patching").attached(attached(bench, *acting))
    return made
