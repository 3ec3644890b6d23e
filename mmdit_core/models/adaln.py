"""The AdaLN cache: the modulation and the embedded text of a sampling run, computed once.

A third of the weights of an MMDiT (AdaLN and the embedders before it) only turn a timestep and a pooled text into the
shift, scale and gate of each layer. A run has few of both, so their vectors are rows of a table, one for each pair of
timestep and conditioning. The steps read the rows and none of those weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from .patches import Options

CACHE = "mmdit_adaln"  # in transformer_options: the AdaLNCache of the run
CALL = "mmdit_adaln_call"  # in transformer_options: the CallIdentity of the model call
CACHED_WEIGHTS = ("adaLN_modulation", "t_embedder", "y_embedder", "context_embedder")  # of the SD3 family, by name

# Rows of each matmul that fills the table. Always as many, because a row then has the same bits whichever rows are
# computed with it: a resumed run continues exactly. A CPU computes what the next steps need; on a GPU this matmul is
# memory-bound, so 40 steps of two prompts are one pass over the weights.
TILE_CPU, TILE = 8, 80
TEXTS = 8  # embedded texts that a run keeps


class CallIdentity(NamedTuple):
    """What a model call is made of, where its caller states it.

    conditionings: their names, in the order of their equal parts of the batch; timestep: of all rows. With a timestep
    nothing is compared; without one the call's tensors are, which waits for the device once.
    """

    conditionings: tuple[Hashable, ...]
    timestep: float | None = None


class _Source(NamedTuple):
    """Pooled text [n, P] and guidance [n], and where their rows are among those of all sources."""

    pooled: Tensor | None
    guidance: Tensor | None
    rows: range


class _Text(NamedTuple):
    conditionings: tuple[Hashable, ...]
    context: Tensor
    embedded: Tensor


def row_width(model: Any) -> int:
    """Elements of a row of the table: the embedded vector and the output of each AdaLN layer."""
    return model.config.hidden_size + sum(width for _, width in model.adaln_layers())


def tile_rows(device: torch.device) -> int:
    """Rows of a tile of the table."""
    return TILE_CPU if device.type == "cpu" else TILE


def embedded(
    model: Any,
    x: Tensor,
    timesteps: Tensor,
    context: Tensor,
    y: Tensor | None,
    guidance: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """vec [B, D] and txt [B, L, D] of a model call, from the run's table or computed.

    Args: model, a WithAdaLNCache; the others as for `MMDiT.forward`; options of the call, of which a cache stays only
        if it serves the call.
    """
    cache, call = options.pop(CACHE, None), options.pop(CALL, None)
    known = None if cache is None else cache.lookup(model, x, timesteps, context, y, guidance, call)
    if known is None:
        return model.embed_vector(timesteps, y, guidance, dtype=x.dtype), model.embed_text(context)
    options[CACHE] = cache
    return known


def modulation(layer: nn.Module, vec: Tensor, options: Options) -> Tensor:
    """layer(vec) [B, n * D] of an AdaLN layer, computed if vec is no unchanged vector of `embedded`."""
    cache: AdaLNCache | None = options.get(CACHE)
    known = None if cache is None else cache.output(layer, vec)
    return layer(vec) if known is None else known


class AdaLNCache:
    """The table of one sampling run, a context manager around the model calls of the run.

        with model.adaln_cache(1000 * sigmas[:-1], y) as options:
            for sigma in sigmas[:-1]:
                v = model(x, 1000 * sigma.expand(len(x)), context, y, transformer_options=options)

    A call takes its rows from the table if they have one timestep of the run and conditionings of the run; the result
    is the same to rounding. Any other call computes its own modulation, and so does a call with gradients, under
    autocast or in torch.compile, and one of a model with a guidance embedding if the run or the call has no guidance.
    Weights that are exchanged, moved or written in place start
    a new table. One tile of the table is held at a time.
    Args: model; timesteps of the run in 0..1000, in their order.
    """

    def __init__(self, model: Any, timesteps: Iterable[float] | Tensor):
        times = timesteps if isinstance(timesteps, Tensor) else torch.tensor(list(timesteps))
        self._model = model
        self._steps = {time: step for step, time in enumerate(dict.fromkeys(times.float().flatten().tolist()))}
        self._sources: list[_Source] = []
        self._names: dict[Hashable, _Source] = {}
        self._forget()

    def __enter__(self) -> dict[str, Any]:
        return {CACHE: self}

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __deepcopy__(self, memo: Any) -> AdaLNCache:
        return self  # a hook that copies its options needs no copy of the model

    def close(self) -> None:
        """Free everything. Later calls compute their own modulation."""
        self._model, self._sources, self._names = None, [], {}
        self._forget()

    def _forget(self) -> None:
        self._made_for: tuple[Any, ...] = ()  # device, dtype, versions of the weights
        self._weights: list[ref[Tensor]] = []
        self._columns: dict[nn.Module, slice] = {}
        self._pooled = torch.empty(0, 0)  # [m, P] of all sources
        self._guidance: Tensor | None = None  # [m] of all sources, if each has one
        self._tile: tuple[int, Tensor] | None = None  # its number and its rows [steps, m, width]
        self._texts: list[_Text] = []
        self._vectors: dict[int, tuple[Tensor, int, Tensor]] = {}  # of the present call: vec, its version, its rows

    def add(self, name: Hashable, pooled: Tensor | None, guidance: Tensor | None = None) -> None:
        """A conditioning of the run: a row for each image of the batch, or one for all.

        Args: pooled text [n, P] or None; guidance [n], needed by models with a guidance embedding.
        """
        same = (each for each in self._sources if each.pooled is pooled and each.guidance is guidance)
        source = next(same, None)
        if source is None:
            first = self._sources[-1].rows.stop if self._sources else 0
            count = max(1 if each is None else len(each) for each in (pooled, guidance))
            source = _Source(pooled, guidance, range(first, first + count))
            self._sources.append(source)
            self._forget()
        self._names[name] = source

    def lookup(
        self,
        model: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        guidance: Tensor | None,
        call: CallIdentity | None,
    ) -> tuple[Tensor, Tensor] | None:
        """vec [B, D] and txt [B, L, D] of a model call; None if the call has to compute its own."""
        if model is not self._model or not is_plain_inference(x.device.type):
            return None
        self._refresh(x)
        if model.config.guidance_embed and (guidance is None or self._guidance is None):
            return None
        names, time = call or CallIdentity(tuple(self._names))
        if not 0 < len(self._pooled) <= tile_rows(x.device) or len(x) % len(names) or not {*names} <= {*self._names}:
            return None
        sources = [self._names[name].rows for name in names]
        rows = [source[image % len(source)] for source in sources for image in range(len(x) // len(names))]
        text = next((t for t in self._texts if t.conditionings == names and t.context.shape == context.shape), None)
        if time is None:
            pairs = [(_picked(self._pooled, rows), _pooled_rows(y, x))]
            if model.config.guidance_embed and self._guidance is not None and guidance is not None:
                pairs.append((_picked(self._guidance, rows), guidance.to(self._guidance)))
            time, text = _compared(timesteps, pairs, text, context)
        step = self._steps.get(time)
        if step is None:
            return None
        if text is None:
            text = _Text(names, context.clone(), model.embed_text(context))
            self._texts = [text, *self._texts][:TEXTS]
        self._vectors = {}
        return self._note(_picked(self._rows_at(step, x), rows)), text.embedded.clone()  # hooks may write into them

    def _refresh(self, x: Tensor) -> None:
        """Start a new table if the device, the dtype, a weight or the conditionings are others."""
        layers = self._model.adaln_layers()
        read = (*self._model.embedders(), *(layer for layer, _ in layers))
        weights = [weight for layer in read for weight in layer.parameters()]
        made_for = x.device, x.dtype, [None if w.is_inference() else w._version for w in weights]
        if made_for == self._made_for and all(kept() is w for kept, w in zip(self._weights, weights, strict=True)):
            return
        self._forget()
        self._made_for, self._weights = made_for, [ref(weight) for weight in weights]
        end = self._model.config.hidden_size
        for layer, width in layers:
            self._columns[layer] = slice(end, end + width)
            end += width
        if self._sources:
            pooled = [_pooled_rows(source.pooled, x) for source in self._sources]
            counts = [len(source.rows) for source in self._sources]
            self._pooled = torch.cat([each.expand(n, -1) for each, n in zip(pooled, counts, strict=True)])
            scales = [source.guidance for source in self._sources if source.guidance is not None]
            if len(scales) == len(counts):
                scales = [each.to(x.device).float().expand(n) for each, n in zip(scales, counts, strict=True)]
                self._guidance = torch.cat(scales)

    def _rows_at(self, step: int, x: Tensor) -> Tensor:
        """[m, width] at a step, from the tile that holds it."""
        size, count = tile_rows(x.device), len(self._pooled)
        steps = size // count
        number, at = divmod(step, steps)
        if self._tile is None or self._tile[0] != number:
            self._tile = None  # before the next one takes memory
            times = torch.tensor(list(self._steps)[number * steps : (number + 1) * steps]).repeat_interleave(count)
            index = torch.arange(size).clamp(max=len(times) - 1)  # what is left of the tile repeats the last row
            rows = (index % count).to(x.device)
            y = self._pooled[rows] if self._pooled.shape[1] else None
            guidance = None if self._guidance is None else self._guidance[rows]
            vec = self._model.embed_vector(times[index].to(x.device), y, guidance, dtype=x.dtype)
            tile = x.new_empty(size, row_width(self._model))
            tile[:, : vec.shape[1]] = vec
            for layer, columns in self._columns.items():
                tile[:, columns] = layer(vec)
            self._tile = number, tile[: len(times)].view(-1, count, tile.shape[1])
        return self._tile[1][at]

    def _note(self, rows: Tensor) -> Tensor:
        """The embedded vector of some rows, which `output` recognises until it is changed."""
        with torch.inference_mode(False):  # an inference tensor does not count its changes
            vec = rows[:, : self._model.config.hidden_size].clone()
        self._vectors[id(vec)] = vec, vec._version, rows
        return vec

    def output(self, layer: nn.Module, vec: Tensor) -> Tensor | None:
        """layer(vec) from the table; None for a layer or a vector of others, or a vector that a hook changed."""
        known, columns = self._vectors.get(id(vec)), self._columns.get(layer)
        return None if known is None or columns is None or vec._version != known[1] else known[2][:, columns]

    def part(self, vec: Tensor, rows: Sequence[int]) -> Tensor:
        """vec[rows], for a hook that runs a block on some rows of the batch; the part keeps its rows of the table."""
        known = self._vectors.get(id(vec))
        if known is None or vec._version != known[1]:
            return _picked(vec, rows).clone()
        return self._note(_picked(known[2], rows))


class WithAdaLNCache:
    """A model with an AdaLN cache: it has embed_vector, embed_text, embedders and adaln_layers as `MMDiT` has.

    Its config has hidden_size and guidance_embed.
    """

    def adaln_cache(
        self, timesteps: Iterable[float] | Tensor, pooled: Tensor | None = None, guidance: Tensor | None = None
    ) -> AdaLNCache:
        """A context manager that gives transformer_options for the calls of one sampling run; see `AdaLNCache`.

        Args: timesteps of the run in 0..1000; pooled [B, pooled_dim], the y of its calls; guidance [B], of its calls.
        """
        cache = AdaLNCache(self, timesteps)
        cache.add("y", pooled, guidance)
        return cache


def _compared(
    timesteps: Tensor, pairs: Sequence[tuple[Tensor, Tensor]], text: _Text | None, context: Tensor
) -> tuple[float | None, _Text | None]:
    """The timestep of a call whose vectors are the known ones, and its text if that is the known one; or None.

    Waits for the device once. Args: pairs, the known pooled text and guidance and those of the call.
    """
    if any(known.shape != given.expand(len(known), *given.shape[1:]).shape for known, given in pairs):
        return None, None
    same_text = (text.context == context).all() if text is not None else timesteps.new_zeros(())
    same_vectors = torch.stack([(known == given).all() for known, given in pairs]).all()
    checks = timesteps.min(), timesteps.max(), same_vectors, same_text
    low, high, same, found = torch.stack([check.float() for check in checks]).tolist()
    return low if same and low == high else None, text if found else None


def is_plain_inference(device: str) -> bool:
    """True without gradients, autocast and compiler, on a device with values."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or device == "meta":
        return False
    # Old versions of torch raise for a device without autocast.
    return not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))


def _pooled_rows(pooled: Tensor | None, x: Tensor) -> Tensor:
    """[n, P] on the device and in the dtype of x; [1, 0] without pooled text."""
    return x.new_empty(1, 0) if pooled is None else pooled.to(x.device, x.dtype)


def _picked(table: Tensor, rows: Sequence[int]) -> Tensor:
    """table[rows] without an index that has to be copied to the device; a view of rows that follow one another."""
    first = rows[0]
    if list(rows) == list(range(first, first + len(rows))):
        return table[first : first + len(rows)]
    return torch.stack([table[row] for row in rows])
