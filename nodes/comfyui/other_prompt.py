"""What a network's first block is given for another prompt: its text, positions and masks, as the network makes them.

The network is called with that prompt while every block gives back what it is given. So the way of a text to the first
block (norms, projections, refiners, padding, registers, positions that depend on its length) is the network's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ...mmdit_core.control.model_call import ModelCall, rows_of, text_length
from ...mmdit_core.control.spec import BlockControl
from .block_forward import hooked
from .families import Family, network_of

# Arguments of a block that are not the text's, but for txt.
OWN = ("img", "txt", "vec", "vec_lora", "transformer_options")


@dataclass(frozen=True)
class HostCall:
    """One `apply_model` call of ComfyUI's: the model, and the arguments by ComfyUI's names."""

    base: Any
    x: Tensor
    t: Tensor
    c_concat: Tensor | None
    c_crossattn: Tensor | None
    options: dict[str, Any]
    inputs: Mapping[str, Any]


def first_args(
    family: Family, by_forward: bool, host: HostCall, call: ModelCall, prompt: BlockControl, rows: Sequence[int]
) -> dict[str, Any]:
    """The first block's arguments for another prompt, less the image's: "txt" [rows, L, D] and what fits it.

    With "renewed", the tokens that each block is given again, for a family that has such.

    Args: by_forward, how its blocks are reached; call, the model's blocks; prompt, with the other context; rows, of the
        call's batch.
    """
    base, batch = host.base, host.x.shape[0]

    def picked(value: Any) -> Any:
        if isinstance(value, list):
            return [picked(item) for item in value]
        return rows_of(value, rows) if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch else value

    x = picked(host.x)
    texts = _model_inputs(host, prompt, x)
    context = texts.pop("c_crossattn")
    inputs = {name: picked(value) for name, value in host.inputs.items() if name not in family.text_inputs}
    inputs |= {name: value for name, value in texts.items() if name in family.text_inputs}
    first = call.key_of(0)
    found: dict[str, Any] = {}
    last = texts[family.renews].shape[-2] if family.renews else 0
    renewed: list[Tensor] = []

    def identity(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        if last:
            renewed.append(args["txt"][:, -last:].clone())
        return {name: args[name] for name in ("img", "txt") if args.get(name) is not None}

    def note(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        found.update(args)
        return identity(args, extra)

    hooks = {call.key_of(block): identity for block in call.blocks} | {first: note}
    patches = {name: value for name, value in host.options.get("patches", {}).items() if name == "post_input"}
    options = {
        name: value for name, value in host.options.items() if not name.startswith("mmdit") and name != "wrappers"
    }
    options |= {
        "cond_or_uncond": [0],
        "patches": patches,
        "patches_replace": {} if by_forward else {"dit": hooks},
    }
    network = network_of(base)
    with hooked(network, family, hooks) if by_forward else nullcontext():
        base._apply_model(x, picked(host.t), picked(host.c_concat), context, None, options, **inputs)
    stream = found.get("txt")
    if stream is None:
        stream = found["img"][:, : text_length(found)]
    if renewed:
        found["renewed"] = renewed
    return {"txt": stream, **{name: value for name, value in found.items() if name not in OWN}}


def _model_inputs(host: HostCall, prompt: BlockControl, x: Tensor) -> dict[str, Any]:
    """A prompt as the model's inputs, as ComfyUI makes them of a conditioning. Args: x [rows, ...]."""
    given, y = dict(prompt.context_inputs or {}), host.inputs.get("y")
    if y is not None:  # some models need a pooled text, which is not used here
        given.setdefault("pooled_output", y.new_zeros(1, y.shape[-1]))
    entries = comfy.sampler_helpers.convert_cond([[prompt.context, given]])
    entry = comfy.samplers.encode_model_conds(
        host.base.extra_conds, entries, x, x.device, "positive", latent_image=x, denoise_mask=None
    )[0]
    processed = {
        name: value.process_cond(batch_size=x.shape[0], area=None) for name, value in entry["model_conds"].items()
    }
    return comfy.samplers.cond_cat([processed])
