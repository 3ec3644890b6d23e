"""One model call as block controls need it: the rows of each prompt, and which block a global number means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.adaln import CACHE
from ..text.tokens import TokenMap
from .spec import BlockControl

Key = tuple[str, int]  # ("double_block" or "single_block", its number within the kind)
Hook = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]


class ControlError(ValueError):
    """A control cannot be carried out in a model call. Attributes: control; field, of the control; reason."""

    def __init__(self, control: BlockControl, field: str, reason: str):
        self.control, self.field, self.reason = control, field, reason
        super().__init__(reason)


@dataclass
class BlockCallCount:
    """Block calls of a run: one for each block, model call and chunk of the batch.

    Fields: total, without any control; skipped, of these; extra, that carry another prompt through a block.
    """

    total: int = 0
    skipped: int = 0
    extra: int = 0

    def __str__(self) -> str:
        percent = 100 * self.skipped / self.total if self.total else 0.0
        more = f"; {self.extra:,} more for a block prompt" if self.extra else ""
        return f"skipped {self.skipped:,} of {self.total:,} block calls, {percent:.1f}%{more}"


@dataclass(frozen=True)
class ModelCall:
    """One model call. Its batch is made of equal chunks, one for each prompt.

    Fields:
        double, single: the model's blocks of each kind.
        branches: POSITIVE or NEGATIVE for each chunk, in order.
        batch: rows of the batch.
        maps: the token map of each chunk, None if its prompt has none.
        partial_rows: True if a block can run on some of the rows.
        registers: tokens that the model puts before the prompt's.
        embed: the model's text embedder, context [1, L, W] -> [1, L, D]; needed for block prompts.
    """

    double: int
    single: int
    branches: tuple[int, ...]
    batch: int
    maps: tuple[TokenMap | None, ...] = ()
    partial_rows: bool = True
    registers: int = 0
    embed: Callable[[Tensor], Tensor] | None = None

    @property
    def chunks(self) -> tuple[int, ...]:
        """The numbers of all chunks."""
        return tuple(range(len(self.branches)))

    def chunks_of(self, control: BlockControl) -> tuple[int, ...]:
        """The chunks that a control acts on."""
        return tuple(chunk for chunk in self.chunks if self.branches[chunk] in control.branches)

    def rows_of(self, chunk: int) -> slice:
        """The rows of a chunk."""
        size = self.batch // len(self.branches)
        return slice(chunk * size, (chunk + 1) * size)

    def key_of(self, block: int) -> Key:
        """The hook key of a block's global number."""
        return ("double_block", block) if block < self.double else ("single_block", block - self.double)

    def args_of(self, args: dict[str, Any], chunks: Sequence[int]) -> dict[str, Any]:
        """A block's arguments for some chunks: copies of their rows, and options that name these chunks alone."""

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == self.batch:
                rows = [value[self.rows_of(chunk)] for chunk in chunks]
                # Always a copy: some blocks write into their arguments.
                return torch.cat(rows) if len(rows) > 1 else rows[0].clone()
            if isinstance(value, tuple | list):
                items = [pick(item) for item in value]
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
            if is_dataclass(value) and not isinstance(value, type):  # Chroma's modulation
                return replace(value, **{f.name: pick(getattr(value, f.name)) for f in fields(value)})
            return value

        picked = {name: value if name == "transformer_options" else pick(value) for name, value in args.items()}
        options = dict(args["transformer_options"])
        cache = options.get(CACHE)
        if cache is not None and isinstance(args.get("vec"), Tensor):
            rows = [row for chunk in chunks for row in range(self.batch)[self.rows_of(chunk)]]
            picked["vec"] = cache.part(args["vec"], rows)
        for name in ("cond_or_uncond", "uuids"):
            if len(options.get(name) or ()) == len(self.branches):
                options[name] = [options[name][chunk] for chunk in chunks]
        return {**picked, "transformer_options": options}
