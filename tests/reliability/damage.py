"""Tiny files of every kind that the pack reads, and structured damage to them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmdit_core.checkpoints.keymaps import expected_shapes, to_diffusers
from mmdit_core.config import FluxConfig, MMDiTConfig, QwenImageConfig
from mmdit_core.control.preset_files import Evidence, MeasuredPreset, write_presets
from tests.core.checkpoints.test_gguf import FLUX as FLUX_NAMES
from tests.core.checkpoints.test_gguf import gguf
from tests.reliability.json_damage import ODD, Pairs, Raw, as_bytes, damaged, damaged_bytes

ROOT = Path(__file__).parents[2]
PREFIX = "model.diffusion_model."
CLIP_L, VAE = "text_encoders.clip_l.", "first_stage_model."
OUTSIDE = "outside.safetensors"  # next to the folder of a case: nothing may open it

TINY = dict(hidden_size=32, num_heads=4, depth=2, context_dim=24, pooled_dim=12, pos_embed_max_size=6)
SD3, PLAIN = MMDiTConfig(**TINY, qk_norm="rms"), MMDiTConfig(**TINY)  # without norms, metadata say the heads
FLUX = FluxConfig(
    hidden_size=32, num_heads=2, depth=1, depth_single_blocks=2, context_dim=24, pooled_dim=12, axes_dim=(4, 6, 6),
    guidance_embed=True,
)  # fmt: skip
QWEN = QwenImageConfig(hidden_size=64, num_heads=2, depth=2, context_dim=24, axes_dim=(4, 14, 14))
# Metadata that something reads.
KEYS = (
    "mmdit.shift", "mmdit.text", "mmdit.latent_rgb_factors", "mmdit.config", "diffusers.config",
    "_quantization_metadata", "config", "modelspec.architecture", "mmdit.training", "format",
)  # fmt: skip
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8"}
DTYPES |= {torch.float8_e4m3fn: "F8_E4M3"}


@dataclass(frozen=True)
class Link:
    """A symbolic link. Field: target, from the folder of the case."""

    target: str


Tree = dict[str, "bytes | Link | None"]  # a path in the folder of a case -> a file's bytes, a link, None for a folder


@dataclass(frozen=True)
class Case:
    """Files to read. Fields: kind of the original; changes, by name; tree; path of what is opened, in the tree."""

    kind: str
    changes: tuple[str, ...]
    tree: Tree
    path: str


@dataclass
class Parts:
    """A safetensors file. Fields: entries, (name, entry) of the header; data of the tensors; metadata or None."""

    entries: list[tuple[Any, Any]]
    data: bytes
    metadata: Any = None
    length: int | None = None  # that the file claims for its header, where that is false

    def file(self) -> bytes:
        first = [] if self.metadata is None else [("__metadata__", self.metadata)]
        header = as_bytes(Pairs([*first, *self.entries]))
        return struct.pack("<Q", len(header) if self.length is None else self.length) + header + self.data


def parts_of(state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Parts:
    """The parts of a file with these tensors."""
    entries, data = [], bytearray()
    for name, tensor in state.items():
        content = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy())
        offsets = [len(data), len(data) + len(content)]
        entry = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        entries.append((name, entry))
        data += content
    return Parts(entries, bytes(data), metadata)


def parsed(content: bytes) -> Parts:
    """The parts of an undamaged file."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__", None)
    return Parts(list(header.items()), content[end:], metadata)


# -- the originals -----------------------------------------------------------------------------------------------------


def random_state(config: Any, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of a model with these sizes."""
    source = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=source).to(dtype) for name, shape in expected_shapes(config).items()}


def prefixed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in state.items()}


def scaled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices in float8 with a scale each, as ComfyUI stores them."""
    made: dict[str, Tensor] = {}
    for name, tensor in state.items():
        made[name] = tensor.half()
        if tensor.ndim == 2 and ".mlp." in name:
            layer, quant = name.removesuffix(".weight"), json.dumps({"format": "float8_e4m3fn"})
            made[name] = tensor.to(torch.float8_e4m3fn)
            made[f"{layer}.weight_scale"] = torch.tensor(0.5)
            made[f"{layer}.comfy_quant"] = torch.tensor(list(quant.encode()), dtype=torch.uint8)
    return made


@cache
def _shipped() -> tuple[dict[str, Tensor], dict[str, str]]:
    """The shipped model's first text encoder and VAE in half precision, and its metadata."""
    path = ROOT / "models" / "mmdit-small.safetensors"
    state = {name: tensor.half() for name, tensor in load_file(path).items() if name.startswith((CLIP_L, VAE))}
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return state, header["__metadata__"]


def _whole() -> bytes:
    parts, metadata = _shipped()
    config = MMDiTConfig(**{**TINY, "context_dim": 64, "pooled_dim": 64}, qk_norm="rms")
    return parts_of({**prefixed(random_state(config, torch.float16)), **parts}, metadata).file()


def _sharded() -> Tree:
    state = to_diffusers(random_state(SD3), SD3)
    names = sorted(state)
    files = [f"transformer/diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shards = {file: names[index::2] for index, file in enumerate(files)}
    weight_map = {name: Path(file).name for file, held in shards.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    config = {"_class_name": "SD3Transformer2DModel", "num_attention_heads": 4, "attention_head_dim": 8}
    return {
        **{file: parts_of({name: state[name] for name in held}).file() for file, held in shards.items()},
        "transformer/diffusion_pytorch_model.safetensors.index.json": json.dumps(index).encode(),
        "transformer/config.json": json.dumps(config).encode(),
        "model_index.json": b"{}",
    }


MEASURED = MeasuredPreset(
    "count", "boost", "SD3, SD3.5", 8, 0, "mmdit-small.safetensors", "2, 3:2", "both", 1.5, "value",
    Evidence("2026-11-30", "shapes", 128, "shapes", "all", 3.1, 0.4, 5.8, 0.2, 8, 4.5),
)  # fmt: skip
SKIP = MeasuredPreset("fast", "skip", "FLUX.1", 19, 38, "flux1-dev.safetensors", "5-7", "both")
REPORT = {
    "made_by": "BlockAnalysis", "model": "mmdit-small.safetensors", "double": 8, "single": 0,
    "settings": {"steps": 12, "cfg": 4.5}, "cells": [{"block": 0, "latent": {"mean": 0.1}}], "skip_list": [4, 5],
}  # fmt: skip


@cache
def originals() -> dict[str, tuple[Tree, str]]:
    """Kind -> (tree, path of what is opened)."""
    heads = {"mmdit.config": '{"num_heads": 4}', "mmdit.shift": "3"}
    flux, qwen = random_state(FLUX, torch.bfloat16), random_state(QWEN)
    single = {
        "sd3": parts_of(prefixed(random_state(SD3)), {"mmdit.shift": "4"}).file(),
        "sd3 without norms": parts_of(random_state(PLAIN, torch.float16), heads).file(),
        "sd3 in fp8": parts_of(scaled(prefixed(random_state(SD3)))).file(),
        "sd3 in diffusers": parts_of(to_diffusers(random_state(SD3), SD3)).file(),
        "flux": parts_of(flux).file(),
        "flux in diffusers": parts_of(to_diffusers(flux, FLUX)).file(),
        "qwen-image": parts_of(prefixed(qwen)).file(),
        "whole": _whole(),
    }
    names = {kind: f"{kind.replace(' ', '-')}.safetensors" for kind in single}
    presets = write_presets([MEASURED, SKIP], "BlockAnalysis").encode()
    return {
        **{kind: ({names[kind]: content}, names[kind]) for kind, content in single.items()},
        "shards": (_sharded(), "transformer"),
        "pipeline": (_sharded(), "."),
        "gguf": ({"flux.gguf": gguf(FLUX_NAMES) + bytes(64)}, "flux.gguf"),
        "presets": ({"presets/a.json": presets}, "presets/a.json"),
        "report": ({"reports/a.json": json.dumps(REPORT).encode()}, "reports/a.json"),
    }


# -- damage to one safetensors file ------------------------------------------------------------------------------------


def _entry(parts: Parts, random: Random) -> int:
    return random.randrange(len(parts.entries)) if parts.entries else 0


def _change_entry(parts: Parts, random: Random) -> None:
    index = _entry(parts, random)
    name, entry = parts.entries[index]
    parts.entries[index] = (name, damaged(entry, random))


def _change_dtype(parts: Parts, random: Random) -> None:
    entry = parts.entries[_entry(parts, random)][1]
    entry["dtype"] = random.choice(("F64", "I32", "I16", "F16", "BF16", "F8_E5M2", "BOOL", "F33", "", "C64", "F4"))


def _change_shape(parts: Parts, random: Random) -> None:
    entry = parts.entries[_entry(parts, random)][1]
    shape = list(entry["shape"])
    entry["shape"] = random.choice(
        (shape[::-1], [*shape, 1], [1, *shape], [], [0], [-size for size in shape], [2**62] * 3, [2**63], [0, 2**62])
    )


def _change_offsets(parts: Parts, random: Random) -> None:
    entry = parts.entries[_entry(parts, random)][1]
    start, end = entry["data_offsets"]
    shift = random.choice((1, -1, 8, 2**40, -(2**40)))
    entry["data_offsets"] = random.choice(
        ([end, start], [start + shift, end + shift], [start, end + shift], [start, end, end], [2**63, 2**64], [0, 0])
    )


def _swap(parts: Parts, random: Random) -> None:
    first, second = _entry(parts, random), _entry(parts, random)
    (name, entry), (other, theirs) = parts.entries[first], parts.entries[second]
    parts.entries[first], parts.entries[second] = (other, entry), (name, theirs)


def _rename(parts: Parts, random: Random) -> None:
    index = _entry(parts, random)
    name, entry = parts.entries[index]
    new = [f"x.{name}", name.replace("0", "199"), name.replace("0", "9" * 30), "", "n" * 10_000, "mmdit.settings"]
    new += [f"{name}.{end}" for end in ("lora_A.weight", "absmax", "weight_scale")]
    new += ["scaled_fp8", "model\u0000", "__metadata__", Raw('"\\ud800"')]
    parts.entries[index] = (random.choice(new), entry)


def _drop(parts: Parts, random: Random) -> None:
    """Tensors that are not there, and a file that is whole without them."""
    left = parsed(parts.file())
    for _ in range(random.choice((1, 1, 5, len(left.entries)))):
        if left.entries:
            del left.entries[_entry(left, random)]
    parts.entries, parts.data = _packed(left)


def _packed(parts: Parts) -> tuple[list[tuple[Any, Any]], bytes]:
    """The entries and data without gaps."""
    entries, data = [], bytearray()
    for name, entry in parts.entries:
        start, end = entry["data_offsets"]
        offsets = [len(data), len(data) + end - start]
        entries.append((name, {**entry, "data_offsets": offsets}))
        data += parts.data[start:end]
    return entries, bytes(data)


def _drop_entry(parts: Parts, random: Random) -> None:
    del parts.entries[_entry(parts, random)]


def _twice(parts: Parts, random: Random) -> None:
    parts.entries.append(parts.entries[_entry(parts, random)])


def _not_finite(parts: Parts, random: Random) -> None:
    start, end = parts.entries[_entry(parts, random)][1]["data_offsets"]
    parts.data = parts.data[:start] + b"\xff" * (end - start) + parts.data[end:]


def _add(parts: Parts, name: Any, dtype: str, content: bytes) -> None:
    """Add a tensor of bytes, or of numbers of another dtype, after the others."""
    size = len(content) // (1 if dtype == "U8" else 4)
    start = len(parts.data)
    entry = {"dtype": dtype, "shape": [size], "data_offsets": [start, start + len(content)]}
    parts.entries.append((name, entry))
    parts.data += content


def _settings_tensor(parts: Parts, random: Random) -> None:
    values = {random.choice(KEYS): _text_of_odd(random)}
    _add(parts, "mmdit.settings", "U8", as_bytes(random.choice((values, random.choice(ODD)))))


def _quantisation(parts: Parts, random: Random) -> None:
    layer = str(parts.entries[_entry(parts, random)][0]).removesuffix(".weight")
    leaf = random.choice(("comfy_quant", "weight_scale", "scale_weight", "input_scale", "absmax", "wscales"))
    odd = as_bytes(damaged({"format": "float8_e4m3fn"}, random)) if leaf == "comfy_quant" else bytes(4)
    _add(parts, f"{layer}.{leaf}", "U8" if leaf == "comfy_quant" else "F32", odd)


def _text_of_odd(random: Random) -> str:
    """The text of a metadata entry: odd JSON as text."""
    value = random.choice(
        (
            random.choice(ODD),
            damaged({"num_heads": 4, "axes_dim": [4, 6, 6], "clip_l": {"hidden_size": 32}}, random),
            {"num_heads": random.choice(ODD)},
            {"_class_name": "SD3Transformer2DModel", "num_attention_heads": random.choice(ODD)},
            {
                "_class_name": "SD3Transformer2DModel",
                "num_attention_heads": 4,
                "attention_head_dim": random.choice(ODD),
            },
            {"factors": random.choice(ODD), "bias": [0, 0, 0]},
            {"layers": random.choice(ODD)},
            {"layers": {"x": random.choice(ODD)}},
        )
    )
    return as_bytes(value).decode("utf-8", errors="replace")


def _metadata_text(parts: Parts, random: Random) -> None:
    known = parts.metadata if isinstance(parts.metadata, dict) else {}
    key = random.choice(KEYS)
    if key in known and random.random() < 0.5:
        text = as_bytes(damaged(json.loads(known[key]), random)).decode("utf-8", errors="replace")
    else:
        text = _text_of_odd(random)
    parts.metadata = {**known, key: text}


def _metadata_object(parts: Parts, random: Random) -> None:
    key = random.choice(KEYS)
    parts.metadata = random.choice((random.choice(ODD), {key: random.choice(ODD)}, {"": "x"}, {"\u0000": "x"}))


def _lie(parts: Parts, random: Random) -> None:
    true = len(parts.file())
    claims = (0, 1, 2, 7, true, true - 8, true + 1, 99_999_999, 100_000_001, 2**32, 2**63, 2**64 - 1)
    parts.length = random.choice(claims)


CHANGES: dict[str, Callable[[Parts, Random], None]] = {
    "entry": _change_entry,
    "dtype": _change_dtype,
    "shape": _change_shape,
    "offsets": _change_offsets,
    "swapped": _swap,
    "renamed": _rename,
    "missing": _drop,
    "gap": _drop_entry,
    "twice": _twice,
    "not finite": _not_finite,
    "settings": _settings_tensor,
    "quantisation": _quantisation,
    "metadata text": _metadata_text,
    "metadata": _metadata_object,
    "length": _lie,
}


def _damage_tensors(content: bytes, random: Random) -> tuple[str, bytes]:
    """(name of the change, content) of a damaged safetensors file."""
    if random.random() < 0.15:
        header = slice(0, 8 + int.from_bytes(content[:8], "little"))
        if random.random() < 0.5:
            return "bytes", damaged_bytes(content, random)
        return "header bytes", damaged_bytes(content[header], random) + content[header.stop :]
    name = random.choice(sorted(CHANGES))
    parts = parsed(content)
    CHANGES[name](parts, random)
    return name, parts.file()


# -- damage to a folder ------------------------------------------------------------------------------------------------


def _damage_place(tree: Tree, file: str, random: Random) -> str:
    """Put something else where a file was."""
    how = random.choice(("gone", "folder", "empty", "link outside", "link to itself", "dangling link", "renamed"))
    content = tree.pop(file)
    if how == "folder":
        tree[file] = None
    elif how == "empty":
        tree[file] = b""
    elif how == "link outside":
        tree[file] = Link(f"../{OUTSIDE}")
    elif how == "link to itself":
        tree[file] = Link(Path(file).name)
    elif how == "dangling link":
        tree[file] = Link("nothing")
    elif how == "renamed":
        tree[file + random.choice((".bak", ".safetensors", " ", ".pt"))] = content
    return how


def _damage_index(tree: Tree, file: str, random: Random) -> str:
    """An index that names other files."""
    index = json.loads(tree[file])  # type: ignore[arg-type]
    name = random.choice(sorted(index["weight_map"]))
    if random.random() < 0.5:
        odd = (f"../{OUTSIDE}", f"../../{OUTSIDE}", "..", "/etc/hostname", "config.json", "a" * 300, "x\u0000", "sub/x")
        index["weight_map"][name] = random.choice((*odd, Raw('"\\ud800.safetensors"'), "nothing.safetensors"))
    else:
        index = damaged(index, random)
    tree[file] = as_bytes(index)
    return "index"


def damage(tree: Tree, random: Random) -> str:
    """Damage one file of a tree; the name of the change."""
    files = sorted(file for file, content in tree.items() if isinstance(content, bytes))
    file = random.choice(files)
    content = tree[file]
    assert isinstance(content, bytes)
    if random.random() < 0.12:
        return _damage_place(tree, file, random)
    if file.endswith(".safetensors"):
        name, tree[file] = _damage_tensors(content, random)
        return name
    if file.endswith(".gguf") or random.random() < 0.2:
        tree[file] = damaged_bytes(content[:4000] if file.endswith(".gguf") else content, random)
        return "bytes"
    if file.endswith(".index.json"):
        return _damage_index(tree, file, random)
    tree[file] = as_bytes(damaged(json.loads(content), random))
    return "JSON"


def make_case(random: Random) -> Case:
    """A damaged file or folder."""
    kind = random.choice([kind for kind in originals() for _ in range(1 if kind == "whole" else 3)])
    tree, path = originals()[kind]
    tree = dict(tree)
    changes = []
    for _ in range(random.choice((1, 1, 1, 2))):
        try:
            changes.append(damage(tree, random))
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            break  # the first change left nothing that the second one can read
    return Case(kind, tuple(changes), tree, path)
