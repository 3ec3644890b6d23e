"""Load checkpoints of the SD3 family: checked from the header, then mapped into memory under the core's names."""

from __future__ import annotations

import logging
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
from ..models.sd3 import MMDiT
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
from .errors import DamagedError, TensorsError, UnknownModelError, UnreadableError, are, listing
from .header import Header, TensorInfo, read_header
from .keymaps import Rule, diffusers_shapes, expected_shapes, join, key_map

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


def load_checkpoint(
    path: str | PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    allow_mixed: bool = False,
) -> tuple[MMDiTConfig, dict[str, Tensor]]:
    """The config and the state dict of a checkpoint's transformer.

    Everything is checked from the header first. On the CPU and in the file's own dtype, tensors stay mapped to the
    file: for a model on the meta device and `load_state_dict(..., assign=True)`, memory grows by the file's size at
    most, and only when weights are used. Of a diffusers file, qkv and two modulations are copies. Tensors that are
    converted are read one by one.
    Args: path as for `read_header`; device and dtype of the result; allow_mixed, True to keep tensors of several dtypes
        as they are, for layers that cast their own weights.
    Returns: (config, name -> tensor).
    Raises: CheckpointError for anything but a whole model of the SD3 family; TensorsError for several dtypes in one
        file (except pos_embed, which the model casts), unless dtype or allow_mixed is given.
    """
    header = read_header(path)
    config, part = check_transformer(header)
    if dtype is None and not allow_mixed:
        _refuse_mixture(header, part)
    rules = key_map(config)
    if part.layout != DIFFUSERS:
        rules = {name: Rule(name, (part.prefix + name,)) for name in rules}
    stored = "/".join(part.dtypes)
    log.info("%s: %s layout, %d blocks of width %d, %s", path, part.layout, config.depth, config.hidden_size, stored)
    return config, _read(header, rules, torch.device(device), dtype)


def load_model(
    path: str | PathLike[str], dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> MMDiT:
    """The model of a checkpoint, ready to sample.

    Args: path as for `read_header`; dtype of the weights, None for the file's own; device, None for the CPU.
    Returns: MMDiT in eval mode, without gradients.
    Raises: as `load_checkpoint`; TensorsError for float8 weights without a dtype: no plain layer computes in float8.
    """
    config, state_dict = load_checkpoint(path, device=device or "cpu", dtype=dtype)
    found = {tensor.dtype for name, tensor in state_dict.items() if name != "pos_embed"}
    if any(each.itemsize == 1 for each in found):
        raise TensorsError(path, f"its weights are {listing(found)}", "Pass dtype=, such as torch.bfloat16")
    model = MMDiT(config, device="meta", dtype=found.pop())
    model.load_state_dict(state_dict, assign=True)
    return model.eval().requires_grad_(False)


def load_component(
    path: str | PathLike[str], prefix: str, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """One part of a file (a text encoder, a VAE), tensor by tensor; no other part is read.

    Args: path as for `read_header`; prefix of its tensors' names (`components` has it), which is removed from them;
        dtype of floating-point tensors.
    Yields: (name, tensor). In the file's own dtype, tensors stay mapped to the file.
    Raises: CheckpointError if the file is damaged; UnknownModelError if no tensor has the prefix.
    """
    header = read_header(path)
    names = [name for name in header.tensors if name.startswith(prefix)]
    if not names:
        parts = ", ".join(components(header)) or "none that is known"
        raise UnknownModelError(header.source, f"no tensor begins with {prefix}; the parts in it are {parts}")
    with _mapped(header) as get:
        for name in names:
            tensor = get(name)
            yield name[len(prefix) :], tensor.to(dtype=dtype) if tensor.is_floating_point() else tensor


def check_transformer(header: Header) -> tuple[MMDiTConfig, Part]:
    """The config and the part of a file's transformer, checked. No tensor is read.

    Raises: UnknownModelError for an unknown architecture; TensorsError for quantised weights with scales, missing or
        surplus tensors, wrong shapes, unsupported dtypes.
    """
    part = components(header).get("transformer")
    if part is None:
        raise UnknownModelError(header.source, describe_unknown(header.tensors), NEEDED)
    names = names_under(header.tensors, part.prefix)
    scales = [name for name in names if re.fullmatch(QUANTISED, name)]
    if scales:
        found = f"the weights are quantised with separate scales ({len(scales)} tensors: {listing(scales)})"
        right = "Such files are not supported: take the bf16, the fp16 or a plain fp8 version, without scales"
        raise TensorsError(header.source, found, right, names=scales)
    in_file = {name: info.shape for name, info in header.tensors.items()}
    config = config_from_state_dict(in_file, header.metadata, source=header.source)
    try:
        shapes = diffusers_shapes(config) if part.layout == DIFFUSERS else expected_shapes(config)
    except RuntimeError as error:  # of torch, for sizes whose product overflows
        raise UnknownModelError(header.source, f"its tensors fit no MMDiT ({error})", NEEDED) from error
    _check_tensors(header, names, {part.prefix + name: shape for name, shape in shapes.items()})
    return config, part


def _check_tensors(header: Header, names: list[str], expected: dict[str, tuple[int, ...]]) -> None:
    present = set(names)
    missing = [name for name in expected if name not in present]
    surplus = [name for name in names if name not in expected]
    found = f"{are(len(surplus))} surplus: {listing(surplus)}"
    if missing:
        raise missing_tensors(header.source, missing, f"; {found}" if surplus else "")
    if surplus:
        right = f"A model with these blocks and this width has only the {len(expected)} others"
        raise TensorsError(header.source, found, right, names=surplus)
    wrong = [name for name in names if header.tensors[name].shape != expected[name]]
    if wrong:
        details = [f"{name} is {list(header.tensors[name].shape)}, expected {list(expected[name])}" for name in wrong]
        found = f"{are(len(wrong))} of a wrong shape: {'; '.join(details[:4])}"
        raise TensorsError(header.source, found, names=wrong)
    wrong = [name for name in names if header.tensors[name].dtype not in DTYPES]
    if wrong:
        details = [f"{name} ({header.tensors[name].dtype})" for name in wrong]
        found = f"{are(len(wrong))} of an unsupported dtype: {listing(details)}"
        raise TensorsError(header.source, found, f"Use one of {listing(DTYPES, 9)}", names=wrong)


def _refuse_mixture(header: Header, part: Part) -> None:
    found: dict[str, list[str]] = {}
    for name in names_under(header.tensors, part.prefix):
        if not name.endswith("pos_embed"):
            found.setdefault(header.tensors[name].dtype, []).append(name)
    if len(found) > 1:
        mixture = "; ".join(f"{len(names)} {dtype}, as {names[0]}" for dtype, names in sorted(found.items()))
        right = "Pass dtype= to convert all to one, or allow_mixed=True if the layers cast their own weights"
        raise TensorsError(header.source, f"its tensors have mixed dtypes: {mixture}", right)


def _read(header: Header, rules: dict[str, Rule], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    with _mapped(header) as mapped:
        for name, rule in rules.items():
            infos = [header.tensors[stored] for stored in rule.diffusers]
            unchanged = len(infos) == 1 and not rule.swap and device.type == "cpu"
            if unchanged and dtype in (None, DTYPES[infos[0].dtype]):
                state[name] = mapped(rule.diffusers[0])
            else:
                state[name] = join([_read_one(info).to(device, dtype) for info in infos], rule)
    return state


def _read_one(info: TensorInfo) -> Tensor:
    """One tensor, read and not mapped, so that nothing of a converted tensor stays in memory."""
    buffer = bytearray(info.end - info.start)
    try:
        with info.file.open("rb") as stream:  # buffered: a raw read returns 2 GB at most
            stream.seek(info.start)
            if stream.readinto(buffer) < len(buffer):
                raise DamagedError(info.file, "the file became shorter while it was read")
    except OSError as error:
        raise UnreadableError(info.file, f"the file cannot be read ({error.strerror or error})") from error
    return torch.frombuffer(buffer, dtype=DTYPES[info.dtype]).view(info.shape)


@contextmanager
def _mapped(header: Header) -> Iterator[Callable[[str], Tensor]]:
    """A function name -> tensor, mapped to its file for the tensor's lifetime; a file is opened at its first use."""
    handles: dict[Path, Any] = {}
    with ExitStack() as stack:

        def get(name: str) -> Tensor:
            file = header.tensors[name].file
            try:
                if file not in handles:
                    handles[file] = stack.enter_context(safe_open(str(file), framework="pt", device="cpu"))
                return handles[file].get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise UnreadableError(file, f"{name} cannot be read ({error})") from error

        yield get
