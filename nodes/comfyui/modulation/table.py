"""The modulation of a sampling run of one of ComfyUI's networks, computed ahead of the steps as rows of a table.

The vector of each timestep is the network's own: it is called at each sigma of the schedule with the inputs of the
present call, up to its first modulation layer. The layers are then computed one by one for all timesteps that fit in
the table, at the batch size of the call, so that the rows have the same bits as without a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ....mmdit_core.control.model_call import rows_of
from ....mmdit_core.models.adaln import CACHE, is_plain_inference
from ..families import network_of
from ..other_prompt import HostCall
from ..rows import Prompts
from ..run.adaln_cache import Identify, may_change
from . import Layer, layers_of, replaced, row_width
from .count import ModulationCount

MOST_SETS = 8  # conditionings and shapes of calls that a run keeps rows for
TRUST, ONCE, EACH = "trust", "once", "each"  # compare no vector; the first one of a call; that of each layer
LIMIT = "the memory limit is under the rows of one step"
OFF_SCHEDULE = "a sigma between the schedule's points"
CHANGED = "a vector that is not the schedule's"
HOOKED = "another node's hook on a modulation layer"


@dataclass(eq=False)
class _Rows:
    """The rows of one kind of call, or of a part of its batch that a hook runs.

    Fields: vectors [n, R, ...] at n sigmas; inputs [n, R, ...] of the layers; batch, rows of the call; index, of the
    vectors among those of the whole call; parts, by their index; first, the sigma of the first outputs; outputs, of
    each layer [k, R or 1, ..., W].
    """

    vectors: Tensor
    inputs: Tensor
    batch: int
    index: tuple[int, ...]
    parts: dict[tuple[int, ...], _Rows] = field(default_factory=dict)
    first: int = 0
    outputs: dict[Layer, Tensor] = field(default_factory=dict)

    @property
    def half(self) -> bool:
        """Whether each row of the call has a second vector."""
        return self.vectors.shape[1] == 2 * self.batch

    def width(self, layer: Layer | None) -> int:
        """The vectors that a layer is given."""
        return self.batch if layer is not None and layer.half and self.half else self.vectors.shape[1]

    def is_like(self, other: _Rows) -> bool:
        """Whether both have the same outputs."""
        alike = self.batch == other.batch and self.vectors.dtype == other.vectors.dtype
        return alike and torch.equal(self.vectors, other.vectors)

    def holds(self, step: int) -> bool:
        """Whether the outputs of a step are in the table."""
        return bool(self.outputs) and 0 <= step - self.first < len(next(iter(self.outputs.values())))


@dataclass(eq=False)
class _Call:
    """One model call. Fields: step, None while it is not known; known, vectors of this call with their rows."""

    rows: _Rows
    compare: str
    step: int | None
    known: list[tuple[Tensor, _Rows]] = field(default_factory=list)
    serving: dict[Layer, _Rows] = field(default_factory=dict)
    depth: int = 0
    refused: bool = False
    filling: bool = False
    reason: str = ""


class _Found(Exception):
    """Ends a call of the network at its first modulation layer."""


class ModulationTable:
    """The table of one run.

    Args: base, ComfyUI's model; sigmas at which the run evaluates the model; limit in bytes; identify, the names and
        the timestep of a call; changes, why the weights may change while the run lasts, "" if they do not.
    """

    def __init__(
        self,
        base: Any,
        sigmas: Iterable[float] | Tensor,
        limit: int,
        identify: Identify,
        changes: str = "",
    ):
        self.count = ModulationCount()
        self._base, self._limit, self._changes = base, limit, changes
        self._steps = {sigma: step for step, sigma in enumerate(dict.fromkeys(_float32(sigmas)))}
        self._identify = identify
        self._layers: tuple[Layer, ...] = ()
        self._modules: list[Any] = []  # of the layers
        self._found = self._compiled = False
        self._call: _Call | None = None
        self._sets: dict[Any, _Rows] = {}
        self._weights: list[tuple[ref[Tensor], int | None]] = []

    def __deepcopy__(self, memo: Any) -> ModulationTable:
        return self

    def close(self) -> None:
        """Free everything."""
        self._sets, self._layers, self._modules, self._base, self._call = {}, (), [], None, None

    def most_bytes(self, rows: int) -> int:
        """The most memory that the table needs. Args: rows, images of the run times conditionings."""
        width = row_width(layers_of(self._base))
        return min(self._limit, len(self._steps) * rows * width * self._base.get_dtype_inference().itemsize)

    def add_conditionings(self, prompts: Prompts) -> None:
        """Nothing: rows are made of the first call with a conditioning."""

    @contextmanager
    def calling(
        self, host: HostCall, options: dict[str, Any], sigma: float | None, prompts: Prompts | None
    ) -> Iterator[dict[str, Any]]:
        """Serve one APPLY_MODEL call while the body runs, and give its options.

        Args: host, the call as it came; options, with the block controls' hooks; sigma and prompts, as of a Run.
        """
        reason = self._why_not(host)
        call = None if reason else self._begin(host, sigma, prompts)
        if isinstance(call, str):
            reason, call = call, None
        if call is None:
            self.count.computed[reason] += 1
            yield options
            return
        with ExitStack() as stack:
            stack.enter_context(replaced(network_of(self._base), partial(self._outermost, call)))
            for layer in self._layers:
                stack.enter_context(replaced(layer.owner, partial(self._owner, call, layer)))
                stack.enter_context(replaced(layer.linear, partial(self._linear, call, layer)))
            self._call = call
            try:
                yield {**options, CACHE: self}
            finally:
                self._call = None
                if call.reason:
                    self.count.computed[call.reason] += 1
                else:
                    self.count.served += 1

    def _why_not(self, host: HostCall) -> str:
        if self._changes:
            return self._changes
        if host.base is not self._base:
            return "another GPU's copy of the model"
        if not self._found:  # once the MODEL's patches are in place, which may replace modules
            self._found, self._layers = True, layers_of(self._base)
            self._modules = [module for layer in self._layers for module in layer.owner.modules()]
            self._compiled = any(_is_compiled(module) for module in self._base.diffusion_model.modules())
        wrappers = host.options.get("wrappers", {})
        if self._compiled or any("torch.compile" in found for found in wrappers.values()):
            return "torch.compile"
        if not self._layers:
            return "another node replaced the modulation layers"
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._modules):
            return HOOKED  # torch would call it on a row, and once more on the row's vector
        return "" if is_plain_inference(host.x.device.type) else "gradients, autocast or a compiler"

    def _begin(self, host: HostCall, sigma: float | None, prompts: Prompts | None) -> _Call | str:
        """The call with its rows, or why it has none."""
        self._refresh()
        names, time = self._identify(host.options, sigma, prompts)
        time = time if names else None  # of unknown conditionings
        step = None if time is None or sigma is None else self._steps.get(_float32([sigma])[0])
        if time is not None and step is None:
            return OFF_SCHEDULE
        context = None if host.c_crossattn is None else host.c_crossattn.shape
        key = names, host.x.shape, host.x.dtype, host.x.device, context, tuple(host.inputs)
        if key not in self._sets:
            if len(self._sets) >= MOST_SETS:
                return f"more than {MOST_SETS} kinds of calls"
            captured = self._captured(host)
            if captured is None:
                return "the network's call reached no modulation layer"
            same = (rows for rows in self._sets.values() if rows.is_like(captured))
            self._sets[key] = next(same, captured)
            self._share_limit()
        foreign = host.options.get("patches_replace", {}).get("dit") or any(
            _is_changed(layer) for layer in self._layers
        )
        compare = EACH if foreign else ONCE if time is None else TRUST
        return _Call(self._sets[key], compare, step if compare == TRUST else None)

    def _refresh(self) -> None:
        """Start again if a weight is another one, or was written to."""
        weights = [weight for layer in self._layers for weight in layer.linear.parameters()]
        versions = [None if weight.is_inference() else weight._version for weight in weights]
        if len(weights) == len(self._weights) and all(
            kept() is weight and before == now
            for (kept, before), weight, now in zip(self._weights, weights, versions, strict=True)
        ):
            return
        self._weights = [(ref(weight), version) for weight, version in zip(weights, versions, strict=True)]
        self._sets = {}

    def _captured(self, host: HostCall) -> _Rows | None:
        """The vectors of all sigmas, as the network makes them of a call's other inputs."""
        found: list[Tensor] = []

        def note(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                found.extend(arg.clone() for arg in args[-1:])
                return original(*args, **kwargs)

            return forward

        def end(original: Callable[..., Any]) -> Callable[..., Any]:
            def forward(x: Tensor) -> Any:
                found.append(x.clone())
                raise _Found

            return forward

        dropped = ("wrappers", "patches", "patches_replace")
        options = {k: v for k, v in host.options.items() if k not in dropped and not k.startswith("mmdit")}
        vectors, inputs = [], []
        with ExitStack() as stack:
            for layer in self._layers:
                stack.enter_context(replaced(layer.owner, note))
                stack.enter_context(replaced(layer.linear, end))
            for sigma in self._steps:
                found.clear()
                t = torch.full_like(host.t, sigma)
                try:
                    given = {**options, "sigmas": t}
                    self._base._apply_model(host.x, t, host.c_concat, host.c_crossattn, None, given, **host.inputs)
                except _Found:
                    pass
                if len(found) != 2:
                    return None
                vectors.append(found[0])
                inputs.append(found[1])
        return _Rows(torch.stack(vectors), torch.stack(inputs), len(host.x), tuple(range(len(vectors[0]))))

    # Within a call

    def _outermost(self, call: _Call, original: Callable[..., Any]) -> Callable[..., Any]:
        """The network's forward. A call within a call, for a block prompt, is served nothing."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            call.depth += 1
            try:
                return original(*args, **kwargs)
            finally:
                call.depth -= 1

        return forward

    def _owner(self, call: _Call, layer: Layer, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            rows = self._find(call, layer, args[-1]) if call.depth == 1 and args else None
            if rows is None:
                call.reason = call.reason or (CHANGED if call.depth == 1 else "")
                return original(*args, **kwargs)
            call.serving[layer] = rows
            try:
                return original(*args, **kwargs)
            finally:
                call.serving.pop(layer, None)

        return forward

    def _linear(self, call: _Call, layer: Layer, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(x: Tensor) -> Tensor:
            rows = call.serving.get(layer)
            if rows is None or call.step is None or call.filling or call.reason == LIMIT:
                return original(x)
            if not rows.holds(call.step):
                call.filling = True
                try:
                    self._fill(rows, call.step)
                finally:
                    call.filling = False
            if not rows.outputs:
                call.reason = LIMIT
                return original(x)
            out = rows.outputs[layer][call.step - rows.first]
            # The last layer may be given one more dimension. A hook may write into what it is given.
            return out.expand(rows.width(layer), *out.shape[1:]).clone().view(*x.shape[:-1], -1)

        return forward

    def _find(self, call: _Call, layer: Layer | None, vec: Tensor) -> _Rows | None:
        """The rows of a layer's vector in this call; None for another vector, or for some rows of one.

        A product of fewer rows may have other bits.
        """
        if call.compare != EACH:
            for known, rows in call.known:
                if _is_start(vec, known):
                    return rows if len(vec) == rows.width(layer) else None
            if call.known or call.refused:
                return None
        flat = vec.flatten(1)
        for rows in (call.rows, *call.rows.parts.values()) if call.compare == EACH else (call.rows,):
            vectors = rows.vectors[:, : rows.width(layer)].flatten(2)
            if flat.shape != vectors.shape[1:] or flat.dtype != vectors.dtype:
                continue
            if call.compare != TRUST:
                same = (vectors == flat).flatten(1).all(dim=1).tolist()
                call.step = same.index(True) if True in same else None
            if call.step is not None:
                call.known.append((vec, rows))
                return rows
        call.refused = True
        return None

    def part(self, vec: Tensor, rows: Sequence[int]) -> Tensor:
        """vec[rows], for a hook that runs a block on some rows of the batch; the part has rows of its own."""
        call = self._call
        known = None if call is None else self._find(call, None, vec)
        if call is None or known is None:
            return rows_of(vec, rows)
        index, whole = tuple(known.index[row] for row in rows), call.rows
        if index not in whole.parts:
            batch, some = len(index) // (1 + known.half), list(index)
            whole.parts[index] = _Rows(whole.vectors[:, some], whole.inputs[:, some], batch, index)
            self._share_limit()
        made = rows_of(vec, rows)
        call.known.append((made, whole.parts[index]))
        return made

    # Filling

    def _all(self) -> list[_Rows]:
        """All rows once, with the parts."""
        return list({id(each): each for rows in self._sets.values() for each in (rows, *rows.parts.values())}.values())

    def _share_limit(self) -> None:
        """Free the outputs: more rows share the limit from now on."""
        for rows in self._all():
            rows.outputs = {}

    def _fill(self, rows: _Rows, step: int) -> None:
        """Compute the outputs of as many steps as the limit holds, from one on; none if it does not hold one."""
        rows.outputs = {}
        alike = bool((rows.vectors == rows.vectors[:, :1]).all())
        of_step = rows.inputs[0].numel() // rows.inputs.shape[-1] * row_width(self._layers) * rows.inputs.element_size()
        of_step //= rows.inputs.shape[1] if alike else 1
        steps = min(len(rows.inputs) - step, self._limit // len(self._all()) // max(of_step, 1))
        if steps < 1:
            return
        rows.first, inputs, made = step, rows.inputs[step : step + steps], {}
        for layer in self._layers:
            out = _outputs(layer.linear, inputs[:, : rows.width(layer)])
            if alike and bool((out == out[:, :1]).all()):
                out = out[:, :1].clone()
            made[layer] = out
        rows.outputs = made
        self.count.rows += inputs.shape[0] * inputs.shape[1]
        held = sum(out.nbytes for each in self._all() for out in each.outputs.values())
        self.count.bytes = max(self.count.bytes, held)


class _RowsApart(TorchFunctionMode):
    """linear(x [n, R, ...]) as n products of R rows each, so that each has the bits of a product of its own."""

    applied = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear and not self.applied:
            self.applied = True
            x, *rest = args
            return torch.stack([func(each, *rest, **(kwargs or {})) for each in x])
        return func(*args, **(kwargs or {}))


def _outputs(linear: Any, x: Tensor) -> Tensor:
    """A layer's outputs [n, R, ..., W] of inputs [n, R, ...], with the bits of n calls.

    A layer that is on another device is fetched for each call, so one call is made of all. Layers that are quantised
    scale their inputs by the largest value of a call, so these are called one by one wherever they are.
    """
    weight = getattr(linear, "weight", None)
    if weight is not None and weight.device != x.device and type(weight) is torch.nn.Parameter:
        with _RowsApart() as mode:
            out = linear(x)
        if mode.applied:
            return out
    return torch.stack([linear(each) for each in x])


def _is_start(vec: Tensor, known: Tensor) -> bool:
    """Whether a tensor is the start of another one, in the same memory."""
    vec, known = vec.flatten(1), known.flatten(1)  # FLUX's last layer adds a dimension of 1
    alike = vec.shape[1:] == known.shape[1:] and vec.stride() == known.stride() and vec.dtype == known.dtype
    return alike and vec.data_ptr() == known.data_ptr() and len(vec) <= len(known)


def _is_compiled(module: Any) -> bool:
    """Whether a module runs under torch.compile, which would compile a row's serving in its place."""
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _is_changed(layer: Layer) -> bool:
    """Whether another node put a forward of its own on a layer, or the layer in another one's place."""
    return "forward" in layer.owner.__dict__ or not type(layer.owner).__module__.startswith(("comfy.", "torch."))


def _float32(sigmas: Iterable[float] | Tensor) -> list[float]:
    values = sigmas if isinstance(sigmas, Tensor) else torch.tensor(list(sigmas))
    return values.float().flatten().tolist()


def make(patcher, sigmas: Iterable[float] | Tensor, limit_mb: int, identify: Identify) -> ModulationTable:
    """The table of one run. Args: patcher, of the run; limit_mb, of the table's memory."""
    changes = "hooks may change the weights during the run" if may_change(patcher, ("",)) else ""
    return ModulationTable(patcher.model, sigmas, limit_mb * 2**20, identify, changes)
