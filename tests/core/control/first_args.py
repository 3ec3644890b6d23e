"""What a model's first block is given for another prompt, for tests that call a model without ComfyUI around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmdit_core.control.model_call import ModelCall
from mmdit_core.control.spec import BlockControl

OF_THE_IMAGE = ("img", "vec", "transformer_options")


def text_alone(embed: Callable[[Tensor], Tensor]) -> Callable[[BlockControl, Sequence[int]], dict[str, Any]]:
    """For models whose blocks are given nothing of the text but its stream. Args: embed, [1, L, W] -> [1, L, D]."""
    return lambda prompt, rows: {"txt": embed(prompt.context).expand(len(rows), -1, -1)}


def captured(
    model: Callable[..., Tensor], call: ModelCall, given: Mapping[str, Any]
) -> Callable[[BlockControl, Sequence[int]], dict[str, Any]]:
    """For any model, from a call in which the first block's arguments are noted. Args: given, the model's inputs."""

    def first_args(prompt: BlockControl, rows: Sequence[int]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def identity(args, extra):
            found.update({} if found else args)
            return {name: args[name] for name in ("img", "txt") if args.get(name) is not None}

        picked = {
            name: value[list(rows)] if isinstance(value, Tensor) and len(value) == call.batch else value
            for name, value in given.items()
        }
        picked["context"] = prompt.context.expand(len(rows), -1, -1)
        hooks = {call.key_of(block): identity for block in call.blocks}
        model(**picked, transformer_options={"patches_replace": {"dit": hooks}})
        return {name: value for name, value in found.items() if name not in OF_THE_IMAGE}

    return first_args
