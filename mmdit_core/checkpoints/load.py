"""Load checkpoints: checked from the header, then mapped into memory under the core's names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import ModelConfig
from .detect import (
    NEEDED,
    Part,
    components,
    config_from_state_dict,
    describe_unknown,
    find_layout,
    missing_tensors,
)
from .errors import DamagedError, TensorsError, UnknownModelError, UnreadableError, are, listing
from .families import DIFFUSERS, FAMILIES, Family, Rule, family_of
from .header import Header, TensorInfo, read_header
from .keymaps import diffusers_shapes, expected_shapes, join, key_map, single_file_map
from .quantised import ScaledLayer, as_tensors, dequantised, is_quantisation, scaled_layers

log = logging.getLogger(__name__)

# The dtypes of weights by safetensors' names.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
# And of what else a text encoder or a VAE may hold.
READABLE = DTYPES | {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def load_checkpoint(
    path: str | PathLike[str] | Header,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    allow_mixed: bool = False,
    keep_scales: bool = False,
    copy: bool = False,
) -> tuple[ModelConfig, dict[str, Tensor]]:
    """The config and the state dict of a checkpoint's transformer.

    Everything is checked from the header first. On the CPU and in the file's own dtype, tensors stay mapped to the
    file: for a model on the meta device and `load_state_dict(..., assign=True)`, memory grows by the file's size at
    most, and only when weights are used. Of a diffusers file, qkv and two modulations are copies. Tensors that are
    converted are read one by one. Tensors that the model does not need are ignored, with one line in the log.
    Args: path as for `read_header`, or what that gave; device and dtype of the result; allow_mixed, True to keep
        tensors of several dtypes as they are, for layers that cast their own weights; keep_scales, True to keep float8
        weights that have a scale, with `weight_scale`, `input_scale` and `comfy_quant` of each such layer beside them,
        else they are multiplied; copy, True to map nothing, so that the file may be overwritten.
    Returns: (config, name -> tensor).
    Raises: CheckpointError for anything but a whole model of a known family; QuantisedError for weights quantised in
        another format than float8; TensorsError for several dtypes in one file (except pos_embed, which the model
        casts), unless dtype or allow_mixed is given.
    """
    header = read_header(path)
    found = check_transformer(header)
    if dtype is None and not allow_mixed:
        _refuse_mixture(header, found)
    stored = "/".join(found.part.dtypes)
    sizes = f"{found.config.num_blocks} blocks of width {found.config.hidden_size}"
    log.info("%s: %s layout, %s, %s", header.source, found.part.layout, sizes, stored)
    if found.unused:
        log.info("%s: %s not needed and ignored: %s", header.source, are(len(found.unused)), listing(found.unused))
    with _mapped(header) as mapped:
        reader = _Reader(header, found.scaled, torch.device(device), dtype, keep_scales, read_one if copy else mapped)
        state: dict[str, Tensor] = {}
        for rule in found.rules.values():
            state.update(reader.read(rule))
    some = next(iter(state.values()))
    return found.config, state | {name: some.new_empty(0) for name in found.empty}


def load_model(
    path: str | PathLike[str], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Any:
    """The model of a checkpoint, ready to sample.

    Args: path as for `read_header`; dtype of the weights, None for the file's own; device, None for the CPU.
    Returns: the model of the file's family, such as MMDiT, in eval mode, without gradients.
    Raises: as `load_checkpoint`; TensorsError for float8 weights without a dtype: no plain layer computes in float8.
    """
    config, state_dict = load_checkpoint(path, device=device or "cpu", dtype=dtype)
    dtypes = {tensor.dtype for name, tensor in state_dict.items() if name != "pos_embed" and tensor.numel()}
    if any(each.itemsize == 1 for each in dtypes):
        raise TensorsError(path, f"its weights are {listing(dtypes)}", "Pass dtype=, such as torch.bfloat16")
    model = family_of(config).model(config, device="meta", dtype=dtypes.pop())
    model.load_state_dict(state_dict, assign=True)
    return model.eval().requires_grad_(False)


def load_component(
    path: str | PathLike[str] | Header, prefix: str, *, dtype: torch.dtype | None = None, copy: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """One part of a file (a text encoder, a VAE), tensor by tensor; no other part is read.

    Args: path as for `read_header`, or what that gave; prefix of its tensors' names (`components` has it), which is
        removed from them; dtype of floating-point tensors; copy, True to map nothing, so that the file may be
        overwritten.
    Yields: (name, tensor). In the file's own dtype, tensors stay mapped to the file.
    Raises: CheckpointError if the file is damaged; UnknownModelError if no tensor has the prefix.
    """
    header = read_header(path)
    names = [name for name in header.tensors if name.startswith(prefix)]
    if not names:
        parts = ", ".join(components(header)) or "none that is known"
        raise UnknownModelError(header.source, f"no tensor begins with {prefix}; the parts in it are {parts}")
    with _mapped(header) as mapped:
        for name in names:
            tensor = (read_one if copy else mapped)(header.tensors[name], name)
            yield name[len(prefix) :], tensor.to(dtype=dtype) if tensor.is_floating_point() else tensor


class Transformer(NamedTuple):
    """The transformer of a file, checked.

    Fields: config; part; rules, the core's name of each tensor -> its names in the file; scaled, name of a weight in
    the file -> its layer, for float8 weights with a scale; unused, names in the file of tensors that no model of this
    config has; empty, tensors without elements that the model has and the file has not.
    """

    config: ModelConfig
    part: Part
    rules: Mapping[str, Rule]
    scaled: Mapping[str, ScaledLayer]
    unused: tuple[str, ...]
    empty: tuple[str, ...] = ()


def check_transformer(header: Header, families: Sequence[Family] = FAMILIES) -> Transformer:
    """The transformer of a file, checked. No weight is read.

    Args: families, those that count.
    Raises: UnknownModelError for an unknown architecture; QuantisedError for weights quantised in another format than
        float8; TensorsError for missing tensors, wrong shapes, unsupported dtypes.
    """
    layout = find_layout(header.tensors, families)
    if layout is None:
        raise UnknownModelError(header.source, describe_unknown(header.tensors), NEEDED)
    part = components(header, families)["transformer"]
    names = {name: stored for name, stored in part.names.items() if not is_quantisation(name)}
    layers = scaled_layers(header, part.names, part.prefix, read_bytes)
    in_file = {name: info.shape for name, info in header.tensors.items()}
    config = config_from_state_dict(in_file, header.metadata, source=header.source, families=families)
    try:
        shapes = diffusers_shapes(config) if part.layout == DIFFUSERS else expected_shapes(config)
    except RuntimeError as error:  # of torch, for sizes whose product overflows
        raise UnknownModelError(header.source, f"its tensors fit no MMDiT ({error})", layout.family.needed) from error
    # An empty tensor is a name that says something, which other layouts say in their metadata.
    empty = tuple(name for name, shape in shapes.items() if 0 in shape and name not in names)
    shapes = {name: shape for name, shape in shapes.items() if name not in empty}
    _check_tensors(header, part.prefix, names, shapes)
    rules = {
        name: rule._replace(diffusers=tuple(names[each] for each in rule.diffusers))
        for name, rule in (key_map(config) if part.layout == DIFFUSERS else single_file_map(config)).items()
        if name not in empty
    }
    unused = tuple(stored for name, stored in names.items() if name not in shapes)
    return Transformer(config, part, rules, {layer.weight: layer for layer in layers.values()}, unused, empty)


def _check_tensors(
    header: Header, prefix: str, names: Mapping[str, str], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Args: names, name in the layout -> name in the file."""
    missing = [prefix + name for name in expected if name not in names]
    surplus = [stored for name, stored in names.items() if name not in expected]
    if missing:
        besides = f"; {are(len(surplus))} surplus: {listing(surplus)}" if surplus else ""
        raise missing_tensors(header.source, missing, besides)
    shapes = {names[name]: shape for name, shape in sorted(expected.items())}
    infos = {name: header.tensors[name] for name in shapes}
    wrong = [name for name, info in infos.items() if info.shape != shapes[name]]
    if wrong:
        details = [f"{name} is {list(infos[name].shape)}, expected {list(shapes[name])}" for name in wrong]
        found = f"{are(len(wrong))} of a wrong shape: {'; '.join(details[:4])}"
        raise TensorsError(header.source, found, names=wrong)
    wrong = [name for name, info in infos.items() if info.dtype not in DTYPES]
    if wrong:
        details = [f"{name} ({infos[name].dtype})" for name in wrong]
        found = f"{are(len(wrong))} of an unsupported dtype: {listing(details)}"
        raise TensorsError(header.source, found, f"Use one of {listing(DTYPES, 9)}", names=wrong)


def _refuse_mixture(header: Header, found: Transformer) -> None:
    if found.scaled:
        stored = f"{are(len(found.scaled))} float8 with a scale, as {next(iter(found.scaled))}"
        raise TensorsError(header.source, stored, "Pass dtype= to multiply them, such as torch.bfloat16")
    names: dict[str, list[str]] = {}
    for rule in found.rules.values():
        for name in rule.diffusers:
            if rule.name != "pos_embed" and 0 not in header.tensors[name].shape:
                names.setdefault(header.tensors[name].dtype, []).append(name)
    if len(names) > 1:
        mixture = "; ".join(f"{len(each)} {dtype}, as {each[0]}" for dtype, each in sorted(names.items()))
        right = "Pass dtype= to convert all to one, or allow_mixed=True if the layers cast their own weights"
        raise TensorsError(header.source, f"its tensors have mixed dtypes: {mixture}", right)


class _Reader:
    """Reads the tensors of the core from a file, in the wanted dtype, on the wanted device."""

    def __init__(
        self,
        header: Header,
        scaled: Mapping[str, ScaledLayer],
        device: torch.device,
        dtype: torch.dtype | None,
        keep_scales: bool,
        get: Callable[[TensorInfo, str], Tensor],
    ):
        self.tensors, self.scaled = header.tensors, scaled
        self.device, self.dtype, self.keep_scales, self.get = device, dtype, keep_scales, get

    def read(self, rule: Rule) -> dict[str, Tensor]:
        """A tensor of the core and, if its float8 weight is kept, what belongs to its scale."""
        first, *others = rule.diffusers
        # Only the weights of linear layers may be kept: of a convolution ComfyUI knows no scales.
        if first in self.scaled and self.keep_scales and not others and len(self.tensors[first].shape) == 2:
            layer = self.scaled[first]
            weight = join([self._one(first)], rule).to(self.device)
            input_scale = None if layer.input_scale is None else self._one(layer.input_scale)
            extra = as_tensors(rule.name.removesuffix(".weight"), layer, self._one(layer.scale), input_scale)
            return {rule.name: weight, **{name: tensor.to(self.device) for name, tensor in extra.items()}}
        infos = [self.tensors[name] for name in rule.diffusers]
        stored = {DTYPES[info.dtype] for info in infos}
        if not others and not rule.swap and self.device.type == "cpu" and first not in self.scaled:
            if self.dtype in (None, *stored):
                return {rule.name: self.get(infos[0], first)}
        dtype = self.dtype or (_widest(stored) if not self.scaled.keys() & {*rule.diffusers} else torch.bfloat16)
        return {rule.name: join([self._converted(name, dtype) for name in rule.diffusers], rule)}

    def _one(self, name: str) -> Tensor:
        return read_one(self.tensors[name], name)

    def _converted(self, name: str, dtype: torch.dtype) -> Tensor:
        if name in self.scaled:
            return dequantised(self._one(name), self._one(self.scaled[name].scale), dtype).to(self.device)
        return self._one(name).to(self.device, dtype)


def _widest(dtypes: set[torch.dtype]) -> torch.dtype:
    """The dtype that holds the values of all."""
    if len(dtypes) == 1:
        return next(iter(dtypes))
    size = max(dtype.itemsize for dtype in dtypes)
    widest = {dtype for dtype in dtypes if dtype.itemsize == size}
    return next(iter(widest)) if len(widest) == 1 and size > 1 else torch.float32


def read_one(info: TensorInfo, name: str = "") -> Tensor:
    """One tensor, read and not mapped, so that nothing of a converted tensor stays in memory."""
    buffer, dtype = read_bytes(info), READABLE[info.dtype]
    return torch.frombuffer(buffer, dtype=dtype).view(info.shape) if buffer else torch.empty(info.shape, dtype=dtype)


def read_bytes(info: TensorInfo) -> bytearray:
    """The bytes of a tensor."""
    buffer = bytearray(info.end - info.start)
    try:
        with info.file.open("rb") as stream:  # buffered: a raw read returns 2 GB at most
            stream.seek(info.start)
            if stream.readinto(buffer) < len(buffer):
                raise DamagedError(info.file, "the file became shorter while it was read")
    except OSError as error:
        raise UnreadableError(info.file, f"the file cannot be read ({error.strerror or error})") from error
    return buffer


@contextmanager
def _mapped(header: Header) -> Iterator[Callable[[TensorInfo, str], Tensor]]:
    """A function that gives a tensor, mapped to its file for its lifetime; a file is opened at its first use."""
    handles: dict[Path, Any] = {}
    with ExitStack() as stack:

        def get(info: TensorInfo, name: str) -> Tensor:
            file = info.file
            try:
                if file not in handles:
                    handles[file] = stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
                return handles[file].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise UnreadableError(file, f"{name} cannot be read ({error})") from error

        yield get
