"""What depends on the timestep and the text alone, computed ahead: every block's modulation, the embedded text.

A third of an MMDiT's weights (AdaLN) does nothing but turn timestep, pooled text and guidance into a few vectors for
each block. Where the schedule is known, `Prepared` computes them ahead: all in one pass, on a CPU 32 rows at a time (16
timesteps of two prompts). All other steps look them up by the values that went in and read none of those weights.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from .blocks import BlockModulation

# Parts of the names of the weights that are read ahead of the steps.
READ_AHEAD = ("adaLN_modulation", "t_embedder", "y_embedder", "guidance_embedder", "context_embedder")
RUN = "mmdit_prepared"  # of a Prepared in transformer_options
ROWS = "mmdit_rows"  # of the present call's Rows there, for hooks that run a block on some of the rows

LIMIT = 256 << 20  # bytes of modulation that a run keeps: SD3.5 Large, bf16, two prompts, 60 steps
TEXTS = 8  # batches of embedded text that a run keeps


class Pace(NamedTuple):
    """How many rows of modulation are computed at a time.

    tile: rows of each matrix product, always as many: a row then comes out the same, bit for bit, whatever else is
    prepared with it, and as long as the table has room, a run that goes on where another one stopped makes the same
    picture as one over all steps.
    whole: all that a run will ask for in one pass; else, whenever rows are missing, the tiles that hold those.
    """

    tile: int
    whole: bool


# A GPU reads the weights, or has them brought in, in the time of many rows: 64 steps of two prompts in one reading. A
# CPU takes longer for each row and has the weights at hand: a pass over all rows would hold up the first step.
PACES = {"cpu": Pace(32, whole=False)}
USUAL_PACE = Pace(128, whole=True)
# Texts that were prepared ahead and not asked for since. Where there are so many, someone changes the text in every
# step: one that was never seen is then computed for the moment alone, and ahead when it is asked for again.
UNUSED = 8
TIME = 4  # bytes of a timestep in a key


class Span(NamedTuple):
    """The columns that one AdaLN layer fills, and the vectors that they are."""

    layer: nn.Module
    start: int
    stop: int
    vectors: int


class Layout(NamedTuple):
    """Columns of a row: the embedded vector [D], then each block's of image and text, then the last layer's."""

    size: int
    blocks: tuple[tuple[Span, Span], ...]
    final: Span

    @property
    def spans(self) -> list[Span]:
        return [span for pair in self.blocks for span in pair] + [self.final]

    @property
    def width(self) -> int:
        return self.final.stop


NO_LAYOUT = Layout(0, (), Span(nn.Identity(), 0, 0, 0))


def layout_of(model: Any) -> Layout:
    end = size = model.config.hidden_size

    def span(layer: nn.Module, vectors: int) -> Span:
        nonlocal end
        start, end = end, end + vectors * size
        return Span(layer, start, end, vectors)

    def of_stream(stream: Any) -> Span:
        return span(stream.adaLN_modulation, stream.modulations)

    blocks = tuple((of_stream(block.x_block), of_stream(block.context_block)) for block in model.joint_blocks)
    return Layout(size, blocks, span(model.final_layer.adaLN_modulation, 2))


class Prepared:
    """One sampling run's modulation and embedded text. Give it to the model's calls in their options, close it after.

        with model.prepared(1000 * sigmas[:-1]) as options:
            for sigma in sigmas[:-1]:
                v = model(x, 1000 * sigma.expand(len(x)), context, y, transformer_options=options)

    What is looked up is what the plain path would compute, to rounding: the key of a row is the content of its
    timestep, pooled text and guidance; another dtype or device, weights that were exchanged, moved or changed in place
    begin a new table. Only a change behind torch's back (`weight.data.copy_`, or a layer that gives another value each
    time) goes unseen: make a new run for it. A timestep that is not in the schedule is computed when it is asked for.
    The plain path is taken where gradients are on, under autocast and by torch.compile. A call waits for the device
    twice, before the first block, to compare what came in.
    Args: model; timesteps in 0..1000, those that will be asked for, in their order; limit, bytes of the table. Where it
        is full, further prompts are computed when they are asked for.
    """

    def __init__(self, model: Any, timesteps: Tensor | Iterable[float] = (), *, limit: int = LIMIT):
        if not isinstance(timesteps, Tensor):
            timesteps = torch.tensor(tuple(timesteps), dtype=torch.float32)
        self._model = model
        self._layout = NO_LAYOUT  # of the layers that the first call finds: a host may still exchange some
        self._limit = limit
        times = dict.fromkeys(_rows_as_bytes(timesteps.detach().float().reshape(-1, 1)))
        self._schedule = tuple(times)
        self._step = {time: step for step, time in enumerate(self._schedule)}
        self._table = _Table()
        self._setting: Any = None
        self._waiting: set[bytes] = set()  # texts as UNUSED counts them
        self._texts: list[tuple[Tensor, Tensor]] = []
        self._text_setting: Any = None

    def __enter__(self) -> dict[str, Any]:
        """Options for the model's calls."""
        return {RUN: self}

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let go of everything. Calls that still come take the plain path."""
        self._model, self._setting, self._layout = None, None, NO_LAYOUT
        self._table = _Table()
        self._texts = []

    def __deepcopy__(self, memo: Any) -> Prepared:
        return self  # who copies a call's options means no copy of the model

    @property
    def nbytes(self) -> int:
        """Of the table, now."""
        return self._table.nbytes

    def _serves(self, model: Any, device: torch.device) -> bool:
        if torch.compiler.is_compiling() or model is not self._model or torch.is_grad_enabled():
            return False
        # Not every torch answers for every device: 2.4 does not for Macs.
        autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        return device.type != "meta" and not autocast

    def rows(self, model: Any, x: Tensor, timesteps: Tensor, y: Tensor | None, guidance: Tensor | None) -> Rows | None:
        """The modulation of a call's rows; arguments as the model's. None where the plain path is to be taken."""
        if not self._serves(model, x.device):
            return None
        if model.guidance_embedder is None:
            guidance = None
        present = [value for value in (timesteps.float(), guidance, y) if value is not None]
        if any(value.shape[0] != x.shape[0] or value.device != x.device for value in present):
            return None  # broadcast, or an error that is the plain path's to raise
        kinds = [None if value is None else value.dtype for value in (x, y, guidance)]
        state = _state(_embedding_layers, model)
        if state is None:
            return None
        setting = x.device, kinds, state
        if setting != self._setting:
            self._setting, self._table, self._layout = setting, _Table(), layout_of(model)
            self._waiting.clear()
        keys = _rows_as_bytes(*present)
        missing = [key for key in dict.fromkeys(keys) if key not in self._table.places]
        self._waiting.difference_update(key[TIME:] for key in keys if key in self._table.places)
        if not missing:
            return Rows(self._layout, self._table.take(keys))
        ahead = self._ahead(keys, missing, x)
        if ahead:
            self._table.add(ahead, self._computed_ahead(model, x, keys, ahead, y, guidance))
            return Rows(self._layout, self._table.take(keys))
        # In the shape of the call: as the plain path has it, bit for bit.
        vec = model.embed_vector(timesteps, y, guidance, dtype=x.dtype)
        page = torch.cat((vec, *(span.layer(vec) for span in self._layout.spans)), dim=1)
        self._table.add_passing(keys, page, self._limit)
        return Rows(self._layout, page)

    def _ahead(self, keys: Sequence[bytes], missing: Sequence[bytes], x: Tensor) -> list[bytes]:
        """The rows to compute now: a call's missing ones and, of all its texts, those of timesteps to come.

        What is left of the last tile goes to timesteps before: somebody may ask in another order.
        """
        steps = [self._step[key[:TIME]] for key in missing if key[:TIME] in self._step]
        room = (self._limit - self._table.nbytes) // (self._layout.width * x.element_size())
        if len(steps) < len(missing) or room < len(missing):
            return []
        missed = {key[TIME:] for key in missing}
        if len(self._waiting) >= UNUSED and missed.isdisjoint(key[TIME:] for key in self._table.places):
            return []
        self._waiting |= missed
        first = min(steps)
        wanted = dict.fromkeys((*missing, *self._rows_at(self._schedule[first:], keys)))
        tile, whole = _pace(x.device)
        tiles = -(-len(wanted if whole else missing) // tile)
        wanted.update(dict.fromkeys(self._rows_at(self._schedule[:first][::-1], keys)))
        return list(wanted)[: min(room, tiles * tile)]

    def _rows_at(self, times: Sequence[bytes], keys: Sequence[bytes]) -> list[bytes]:
        """The rows of a call's texts at these timesteps that are not known yet.

        Timestep by timestep, so that what does not fit is what is asked for last.
        """
        texts = dict.fromkeys(key[TIME:] for key in keys)
        return [time + text for time in times for text in texts if time + text not in self._table.places]

    def _computed_ahead(
        self,
        model: Any,
        x: Tensor,
        keys: Sequence[bytes],
        wanted: Sequence[bytes],
        y: Tensor | None,
        guidance: Tensor | None,
    ) -> Tensor:
        """[n, width]: the modulation of n rows, layer by layer. keys and what follows: of the call that brings them."""
        tile = _pace(x.device).tile
        row_of = {key[TIME:]: row for row, key in enumerate(keys)}
        padded = [*wanted, *[wanted[-1]] * (-len(wanted) % tile)]
        times = torch.frombuffer(bytearray(b"".join(key[:TIME] for key in padded)), dtype=torch.float32).to(x.device)
        source = torch.tensor([row_of[key[TIME:]] for key in padded], device=x.device)
        tiles = []
        for at in range(0, len(padded), tile):
            rows = source[at : at + tile]
            picked = (None if value is None else value[rows] for value in (y, guidance))
            tiles.append(model.embed_vector(times[at : at + tile], *picked, dtype=x.dtype))
        page = x.new_empty(len(wanted), self._layout.width)
        page[:, : self._layout.size] = torch.cat(tiles)[: len(wanted)]
        for span in self._layout.spans:
            for number, vec in enumerate(tiles):
                target = page[number * tile : (number + 1) * tile, span.start : span.stop]
                target.copy_(span.layer(vec)[: len(target)])
        return page

    def text(self, model: Any, context: Tensor) -> Tensor:
        """context [B, L, context_dim] -> [B, L, D], as the model's text embedder gives it."""
        if not self._serves(model, context.device):
            return model.context_embedder(context)
        setting = _state(lambda model: [model.context_embedder], model)
        if setting is None:
            return model.context_embedder(context)
        if setting != self._text_setting:
            self._text_setting, self._texts = setting, []
        for number, (known, embedded) in enumerate(self._texts):
            same = known.shape == context.shape and known.dtype == context.dtype and known.device == context.device
            if same and torch.equal(known, context):
                self._texts.insert(0, self._texts.pop(number))
                return embedded.clone()  # hooks may write into what they are given
        embedded = model.context_embedder(context)
        self._texts = [(context.clone(), embedded.clone()), *self._texts][:TEXTS]
        return embedded


class _Table:
    """Rows of modulation by key, in pages [n, width]."""

    def __init__(self) -> None:
        self.places: dict[bytes, tuple[Tensor, int]] = {}
        self.nbytes = 0
        self._passing: deque[Tensor] = deque()

    def add(self, keys: Sequence[bytes], page: Tensor) -> None:
        for row, key in enumerate(keys):
            self.places.setdefault(key, (page, row))
        self.nbytes += page.nbytes

    def add_passing(self, keys: Sequence[bytes], page: Tensor, limit: int) -> None:
        """Keep rows while there is room: a timestep between two steps is asked for a few times at most."""
        while self._passing and self.nbytes + page.nbytes > limit:
            old = self._passing.popleft()
            self.places = {key: place for key, place in self.places.items() if place[0] is not old}
            self.nbytes -= old.nbytes
        if self.nbytes + page.nbytes <= limit:
            self.add(keys, page)
            self._passing.append(page)

    def take(self, keys: Sequence[bytes]) -> Tensor:
        """[B, width]: one copy, of which all blocks take views."""
        places = [self.places[key] for key in keys]
        page = places[0][0]
        rows = [row for _, row in places]
        if all(other is page for other, _ in places):
            return _picked(page, rows)
        return torch.stack([page[row] for page, row in places])


class Rows:
    """The modulation of one model call's rows, for as long as the vector it belongs to stays what it is.

    vec [B, D]: the embedded vector. Hooks are given it, and may hand a block something else in its place.
    """

    def __init__(self, layout: Layout, table: Tensor):
        self._layout, self._table = layout, table
        # No inference tensor: those do not count their changes, and a hook may change this one in place.
        with torch.inference_mode(False):
            self.vec = table[:, : layout.size].clone()
        # id(vector) -> the vector, the count of its changes, its rows of the table. Each stays alive with this call.
        self._known: dict[int, tuple[Tensor, int, tuple[int, ...]]] = {}
        self._note(self.vec, tuple(range(len(table))))

    def __deepcopy__(self, memo: Any) -> Rows:
        return self

    def close(self) -> None:
        """Let go of everything at the end of the call: a hook may keep the options that hold this. Knows no vector."""
        self._known = {}
        del self._layout, self._table, self.vec

    def _note(self, vec: Tensor, rows: tuple[int, ...]) -> None:
        self._known[id(vec)] = (vec, vec._version, rows)

    def _rows_of(self, vec: Tensor) -> tuple[int, ...] | None:
        """The rows of a vector; None for one that a hook made, or changed."""
        known = self._known.get(id(vec))
        return known[2] if known is not None and known[1] == vec._version else None

    def _vectors(self, span: Span, rows: tuple[int, ...]) -> tuple[Tensor, ...]:
        columns = self._table[:, span.start : span.stop]
        picked = columns if len(rows) == len(columns) and rows == tuple(range(len(rows))) else _picked(columns, rows)
        return picked.unsqueeze(1).chunk(span.vectors, dim=-1)

    def block(self, index: int, vec: Tensor) -> BlockModulation | None:
        """None where vec is not known: then it is to be computed."""
        rows = self._rows_of(vec)
        if rows is None:
            return None
        img, txt = self._layout.blocks[index]
        return BlockModulation(img=self._vectors(img, rows), txt=self._vectors(txt, rows))

    def final(self, vec: Tensor) -> tuple[Tensor, ...] | None:
        rows = self._rows_of(vec)
        return None if rows is None else self._vectors(self._layout.final, rows)

    def part(self, vec: Tensor, rows: Sequence[int]) -> Tensor | None:
        """Some rows of a vector, which keep their modulation; None where the vector is not known."""
        known = self._rows_of(vec)
        if known is None:
            return None
        with torch.inference_mode(False):
            some = _picked(vec, rows).clone()
        self._note(some, tuple(known[row] for row in rows))
        return some


def _pace(device: torch.device) -> Pace:
    return PACES.get(device.type, USUAL_PACE)


def _picked(table: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a table: a view where they follow one another. No index, which would have to come to the device."""
    first = rows[0]
    if all(row == first + place for place, row in enumerate(rows)):
        return table[first : first + len(rows)]
    return torch.stack([table[row] for row in rows])


def _rows_as_bytes(*values: Tensor) -> list[bytes]:
    """The content of each row, all values [B] or [B, n] side by side. One wait for the device."""
    columns = [value.detach().flatten(1) if value.ndim > 1 else value.detach()[:, None] for value in values]
    sides = [value.contiguous().view(torch.uint8) for value in columns]
    content = torch.cat(sides, dim=1).cpu()
    raw, width = content.numpy().tobytes(), content.shape[1]
    return [raw[row * width : (row + 1) * width] for row in range(len(content))]


def _embedding_layers(model: Any) -> list[Any]:
    """All layers with weights between a call's arguments and the modulation."""
    embedders = (model.t_embedder, model.y_embedder, model.guidance_embedder)
    layers = [layer for embedder in embedders if embedder is not None for layer in embedder.mlp[::2]]
    streams: list[Any] = [stream for block in model.joint_blocks for stream in (block.x_block, block.context_block)]
    return layers + [owner.adaLN_modulation[1] for owner in (*streams, model.final_layer)]


def _state(layers_of: Callable[[Any], Iterable[Any]], model: Any) -> tuple[Any, ...] | None:
    """Changes when a weight is exchanged, moved or, as far as torch counts it, written to.

    None where somebody put a layer there whose weights cannot be told.
    """
    try:
        return tuple(_mark(tensor) for layer in layers_of(model) for tensor in (layer.weight, layer.bias))
    except (AttributeError, TypeError, IndexError):
        return None


def _mark(tensor: Any) -> Any:
    if tensor is None:
        return None
    version = None if tensor.is_inference() else tensor._version
    try:
        return _Same(tensor), version, tensor.data_ptr()
    except RuntimeError:  # some quantised weights have no memory of their own
        return _Same(tensor), version


class _Same:
    """Equal while it is the same tensor: an id, as a place in memory, goes to another one after it."""

    def __init__(self, tensor: Tensor):
        self._tensor = ref(tensor)

    def __eq__(self, other: object) -> bool:
        tensor = self._tensor()
        return isinstance(other, _Same) and tensor is not None and tensor is other._tensor()
