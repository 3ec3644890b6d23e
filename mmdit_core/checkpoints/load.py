"""Checkpoints of the SD3 family: checked from the header alone, then mapped into memory under the model's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..config import MMDiTConfig
from .detect import (
    DIFFUSERS,
    NEEDED,
    QUANTISED,
    Part,
    components,
    config_from_state_dict,
    describe_unknown,
    missing_tensors,
    names_under,
)
from .header import CheckpointError, Header, TensorInfo, are, listing, read_header
from .keymaps import Rule, diffusers_shapes, expected_shapes, from_diffusers, join, key_map, to_diffusers

__all__ = [
    "CheckpointError",
    "Header",
    "Part",
    "TensorInfo",
    "check_transformer",
    "components",
    "config_from_state_dict",
    "expected_shapes",
    "from_diffusers",
    "load_checkpoint",
    "load_component",
    "read_header",
    "to_diffusers",
]

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def load_checkpoint(
    path: str | PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    allow_mixed: bool = False,
) -> tuple[MMDiTConfig, dict[str, Tensor]]:
    """The transformer of a checkpoint: its config and its tensors under the model's names.

    Everything is checked from the header first. On the CPU, in the file's own dtype, tensors stay mapped to the file:
    with a model built on the meta device and `load_state_dict(..., assign=True)`, memory grows by no more than the
    file, and only as weights are used. Of a diffusers file qkv and two modulations are copies. What is converted is
    read tensor by tensor.
    Args: path as for `read_header`; device and dtype to put the tensors on and into (each of them only once);
        allow_mixed, keep tensors of several dtypes as they are, for layers that cast their own weights.
    Returns: (config, tensors by name).
    Raises: CheckpointError for anything but a whole model of the SD3 family; also for several dtypes in one file
        (pos_embed aside, which the model casts), unless dtype or allow_mixed is given.
    """
    header = read_header(path)
    config, part = check_transformer(header)
    if dtype is None and not allow_mixed:
        _refuse_mixture(header, part)
    rules = key_map(config)
    if part.layout != DIFFUSERS:
        rules = {name: Rule(name, (part.prefix + name,)) for name in rules}
    return config, _read(header, rules, torch.device(device), dtype)


def load_component(
    path: str | PathLike[str],
    prefix: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """One part of a file (a text encoder, a VAE), tensor by tensor; nothing else of the file is read.

    Args: path as for `read_header`; prefix, what its tensors begin with (`components` tells it), cut off their names;
        device; dtype for floating-point tensors.
    Yields: (name, tensor). On the CPU, in the file's own dtype, tensors stay mapped to the file.
    Raises: CheckpointError where the file is damaged or holds no such tensors.
    """
    header = read_header(path)
    names = [name for name in header.tensors if name.startswith(prefix)]
    if not names:
        held = ", ".join(components(header)) or "none that is known"
        raise CheckpointError(header.source, f"no tensor begins with {prefix}; the parts in it are {held}")
    with _mapped(header) as get:
        for name in names:
            tensor = get(name)
            yield name[len(prefix) :], tensor.to(device, dtype if tensor.is_floating_point() else None)


def check_transformer(header: Header) -> tuple[MMDiTConfig, Part]:
    """Is the transformer in this file whole, and which one is it? No tensor is read.

    Raises: CheckpointError for an unknown architecture, quantised weights with scales, missing or surplus tensors,
        wrong shapes, dtypes that no layer can use.
    """
    part = components(header).get("transformer")
    if part is None:
        raise CheckpointError(header.source, describe_unknown(header.tensors), NEEDED)
    names = names_under(header.tensors, part.prefix)
    scales = [name for name in names if re.fullmatch(QUANTISED, name)]
    if scales:
        raise CheckpointError(
            header.source,
            f"the weights are quantised with separate scales ({len(scales)} tensors: {listing(scales)})",
            "Such files are not supported: take the bf16, the fp16 or a plain fp8 version, without scales",
        )
    config = config_from_state_dict(
        {name: info.shape for name, info in header.tensors.items()}, header.metadata, source=header.source
    )
    shapes = diffusers_shapes(config) if part.layout == DIFFUSERS else expected_shapes(config)
    _check_tensors(header, names, {part.prefix + name: shape for name, shape in shapes.items()})
    return config, part


def _check_tensors(header: Header, names: list[str], expected: dict[str, tuple[int, ...]]) -> None:
    present = set(names)
    missing = [name for name in expected if name not in present]
    surplus = [name for name in names if name not in expected]
    beside = f"{are(len(surplus))} surplus: {listing(surplus)}"
    if missing:
        found, right = missing_tensors(missing)
        raise CheckpointError(header.source, f"{found}; {beside}" if surplus else found, right)
    if surplus:
        raise CheckpointError(
            header.source, beside, f"A model with these blocks and this width has the {len(expected)} others alone"
        )
    wrong = [name for name in names if header.tensors[name].shape != expected[name]]
    if wrong:
        details = [f"{name} is {list(header.tensors[name].shape)}, expected {list(expected[name])}" for name in wrong]
        raise CheckpointError(header.source, f"{are(len(wrong))} of a wrong shape: {'; '.join(details[:4])}")
    odd = [f"{name} ({header.tensors[name].dtype})" for name in names if header.tensors[name].dtype not in DTYPES]
    if odd:
        raise CheckpointError(
            header.source,
            f"{are(len(odd))} of an unsupported dtype: {listing(odd)}",
            f"Use one of {listing(DTYPES, 9)}",
        )


def _refuse_mixture(header: Header, part: Part) -> None:
    found: dict[str, list[str]] = {}
    for name in names_under(header.tensors, part.prefix):
        if not name.endswith("pos_embed"):
            found.setdefault(header.tensors[name].dtype, []).append(name)
    if len(found) > 1:
        mixture = "; ".join(f"{len(names)} {dtype}, as {names[0]}" for dtype, names in sorted(found.items()))
        raise CheckpointError(
            header.source,
            f"its tensors have mixed dtypes: {mixture}",
            "Pass dtype= to convert all to one, or allow_mixed=True where layers cast their own weights",
        )


def _read(header: Header, rules: dict[str, Rule], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    with _mapped(header) as kept:
        for name, rule in rules.items():
            infos = [header.tensors[theirs] for theirs in rule.theirs]
            as_it_is = len(infos) == 1 and not rule.swap and device.type == "cpu"
            if as_it_is and dtype in (None, DTYPES[infos[0].dtype]):
                state[name] = kept(rule.theirs[0])
            else:
                state[name] = join([_read_one(info).to(device, dtype) for info in infos], rule)
    return state


def _read_one(info: TensorInfo) -> Tensor:
    """One tensor, read and not mapped: of what is only converted, nothing should stay in memory."""
    buffer = bytearray(info.end - info.start)
    try:
        with info.file.open("rb", buffering=0) as stream:
            stream.seek(info.start)
            position = 0
            while position < len(buffer):  # one read gives 2 GB at most
                count = stream.readinto(memoryview(buffer)[position:])
                if not count:
                    raise CheckpointError(info.file, "the file became shorter while it was read")
                position += count
    except OSError as error:
        raise CheckpointError(info.file, f"the file cannot be read ({error.strerror or error})") from error
    return torch.frombuffer(buffer, dtype=DTYPES[info.dtype]).view(info.shape)


@contextmanager
def _mapped(header: Header) -> Iterator[Callable[[str], Tensor]]:
    """A function name -> tensor, mapped to its file for as long as the tensor lives; files are opened when needed."""
    handles: dict[Path, Any] = {}
    with ExitStack() as stack:

        def get(name: str) -> Tensor:
            file = header.tensors[name].file
            try:
                if file not in handles:
                    handles[file] = stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
                return handles[file].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(file, f"{name} cannot be read ({error})") from error

        yield get
