"""FLUX.1 in files: the key map, detection, loading in every layout, and the models of like names that are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers_flux import comfyui_state, diffusers_model
from mmdit_core import KNOWN_MODELS, Flux, FluxConfig, config_from_state_dict, load_checkpoint, load_model
from mmdit_core.checkpoints.detect import find_layout, is_sd3
from mmdit_core.checkpoints.errors import CheckpointError, TensorsError, UnknownModelError, UnreadableError
from mmdit_core.checkpoints.families import FLUX
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.keymaps import core_name, diffusers_shapes, expected_shapes, key_map, to_diffusers
from mmdit_core.checkpoints.load import check_transformer
from tests.core.checkpoints.test_keymaps import from_diffusers
from tests.core.models.flux_tiny import CONFIGS, inputs

PREFIX = "model.diffusion_model."
DEV = CONFIGS["dev"]
PUBLISHED = [name for name, config in KNOWN_MODELS.items() if isinstance(config, FluxConfig)]
# Source: the numbers of tensors and parameters in Black Forest Labs' published files.
COUNTS = {"FLUX.1 dev": (780, 11_901_408_320), "FLUX.1 schnell": (776, 11_891_178_560)}


def random_state(config: FluxConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in expected_shapes(config).items()}


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in state.items()}


LAYOUTS = {
    "bare": dict,
    "prefixed": prefixed,
    "as ComfyUI saves it": lambda state: prefixed(comfyui_state(state)),
    "diffusers": lambda state: to_diffusers(state, DEV),
    "with other parts": lambda state: {
        **prefixed(state),
        "text_encoders.clip_l.transformer.text_model.final_layer_norm.weight": torch.ones(3),
        "vae.decoder.conv_in.weight": torch.ones(2, 2),
    },
}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("name", COUNTS)
def test_published_models_have_their_published_counts(name):
    tensors, parameters = COUNTS[name]
    model = Flux(KNOWN_MODELS[name], device="meta")
    assert len(model.state_dict()) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("layout", ["bare", "prefixed", "diffusers"])
@pytest.mark.parametrize("config", [*(KNOWN_MODELS[name] for name in PUBLISHED), DEV], ids=[*PUBLISHED, "tiny"])
def test_the_config_is_detected_from_shapes(config, layout):
    shapes = diffusers_shapes(config) if layout == "diffusers" else expected_shapes(config)
    shapes = {PREFIX + key: shape for key, shape in shapes.items()} if layout == "prefixed" else dict(shapes)
    assert config_from_state_dict(shapes) == config
    assert find_layout(shapes).family is FLUX and not is_sd3(shapes)


def test_the_axes_come_from_the_metadata_and_else_have_the_published_proportions():
    config = CONFIGS["schnell"]
    shapes = expected_shapes(config)
    assert config_from_state_dict(shapes) == replace(config, axes_dim=(4, 14, 14))
    assert config_from_state_dict(shapes, {"mmdit.config": '{"axes_dim": [8, 12, 12]}'}) == config
    theirs = {"_class_name": "FluxTransformer2DModel", "axes_dims_rope": [8, 12, 12]}
    assert config_from_state_dict(shapes, {"diffusers.config": json.dumps(theirs)}) == config
    another = {"diffusers.config": json.dumps({**theirs, "_class_name": "AutoencoderKL"})}
    assert config_from_state_dict(shapes, another) == config_from_state_dict(shapes)
    for text in ("[8, 12]", "[8, 12, 14]", '"x"', "[8.0, 12, 12]"):
        with pytest.raises(UnreadableError, match="axes_dim must be three even numbers that add up to 32"):
            config_from_state_dict(shapes, {"mmdit.config": f'{{"axes_dim": {text}}}'})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_to_diffusers_and_back_is_bit_exact(name, dtype):
    config = replace(CONFIGS[name], mlp_ratio=2.75)
    state = random_state(config, dtype)
    theirs = to_diffusers(state, config)
    assert {key: tuple(tensor.shape) for key, tensor in theirs.items()} == diffusers_shapes(config)
    assert_same(from_diffusers(theirs, config), state)
    for ours, rule in key_map(config).items():
        assert {core_name(FLUX, part) for part in rule.diffusers} == {ours}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_those_of_diffusers_own_model(name):
    theirs = diffusers_model(CONFIGS[name]).state_dict()
    assert diffusers_shapes(CONFIGS[name]) == {key: tuple(tensor.shape) for key, tensor in theirs.items()}


@pytest.mark.parametrize("name", ["FLUX.1 dev", "FLUX.1 schnell"])
def test_the_names_and_rows_are_those_of_diffusers_own_converter(name):
    """Which takes the published single files. Every row is a number of its own."""
    config = replace(KNOWN_MODELS[name], depth=2, depth_single_blocks=2)
    rows, end = {}, 0
    for key, shape in expected_shapes(config).items():
        rows[key] = torch.arange(end, end + shape[0])
        end += shape[0]
    ours, theirs = to_diffusers(rows, config), convert_flux_transformer_checkpoint_to_diffusers(dict(rows))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_to_the_same_model(layout, tmp_path, caplog):
    state = random_state(DEV)
    path = write(tmp_path / "x.safetensors", LAYOUTS[layout](state))
    with caplog.at_level("INFO", logger="mmdit_core"):
        config, loaded = load_checkpoint(path)
    assert config == DEV and "5 blocks of width 64, F32" in caplog.messages[0]
    assert_same(loaded, state)
    model = load_model(path)
    assert type(model) is Flux and model.config == DEV and not model.training
    given = inputs(DEV)
    saved = Flux(DEV).eval()
    saved.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(model(**given), saved(**given))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_load_as_they_are_and_converted(dtype, tmp_path):
    state = random_state(DEV, dtype)
    path = write(tmp_path / "x.safetensors", to_diffusers(state, DEV))
    assert_same(load_checkpoint(path)[1], state)
    assert {tensor.dtype for tensor in load_model(path, torch.float32).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("layout", ["prefixed", "diffusers"])
def test_plain_float8_is_converted_and_scaled_float8_is_multiplied(layout, tmp_path):
    state = random_state(DEV, torch.float8_e4m3fn)
    path = write(tmp_path / "x.safetensors", LAYOUTS[layout](state))
    assert_same(load_checkpoint(path, dtype=torch.float32)[1], {name: each.float() for name, each in state.items()})
    with pytest.raises(TensorsError, match=r"its weights are torch.float8_e4m3fn. Pass dtype="):
        load_model(path)

    stored = LAYOUTS[layout](random_state(DEV, torch.bfloat16))
    linear = "single_transformer_blocks.1.proj_mlp" if layout == "diffusers" else "single_blocks.1.linear1"
    linear = next(name for name in stored if name.endswith(f"{linear}.weight"))
    stored[linear] = stored[linear].to(torch.float8_e4m3fn)
    scaled = stored[linear].float() * 0.5
    marker = f"{'' if layout == 'diffusers' else PREFIX}scaled_fp8"
    stored |= {
        linear.removesuffix("weight") + "scale_weight": torch.tensor(0.5),
        marker: torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    found = load_checkpoint(write(path, stored), dtype=torch.float32)[1]["single_blocks.1.linear1.weight"]
    assert torch.equal(found[-len(scaled) :], scaled)
    assert {each.dtype for each in load_model(path, torch.bfloat16).state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("max_shard_size", ["10GB", "60KB"])
def test_folders_of_diffusers_load_whole_and_in_shards(max_shard_size, tmp_path):
    theirs = diffusers_model(CONFIGS["schnell"])
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    files = [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.index.json")]
    assert len(files) == 1 if max_shard_size == "10GB" else len(files) > 3
    for path in (tmp_path, files[-1]):
        config, loaded = load_checkpoint(path)
        assert config == CONFIGS["schnell"]  # its axes are not the published ones: config.json gives them
        assert_same(loaded, from_diffusers(theirs.state_dict(), config))


def without(pattern: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


# What makes a file that is like FLUX.1's another model's: names that go, and names that come.
OTHERS = {
    "FLUX.2": (
        r"vector_in|_mod\.|modulation\.lin",
        ["double_stream_modulation_img.lin.weight"],
        "this looks like FLUX",
    ),
    "Chroma": (r"vector_in|_mod\.|modulation\.lin|time_in", ["distilled_guidance_layer.in_proj.weight"], "like Chroma"),
    "LongCat-Image": (r"vector_in|guidance_in", [], "this looks like FLUX"),
    "HunyuanVideo": (
        r"^(txt_in|img_in)\.",
        ["img_in.proj.weight", "txt_in.individual_token_refiner.blocks.0.norm1.weight"],
        "like HunyuanVideo",
    ),
    "a LoRA": (r"img_in", ["double_blocks.0.img_attn.qkv.lora_A.weight"], "like a LoRA"),
    "a ControlNet": (r"final_layer", ["controlnet_blocks.0.weight"], "like a ControlNet"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_models_with_some_of_its_names_are_refused_by_name(name, prefix, tmp_path):
    gone, more, words = OTHERS[name]
    state = {**without(gone, random_state(DEV)), **{name: torch.ones(1) for name in more}}
    path = write(tmp_path / "x.safetensors", {prefix + key: tensor for key, tensor in state.items()})
    with pytest.raises(
        UnknownModelError, match=f"{words}.*SD3 family is needed.*Or: FLUX.1: tensors named double_bloc"
    ):
        load_checkpoint(path)


@pytest.mark.parametrize("layout", ["prefixed", "diffusers"])
def test_what_is_missing_or_wrong_is_named_as_the_file_names_it(layout, tmp_path):
    def error_of(stored) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(write(tmp_path / "x.safetensors", stored))
        return str(caught.value)

    state = LAYOUTS[layout](random_state(DEV))
    is_theirs = layout == "diffusers"
    part = "single_transformer_blocks.1.attn.to_k.weight" if is_theirs else "single_blocks.1.linear1.weight"
    assert re.search(rf"1 tensor is missing: \S*{part}", error_of(without(re.escape(part), state)))
    decides = r"context_embedder\." if is_theirs else r"txt_in\."
    assert re.search(rf"1 tensor is missing: \S*{decides}weight", error_of(without(decides, state)))
    wrong = {name: torch.ones(3) if name.endswith(part) else tensor for name, tensor in state.items()}
    assert re.search(rf"1 tensor is of a wrong shape: \S*{part} is \[3\]", error_of(wrong))


def test_thousands_of_made_up_blocks_are_refused_before_a_model_is_built(monkeypatch):
    blocks = {f"single_blocks.{number}.x": (1,) for number in range(5000)}
    with pytest.raises(UnknownModelError, match=r"it has 5000 blocks, and an MMDiT at most 200\. FLUX\.1: tensors"):
        config_from_state_dict({**expected_shapes(DEV), **blocks})


def test_only_the_family_that_is_asked_for_counts(tmp_path):
    header = read_header(write(tmp_path / "x.safetensors", random_state(DEV)))
    assert check_transformer(header, (FLUX,)).config == DEV
    with pytest.raises(UnknownModelError, match="this looks like FLUX"):
        check_transformer(header, ())
