"""Checkpoints that cannot be used: each is a CheckpointError with its reason, from the header alone."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from mmdit_core import KNOWN_MODELS, MMDiTConfig
from mmdit_core.checkpoints.detect import config_from_state_dict
from mmdit_core.checkpoints.errors import CheckpointError
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.keymaps import diffusers_shapes, expected_shapes, to_diffusers
from mmdit_core.checkpoints.load import check_transformer, load_checkpoint

PREFIX = "model.diffusion_model."
QK = MMDiTConfig(
    hidden_size=32, num_heads=4, depth=3, context_dim=24, pooled_dim=12, pos_embed_max_size=6, qk_norm="rms"
)


def random_state(config: MMDiTConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in expected_shapes(config).items()}


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in state.items()}


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def write_empty(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16", bytes_each: int = 2) -> Path:
    """A sparse file of zeros with these tensors, which takes almost no space on the disk."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + bytes_each * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + position)
    return path


def error_of(path: Path, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, **options)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 1500
    return str(caught.value)


UNKNOWN = {
    "FLUX": (["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "img_in.weight"], "like FLUX"),
    "FLUX with prefix": ([PREFIX + "double_blocks.0.img_attn.qkv.weight"], "like FLUX"),
    "FLUX, diffusers": (["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], "like FLUX"),
    "Qwen-Image": (["transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.add_q_proj.weight"], "Qwen"),
    "SDXL": ([PREFIX + "input_blocks.0.0.weight", PREFIX + "label_emb.0.0.weight"], "SDXL, a UNet"),
    "SDXL, diffusers": (["down_blocks.0.resnets.0.conv1.weight", "add_embedding.linear_1.weight"], "SDXL, a UNet"),
    "SD1": (
        [
            PREFIX + "input_blocks.0.0.weight",
            "cond_stage_model.transformer.text_model.embeddings.x",
            "first_stage_model.x",
        ],
        "Stable Diffusion 1 or 2, a UNet",
    ),
    "SD1, diffusers": (["down_blocks.0.attentions.0.norm.weight", "conv_in.weight"], "Stable Diffusion 1 or 2"),
    "PixArt": (["adaln_single.linear.weight", "transformer_blocks.0.attn1.to_q.weight"], "PixArt"),
    "AuraFlow": (["double_layers.0.attn.w1q.weight"], "AuraFlow"),
    "Wan": (["head.modulation", "blocks.0.self_attn.q.weight"], "Wan"),
    "VAE": (
        ["first_stage_model.decoder.conv_in.weight", "first_stage_model.encoder.conv_in.weight"],
        "holds vae and no",
    ),
    "VAE, bare": (["decoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"], "like a VAE alone"),
    "VAE, tiny": (["taesd_decoder.1.weight"], "like a VAE alone"),
    "CLIP": (["text_model.encoder.layers.0.mlp.fc1.weight", "text_model.embeddings.x"], "like a text encoder alone"),
    "T5": (["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"], "like a text encoder alone"),
    "encoders and VAE": (
        [f"text_encoders.{name}.transformer.shared.weight" for name in ("clip_l", "t5xxl")] + ["first_stage_model.x"],
        "holds clip_l, t5xxl, vae and no transformer",
    ),
    "LoRA": (["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"], "like a LoRA"),
    "LoRA of joint blocks": (["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"], "like a LoRA"),
    "LoRA with our names": ([PREFIX + "joint_blocks.0.x_block.attn.qkv.lora_B.weight"], "like a LoRA"),
    "ControlNet": (["controlnet_blocks.0.weight", "transformer_blocks.0.norm1_context.linear.weight"], "a ControlNet"),
    "something else": (["w", "v.weight"], r"unknown architecture \(2 tensors: v.weight, w\)"),
    "nothing": ([], "the file holds no tensors"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_another_architecture_is_an_error_with_its_name(case, tmp_path):
    names, words = UNKNOWN[case]
    message = error_of(write_empty(tmp_path / "x.safetensors", dict.fromkeys(names, (1,))))
    assert re.search(words, message), message
    assert "SD3 family is needed" in message


def changed(drop: tuple[str, ...] = (), **add: Tensor) -> dict[str, Tensor]:
    state = {name: tensor for name, tensor in random_state(QK).items() if not name.startswith(drop or "-")}
    return {**state, **add}


REFUSED = {
    "missing": (
        changed(("joint_blocks.1.x_block",)),
        r"12 tensors are missing: .*joint_blocks\.1\.x_block.* and 8 more\.",
    ),
    "missing block": (changed(("joint_blocks.1.",)), r"24 tensors are missing: .*joint_blocks\.1\."),
    "missing config": (changed(("context_embedder", "pos_embed")), "2 tensors are missing: .*pos_embed, .*context_emb"),
    "missing norm": (changed(("joint_blocks.0.x_block.attn.ln_q",)), r"1 tensor is missing: .*ln_q\.weight"),
    "missing and surplus": (
        changed(("final_layer.linear.bias",), extra=torch.ones(1)),
        r"1 tensor is missing: .*final_layer\.linear\.bias; 1 tensor is surplus: .*extra",
    ),
    "absurd block": (changed(**{"joint_blocks.99999999.x": torch.ones(1)}), r"surplus: .*joint_blocks\.99999999\.x"),
    "wrong shapes": (
        changed(**{"context_embedder.bias": torch.ones(31), "y_embedder.mlp.2.bias": torch.ones(2, 2)}),
        r"2 tensors are of a wrong shape: .*context_embedder.bias is \[31\], expected \[32\]; .*is \[2, 2\], expected",
    ),
    "wrong rank": (
        changed(**{"context_embedder.weight": torch.ones(32)}),
        r"wrong shape: context_embedder.weight is \[32\]",
    ),
    "not square": (changed(pos_embed=torch.ones(1, 35, 32)), r"pos_embed is \[1, 35, 32\], expected \[1, 25, 32\]"),
    "norm of no length": (changed(**{"joint_blocks.0.x_block.attn.ln_q.weight": torch.ones(0)}), "wrong shape: .*ln_q"),
    "one norm too long": (
        changed(**{"joint_blocks.0.context_block.attn.ln_k.weight": torch.ones(64)}),
        r"1 tensor is of a wrong shape: .*ln_k.weight is \[64\], expected \[8\]",
    ),
    "norms too long": (
        changed(**{name: torch.ones(64) for name in expected_shapes(QK) if ".ln_" in name}),
        "fit no MMDiT .*num_heads is 0",
    ),
    "no width": (changed(**{"x_embedder.proj.weight": torch.ones(0, 16, 2, 2)}), "wrong shape: x_embedder.proj.weight"),
    "integers": (
        changed(**{"context_embedder.bias": torch.ones(32, dtype=torch.int64)}),
        r"1 tensor is of an unsupported dtype: .*context_embedder.bias \(I64\).*F16, BF16",
    ),
    "mixed dtypes": (
        changed(**{"context_embedder.bias": torch.ones(32, dtype=torch.float16)}),
        "mixed dtypes: 1 F16, as .*context_embedder.bias; 81 F32.*Pass dtype=",
    ),
    "scale of a float32 weight": (
        changed(**{"joint_blocks.0.x_block.attn.qkv.scale_weight": torch.ones(1), "scaled_fp8": torch.ones(2)}),
        "quantised: .*joint_blocks.0.x_block.attn.qkv.weight has the format F32.*Only float8 .* take the bf16",
    ),
    "nf4": (
        changed(**{"context_embedder.weight.quant_state.bitsandbytes__nf4": torch.ones(1)}),
        "quantised: 1 tensor is of another format: .*context_embedder",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("layout", ["bare", "prefixed"])
def test_a_model_that_is_not_whole_is_an_error_with_its_reason(case, layout, tmp_path, monkeypatch):
    state, words = REFUSED[case]
    path = write(tmp_path / "x.safetensors", prefixed(state) if layout == "prefixed" else state)
    # Every one of these must be found from the header: opening the tensors would be a different error.
    monkeypatch.setattr("mmdit_core.checkpoints.load.safe_open", None)
    message = error_of(path)
    assert re.search(words, message), message


def test_errors_of_a_diffusers_file_have_its_tensor_names(tmp_path):
    state = to_diffusers(random_state(QK), QK)
    path = tmp_path / "x.safetensors"
    without = {name: tensor for name, tensor in state.items() if name != "transformer_blocks.1.attn.to_k.weight"}
    assert "1 tensor is missing: transformer_blocks.1.attn.to_k.weight" in error_of(write(path, without))
    without = {name: tensor for name, tensor in state.items() if not name.startswith("pos_embed.proj")}
    assert "missing: pos_embed.proj.weight" in error_of(write(path, without))
    shaped = {**state, "proj_out.bias": torch.ones(3)}
    assert "proj_out.bias is [3], expected [64]" in error_of(write(path, shaped))


def test_a_missing_tensor_of_a_shard_is_an_error(tmp_path):
    state = to_diffusers(random_state(QK), QK)
    names = sorted(state)
    dropped = names.pop()
    halves = {"x-00001-of-00002.safetensors": names[::2], "x-00002-of-00002.safetensors": names[1::2]}
    for file, held in halves.items():
        write(tmp_path / file, {name: state[name] for name in held})
    weight_map = {name: file for file, held in halves.items() for name in held}
    index = tmp_path / "x.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert f"1 tensor is missing: {dropped}" in error_of(index)


@pytest.mark.parametrize("name", KNOWN_MODELS)
@pytest.mark.parametrize("layout", ["prefixed", "diffusers"])
def test_a_published_model_is_checked_without_reading_its_gigabytes(name, layout, tmp_path):
    """16 GB of sparse zeros for SD3.5 Large."""
    config = KNOWN_MODELS[name]
    shapes = diffusers_shapes(config) if layout == "diffusers" else expected_shapes(config)
    if layout == "prefixed":
        shapes = {PREFIX + key: shape for key, shape in shapes.items()}
    path = write_empty(tmp_path / "x.safetensors", shapes)
    found = check_transformer(read_header(path))
    one_layout = diffusers_shapes(config) == expected_shapes(config)
    expected = "diffusers" if layout == "diffusers" and not one_layout else "single file"
    assert found.config == config and found.part.layout == expected and not found.unused
    os.truncate(path, path.stat().st_size // 2)
    assert re.search(r"truncated: \d+ of \d+ bytes are there \((49|50)%\)", error_of(path))


def test_thousands_of_made_up_blocks_are_refused_before_a_model_is_built(tmp_path, monkeypatch):
    blocks = {f"joint_blocks.{number}.x_block.attn.x": (1,) for number in range(5000)}
    path = write_empty(tmp_path / "x.safetensors", {**expected_shapes(QK), **blocks})
    monkeypatch.setattr("mmdit_core.checkpoints.load.expected_shapes", None)
    assert "it has 5000 blocks, and an MMDiT at most 200. An MMDiT of the SD3 family is needed" in error_of(path)


def test_a_made_up_block_number_makes_no_large_model_however_many_tensors_there_are(tmp_path):
    names = {f"joint_blocks.0.x{number}": (1,) for number in range(5000)}
    path = write_empty(tmp_path / "x.safetensors", {**expected_shapes(QK), **names, "joint_blocks.4999.x": (1,)})
    assert re.search(r"24 tensors are missing: .*; 5001 tensors are surplus", error_of(path))


@pytest.mark.parametrize("heads", [0, -1, True, 4.0, "4", [4], None, 10**12, 7])
@pytest.mark.parametrize("width", [8, "8", [8], None, 10**12])
def test_heads_that_a_config_cannot_have_are_refused_or_not_read(tmp_path, heads, width):
    config = {"_class_name": "SD3Transformer2DModel", "num_attention_heads": heads, "attention_head_dim": width}
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain = MMDiTConfig(hidden_size=32, num_heads=4, depth=1, context_dim=24, pooled_dim=12, pos_embed_max_size=6)
    path = write(tmp_path / "x.safetensors", random_state(plain))
    assert re.search("does not say how many attention heads|not a multiple of 64", error_of(path))


def test_every_error_says_what_is_right():
    kinds = [CheckpointError, *CheckpointError.__subclasses__()]
    assert len(kinds) > 4
    for kind in kinds:
        error = kind("x.safetensors", "it is wrong")
        assert error.right and str(error) == f"x.safetensors: it is wrong. {error.right}."


FUZZED = {
    "single file": save(prefixed(random_state(QK, torch.bfloat16))),
    "diffusers": save({name: tensor.contiguous() for name, tensor in to_diffusers(random_state(QK), QK).items()}),
}


@settings(max_examples=200, deadline=None)
@given(layout=st.sampled_from(sorted(FUZZED)), data=st.data())
def test_any_damage_to_the_header_is_a_checkpoint_error(tmp_path_factory, layout, data):
    """With flipped bytes or cut, a file loads whole and with the right shapes, or is a CheckpointError."""
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    content = bytearray(FUZZED[layout])
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, header_end - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content) - 1)))
    path.write_bytes(content[:cut])
    try:
        config, loaded = load_checkpoint(path)
    except CheckpointError:
        return
    assert cut == len(content)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == expected_shapes(config)


def test_sizes_whose_product_overflows_are_a_checkpoint_error(tmp_path):
    """Each tensor here is small enough for a sparse file; the model that they describe is not."""
    hidden = 2**33
    shapes = {name: (1,) * len(shape) for name, shape in expected_shapes(QK).items()}
    shapes["x_embedder.proj.weight"] = (hidden, 16, 2, 2)
    shapes.update({name: (8,) for name in shapes if ".ln_" in name})
    config = config_from_state_dict(shapes)
    assert config.hidden_size == hidden
    path = write_empty(tmp_path / "x.safetensors", shapes)
    assert "its tensors fit no MMDiT" in error_of(path)
