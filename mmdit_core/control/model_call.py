"""One model call as block controls need it: the rows of each prompt, and which block a global number means."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.adaln import CACHE
from ..text.tokens import Positions
from .spec import BlockControl

Key = tuple[str, int]  # ("double_block" or "single_block", its number within the kind)
Hook = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
ROW_NAMES = "mmdit_row_names"  # in transformer_options: a name of the prompt of each row of the batch, for reports


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

    def add(self, other: BlockCallCount) -> None:
        """Add the block calls of a model call to those of a run."""
        self.total += other.total
        self.skipped += other.skipped
        self.extra += other.extra

    def __str__(self) -> str:
        more = f"{self.extra:,} block calls more than {self.total:,}, for a block prompt"
        if self.extra and not self.skipped:
            return more
        percent = 100 * self.skipped / self.total if self.total else 0.0
        skipped = f"skipped {self.skipped:,} of {self.total:,} block calls, {percent:.1f}%"
        return f"{skipped}; {more}" if self.extra else skipped


@dataclass(frozen=True)
class TextLayout:
    """How the blocks of a model take the text.

    Fields: image_first, True if the image's tokens come before the text's in a joint attention; cross, True if the
    image reads the text by cross-attention and no block changes it; prompt_last, True if the prompt's tokens are the
    last ones of the text stream, after registers or padding, False if they are the first; whole_batch, True if the
    arguments of a block cannot be cut to some rows of the batch.
    """

    image_first: bool = False
    cross: bool = False
    prompt_last: bool = False
    whole_batch: bool = False


@dataclass(frozen=True)
class ModelCall:
    """One model call. Each chunk of its batch is the rows of one prompt.

    Fields:
        double, single: the model's blocks of each kind.
        branches: POSITIVE, NEGATIVE or OTHER for each chunk, in order.
        batch: rows of the batch.
        groups: the rows of each chunk; () for equal chunks in order.
        maps: the token map of each chunk, None if its prompt has none.
        lengths: tokens of each chunk's prompt as it was encoded; () where the text stream holds nothing else.
        text: how the blocks take the text.
        renewed: tokens at the end of the text stream that each block is given again, whatever the one before made of
            them.
        phrases_known: True if each control's phrase or part is in a prompt of the run, so that a chunk may lack it.
        first_args: of a block prompt's control and some rows: what the first block is given when the rows have that
            prompt. "txt" [rows, L, D], and the other arguments that depend on the text; "renewed", the tokens that each
            block is given again. Needed for block prompts.
        called: keys of the hooks that the model has called so far.
    """

    double: int
    single: int
    branches: tuple[int, ...]
    batch: int
    maps: tuple[Positions | None, ...] = ()
    lengths: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    text: TextLayout = TextLayout()
    renewed: int = 0
    phrases_known: bool = False
    first_args: Callable[[BlockControl, Sequence[int]], Mapping[str, Any]] | None = None
    called: set[Key] = field(default_factory=set, compare=False)

    @property
    def blocks(self) -> range:
        """The global numbers of all blocks."""
        return range(self.double + self.single)

    @property
    def chunks(self) -> tuple[int, ...]:
        """The numbers of all chunks."""
        return tuple(range(len(self.branches)))

    def chunks_of(self, control: BlockControl) -> tuple[int, ...]:
        """The chunks that a control acts on."""
        return tuple(chunk for chunk in self.chunks if self.branches[chunk] in control.branches)

    def rows(self, chunks: Collection[int]) -> list[int]:
        """The rows of some chunks, rising."""
        return [row for row, chunk in enumerate(self.chunk_of_row) if chunk in chunks]

    @property
    def chunk_of_row(self) -> list[int]:
        """The chunk of each row."""
        if not self.groups:
            return [row * len(self.branches) // self.batch for row in range(self.batch)]
        owner = {row: chunk for chunk, rows in enumerate(self.groups) for row in rows}
        return [owner[row] for row in range(self.batch)]

    def key_of(self, block: int) -> Key:
        """The hook key of a block's global number."""
        return ("double_block", block) if block < self.double else ("single_block", block - self.double)

    def args_of(self, args: dict[str, Any], chunks: Sequence[int]) -> dict[str, Any]:
        """A block's arguments for some chunks: copies of their rows, and options that name these chunks alone."""
        rows = self.rows(chunks)

        def pick(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and value.shape[0] == self.batch:
                return rows_of(value, rows)
            if isinstance(value, tuple | list):
                items = [pick(item) for item in value]
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
            if is_dataclass(value) and not isinstance(value, type):  # Chroma's modulation
                return replace(value, **{f.name: pick(getattr(value, f.name)) for f in fields(value)})
            return value

        picked = {name: value if name == "transformer_options" else pick(value) for name, value in args.items()}
        options, vec = dict(args["transformer_options"]), args.get("vec")
        if isinstance(vec, Tensor) and vec.ndim:
            # A reference image is modulated at timestep 0, with vectors after those of the batch.
            own = [*rows, *(self.batch + row for row in rows)] if len(vec) == 2 * self.batch else rows
            cache = options.get(CACHE)
            if cache is not None:
                picked["vec"] = cache.part(vec, own)
            elif own is not rows:
                picked["vec"] = rows_of(vec, own)
        for name in ("cond_or_uncond", "uuids"):
            if not self.groups and len(options.get(name) or ()) == len(self.branches):
                options[name] = [options[name][chunk] for chunk in chunks]
        if options.get(ROW_NAMES):
            options[ROW_NAMES] = [options[ROW_NAMES][row] for row in rows]
        return {**picked, "transformer_options": options}


def text_length(args: Mapping[str, Any], noted: int | None = None) -> int | None:
    """Text tokens in the streams of a block. Args: noted, for a single block of a model that does not say."""
    if args.get("txt") is not None:
        return args["txt"].shape[1]
    img_slice = args["transformer_options"].get("img_slice")
    return noted if img_slice is None else img_slice[0]


def rows_of(value: Tensor, rows: Sequence[int]) -> Tensor:
    """A copy of some rows of a tensor, which need not be told to the device: some blocks write into their arguments."""
    parts = [value[start:stop] for start, stop in runs(rows)]
    return torch.cat(parts) if len(parts) > 1 else parts[0].clone()


def with_rows(value: Tensor, rows: Sequence[int], new: Tensor) -> Tensor:
    """A copy of a tensor with other values in some rows."""
    out, done = value.to(new.dtype, copy=True), 0
    for start, stop in runs(rows):
        out[start:stop] = new[done : done + stop - start]
        done += stop - start
    return out


def runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of consecutive numbers."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index] != rows[index - 1] + 1:
            yield rows[start], rows[index - 1] + 1
            start = index
