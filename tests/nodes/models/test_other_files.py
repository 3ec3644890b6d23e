"""MMDiTLoader on what artists have: other families, other packs' formats, parts alone, any prefix."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import sys

import comfy.ldm.flux.model
import comfy.ops
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.nodes.families.tiny import FAMILIES as TINY
from tests.nodes.families.tiny import FLUX, Tiny, build, network_on_meta, randn

SIZES = dict(hidden_size=256, num_heads=2, axes_dim=[16, 56, 56], vec_in_dim=768, context_in_dim=4096, depth=1)
SMALL_FLUX = Tiny("Flux", {**FLUX, **SIZES, "depth_single_blocks": 1}, (1, 16, 8, 8), text=4096, pooled=768)
# The sizes of published transformers, as their files' shapes give them to ComfyUI.
PUBLISHED = {
    "Z-Image": (
        "Z-Image",
        dict(
            dim=3840,
            n_heads=30,
            n_kv_heads=30,
            n_layers=2,
            cap_feat_dim=2560,
            n_refiner_layers=1,
            axes_dims=[32, 48, 48],
        ),
    ),
    "Qwen-Image": ("Qwen-Image", dict(attention_head_dim=128, num_attention_heads=24, joint_attention_dim=3584)),
    "Krea 2": ("Krea 2", dict(features=6144, heads=48, kvheads=12, layers=2)),
    "FLUX.2": ("FLUX.2", dict(hidden_size=6144, num_heads=48, axes_dim=[32, 32, 32, 32], context_in_dim=15360)),
    "Chroma": (
        "Chroma",
        dict(hidden_size=3072, num_heads=24, context_in_dim=4096, hidden_dim=5120, n_layers=5, axes_dim=[16, 56, 56]),
    ),
}


@pytest.fixture
def node(pack, tmp_path, monkeypatch):
    """MMDiTLoader on the files of a folder: node(name, weight_dtype)."""
    module = sys.modules[f"{pack.__name__}.nodes.loader"]
    monkeypatch.setattr(module.folders, "listed_path", lambda name, folder="": tmp_path / name)
    shown: list[str] = []
    monkeypatch.setattr(module, "show_text", lambda node_id, text: shown.append(text))

    def load(name: str, weight_dtype: str = "default"):
        return module.MMDiTLoader().load(name, weight_dtype, "1")

    load.shown, load.module = shown, module
    return load


@pytest.fixture(scope="module")
def flux():
    """A small FLUX.1 of random weights that ComfyUI's loader reads: its MODEL, state dict, CONDITIONINGs, latent."""
    model, prompt, latent = build(SMALL_FLUX)
    return model, model.model.diffusion_model.state_dict(), (prompt(1), prompt(2)), latent


def sampled(model, prompts, latent):
    noise = randn(tuple(latent.shape), 3)
    return comfy.sample.sample(model, noise, 3, 1.0, "euler", "simple", *prompts, latent, disable_pbar=True)


def write_shapes(path, shapes):
    """A sparse file of zeros, which takes almost no space on the disk."""
    header, position = {}, 0
    for name, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + position)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "module.", "_orig_mod.", "net."])
def test_flux_is_loaded_as_comfyuis_own_model(node, flux, tmp_path, prefix):
    plain, state, prompts, latent = flux
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    model, clip, vae = node("x.safetensors")
    assert type(model.model) is comfy.model_base.Flux and type(model.model.diffusion_model).__name__ == "Flux"
    assert torch.equal(sampled(model, prompts, latent), sampled(plain, prompts, latent))
    assert node.shown == ["FLUX.1: ComfyUI's own MODEL. All nodes of this pack take it."]
    for part, name in ((clip, "CLIP"), (vae, "VAE")):
        with pytest.raises(
            ValueError, match=rf"MMDiTLoader: {name}: x\.safetensors holds none\. .*DualCLIPLoader.*flux"
        ):
            part.anything()


@pytest.mark.floor
def test_the_block_nodes_act_on_what_the_loader_gives(pack, node, flux, tmp_path):
    _, state, prompts, latent = flux
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    model, _, _ = node("x.safetensors")
    skip = pack.NODE_CLASS_MAPPINGS["BlockSkip"]
    arguments = {
        name: options[1]["default"] for name, options in skip.INPUT_TYPES()["required"].items() if name != "model"
    }
    skipped = getattr(skip(), skip.FUNCTION)(model=model, **{**arguments, "blocks": "0", "branch": "both"})[0]
    assert not torch.equal(sampled(skipped, prompts, latent), sampled(model, prompts, latent))


@pytest.mark.parametrize("choice", ["bf16", "fp16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_weight_dtype_acts_on_other_families(node, flux, tmp_path, choice):
    save_file({name: tensor.contiguous() for name, tensor in flux[1].items()}, tmp_path / "x.safetensors")
    weight = node("x.safetensors", choice)[0].model.diffusion_model.double_blocks[0].img_mlp[0].weight
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8_e5m2": torch.float8_e5m2}
    assert weight.dtype == dtypes.get(choice, torch.float8_e4m3fn)


def test_the_shards_of_an_index_are_one_model(node, flux, tmp_path):
    plain, state, prompts, latent = flux
    names = sorted(state)
    shards = {"x-00001-of-00002.safetensors": names[::2], "x-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name].contiguous() for name in held}, tmp_path / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    model, _, _ = node("x-00001-of-00002.safetensors")
    assert torch.equal(sampled(model, prompts, latent), sampled(plain, prompts, latent))
    rebuild, arguments = model.cached_patcher_init
    assert torch.equal(sampled(rebuild(*arguments), prompts, latent), sampled(plain, prompts, latent))


@pytest.mark.floor
def test_a_checkpoint_gives_its_vae_too(pack, node, flux, tmp_path):
    folders = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.folders"]
    small = load_file(folders.SHIPPED / "mmdit-small.safetensors")
    prefix = "first_stage_model."
    vae_state = {f"vae.{name[len(prefix) :]}": tensor for name, tensor in small.items() if name.startswith(prefix)}
    state = {f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in flux[1].items()}
    save_file(state | vae_state, tmp_path / "x.safetensors")
    _, clip, vae = node("x.safetensors")
    expected = comfy.sd.VAE(sd={name.removeprefix("vae."): tensor for name, tensor in vae_state.items()})
    latent = randn((1, 16, 4, 4), 5)
    assert torch.equal(vae.decode(latent), expected.decode(latent))
    with pytest.raises(ValueError, match="CLIP: x.safetensors holds none"):
        clip.tokenize("a")


@pytest.mark.parametrize("label", PUBLISHED)
def test_the_published_sizes_of_each_family_are_recognised(pack, tmp_path, label):
    """By their header alone: the weights are gigabytes."""
    tiny, sizes = PUBLISHED[label]
    network = network_on_meta(Tiny(TINY[tiny].kind, {**TINY[tiny].config, **sizes}, TINY[tiny].latent))
    write_shapes(tmp_path / "x.safetensors", {name: tuple(t.shape) for name, t in network.state_dict().items()})
    other = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.other_models"]
    header = sys.modules[f"{pack.__name__}.mmdit_core.checkpoints.header"].read_header(tmp_path / "x.safetensors")
    kind = other.detect(header)
    assert kind is not None and not kind.renamed and label.split(".")[0] in other.family_label(kind)


SDXL = {
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.label_emb.0.0.weight": (1280, 2816),
}
REFUSED = {
    "a VAE alone": (
        {"decoder.conv_in.weight": (4,), "encoder.conv_in.weight": (4,)},
        "this looks like a VAE alone.*VAELoader",
    ),
    "a text encoder alone": (
        {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)},
        "this looks like a text encoder alone.*CLIPLoader",
    ),
    "a LoRA": ({"lora_unet_joint_blocks_0_x.lora_down.weight": (4, 4)}, "this looks like a LoRA.*LoraLoaderModelOnly"),
    "a ControlNet": ({"controlnet_blocks.0.weight": (4, 4)}, "this looks like a ControlNet.*ControlNetLoader"),
    "Nunchaku": (
        {"transformer_blocks.0.qkv_proj.wscales": (4,), "single_transformer_blocks.0.x": (4,)},
        "quantised for Nunchaku.*ComfyUI-nunchaku.*Flow Matching Sampler takes its MODEL",
    ),
    "bitsandbytes": ({"double_blocks.0.img_attn.qkv.weight.absmax": (4,)}, "bitsandbytes.*nodes of this pack take its"),
    "nothing known": ({"a": (4,), "b": (4,)}, r"unknown architecture \(2 tensors: a, b\).*docs/families\.md"),
    "an SDXL": (SDXL, "SDXL"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_loader_does_not_read_is_refused_with_the_way_out(node, tmp_path, case):
    shapes, words = REFUSED[case]
    write_shapes(tmp_path / "x.safetensors", shapes)
    with pytest.raises(ValueError, match=rf"MMDiTLoader: checkpoint: .*x\.safetensors: .*{words}"):
        node("x.safetensors")


def test_gguf_is_refused_with_the_pack_that_reads_it(node, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ValueError, match=r"GGUF file.*ComfyUI-GGUF.*nodes of this pack take its MODEL"):
        node("x.gguf")


def test_a_model_of_no_known_size_says_that_its_shift_is_a_guess(node, tiny_file, tmp_path):
    state = load_file(tiny_file)
    save_file(state, tmp_path / "x.safetensors")
    save_file(state, tmp_path / "y.safetensors", {"mmdit.shift": "4"})
    node("y.safetensors")
    assert node.shown == []
    node("x.safetensors")
    assert len(node.shown) == 1 and "does not say its shift" in node.shown[0]


def test_surplus_tensors_are_ignored_with_one_line(pack, node, tiny_file, tmp_path, caplog):
    state = load_file(tiny_file)
    last = "model.diffusion_model.joint_blocks.1.context_block"
    extra = {
        "logit_scale": torch.ones(()),
        "vae.decoder.conv_in.weight": torch.ones(3),
        "model.diffusion_model.register": torch.ones(3),
        "lora_unet_x.lora_down.weight": torch.ones(3, 3),
        "model.diffusion_model.num_batches_tracked": torch.tensor(3),
        f"{last}.attn.proj.weight": torch.ones(128, 128),
        f"{last}.mlp.fc1.weight": torch.ones(512, 128),
    }
    save_file(state | extra, tmp_path / "x.safetensors")
    with caplog.at_level(logging.INFO):
        model = node("x.safetensors")[0]
    lines = [record.getMessage() for record in caplog.records if "not needed and ignored" in record.getMessage()]
    assert len(lines) == 1 and "4 tensors" in lines[0]
    for name, tensor in model.model.diffusion_model.state_dict().items():
        assert torch.equal(tensor, state[f"model.diffusion_model.{name}"])


def test_one_read_of_the_header_and_of_each_tensor(pack, node, tmp_path, tiny_file, monkeypatch):
    """Also of a diffusers file, whose qkv are joined."""
    from mmdit_core.checkpoints.keymaps import to_diffusers
    from mmdit_core.checkpoints.load import load_checkpoint

    config, state = load_checkpoint(tiny_file)
    stored = {name: tensor.contiguous() for name, tensor in to_diffusers(state, config).items()}
    save_file(stored, tmp_path / "x.safetensors")
    load = sys.modules[f"{pack.__name__}.mmdit_core.checkpoints.load"]
    headers, reads = [], []
    read_header, read_bytes = node.module.read_header, load.read_bytes
    monkeypatch.setattr(node.module, "read_header", lambda path: headers.append(path) or read_header(path))
    monkeypatch.setattr(load, "read_bytes", lambda info: reads.append(info.start) or read_bytes(info))
    node("x.safetensors")
    assert len(headers) == 1
    assert len(reads) == len(set(reads)) == len(stored)


def test_diffusers_parts_of_different_dtypes_are_joined(node, tmp_path, tiny_file):
    from mmdit_core.checkpoints.keymaps import to_diffusers
    from mmdit_core.checkpoints.load import load_checkpoint

    config, state = load_checkpoint(tiny_file)
    stored = {name: tensor.contiguous() for name, tensor in to_diffusers(state, config).items()}
    name = "transformer_blocks.0.attn.to_q.weight"
    stored[name] = stored[name].to(torch.float8_e4m3fn)
    save_file(stored, tmp_path / "x.safetensors")
    for choice, dtype in (("default", torch.float32), ("fp8_e4m3fn", torch.float8_e4m3fn)):
        weight = node("x.safetensors", choice)[0].model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight
        assert weight.dtype == dtype
        assert torch.equal(weight[:128].float(), stored[name].float())


def test_what_comfyui_cannot_load_is_refused_with_its_reason(node, flux, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in flux[1].items()}
    state["double_blocks.0.img_attn.qkv.weight"] = torch.ones(3, 3)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"MMDiTLoader: checkpoint: .*x\.safetensors: ComfyUI cannot load this model .*size"
    ):
        node("x.safetensors")


def test_tensors_that_a_file_of_another_family_lacks_are_said(node, flux, tmp_path):
    """ComfyUI names them in its log alone and computes with whatever was in memory."""
    state = {name: tensor.contiguous() for name, tensor in flux[1].items()}
    del state["double_blocks.0.img_mlp.2.weight"]
    save_file(state, tmp_path / "x.safetensors")
    node("x.safetensors")
    assert re.search(
        r"not whole, and the image will be wrong: unet missing: .*double_blocks\.0\.img_mlp\.2", node.shown[0]
    )


def test_two_models_in_one_file_give_the_one_that_comfyui_takes(pack, node, tiny_file, tmp_path):
    state = load_file(tiny_file)
    other = {name.removeprefix("model.diffusion_model."): tensor + 1 for name, tensor in state.items()}
    save_file(other | state, tmp_path / "x.safetensors")
    model = node("x.safetensors")[0].model.diffusion_model
    assert torch.equal(model.final_layer.linear.weight, state["model.diffusion_model.final_layer.linear.weight"])


@pytest.mark.parametrize("stray", ["control_model.x", "adaln_single.x", "txt_in.individual_token_refiner.x"])
def test_a_stray_tensor_of_another_model_changes_nothing(node, tiny_file, tmp_path, stray):
    save_file(load_file(tiny_file) | {stray: torch.ones(3)}, tmp_path / "x.safetensors", {"mmdit.shift": "4.5"})
    model = node("x.safetensors")[0]
    assert type(model.model).__name__ == "MMDiTBase" and model.model.model_sampling.shift == 4.5


def test_the_metadata_of_shards_count(node, tiny_file, tmp_path):
    state = load_file(tiny_file)
    names = sorted(state)
    shards = {"x-00001-of-00002.safetensors": names[::2], "x-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: state[name] for name in held}, tmp_path / file, {"mmdit.shift": "4.5"})
    weight_map = {name: file for file, held in shards.items() for name in held}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert node("x-00001-of-00002.safetensors")[0].model.model_sampling.shift == 4.5


@pytest.mark.parametrize("form", ["bare int8", "diffusers int8", "a scale for each row"])
def test_scales_that_comfyui_would_drop_are_refused(pack, node, tiny_file, tmp_path, form):
    from mmdit_core.checkpoints.keymaps import to_diffusers
    from mmdit_core.checkpoints.load import load_checkpoint

    config, state = load_checkpoint(tiny_file)
    layer = "joint_blocks.0.x_block.mlp.fc1"
    if form.startswith("diffusers"):
        state, layer = to_diffusers(state, config), "transformer_blocks.0.ff.net.0.proj"
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    weight = state[f"{layer}.weight"]
    row = weight.abs().amax(1, keepdim=True)
    if form == "a scale for each row":
        state |= {f"{layer}.weight": (weight / row).to(torch.float8_e4m3fn), f"{layer}.weight_scale": row}
    else:
        state |= {f"{layer}.weight": (weight / row * 127).round().to(torch.int8), f"{layer}.weight_scale": row / 127}
    if form.startswith("diffusers"):
        text = json.dumps({"format": "int8_tensorwise"}).encode()
        state[f"{layer}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"MMDiTLoader: checkpoint: .*x\.safetensors: .*(quantised|multiplies float8)"):
        node("x.safetensors")


def test_a_config_json_of_another_model_in_the_folder_is_ignored(node, tmp_path):
    from mmdit_core import MMDiT, MMDiTConfig

    model = MMDiT(MMDiTConfig(hidden_size=128, num_heads=2, depth=1, pos_embed_max_size=8)).requires_grad_(False)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    config = {"_class_name": "SD3Transformer2DModel", "num_attention_heads": 38, "attention_head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert node("x.safetensors")[0].model.diffusion_model.config.num_heads == 2


def test_a_size_that_overflows_is_refused(node, tmp_path):
    header = {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ValueError, match="MMDiTLoader: checkpoint: .*unknown architecture"):
        node("x.safetensors")
