"""Files of Qwen-Image: the config from shapes and metadata, each layout and dtype, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import save_file

from mmdit_core import CheckpointError, config_from_state_dict, load_checkpoint, load_model
from mmdit_core.checkpoints.detect import find_layout, is_sd3
from mmdit_core.checkpoints.keymaps import core_name, diffusers_shapes, expected_shapes, key_map, to_diffusers
from mmdit_core.checkpoints.quantised import QuantisedError
from mmdit_core.config import QwenImageConfig
from mmdit_core.models.qwen_image import TIMESTEP_ZERO_MARKER, QwenImage
from tests.core.models.tiny_qwen import TINY, error, inputs, random_model

PREFIX = "model.diffusion_model."
PLAIN = QwenImageConfig(hidden_size=64, num_heads=2, depth=2, context_dim=24, axes_dim=(4, 14, 14))
CONFIGS = {
    "plain": PLAIN,
    "other sizes": QwenImageConfig(
        hidden_size=96,
        num_heads=3,
        depth=3,
        context_dim=20,
        in_channels=4,
        out_channels=8,
        mlp_ratio=2.75,
        axes_dim=(4, 14, 14),
    ),
    "references at timestep 0": replace(PLAIN, reference_method="index_timestep_zero"),
    "layered": replace(PLAIN, additional_t_cond=True, reference_method="negative_index"),
}


def prefixed(state, prefix=PREFIX):
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(path, state, metadata=None):
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata)
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_is_found_from_the_shapes_alone(name):
    shapes = expected_shapes(CONFIGS[name])
    assert config_from_state_dict(shapes) == config_from_state_dict(prefixed(shapes)) == CONFIGS[name]
    assert find_layout(shapes).family.model is QwenImage and not is_sd3(shapes)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_was_saved_comes_back_bit_for_bit(name, prefix, dtype, tmp_path):
    state = random_model(CONFIGS[name]).to(dtype).state_dict()
    others = {"vae.decoder.conv1.weight": torch.ones(2), "text_encoders.qwen25_7b.transformer.x": torch.ones(3)}
    path = saved(tmp_path / "x.safetensors", {**prefixed(state, prefix), **(others if prefix else {})})
    model = load_model(path)
    assert type(model) is QwenImage and model.config == CONFIGS[name] and model.dtype == dtype
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert_same(model.state_dict(), state)


def test_a_loaded_model_has_the_velocity_of_the_saved_one(tmp_path):
    model = random_model(TINY)
    with torch.inference_mode():
        expected = model(**inputs())
        axes = {"mmdit.config": json.dumps(asdict(TINY))}
        assert torch.equal(
            load_model(saved(tmp_path / "x.safetensors", model.state_dict(), axes))(**inputs()), expected
        )
        # Without metadata the axes are the published fractions of a head.
        other = load_model(saved(tmp_path / "y.safetensors", model.state_dict()))
        assert other.config.axes_dim == (4, 14, 14) and error(other(**inputs()), expected) > 1e-3


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("max_shard_size", ["10GB", "300KB"])
def test_a_folder_saved_by_diffusers_loads(max_shard_size, zero, tmp_path):
    theirs = QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(8, 12, 12), zero_cond_t=zero,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    files = [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.index.json")]
    assert len(files) == 1 if max_shard_size == "10GB" else len(files) > 3
    for path in (tmp_path, *files):
        model = load_model(path)
        assert model.config.axes_dim == (8, 12, 12)
        assert model.config.reference_method == ("index_timestep_zero" if zero else "index")
        state = dict(model.state_dict())
        assert (TIMESTEP_ZERO_MARKER in state) == zero
        state.pop(TIMESTEP_ZERO_MARKER, None)
        assert_same(state, theirs.state_dict())


def test_diffusers_names_are_the_cores():
    for name in CONFIGS:
        config = CONFIGS[name]
        assert all(rule.diffusers == (each,) and not rule.swap for each, rule in key_map(config).items())
        assert diffusers_shapes(config) == expected_shapes(config)
        family = find_layout(expected_shapes(config)).family
        assert all(core_name(family, each) == each for each in expected_shapes(config))
        state = random_model(config).state_dict()
        assert_same(to_diffusers(state, config), dict(state))


@pytest.mark.parametrize("style", ["scale_weight", "weight_scale"])
def test_scaled_float8_is_multiplied_or_kept_with_its_scales(style, tmp_path):
    state = random_model(PLAIN).state_dict()
    stored, expected = {}, {}
    for name, tensor in state.items():
        if tensor.ndim == 2 and name.startswith("transformer_blocks."):
            layer, scale = name.removesuffix(".weight"), tensor.abs().max() / 448
            stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
            stored[f"{layer}.{style}"] = scale
            if style == "weight_scale":
                text = json.dumps({"format": "float8_e4m3fn"}).encode()
                stored[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
            expected[name] = (stored[name].float() * scale).bfloat16()
        else:
            stored[name] = tensor.bfloat16()
            expected[name] = stored[name]
    if style == "scale_weight":
        stored["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    path = saved(tmp_path / "x.safetensors", prefixed(stored))
    assert_same(load_model(path, torch.bfloat16).state_dict(), expected)
    kept = load_checkpoint(path, allow_mixed=True, keep_scales=True)[1]
    layer = "transformer_blocks.1.img_mlp.net.0.proj"
    assert torch.equal(kept[f"{layer}.weight"].view(torch.uint8), stored[f"{layer}.weight"].view(torch.uint8))
    assert torch.equal(kept[f"{layer}.weight_scale"], stored[f"{layer}.{style}"])
    with pytest.raises(CheckpointError, match="float8 with a scale.*Pass dtype="):
        load_model(path)


def test_plain_float8_needs_a_dtype_and_is_converted(tmp_path):
    state = {
        n: t.to(torch.float8_e4m3fn) for n, t in random_model(CONFIGS["references at timestep 0"]).state_dict().items()
    }
    path = saved(tmp_path / "x.safetensors", state)
    with pytest.raises(CheckpointError, match="Pass dtype="):
        load_model(path)
    assert_same(load_model(path, torch.bfloat16).state_dict(), {name: t.bfloat16() for name, t in state.items()})


def test_the_marker_may_have_a_dtype_of_its_own(tmp_path):
    state = random_model(CONFIGS["references at timestep 0"]).bfloat16().state_dict()
    path = saved(tmp_path / "x.safetensors", {**state, TIMESTEP_ZERO_MARKER: torch.empty(0)})
    model = load_model(path)
    assert model.dtype == torch.bfloat16 and model.config.reference_method == "index_timestep_zero"


def changed(drop=(), **add):
    state = {name: t for name, t in random_model(PLAIN).state_dict().items() if not name.startswith(drop or "-")}
    return {**state, **add}


MAGE = QwenImageConfig(hidden_size=64, num_heads=2, depth=1, context_dim=2560, in_channels=32, axes_dim=(4, 14, 14))
REFUSED = {
    "missing": (changed(("transformer_blocks.1.attn.to_q",)), r"2 tensors are missing: .*1\.attn\.to_q\.bias"),
    "missing config": (changed(("img_in",)), r"1 tensor is missing: .*img_in\.weight"),
    "missing block": (changed(("transformer_blocks.0.",)), r"2 tensors are missing: .*0\.img_mlp.*0\.attn\.norm_q"),
    "wrong shape": (changed(**{"txt_in.bias": torch.ones(3)}), r"txt_in\.bias is \[3\], expected \[64\]"),
    "odd channels": (
        changed(**{"img_in.weight": torch.ones(64, 66)}),
        "fit no MMDiT .*66 inputs and 64 outputs of a patch are no multiples of 4",
    ),
    "odd heads": (
        changed(**{n: torch.ones(7) for n in expected_shapes(PLAIN) if ".attn.norm_" in n}),
        "fit no MMDiT .*hidden_size 64 is not a multiple of num_heads 9",
    ),
    "MageFlow": (dict(random_model(MAGE).state_dict()), "looks like MageFlow"),
    "Lens": (
        {n.replace("img_mlp.net.0.proj", "img_mlp.w1").replace("img_mlp.net.2", "img_mlp.w2"): t
         for n, t in changed().items()},
        "looks like Qwen-Image",
    ),
    "ControlNet": (changed(("proj_out",), **{"controlnet_blocks.0.weight": torch.ones(2)}), "looks like a ControlNet"),
    "LoRA": (
        {"transformer.transformer_blocks.0.img_mod.1.lora_A.weight": torch.ones(2), "txt_norm.weight": torch.ones(2)},
        "looks like a LoRA",
    ),
    "mixed dtypes": (changed(**{"txt_in.bias": torch.ones(64).half()}), "mixed dtypes: 1 F16"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_qwen_image_is_refused_with_its_reason(case, tmp_path):
    state, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=words):
        load_model(saved(tmp_path / "x.safetensors", prefixed(state)))


def test_another_quantisation_is_refused(tmp_path):
    path = saved(tmp_path / "x.safetensors", changed(**{"transformer_blocks.0.attn.to_q.wscales": torch.ones(2)}))
    with pytest.raises(QuantisedError, match="another format: .*wscales"):
        load_model(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "mmdit.config does not say how many channels"),
        ("[]", "mmdit.config does not say how references are told apart"),
        ('{"axes_dim": 8}', "mmdit.config does not say how many channels"),
        ('{"axes_dim": [8, 12, "12"]}', "axes_dim must be three even numbers that add up to 32"),
        ('{"axes_dim": [9, 11, 12]}', r"fit no MMDiT .*axes_dim is \(9, 11, 12\); it must be three even numbers"),
        ('{"reference_method": "next"}', "reference_method is 'next'; it must be one of index, "),
        ('{"reference_method": 3}', "reference_method is 3.* It must be one of index, "),
    ],
)
def test_metadata_that_fit_no_model_are_an_error(text, words):
    with pytest.raises(CheckpointError, match=words):
        config_from_state_dict(expected_shapes(PLAIN), {"mmdit.config": text})
    other = {"diffusers.config": json.dumps({"_class_name": "AutoencoderKLQwenImage", "axes_dims_rope": 3})}
    assert config_from_state_dict(expected_shapes(PLAIN), other) == PLAIN
