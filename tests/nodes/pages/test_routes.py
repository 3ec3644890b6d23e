"""The server's routes for the frontend: blocks of a file, presets, token counts, the sigma curve."""

from __future__ import annotations

import importlib
import json
import struct
import sys
from pathlib import Path
from urllib.parse import urlencode

import comfy.ops
import pytest
import torch
from comfy.ldm.aura.mmdit import MMDiT as AuraFlow
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel as QwenImage
from diffusers import FluxTransformer2DModel, QwenImageTransformer2DModel, SD3Transformer2DModel

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.checkpoints.blocks import find_blocks
from mmdit_core.control.presets import FILLED_PRESETS, PRESETS
from mmdit_core.flow.schedules import sigmas
from scripts.client import ComfyUIError
from tests.core.checkpoints.test_gguf import FLUX, gguf

OPERATIONS = comfy.ops.disable_weight_init
# Tiny: only the tensors' names matter.
MODELS = {
    "SD3": lambda: MMDiT(MMDiTConfig(hidden_size=32, num_heads=4, depth=3, pos_embed_max_size=4)),
    "SD3 in diffusers": lambda: SD3Transformer2DModel(num_layers=3, num_attention_heads=2, attention_head_dim=8),
    "FLUX": lambda: Flux(
        in_channels=16, out_channels=16, patch_size=2, vec_in_dim=8, context_in_dim=8, hidden_size=64, num_heads=2,
        mlp_ratio=1.0, depth=3, depth_single_blocks=5, axes_dim=[8, 12, 12], theta=10000, qkv_bias=True,
        guidance_embed=True, txt_ids_dims=[], operations=OPERATIONS,
    ),
    "FLUX in diffusers": lambda: FluxTransformer2DModel(
        num_layers=3, num_single_layers=5, num_attention_heads=2, attention_head_dim=8, axes_dims_rope=(2, 2, 4)
    ),
    "Qwen-Image": lambda: QwenImage(
        in_channels=64, out_channels=16, num_layers=3, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=8, axes_dims_rope=(8, 12, 12), operations=OPERATIONS,
    ),
    "Qwen-Image in diffusers": lambda: QwenImageTransformer2DModel(
        num_layers=3, attention_head_dim=32, num_attention_heads=2, axes_dims_rope=(8, 12, 12)
    ),
    "AuraFlow": lambda: AuraFlow(
        in_channels=16, out_channels=16, dim=64, n_layers=8, n_double_layers=3, n_heads=2, global_conddim=64,
        cond_seq_dim=8, max_seq=16, operations=OPERATIONS,
    ),
    "Z-Image": lambda: NextDiT(
        dim=288, n_layers=3, n_refiner_layers=2, n_heads=9, n_kv_heads=9, axes_dims=[8, 12, 12],
        axes_lens=[300, 16, 16], cap_feat_dim=24, qk_norm=True, z_image_modulation=True, pad_tokens_multiple=32,
        operations=OPERATIONS,
    ),
    # Not imported above, because ComfyUI 0.24.0 has no Krea 2.
    "Krea 2": lambda: importlib.import_module("comfy.ldm.krea2.model").SingleStreamDiT(
        features=64, tdim=16, txtdim=12, heads=2, kvheads=2, multiplier=2, layers=3, txtlayers=2, txtheads=2,
        txtkvheads=2, operations=OPERATIONS,
    ),
}  # fmt: skip
TWO_KINDS = (("double", 3), ("single", 5))
SECTIONS = {
    "FLUX": TWO_KINDS, "FLUX in diffusers": TWO_KINDS, "AuraFlow": TWO_KINDS, "Z-Image": (("main", 3),),
    "Krea 2": (("blocks", 3),),
}  # fmt: skip
REFINERS = {"Z-Image": (("noise", 2), ("context", 2))}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_kinds_of_blocks_of_every_family_are_found_from_tensor_names(pack, name, prefix):
    with torch.device("meta"):
        model = MODELS[name]()
    found = find_blocks([prefix + key for key in model.state_dict()])
    assert found.sections == SECTIONS.get(name, (("joint", 3),))
    assert found.refiners == REFINERS.get(name, ())
    families = sys.modules[f"{pack.__name__}.nodes.comfyui.families"]
    network = families.CORE if name == "SD3" else f"{type(model).__module__}.{type(model).__qualname__}"
    family = next((family for family in families.FAMILIES if network in family.networks), None)
    if "diffusers" not in name and family is not None:
        counted = sum(count for _, count in found.sections)
        assert sum(family.counts(model)) == counted, "the strip and the controls must count the same"


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["input_blocks.1.1.transformer_blocks.0.norm1.weight"],
        ["transformer_blocks"],
        ["layers.0.attention.qkv.weight"],  # of a text encoder, or of a family without block controls
        ["blocks.0.self_attn.q.weight"],  # Wan
    ],
)
def test_files_without_known_blocks_have_none(names):
    assert find_blocks(names) is None


def test_blocks_without_a_known_kind_are_only_counted():
    found = find_blocks([f"transformer_blocks.{i}.attn1.to_q.weight" for i in range(4)])  # LTX
    assert found.sections == (("blocks", 4),)


def header_only(path: Path, names: list[str]) -> None:
    """Write a safetensors file with empty tensors; only its header is of use."""
    entries = {name: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for name in names}
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def flux(comfyui):
    path = comfyui.base / "models" / "diffusion_models" / "routes-flux.safetensors"
    path.parent.mkdir(exist_ok=True)
    names = [f"double_blocks.{i}.img_attn.qkv.weight" for i in range(19)]
    header_only(path, names + [f"single_blocks.{i}.linear1.weight" for i in range(38)])
    yield path
    path.unlink()


def blocks(comfyui, **query):
    return comfyui.get("/mmdit/blocks?" + urlencode(query))


def test_blocks_are_counted_by_folder_or_in_the_loaders_folders(comfyui, flux):
    sections = [{"name": "double", "count": 19}, {"name": "single", "count": 38}]
    expected = {"sections": sections, "refiners": [], "double": 19, "single": 38, "family": None, "variant": None}
    assert blocks(comfyui, name=flux.name, folder="diffusion_models") == expected
    assert blocks(comfyui, name=flux.name) == expected
    small = blocks(comfyui, name="mmdit-small.safetensors")
    sections = [{"name": "joint", "count": 8}]
    assert small == {
        "sections": sections,
        "refiners": [],
        "double": 8,
        "single": 0,
        "family": "SD3, SD3.5",
        "variant": None,
    }


def test_refiners_are_named_and_not_counted(comfyui, flux):
    lists = {"layers": 30, "noise_refiner": 2, "context_refiner": 2}
    header_only(flux, [f"{name}.{i}.attention.qkv.weight" for name, count in lists.items() for i in range(count)])
    assert blocks(comfyui, name=flux.name) == {
        "sections": [{"name": "main", "count": 30}],
        "refiners": [{"name": "noise", "count": 2}, {"name": "context", "count": 2}],
        "double": 30,
        "single": 0,
        "variant": None,
        "family": None,  # nothing but names in this file
    }


def test_a_changed_file_is_counted_again(comfyui, flux):
    assert blocks(comfyui, name=flux.name)["single"] == 38
    header_only(flux, ["joint_blocks.0.x_block.attn.qkv.weight"])
    assert blocks(comfyui, name=flux.name)["sections"] == [{"name": "joint", "count": 1}]


def test_only_files_that_comfyui_lists_are_read(comfyui, flux):
    outside = comfyui.base / "outside.safetensors"
    header_only(outside, ["joint_blocks.0.x_block.attn.qkv.weight"])
    damaged = flux.with_name("routes-damaged.safetensors")
    damaged.write_bytes(b"no header")
    unknown = {"sections": [], "refiners": [], "double": None, "single": None, "family": None, "variant": None}
    for query in (
        {"name": "../../outside.safetensors"},
        {"name": "../../outside.safetensors", "folder": "diffusion_models"},
        {"name": str(outside)},
        {"name": flux.name, "folder": "checkpoints"},
        {"name": flux.name, "folder": "../diffusion_models"},
        {"name": flux.name, "folder": "custom_nodes"},
        {"name": damaged.name},
        {"name": ""},
        {},
    ):
        assert blocks(comfyui, **query) == unknown, query
    damaged.unlink()
    with pytest.raises(ComfyUIError, match="405"):
        comfyui.post("/mmdit/blocks", {})


def test_the_presets_are_listed(comfyui):
    found = comfyui.get("/mmdit/presets")
    assert [preset["name"] for preset in found] == [preset.name for preset in (*PRESETS, *FILLED_PRESETS)]
    assert found[0]["strengths"] == [[2, 1.5], [7, 1.5], [12, 1.5], [17, 1.5], [22, 1.5]]
    assert found[1]["action"] == "skip" and [block for block, _ in found[1]["strengths"]] == [*range(5, 56, 5)]
    assert [preset["kind"] for preset in found] == ["published"] * len(PRESETS) + ["filled"] * len(FILLED_PRESETS)


def test_tokens_are_counted_as_the_node_does(comfyui):
    text = "a red circle and " * 40
    found = comfyui.post("/mmdit/tokens", {"prompt": text, "clip_g": "a star", "t5_length": "77"})
    encode = {"clip": ["1", 1], "prompt": text, "negative": "", "clip_l": "", "clip_g": "a star", "t5xxl": ""}
    encode |= {"clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0, "t5_length": "77", "empty": "encode"}
    record = comfyui.run(
        {
            "1": {
                "class_type": "MMDiTLoader",
                "inputs": {"checkpoint": "mmdit-small.safetensors", "weight_dtype": "default"},
            },
            "2": {"class_type": "TripleTextEncode", "inputs": encode},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
        }
    )
    (info,) = record["outputs"]["3"]["text"]
    for count in found["prompt"]:
        chunks = f" in {count['chunks']} chunks" if count["chunks"] > 1 else ""
        assert f"{count['label']}: {count['used']} tokens{chunks}" in info
    t5 = found["prompt"][2]
    assert t5["cut"] and f"T5 cut: {' | '.join(t5['cut'])}" in info
    assert [count["used"] for count in found["negative"]] == [0, 0, 0]


def test_invalid_texts_are_refused_and_long_ones_not_counted(comfyui):
    assert comfyui.post("/mmdit/tokens", {"prompt": "a" * 60_000}) == {}
    assert comfyui.post("/mmdit/tokens", {"prompt": "red", "clip_l": "a (embedding:star:1.2)"}) == {}
    for body in ([], {"prompt": 3}, {"t5_length": "many"}, "text", None):
        with pytest.raises(ComfyUIError, match="400"):
            comfyui.post("/mmdit/tokens", body)


INPUTS = {
    "steps": 5, "cfg": 4.5, "solver": "euler", "schedule": "linear", "shift": 0.0, "denoise": 1, "cfg_start": 0.0,
    "cfg_end": 0.5, "start_step": 0, "end_step": 10_000, "custom_sigmas": "", "cfg_curve": "constant",
    "size_shift": "off",
}  # fmt: skip


def test_the_curve_uses_the_connected_models_shift(comfyui):
    window = {"start": 0.5, "end": 1.0, "fade": "constant"}
    model = {"name": "mmdit-small.safetensors", "folder": ""}
    found = comfyui.post("/mmdit/curve", {"inputs": INPUTS, "model": model, "windows": [window]})
    assert [step for step, _ in found["points"]] == [0, 1, 2, 3, 4, 5] and found["own"] and not found["adaptive"]
    levels = sigmas(5, "linear", found["shift"]).tolist()
    assert [level for _, level in found["points"]] == pytest.approx(levels, abs=1e-5)
    assert found["cfg"] == [1, 1, 1, 0, 0] and found["windows"] == [[0, 0, 0, 1, 1]]
    assert comfyui.post("/mmdit/curve", {"inputs": INPUTS, "model": None}) == {"missing": "shift"}
    outside = {"name": "../../outside.safetensors", "folder": "diffusion_models"}
    assert comfyui.post("/mmdit/curve", {"inputs": INPUTS, "model": outside}) == {"missing": "shift"}


def test_an_invalid_request_for_a_curve_is_refused(comfyui):
    for body in (
        {},
        [],
        None,
        {"inputs": {}},
        {"inputs": {**INPUTS, "steps": "5"}},
        {"inputs": {**INPUTS, "steps": True}},
        {"inputs": {**INPUTS, "solver": 3}},
        {"inputs": INPUTS, "model": "file"},
        {"inputs": INPUTS, "windows": [{"start": 0.5}]},
        {"inputs": INPUTS, "windows": [{"start": -1, "end": 2}]},
        {"inputs": INPUTS, "model_shift": "high"},
        {"inputs": INPUTS, "model_shift": -3},
        {"inputs": INPUTS, "width": 0, "height": 64},
    ):
        with pytest.raises(ComfyUIError, match="400"):
            comfyui.post("/mmdit/curve", body)


def test_the_blocks_of_a_gguf_file_are_counted_in_the_folder_of_its_pack(pack, tmp_path, monkeypatch):
    import folder_paths

    path = tmp_path / "flux1-dev-Q4_K_S.gguf"
    path.write_bytes(gguf(FLUX))
    modules = {name: sys.modules[f"{pack.__name__}.nodes.{name}"] for name in ("web_api", "comfyui.loading.folders")}
    listed = modules["comfyui.loading.folders"].listed_path
    assert listed(path.name, "unet_gguf") is None, "without ComfyUI-GGUF there is no such folder"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "unet_gguf", ([str(tmp_path)], {".gguf"}))
    assert listed(path.name, "unet_gguf") == path and listed("../" + path.name, "unet_gguf") is None
    found, family, variant = modules["web_api"]._read_model(str(path), 0, 0)
    assert found.sections == (("double", 19), ("single", 38)) and family is variant is None
