"""The header of a checkpoint file: tensor names, shapes, dtypes and offsets. No tensor is read.

Only safetensors is read; a file of another format is refused with the format's name.
Source of the format: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the tensors' bytes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from .bounded_json import MOST_TEXT, Scanner, parse
from .errors import DOWNLOAD_AGAIN, DamagedError, NotSafetensorsError, UnreadableError, are, listing

MAX_HEADER = 100_000_000  # bytes; safetensors' own limit
MAX_INDEX = 10_000_000  # bytes of an index of shards
MAX_RANK = 32
# A tensor of bytes, JSON, with what else stands in the metadata: programs that save a loaded model drop metadata and
# keep tensors.
SETTINGS = "mmdit.settings"
PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}

_NO_PICKLE = (
    "Only safetensors files are read, because a pickle can run any program when it is opened: "
    "take the .safetensors version of this model"
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. start, end: its bytes, from the beginning of the file; dtype: safetensors' name, "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The tensors of one file, or of all shards of one model, by name, and the metadata."""

    source: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: str | PathLike[str] | Header) -> Header:
    """Names, shapes, dtypes, offsets and metadata of a checkpoint; no tensor is read.

    Args: path of a safetensors file; of a diffusers folder (a transformer, or a pipeline with one); of a
        `*.safetensors.index.json`; or of any one shard, with its index in the same folder. A header is given back.
    Returns: Header; shards are merged. A diffusers config.json in the same folder is the metadata "diffusers.config".
        What is in the tensor `mmdit.settings` is metadata, not a tensor.
    Raises: UnreadableError, NotSafetensorsError or DamagedError for anything but whole, well-formed safetensors.
    """
    if isinstance(path, Header):
        return path
    source = Path(path)
    try:
        file = _find_file(source)
        header = _read_index(source, file) if file.name.endswith(".index.json") else _read_file(file)
        metadata = {key: value for key, value in header.metadata.items() if key != "diffusers.config"}
        config = file.parent / "config.json"
        if config.is_file() and config.stat().st_size < MOST_TEXT:
            metadata["diffusers.config"] = config.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UnreadableError(source, f"it cannot be read ({error.strerror or error})") from error
    tensors = dict(header.tensors)
    if SETTINGS in tensors:
        metadata = _read_settings(tensors.pop(SETTINGS)) | metadata
    return Header(source, tensors, metadata)


def _read_settings(info: TensorInfo) -> dict[str, str]:
    """The metadata in the tensor `mmdit.settings`."""
    try:
        with info.file.open("rb") as stream:
            stream.seek(info.start)
            values = parse(stream.read(min(info.end - info.start, MOST_TEXT + 1)))
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError("it must be a JSON object of texts")
        return values
    except ValueError as error:
        raise DamagedError(info.file, f"the tensor {SETTINGS} cannot be read ({error!s:.200})") from error


def _find_file(path: Path) -> Path:
    """The safetensors file or index of a path."""
    if path.is_dir():
        return _find_in_folder(path)
    shard = re.fullmatch(r"(.+)-\d+-of-(\d+)\.safetensors", path.name)
    if shard is None or int(shard[2]) == 1:
        return path
    index = path.with_name(f"{shard[1]}.safetensors.index.json")
    if not index.is_file():
        found = f"this is one of {int(shard[2])} shards, and the index {index.name} is not in its folder"
        raise UnreadableError(path, found, "Put all shards and their index into one folder")
    return index


def _find_in_folder(folder: Path) -> Path:
    if (folder / "model_index.json").is_file() and (folder / "transformer").is_dir():
        folder = folder / "transformer"
    for name in ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    for pattern in ("*.safetensors.index.json", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = listing(file.name for file in found)
            raise UnreadableError(folder, f"this folder holds several models ({names})", "Name one of them")
    if any(file.suffix in PICKLE_SUFFIXES for file in folder.iterdir()):
        raise NotSafetensorsError(folder, "this folder holds pickled weights and no safetensors file", _NO_PICKLE)
    raise UnreadableError(folder, "this folder holds no safetensors file", "Name a file, or a folder with one")


def _read_index(source: Path, index: Path) -> Header:
    """All shards of a `*.safetensors.index.json`, as one header."""
    try:
        with index.open("rb") as stream:
            weight_map = parse(stream.read(MAX_INDEX + 1), MAX_INDEX)["weight_map"]
        shards = sorted(set(weight_map.values()))
        "".join((*weight_map, *shards)).encode()  # half a surrogate pair cannot be shown
        # An index from elsewhere must not lead out of its own folder.
        if not shards or not all(re.fullmatch(r"[^/\\:]*[^/\\:.]", name) for name in shards):
            raise ValueError("weight_map must name files in the folder of the index")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(index, f"this is not an index of safetensors shards ({error!r:.300})") from error
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for name in shards:
        shard = index.with_name(name)
        if not shard.is_file():
            found = f"the shard {name} is missing ({len(shards)} are named)"
            raise DamagedError(index, found, "All must be in the folder of the index")
        header = _read_file(shard)
        twice = tensors.keys() & header.tensors.keys()
        if twice:
            raise DamagedError(shard, f"another shard holds these tensors too: {listing(sorted(twice))}")
        tensors.update(header.tensors)
        metadata |= header.metadata
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise DamagedError(source, f"{are(len(absent))} missing that {index.name} names: {listing(absent)}")
    return Header(source, tensors, metadata)


def _read_file(file: Path) -> Header:
    data_start, size = _sizes(file)
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    try:
        scanner = Scanner(_header_text(file, data_start))
        for name in scanner.members():
            if name == "__metadata__":
                metadata = {key: scanner.string() for key in scanner.members()}
            else:
                tensors[name] = _tensor_info(file, name, scanner.flat_object(), data_start)
        scanner.end()
    except ValueError as error:
        raise DamagedError(file, f"its safetensors header is damaged ({error!s:.300})") from error
    _check_extent(file, size, data_start, tensors)
    return Header(file, tensors, metadata)


def _sizes(file: Path) -> tuple[int, int]:
    """Where the header of a safetensors file ends, and the file's size."""
    if not file.is_file():
        raise UnreadableError(file, "there is no such file")
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(512)
    length = int.from_bytes(head[:8], "little")
    # A header of 640 bytes begins like a pickle (80 02), so the brace decides before any signature.
    if size < 10 or head[8:9] != b"{" or length < 2:
        raise NotSafetensorsError(file, *_describe(head, file))
    if length > MAX_HEADER:
        raise DamagedError(file, f"its header claims to be {length} bytes long")
    if 8 + length > size:
        raise DamagedError(file, f"the file is truncated: {size} bytes, and its header alone has {length}")
    return 8 + length, size


def _header_text(file: Path, end: int) -> str:
    with file.open("rb") as stream:
        stream.seek(8)
        return stream.read(end - 8).decode("utf-8")


def _tensor_info(file: Path, name: str, entry: dict[str, Any], data_start: int) -> TensorInfo:
    if entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:100]} has the fields {listing(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name[:100]} has the unknown dtype {dtype!r:.60}")
    # type(), not isinstance: JSON's true and false are integers in Python.
    lists = isinstance(shape, list) and isinstance(offsets, list)
    are_sizes = lists and all(type(n) is int and 0 <= n < 2**63 for n in shape + offsets)
    if not are_sizes or len(shape) > MAX_RANK or len(offsets) != 2:
        raise ValueError(f"{name[:100]} has no valid shape and offsets")
    start, end = offsets
    if (end - start) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError(f"{name[:100]} has {end - start} bytes, which does not fit {dtype} {shape}")
    return TensorInfo(file, dtype, tuple(shape), data_start + start, data_start + end)


def _check_extent(file: Path, size: int, data_start: int, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse a file whose tensors do not fill it from the header to the end without gaps."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise DamagedError(file, f"its safetensors header is damaged (gap or overlap before {name[:100]})")
        position = info.end
    if position > size:
        percent = 100 * size // position
        raise DamagedError(file, f"the file is truncated: {size} of {position} bytes are there ({percent}%)")
    if position < size:
        raise DamagedError(file, f"{size - position} bytes follow the last tensor")


# First bytes of a file -> what it is, what would be right.
_SIGNATURES: tuple[tuple[str, str, str], ...] = (
    (r"\Z", "the file is empty", DOWNLOAD_AGAIN),
    (r"PK\x03\x04", "this is a pickle in a zip archive, as torch.save writes it", _NO_PICKLE),
    (r"\x80[\x00-\x05]", "this is a pickle", _NO_PICKLE),
    (
        r"GGUF",
        "this is a GGUF file",
        "Take the .safetensors version of this model. In ComfyUI the pack ComfyUI-GGUF loads it (Unet Loader (GGUF)), "
        "and the nodes of this pack take its MODEL",
    ),
    (
        r"version https://git-lfs",
        "this is a git-lfs pointer, a few lines of text in place of the real file",
        "Run `git lfs pull` in that repository, or download the file itself",
    ),
    (
        r"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head)",
        "this is a web page (HTML) saved under the model's name",
        "Download the file itself; the site may require a login or an accepted licence",
    ),
    (r"\x00{9}", "the file begins with zeros, so its download never finished", DOWNLOAD_AGAIN),
)


def _describe(head: bytes, file: Path) -> tuple[str, str]:
    """(what was found, what would be right) for a file that is not safetensors."""
    for pattern, found, right in _SIGNATURES:
        if re.match(pattern.encode("latin-1"), head):
            return found, right
    if file.suffix.lower() in PICKLE_SUFFIXES:
        return f"a {file.suffix} file is a pickle unless its first bytes say otherwise", _NO_PICKLE
    if head.isascii() and "".join(head.decode("ascii").split()).isprintable():
        return f"this is a text file that begins {head[:60].decode('ascii')!r}", "Download the model file itself"
    return f"this is not a safetensors file (it begins with the bytes {head[:8].hex(' ')})", DOWNLOAD_AGAIN
