"""The published files: names and shapes in manifests/ come from public sources, never from our own code.

Each manifest states its sources. Braces in a name are alternatives: "blocks.{0-2}.{q,k}" stands for six names. A shape
may begin with the dtype of its tensor.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

from mmdit_core import KNOWN_MODELS
from mmdit_core.checkpoints.blocks import find_variant
from mmdit_core.checkpoints.detect import DIFFUSERS, SINGLE_FILE, components, config_from_state_dict, describe_unknown
from mmdit_core.checkpoints.header import BITS, Header, read_header
from mmdit_core.checkpoints.keymaps import diffusers_shapes, expected_shapes, key_map, to_diffusers
from mmdit_core.checkpoints.load import check_transformer

Tensors = dict[str, tuple[str, tuple[int, ...]]]  # name -> (dtype, shape)

STAND_IN = "BF16"  # for a dtype of two bytes that no public source states
DTYPES_IN_FILE = ["F32", "BF16", "F16", "F8_E4M3"]  # the safetensors library writes wide dtypes first


def manifest(name: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "manifests" / f"{name}.json").read_text(encoding="utf-8"))


FILES = manifest("files")
SINGLE_FILES, TEXT_ENCODERS = FILES["single files"], FILES["text encoders"]
MODELS = {name: manifest(name) for name in ("sd3_medium", "sd35_medium", "sd35_large")}


def alternatives(text: str) -> list[str]:
    found: list[str] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"(\d+)-(\d+)", part)
        found += map(str, range(int(numbers[1]), int(numbers[2]) + 1)) if numbers else [part]
    return found


def expand(patterns: dict[str, list], dtype: str = STAND_IN, prefix: str = "") -> Tensors:
    tensors: Tensors = {}
    for pattern, shape in patterns.items():
        own_dtype, sizes = (shape[0], shape[1:]) if shape and isinstance(shape[0], str) else (dtype, shape)
        pieces = re.split(r"\{(.+?)\}", pattern)
        for name in itertools.product(*(alternatives(p) if i % 2 else [p] for i, p in enumerate(pieces))):
            assert prefix + "".join(name) not in tensors, f"{pattern} repeats a name"
            tensors[prefix + "".join(name)] = (own_dtype, tuple(sizes))
    return tensors


def part_of_file(name: str, *dtype: str, prefix: str = "") -> Tensors:
    """Names and shapes of a manifest by its entry in files.json."""
    content = manifest(name)
    return expand(content.get("single file", content)["tensors"], *dtype, prefix=prefix)


def single_file(name: str) -> Tensors:
    tensors: Tensors = {}
    for part, entry in SINGLE_FILES[name]["parts"].items():
        tensors |= part_of_file(*entry, prefix=FILES["prefixes"][part])
    return tensors


def shapes_of(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in tensors.items()}


def digest(tensors: Tensors) -> str:
    """The digest of files.json, which other code computed from the published file."""
    listed = [*tensors, *(f"{name}:{'_'.join(map(str, shape))}" for name, (_, shape) in tensors.items())]
    return hashlib.md5(",".join(sorted(listed)).encode(), usedforsecurity=False).hexdigest()


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """A sparse file with these tensors, byte for byte as long as the safetensors library would write it."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    position = 0
    for name in sorted(tensors, key=lambda name: (DTYPES_IN_FILE.index(tensors[name][0]), name)):
        dtype, shape = tensors[name]
        end = position + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + position)
    return path


def header_of(path: Path, tensors: Tensors) -> Header:
    header = read_header(write(path / "model.safetensors", tensors))
    assert {name: info.shape for name, info in header.tensors.items()} == shapes_of(tensors)
    return header


# -- the manifests against what is known of the published files ----------------------------------------------------


@pytest.mark.parametrize("name", [name for name, file in SINGLE_FILES.items() if "digest" in file])
def test_names_and_shapes_have_the_digest_of_the_published_file(name):
    assert digest(single_file(name)) == SINGLE_FILES[name]["digest"]


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_a_single_file_has_its_published_size_but_for_its_metadata(name, tmp_path):
    tensors, file = single_file(name), SINGLE_FILES[name]
    assert len(tensors) == file.get("count", len(tensors))
    metadata = file["size"] - write(tmp_path / name, tensors).stat().st_size
    assert 0 < metadata < 50_000  # a description and a small picture


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_a_text_encoder_has_its_published_size_and_is_refused_as_one(name, tmp_path):
    file = TEXT_ENCODERS[name]
    tensors = part_of_file(*file["part"])
    assert digest(tensors) == file.get("digest", digest(tensors))
    path = write(tmp_path / name, tensors, file.get("metadata"))
    assert path.stat().st_size == file["size"]
    assert "a text encoder alone" in describe_unknown(read_header(path).tensors)


def test_the_diffusers_shards_of_large_have_their_published_sizes(tmp_path):
    content = MODELS["sd35_large"]["diffusers"]
    tensors = expand(content["tensors"], content["dtype"])
    (_, first), (pattern, second) = content["shards"].items()
    in_second = {name: tensor for name, tensor in tensors.items() if re.match(pattern, name)}
    in_first = {name: tensor for name, tensor in tensors.items() if name not in in_second}
    for shard, size in ((in_first, first), (in_second, second)):
        assert write(tmp_path / "shard", shard, content["metadata"]).stat().st_size == size


# -- our tables against the manifests ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SINGLE_FILES)
def test_every_part_of_a_published_file_is_found_and_its_transformer_is_whole(name, tmp_path):
    file, tensors = SINGLE_FILES[name], single_file(name)
    header = header_of(tmp_path, tensors)
    parts = components(header)
    assert {part: found.prefix for part, found in parts.items()} == {p: FILES["prefixes"][p] for p in file["parts"]}
    for part, (_, *dtype) in file["parts"].items():
        assert parts[part].layout == SINGLE_FILE and parts[part].dtypes == (*dtype, STAND_IN)[:1]
    assert config_from_state_dict(shapes_of(tensors)) == KNOWN_MODELS[file["model"]]
    found = check_transformer(header)
    assert (found.config, found.part) == (KNOWN_MODELS[file["model"]], parts["transformer"]) and not found.unused


@pytest.mark.parametrize("name", MODELS)
def test_a_published_transformer_is_whole_in_both_layouts(name, tmp_path):
    config = KNOWN_MODELS[MODELS[name]["model"]]
    ours = {SINGLE_FILE: expected_shapes(config), DIFFUSERS: diffusers_shapes(config)}
    for layout, expected in ours.items():
        tensors = expand(MODELS[name][layout]["tensors"])
        assert expected == shapes_of(tensors)
        found = check_transformer(header_of(tmp_path, tensors))
        assert found.config == config and (found.part.layout, found.part.prefix) == (layout, "") and not found.unused


def test_a_text_encoder_with_scales_does_not_make_its_file_a_quantised_model(tmp_path):
    """As in Comfy-Org's sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors."""
    tensors = single_file("sd3.5_medium.safetensors")
    tensors |= part_of_file("t5xxl_fp8_scaled", prefix=FILES["prefixes"]["t5xxl"])
    header = header_of(tmp_path, tensors)
    assert check_transformer(header)[0] == KNOWN_MODELS["SD3.5 Medium"]
    assert components(header)["t5xxl"].dtypes == ("F8_E4M3", "F16", "F32")


@pytest.mark.parametrize("name", MODELS)
def test_the_two_layouts_of_a_model_map_onto_each_other(name):
    """One to one, with the rows that diffusers' own converter gives: every row is a number of its own."""
    config = KNOWN_MODELS[MODELS[name]["model"]]
    single, diffusers = (shapes_of(expand(MODELS[name][layout]["tensors"])) for layout in (SINGLE_FILE, DIFFUSERS))
    rules = key_map(config)
    assert rules.keys() == single.keys()
    assert sorted(part for rule in rules.values() for part in rule.diffusers) == sorted(diffusers)
    for own_name, rule in rules.items():
        shapes = [diffusers[part] for part in rule.diffusers]
        assert (sum(shape[0] for shape in shapes), *shapes[0][1:]) == single[own_name]
    ends = list(itertools.accumulate(shape[0] for shape in single.values()))
    rows = {key: torch.arange(end - single[key][0], end) for key, end in zip(single, ends, strict=True)}
    ours, theirs = to_diffusers(rows, config), convert_sd3_transformer_checkpoint_to_diffusers(dict(rows))
    assert ours.keys() == theirs.keys() == diffusers.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", MODELS)
def test_sd35_medium_is_told_from_sd3_medium_which_has_as_many_blocks(name):
    names = list(expected_shapes(KNOWN_MODELS[MODEL_NAMES[name]]))
    expected = "SD3.5 Medium" if name == "sd35_medium" else None
    for prefix in ("", "model.diffusion_model."):
        assert find_variant([f"{prefix}{each}" for each in names]) == expected
    assert find_variant(diffusers_shapes(KNOWN_MODELS[MODEL_NAMES[name]])) == expected


MODEL_NAMES = {"sd3_medium": "SD3 Medium", "sd35_medium": "SD3.5 Medium", "sd35_large": "SD3.5 Large"}
