"""Loading: detection of the config, all layouts, dtypes, the parts of a file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from mmdit_core import KNOWN_MODELS, MMDiT, MMDiTConfig
from mmdit_core.checkpoints.detect import components, config_from_state_dict
from mmdit_core.checkpoints.errors import CheckpointError
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.keymaps import diffusers_shapes, expected_shapes, to_diffusers
from mmdit_core.checkpoints.load import load_checkpoint, load_component
from tests.core.checkpoints.test_keymaps import from_diffusers

PREFIX = "model.diffusion_model."
TINY = {"hidden_size": 32, "num_heads": 4, "depth": 3, "context_dim": 24, "pooled_dim": 12, "pos_embed_max_size": 6}
QK = MMDiTConfig(**TINY, qk_norm="rms")
CONFIGS = {
    "heads of 64": MMDiTConfig(**{**TINY, "hidden_size": 128, "num_heads": 2}),
    "qk norm": QK,
    "dual attention": MMDiTConfig(**TINY, qk_norm="rms", dual_attention=(0, 1)),
    "patch 1, other channels": MMDiTConfig(**TINY, qk_norm="rms", patch_size=1, in_channels=3, out_channels=5),
    "one block": MMDiTConfig(**{**TINY, "depth": 1}, qk_norm="rms", dual_attention=(0,)),
    "guidance, no qkv bias": MMDiTConfig(**TINY, qk_norm="rms", guidance_embed=True, qkv_bias=False, mlp_ratio=2.75),
}
OTHER_PARTS = {
    "text_encoders.clip_l.transformer.text_model.embeddings.position_ids": torch.arange(5),
    "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": torch.ones(3),
    "text_encoders.t5xxl.transformer.shared.weight": torch.ones(2, 2, dtype=torch.float16),
    "first_stage_model.decoder.conv_in.weight": torch.ones(2, 2),
    "first_stage_model.encoder.conv_in.weight": torch.ones(3, dtype=torch.float16),
}


def random_state(config: MMDiTConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in expected_shapes(config).items()}


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in state.items()}


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


# -- the config, from names and shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN_MODELS)
@pytest.mark.parametrize("layout", ["prefixed", "bare", "diffusers"])
def test_published_models_are_recognised_from_shapes(name, layout):
    config = KNOWN_MODELS[name]
    shapes = diffusers_shapes(config) if layout == "diffusers" else expected_shapes(config)
    if layout == "prefixed":
        shapes = {PREFIX + key: shape for key, shape in shapes.items()}
    assert config_from_state_dict(shapes) == config


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", ["prefixed", "bare", "diffusers"])
def test_the_config_of_a_model_is_detected_from_its_tensors(name, layout):
    config = CONFIGS[name]
    state = random_state(config)
    state = {"prefixed": prefixed, "bare": dict, "diffusers": lambda s: to_diffusers(s, config)}[layout](state)
    assert config_from_state_dict(state) == config


def test_heads_without_norm_come_from_the_metadata_and_else_are_64_wide():
    shapes = expected_shapes(MMDiTConfig(**{**TINY, "hidden_size": 128, "num_heads": 8}))
    assert config_from_state_dict(shapes).num_heads == 2
    ours = {"mmdit.config": json.dumps({"num_heads": 8})}
    assert config_from_state_dict(shapes, ours).num_heads == 8
    theirs = {"diffusers.config": json.dumps({"_class_name": "SD3Transformer2DModel", "num_attention_heads": 4})}
    assert config_from_state_dict(shapes, theirs).num_heads == 4
    assert config_from_state_dict(shapes, {**theirs, **ours}).num_heads == 8
    another = {"diffusers.config": json.dumps({"_class_name": "T5EncoderModel", "num_attention_heads": 4})}
    assert config_from_state_dict(shapes, another).num_heads == 2


def test_the_size_of_the_norm_has_priority_over_the_metadata():
    assert config_from_state_dict(expected_shapes(QK), {"mmdit.config": '{"num_heads": 2}'}) == QK


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"num_heads": 3}', '{"num_heads": 0}', '{"num_heads": "4"}'])
def test_metadata_without_a_valid_number_of_heads_is_an_error(text):
    with pytest.raises(CheckpointError, match=r"mmdit\.config.*heads.*num_heads, a divisor of 32"):
        config_from_state_dict(expected_shapes(MMDiTConfig(**TINY)), {"mmdit.config": text})


def test_a_width_that_does_not_determine_the_heads_is_an_error():
    with pytest.raises(CheckpointError, match="width 32 is not a multiple of 64.*mmdit.config"):
        config_from_state_dict(expected_shapes(MMDiTConfig(**TINY)))


@given(hidden=st.integers(1, 5000).map(lambda n: 4 * n), inner=st.integers(1, 60000))
def test_any_mlp_width_is_detected(hidden, inner):
    shapes = {**expected_shapes(MMDiTConfig(**{**TINY, "hidden_size": hidden, "num_heads": 1}, qk_norm="rms"))}
    for stream in ("x_block", "context_block"):
        shapes[f"joint_blocks.0.{stream}.mlp.fc1.weight"] = (inner, hidden)
    found = expected_shapes(config_from_state_dict(shapes))
    assert found["joint_blocks.0.x_block.mlp.fc1.weight"] == (inner, hidden)


# -- loading, in every layout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", ["prefixed", "bare", "diffusers", "with other parts"])
def test_every_layout_loads_to_the_same_tensors(name, layout, tmp_path):
    config = CONFIGS[name]
    state = random_state(config)
    stored = {
        "prefixed": prefixed,
        "bare": dict,
        "diffusers": lambda s: to_diffusers(s, config),
        "with other parts": lambda s: {**OTHER_PARTS, **prefixed(s)},
    }[layout](state)
    found, loaded = load_checkpoint(write(tmp_path / "x.safetensors", stored))
    assert found == config
    assert_same(loaded, state)
    model = MMDiT(found, device="meta")
    model.load_state_dict(loaded, assign=True)
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["single file", "diffusers"])
def test_dtype_converts_the_tensors_and_not_the_file(layout, tmp_path):
    state = random_state(QK)
    stored = prefixed(state) if layout == "single file" else to_diffusers(state, QK)
    path = write(tmp_path / "x.safetensors", stored)
    before = path.read_bytes()
    loaded = load_checkpoint(path, dtype=torch.bfloat16)[1]
    assert_same(loaded, {name: tensor.bfloat16() for name, tensor in state.items()})
    loaded = load_checkpoint(path)[1]
    for tensor in loaded.values():
        tensor.zero_()  # mapped privately: training on a loaded model must not write into the checkpoint
    assert path.read_bytes() == before


def test_plain_fp8_loads_unchanged_or_converted(tmp_path):
    state = random_state(QK, torch.float8_e4m3fn)
    path = write(tmp_path / "x.safetensors", to_diffusers(state, QK))
    loaded = load_checkpoint(path)[1]
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float8_e4m3fn}
    converted = load_checkpoint(path, dtype=torch.float32)[1]
    for name, tensor in state.items():
        assert torch.equal(loaded[name].view(torch.uint8), tensor.view(torch.uint8))
        assert torch.equal(converted[name], tensor.float())


def test_mixed_dtypes_load_with_allow_mixed(tmp_path):
    state = {**random_state(QK, torch.bfloat16), "context_embedder.bias": torch.ones(32)}
    path = write(tmp_path / "x.safetensors", state)
    assert_same(load_checkpoint(path, allow_mixed=True)[1], state)
    assert {tensor.dtype for tensor in load_checkpoint(path, dtype=torch.float16)[1].values()} == {torch.float16}


def test_positions_may_have_a_dtype_of_their_own(tmp_path):
    state = {**random_state(QK, torch.bfloat16)}
    state["pos_embed"] = state["pos_embed"].float()
    assert_same(load_checkpoint(write(tmp_path / "x.safetensors", state))[1], state)


@pytest.mark.parametrize("max_shard_size", ["10GB", "60KB"])
@pytest.mark.parametrize("qk_norm", [None, "rms_norm"])
def test_a_model_saved_by_diffusers_loads(max_shard_size, qk_norm, tmp_path):
    """Folder, file, index and any shard; without QK-norm the heads come from the config.json that diffusers writes."""
    theirs = SD3Transformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=12,
        pos_embed_max_size=6,
        qk_norm=qk_norm,
    )
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    files = [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.index.json")]
    assert len(files) == 1 if max_shard_size == "10GB" else len(files) > 3
    for path in (tmp_path, *files):
        config, loaded = load_checkpoint(path)
        assert config.num_heads == 4 and config.depth == 2
        assert_same(loaded, from_diffusers(theirs.state_dict(), config))


# -- the parts of a file -----------------------------------------------------------------------------------------


def test_components_are_the_parts_with_prefix_and_dtypes(tmp_path):
    state = {**prefixed(random_state(QK, torch.bfloat16)), **OTHER_PARTS}
    parts = components(read_header(write(tmp_path / "x.safetensors", state)))
    assert set(parts) == {"transformer", "clip_l", "t5xxl", "vae"}
    assert (parts["transformer"].layout, parts["transformer"].prefix) == ("single file", PREFIX)
    assert parts["transformer"].dtypes == ("BF16",)
    assert parts["vae"].dtypes == ("F32", "F16")  # 16 and 6 bytes


def test_components_of_diffusers_and_of_bare_files(tmp_path):
    theirs = write(tmp_path / "theirs.safetensors", to_diffusers(random_state(QK), QK))
    assert {name: part.layout for name, part in components(read_header(theirs)).items()} == {"transformer": "diffusers"}
    bare = write(tmp_path / "bare.safetensors", {**random_state(QK), **OTHER_PARTS})
    parts = components(read_header(bare))
    assert parts["transformer"].prefix == ""
    assert set(parts) == {"transformer", "clip_l", "t5xxl", "vae"}


def test_load_component_yields_one_part_only(tmp_path):
    path = write(tmp_path / "x.safetensors", {**prefixed(random_state(QK)), **OTHER_PARTS})
    for part in ("clip_l", "t5xxl", "vae"):
        prefix = components(read_header(path))[part].prefix
        expected = {name[len(prefix) :]: tensor for name, tensor in OTHER_PARTS.items() if name.startswith(prefix)}
        assert_same(dict(load_component(path, prefix)), expected)
        halves = {name: t.bfloat16() if t.is_floating_point() else t for name, t in expected.items()}
        assert_same(dict(load_component(path, prefix, dtype=torch.bfloat16)), halves)


def test_a_missing_part_is_an_error_with_the_parts_there_are(tmp_path):
    path = write(tmp_path / "x.safetensors", prefixed(random_state(QK)))
    with pytest.raises(CheckpointError, match=r"no tensor begins with first_stage_model\.; the parts in it are transf"):
        next(load_component(path, "first_stage_model."))


# -- prefixes ----------------------------------------------------------------------------------------------------

PREFIXES = (
    *("", "model.", "model.model.", "net.", "module.", "_orig_mod.", "transformer.", "diffusion_model."),
    *("model.diffusion_model.", "model.diffusion_model._orig_mod.", "module.model.diffusion_model."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("layout", ["single file", "diffusers"])
@pytest.mark.parametrize("compiled", [False, True])
def test_any_prefix_goes_with_any_layout(tmp_path, prefix, layout, compiled):
    """compiled: each block was wrapped by torch.compile, which puts a part into the middle of the names."""
    state = random_state(QK)
    stored = to_diffusers(state, QK) if layout == "diffusers" else state
    if compiled:
        stored = {re.sub(r"(blocks\.\d+\.)", r"\1_orig_mod.", name): tensor for name, tensor in stored.items()}
    path = write(tmp_path / "x.safetensors", {prefix + name: tensor for name, tensor in {**stored}.items()})
    config, loaded = load_checkpoint(path)
    assert config == QK
    assert_same(loaded, state)
    part = components(read_header(path))["transformer"]
    assert (part.layout, part.prefix) == (layout, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_missing_tensors_are_named_as_the_file_would_name_them(tmp_path, prefix):
    stored = {prefix + name: tensor for name, tensor in random_state(QK).items()}
    del stored[f"{prefix}joint_blocks.1.x_block.attn.qkv.weight"]
    with pytest.raises(CheckpointError, match=f"missing: {re.escape(prefix)}joint_blocks.1.x_block.attn.qkv.weight"):
        load_checkpoint(write(tmp_path / "x.safetensors", stored))
