"""Float8 files with scales, in each of the forms in which they are published: the image that ComfyUI's loader gives."""

from __future__ import annotations

import json
import sys

import comfy.model_base
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdit_core.checkpoints.errors import TensorsError
from mmdit_core.checkpoints.load import load_checkpoint, load_model
from tests.nodes.models.test_model_patcher import error, ksampler, lora

PREFIX = "model.diffusion_model."
FORMS = ("scale_weight", "scale_weight, bare names", "comfy_quant", "metadata")


def load(pack, path, weight_dtype: str = "default"):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"].load_model(str(path), weight_dtype)


def quantised(state, form: str, dtype=torch.float8_e4m3fn):
    """(tensors, metadata) of a file with its linear layers in float8."""
    made, layers = {}, {}
    for name, tensor in state.items():
        if tensor.ndim != 2:
            made[name] = tensor.half()
            continue
        layer = name.removesuffix(".weight")
        scale = tensor.abs().max() / torch.finfo(dtype).max
        made[name] = (tensor / scale).to(dtype)
        layers[layer] = {"format": "float8_e4m3fn" if dtype is torch.float8_e4m3fn else "float8_e5m2"}
        if form.startswith("scale_weight"):
            made[f"{layer}.scale_weight"] = scale.reshape(1)
            made[f"{layer}.scale_input"] = torch.ones(1)
        else:
            made[f"{layer}.weight_scale"] = scale
            if form == "comfy_quant":
                made[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(layers[layer]).encode()), dtype=torch.uint8)
    if form.startswith("scale_weight"):
        made[f"{PREFIX}scaled_fp8"] = torch.zeros(2, dtype=dtype)
    if form.endswith("bare names"):
        made = {name.removeprefix(PREFIX): tensor for name, tensor in made.items()}
    metadata = {"_quantization_metadata": json.dumps({"layers": layers})} if form == "metadata" else None
    return made, metadata


@pytest.fixture(scope="module")
def files(tiny_file, tmp_path_factory):
    """A file in each form, and the plain one."""
    folder, state = tmp_path_factory.mktemp("quantised"), load_file(tiny_file)
    for form in FORMS:
        made, metadata = quantised(state, form)
        save_file(made, folder / f"{form}.safetensors", metadata)
    return {form: folder / f"{form}.safetensors" for form in FORMS} | {"plain": tiny_file}


@pytest.mark.floor
@pytest.mark.parametrize("form", FORMS)
def test_the_image_is_that_of_comfyuis_loader(pack, files, form):
    ours, theirs = load(pack, files[form]), comfy.sd.load_diffusion_model(str(files[form]))
    assert error(ksampler(ours), ksampler(theirs)) <= 1e-5
    assert 0 < error(ksampler(ours), ksampler(load(pack, files["plain"]))) < 0.2
    weights = [p for p in ours.model.diffusion_model.parameters() if "Quantized" in type(p.data).__name__]
    assert len(weights) == 24  # held in float8: all linear layers


@pytest.mark.parametrize("form", FORMS)
def test_another_weight_dtype_multiplies_the_scales(pack, files, form):
    """As bf16 the weights are those that the core reads, and no layer is quantised."""
    model = load(pack, files[form], "bf16")
    _, state = load_checkpoint(files[form], dtype=torch.bfloat16)
    for name, tensor in model.model.diffusion_model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert error(ksampler(model), ksampler(load(pack, files[form]))) < 0.1


def test_the_core_multiplies_the_scales(files):
    model = load_model(files["comfy_quant"], dtype=torch.float32)
    stored, name = load_file(files["comfy_quant"]), f"{PREFIX}joint_blocks.0.x_block.mlp.fc1"
    expected = stored[f"{name}.weight"].float() * stored[f"{name}.weight_scale"]
    assert torch.equal(model.joint_blocks[0].x_block.mlp.fc1.weight, expected)
    with pytest.raises(TensorsError, match="float8 with a scale.*Pass dtype="):
        load_model(files["comfy_quant"])


def test_the_bare_marker_without_scales_is_plain_fp8(pack, files, tmp_path):
    state = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(files["plain"]).items()}
    save_file(state, tmp_path / "plain.safetensors")
    save_file(state | {"scaled_fp8": torch.zeros(2)}, tmp_path / "marked.safetensors")
    save_file(state | {f"{PREFIX}scaled_fp8": torch.zeros(0)}, tmp_path / "under the prefix.safetensors")
    plain = ksampler(load(pack, tmp_path / "plain.safetensors"))
    for name in ("marked", "under the prefix"):
        assert torch.equal(ksampler(load(pack, tmp_path / f"{name}.safetensors")), plain)


def test_float8_e5m2_with_scales(pack, files, tmp_path):
    made, _ = quantised(load_file(files["plain"]), "comfy_quant", torch.float8_e5m2)
    save_file(made, tmp_path / "e5m2.safetensors")
    theirs = comfy.sd.load_diffusion_model(str(tmp_path / "e5m2.safetensors"))
    assert error(ksampler(load(pack, tmp_path / "e5m2.safetensors")), ksampler(theirs)) <= 1e-5


def test_a_diffusers_file_with_scales(pack, files, tmp_path):
    """q, k and v of one layer have scales of their own and become one weight in half precision."""
    from mmdit_core.checkpoints.keymaps import to_diffusers

    config, state = load_checkpoint(files["plain"])
    made = {}
    for name, tensor in to_diffusers(state, config).items():
        if not name.startswith("transformer_blocks.") or tensor.ndim != 2:
            made[name] = tensor.contiguous()
            continue
        scale = tensor.abs().max() / 448
        made[name] = (tensor / scale).to(torch.float8_e4m3fn)
        made[f"{name.removesuffix('.weight')}.weight_scale"] = scale
    save_file(made, tmp_path / "x.safetensors")
    model = load(pack, tmp_path / "x.safetensors")
    assert 0 < error(ksampler(model), ksampler(load(pack, files["plain"]))) < 0.2
    exact = load(pack, tmp_path / "x.safetensors", "bf16")
    assert error(ksampler(model), ksampler(exact)) < 0.1


def test_a_lora_and_the_block_nodes_act_on_scaled_weights(pack, files):
    """As on the weights of the file in half precision."""
    patching = sys.modules[f"{pack.__name__}.nodes.comfyui.patching"]
    scaled, whole = load(pack, files["comfy_quant"]), load(pack, files["comfy_quant"], "fp16")
    plain = ksampler(scaled)
    outs = []
    for model in (scaled, whole):
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora("stability"), 1.0, 0.0)
        outs.append(ksampler(patching.attach(patched, [patching.BlockControl("skip", (1,), branch="both")])))
    assert error(*outs) < 1e-3 < error(outs[0], plain)
    assert torch.equal(ksampler(scaled), plain)


def test_settings_that_cannot_be_read_are_refused_by_name(pack, files, tmp_path):
    made, _ = quantised(load_file(files["plain"]), "comfy_quant")
    layer = f"{PREFIX}joint_blocks.0.x_block.mlp.fc1"
    save_file(made | {f"{layer}.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors: .*fc1\.comfy_quant cannot be read"):
        load(pack, tmp_path / "a.safetensors")
    save_file(made | {f"{layer}.comfy_quant": torch.zeros(2_000_000, dtype=torch.uint8)}, tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match=r"d\.safetensors: .*fc1\.comfy_quant has 2000000 bytes, and .* 1000000"):
        load(pack, tmp_path / "d.safetensors")
    made, _ = quantised(load_file(files["plain"]), "metadata")
    save_file(made, tmp_path / "b.safetensors", {"_quantization_metadata": "{"})
    with pytest.raises(ValueError, match=r"b\.safetensors: the metadata _quantization_metadata cannot be read"):
        load(pack, tmp_path / "b.safetensors")
    without = {name: tensor for name, tensor in made.items() if name != f"{layer}.weight_scale"}
    save_file(without, tmp_path / "c.safetensors", quantised(load_file(files["plain"]), "metadata")[1])
    with pytest.raises(ValueError, match="fc1 is named as quantised, but it has no scale"):
        load(pack, tmp_path / "c.safetensors")


def scaled_part(state, prefix: str, form: str):
    """The tensors of a text encoder with its linear layers in float8 with scales, and multiplied out again."""
    made, plain = {}, {}
    for name, tensor in state.items():
        if not name.startswith(prefix):
            continue
        made[name] = plain[name] = tensor.float()
        if tensor.ndim != 2 or "embed" in name or "shared" in name or "relative" in name or "projection" in name:
            continue
        layer, scale = name.removesuffix(".weight"), tensor.float().abs().max() / 448
        made[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        plain[name] = made[name].float() * scale
        made[f"{layer}.{'weight_scale' if form == 'comfy_quant' else 'scale_weight'}"] = scale
        if form == "comfy_quant":
            text = json.dumps({"format": "float8_e4m3fn"}).encode()
            made[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    if form == "scaled_fp8":
        made[f"{prefix}scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    return made, plain


@pytest.mark.parametrize("form", ["scaled_fp8", "scale_weight", "comfy_quant"])
@pytest.mark.parametrize("part", ["t5xxl", "clip_g"])
def test_text_encoders_with_scales_encode_as_the_multiplied_weights(pack, tmp_path, part, form):
    loading = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.clip_vae"]
    header = sys.modules[f"{pack.__name__}.mmdit_core.checkpoints.header"]
    shipped = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.folders"].SHIPPED / "mmdit-small.safetensors"
    state, metadata = load_file(shipped), header.read_header(shipped).metadata
    made, plain = scaled_part(state, f"text_encoders.{part}.transformer.", form)
    encoded = []
    for name, tensors in (("scaled", made), ("plain", plain)):
        save_file(state | tensors, tmp_path / f"{name}.safetensors", dict(metadata))
        clip = loading.load_clip(header.read_header(tmp_path / f"{name}.safetensors"))
        encoded.append(clip.encode_from_tokens(clip.tokenize("three red circles on white"), return_pooled=True))
    for scaled, whole in zip(*encoded, strict=True):
        assert error(scaled, whole) < 1e-3  # ComfyUI holds the multiplied ones in half precision
    clip = loading.load_clip(header.read_header(shipped))
    other = clip.encode_from_tokens(clip.tokenize("three red circles on white"), return_pooled=True)
    assert max(error(a, b) for a, b in zip(encoded[0], other, strict=True)) > 1e-2


def test_another_quantisation_is_left_to_comfyuis_loader(pack, files, tmp_path, monkeypatch):
    """int8 with a scale for each row, which the core does not read: ComfyUI's own SD3 model."""
    module = sys.modules[f"{pack.__name__}.nodes.loader"]
    monkeypatch.setattr(module.folders, "listed_path", lambda name, folder="": tmp_path / name)
    state = load_file(files["plain"])
    name = f"{PREFIX}joint_blocks.0.x_block.mlp.fc1"
    weight = state.pop(f"{name}.weight")
    scale = weight.abs().amax(1, keepdim=True) / 127
    text = json.dumps({"format": "int8_tensorwise"}).encode()
    state |= {
        f"{name}.weight": (weight / scale).round().to(torch.int8),
        f"{name}.weight_scale": scale,
        f"{name}.comfy_quant": torch.tensor(list(text), dtype=torch.uint8),
    }
    save_file(state, tmp_path / "x.safetensors")
    model = module.MMDiTLoader().load("x.safetensors", "default")[0]
    assert type(model.model) is comfy.model_base.SD3
    assert 0 < error(ksampler(model), ksampler(load(pack, files["plain"]))) < 0.1
    # ComfyUI's loader would not heed the file's own shift.
    save_file(state, tmp_path / "y.safetensors", {"mmdit.shift": "4"})
    with pytest.raises(ValueError, match="MMDiTLoader: checkpoint: .*y.safetensors: the weights are quantised"):
        module.MMDiTLoader().load("y.safetensors", "default")


def test_a_saved_model_with_scales_is_the_same_when_it_is_loaded_again(pack, files, tmp_path):
    model = load(pack, files["scale_weight"])
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model)
    assert torch.equal(ksampler(load(pack, tmp_path / "saved.safetensors")), ksampler(model))


def test_a_convolution_with_a_scale_is_multiplied(pack, files, tmp_path):
    state, name = load_file(files["plain"]), f"{PREFIX}x_embedder.proj"
    weight = state[f"{name}.weight"]
    scale = weight.abs().max() / 448
    state |= {f"{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{name}.scale_weight": scale.reshape(1)}
    save_file(state, tmp_path / "x.safetensors")
    loaded = load(pack, tmp_path / "x.safetensors").model.diffusion_model.x_embedder.proj.weight
    assert torch.allclose(loaded.float(), weight, atol=weight.abs().max().item() / 16)


T5 = "text_encoders.t5xxl.transformer."
T5_LAYER = f"{T5}encoder.block.0.layer.0.SelfAttention.q"


def test_scales_of_a_text_encoder_in_the_metadata_are_heeded(pack, tmp_path):
    loading = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.clip_vae"]
    header = sys.modules[f"{pack.__name__}.mmdit_core.checkpoints.header"]
    shipped = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.folders"].SHIPPED / "mmdit-small.safetensors"
    state, metadata = load_file(shipped), dict(header.read_header(shipped).metadata)
    made, plain = scaled_part(state, T5, "comfy_quant")
    made = {name: tensor for name, tensor in made.items() if not name.endswith("comfy_quant")}
    layers = {
        name.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"} for name in made if "weight_scale" in name
    }
    save_file(
        state | made, tmp_path / "x.safetensors", metadata | {"_quantization_metadata": json.dumps({"layers": layers})}
    )
    save_file(state | made, tmp_path / "y.safetensors", metadata)  # scales that nothing announces count too
    save_file(state | plain, tmp_path / "z.safetensors", metadata)
    encoded = []
    for name in "xyz":
        clip = loading.load_clip(tmp_path / f"{name}.safetensors")
        encoded.append(clip.encode_from_tokens(clip.tokenize("three red circles on white")))
    assert error(encoded[0], encoded[2]) < 1e-3 and torch.equal(encoded[0], encoded[1])


@pytest.mark.parametrize(
    "change",
    [
        {f"{T5_LAYER}.comfy_quant": torch.zeros(3, dtype=torch.uint8)},
        {f"{T5_LAYER}.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
        {f"{T5_LAYER}.weight_scale": torch.ones(3)},
        {f"{T5_LAYER}.input_scale": torch.ones(3)},
        {f"{T5_LAYER}.weight_scale": torch.tensor(float("nan"))},
        {f"{T5_LAYER}.weight": torch.ones(3, 3, dtype=torch.float8_e4m3fn)},
    ],
)
def test_a_damaged_quantisation_of_a_text_encoder_is_refused_by_name(pack, tmp_path, change):
    loading = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.clip_vae"]
    header = sys.modules[f"{pack.__name__}.mmdit_core.checkpoints.header"]
    shipped = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.folders"].SHIPPED / "mmdit-small.safetensors"
    state, metadata = load_file(shipped), dict(header.read_header(shipped).metadata)
    made, _ = scaled_part(state, T5, "comfy_quant")
    save_file(state | made | change, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ValueError, match=r"x\.safetensors: .*SelfAttention\.q"):
        loading.load_clip(tmp_path / "x.safetensors")


def test_a_weight_dtype_that_is_not_the_files_acts_on_every_weight(pack, files, tmp_path):
    """One scaled layer in a plain file, and scales of the other float8."""
    state, name = load_file(files["plain"]), f"{PREFIX}joint_blocks.0.x_block.mlp.fc1"
    scale = state[f"{name}.weight"].abs().max() / 448
    half = state | {
        f"{name}.weight": (state[f"{name}.weight"] / scale).to(torch.float8_e4m3fn),
        f"{name}.weight_scale": scale,
    }
    save_file(half, tmp_path / "half.safetensors")
    save_file(quantised(state, "comfy_quant", torch.float8_e5m2)[0], tmp_path / "e5m2.safetensors")
    for file in ("half", "e5m2"):
        model = load(pack, tmp_path / f"{file}.safetensors", "fp8_e4m3fn").model.diffusion_model
        assert {p.dtype for p in model.parameters()} == {torch.float8_e4m3fn}
