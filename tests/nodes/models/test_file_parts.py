"""What a file says of its text encoders, its VAE and its metadata: checked, named where wrong, kept when saved."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmdit_core.checkpoints.header import SETTINGS
from tests.nodes.models.test_model_patcher import ksampler

T5 = "text_encoders.t5xxl.transformer."
CLIP_L = "text_encoders.clip_l.transformer.text_model."
VAE = "first_stage_model."


@pytest.fixture(scope="module")
def small(pack):
    """The shipped file: its path, tensors and metadata."""
    path = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.folders"].SHIPPED / "mmdit-small.safetensors"
    with safe_open(path, framework="pt") as file:
        return path, load_file(path), file.metadata()


def read_header(pack, path):
    return sys.modules[f"{pack.__name__}.mmdit_core.checkpoints.header"].read_header(path)


def loading(pack, name: str):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.loading.{name}"]


def without(name: str) -> Callable:
    return lambda state, metadata: state.pop(name)


def put(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    return lambda state, metadata: state.update({name: change(state[name])})


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(-1)[-1] = value
        return tensor

    return change


def one_row_less(tensor):
    return tensor[:-1].clone()


WRONG_PARTS = {
    "CLIP-L without a tensor": (
        without(f"{CLIP_L}encoder.layers.0.mlp.fc1.bias"),
        rf"1 tensor is missing in its text encoders: {CLIP_L}encoder\.layers\.0\.mlp\.fc1\.bias",
    ),
    "T5 without a tensor": (
        without(f"{T5}encoder.block.1.layer.1.DenseReluDense.wo.weight"),
        r"1 tensor is missing .*t5xxl.*wo\.weight",
    ),
    "T5 of a wrong shape": (
        put(f"{T5}encoder.block.0.layer.0.SelfAttention.q.weight", one_row_less),
        r"wrong shape in its text encoders: .*SelfAttention\.q\.weight is \[\d+, \d+\], expected",
    ),
    "whole numbers": (
        put(f"{CLIP_L}encoder.layers.0.mlp.fc1.bias", lambda tensor: tensor.to(torch.int32)),
        r"unsupported dtype in its text encoders: .*fc1\.bias is int32",
    ),
    "a NaN in T5": (
        put(f"{T5}encoder.final_layer_norm.weight", filled(float("nan"))),
        r"t5xxl.*final_layer_norm\.weight of its text encoders holds values that are not finite",
    ),
    "an infinity in CLIP-L": (
        put(f"{CLIP_L}final_layer_norm.weight", filled(float("inf"))),
        r"final_layer_norm\.weight of its text encoders holds values that are not finite",
    ),
    "VAE without a tensor": (
        without(f"{VAE}taesd_decoder.1.bias"),
        r"first_stage_model\.taesd_decoder\.1\.bias|VAE.*missing",
    ),
    "a NaN in the VAE": (
        put(f"{VAE}taesd_decoder.1.weight", filled(float("nan"))),
        r"taesd_decoder\.1\.weight of its VAE .*finite",
    ),
    "VAE of a wrong shape": (
        put(f"{VAE}taesd_decoder.1.bias", one_row_less),
        r"VAE.*taesd_decoder\.1\.bias|wrong shape",
    ),
}


def test_a_cancel_ends_the_loading_of_text_encoders_between_two_tokenizers(pack, small, monkeypatch):
    made, original = [], comfy.sd1_clip.SDTokenizer.__init__

    def note(self, *args, **kwargs):
        made.append(self)
        comfy.model_management.interrupt_current_processing()
        original(self, *args, **kwargs)

    monkeypatch.setattr(comfy.sd1_clip.SDTokenizer, "__init__", note)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        loading(pack, "clip_vae").load_clip(small[0])
    assert len(made) == 1


@pytest.mark.parametrize(("part", "loaded"), [("load_model", []), ("load_clip", ["load_model"])])
def test_a_cancel_ends_the_loading_of_a_file_between_its_parts(pack, monkeypatch, part, loaded):
    loader, done = sys.modules[f"{pack.__name__}.nodes.loader"], []

    def wrap(name, original):
        def load(*args, **kwargs):
            result = original(*args, **kwargs)
            if name == part:
                comfy.model_management.interrupt_current_processing()
            else:
                done.append(name)
            return result

        return load

    monkeypatch.setattr(loader, "load_model", wrap("load_model", loader.load_model))
    for name in ("load_clip", "load_vae"):
        monkeypatch.setattr(loader.clip_vae, name, wrap(name, getattr(loader.clip_vae, name)))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        loader.MMDiTLoader().load("mmdit-small.safetensors", "default")
    assert done == loaded


@pytest.mark.parametrize("case", WRONG_PARTS)
def test_a_part_that_is_not_whole_is_refused_by_name(pack, small, tmp_path, case):
    _, state, metadata = small
    change, words = WRONG_PARTS[case]
    state = dict(state)
    change(state, metadata)
    save_file(state, tmp_path / "x.safetensors", metadata)
    header = read_header(pack, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x\.safetensors: .*({words})"):
        loading(pack, "clip_vae").load_clip(header)
        loading(pack, "clip_vae").load_vae(header)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_nan_in_float8_is_found(pack, dtype):
    finite = loading(pack, "part_checks").is_finite
    values = torch.linspace(-400, 400, 100).to(dtype)
    assert finite(values)
    assert not finite(torch.cat((values.float(), torch.tensor([float("nan")]))).to(dtype))


WRONG_METADATA = {
    "mmdit.shift": ("x", "", "nan", "inf", "0", "-2", "1e999"),
    "mmdit.text": ("null", "{", "{}", "[]", '{"clip_l": 1}', "[" * 5000, '{"clip_l": {"hidden_size": "x"}}'),
    "mmdit.latent_rgb_factors": (
        "{}",
        "null",
        '{"factors": [[1, 2, 3]], "bias": [0, 0, 0]}',
        '{"factors": [[1, 2]], "bias": 3}',
        '{"factors": 7, "bias": [0, 0, 0]}',
        '{"factors":' * 3000,
        '{"factors": [], "bias": [0, 0, null]}',
    ),
    "mmdit.config": ("{", "null", '{"num_heads": 7}', '{"num_heads": true}'),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_METADATA.items() for value in values])
def test_metadata_that_cannot_be_used_is_refused_by_file_and_key(pack, small, tmp_path, key, value):
    _, state, metadata = small
    keep = {name: tensor for name, tensor in state.items() if not name.endswith((".ln_q.weight", ".ln_k.weight"))}
    # The number of heads is read from the metadata only where no shape gives it.
    save_file(keep if key == "mmdit.config" else state, tmp_path / "x.safetensors", {**metadata, key: value})
    header = read_header(pack, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"x\.safetensors: the metadata {key} ") as caught:
        loading(pack, "model").load_model(header)
        loading(pack, "clip_vae").load_clip(header)
    assert len(str(caught.value)) < 800


@pytest.mark.floor
@pytest.mark.parametrize("how", ["save", "merge"])
def test_a_saved_model_gives_the_same_image_when_it_is_loaded_again(pack, small, tmp_path, how, monkeypatch):
    """Its shift, the colours of its previews and its text encoders' sizes stand in the metadata, which saving drops."""
    import comfy_extras.nodes_model_merging as merging

    path, _, metadata = small
    header = read_header(pack, path)
    model = loading(pack, "model").load_model(header)
    clip, vae = loading(pack, "clip_vae").load_clip(header), loading(pack, "clip_vae").load_vae(header)
    if how == "merge":
        model = merging.ModelMergeSimple().merge(model, loading(pack, "model").load_model(header), 0.5)[0]
    comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), model, clip, vae)
    saved = read_header(pack, tmp_path / "saved.safetensors")
    for key in ("mmdit.shift", "mmdit.latent_rgb_factors", "mmdit.text"):
        assert saved.metadata[key] == metadata[key]
    again = loading(pack, "model").load_model(saved)
    assert again.model.model_sampling.shift == model.model.model_sampling.shift == float(metadata["mmdit.shift"])
    assert again.model.latent_format.latent_rgb_factors == model.model.latent_format.latent_rgb_factors
    if how == "save":
        widths = model.model.diffusion_model.config
        context, y = torch.randn(1, 20, widths.context_dim), torch.randn(1, widths.pooled_dim)
        x, t = torch.randn(1, widths.in_channels, 8, 8), torch.tensor([0.5])
        with torch.no_grad():
            outs = [each.model.apply_model(x, t, c_crossattn=context, y=y) for each in (model, again)]
        assert torch.equal(*outs)
    tokens = clip.tokenize("three red circles")
    assert torch.equal(
        loading(pack, "clip_vae").load_clip(saved).encode_from_tokens(tokens), clip.encode_from_tokens(tokens)
    )
    latent = torch.randn(1, 16, 4, 4)
    assert torch.equal(loading(pack, "clip_vae").load_vae(saved).decode(latent), vae.decode(latent))


def test_the_settings_tensor_is_metadata_and_no_tensor_and_refused_if_damaged(pack, tiny_file, tmp_path):
    state = load_file(tiny_file)
    text = torch.tensor(list(json.dumps({"mmdit.shift": "4"}).encode()), dtype=torch.uint8)
    save_file(state | {SETTINGS: text}, tmp_path / "a.safetensors")
    assert read_header(pack, tmp_path / "a.safetensors").metadata["mmdit.shift"] == "4"
    assert SETTINGS not in read_header(pack, tmp_path / "a.safetensors").tensors
    save_file(state | {SETTINGS: text}, tmp_path / "b.safetensors", {"mmdit.shift": "5"})
    assert read_header(pack, tmp_path / "b.safetensors").metadata["mmdit.shift"] == "5"  # what the file itself says
    for number, damaged in enumerate((text[:-1], torch.zeros(2_000_000, dtype=torch.uint8), text + 1)):
        path = tmp_path / f"{number}.safetensors"
        save_file(state | {SETTINGS: damaged.clone()}, path)
        with pytest.raises(ValueError, match="the tensor mmdit.settings cannot be read"):
            read_header(pack, path)


def test_a_loaded_file_may_be_overwritten_in_place(pack, tiny_file, tmp_path):
    """ComfyUI copies what it does not load dynamically; a mapped file would end the process with SIGBUS."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(tiny_file.read_bytes())
    model = loading(pack, "model").load_model(str(path))
    before = ksampler(model)
    with path.open("r+b") as file:
        file.truncate(100)
    assert torch.equal(ksampler(model), before)


def test_the_number_of_heads_of_a_diffusers_file_is_kept_when_saved(pack, tmp_path):
    """Without QK-norm no shape says it; diffusers writes it into a config.json beside the file."""
    from diffusers import SD3Transformer2DModel

    sizes = dict(sample_size=8, num_layers=2, attention_head_dim=16, num_attention_heads=8, pos_embed_max_size=6)
    widths = dict(joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=32)
    SD3Transformer2DModel(**sizes, **widths).save_pretrained(tmp_path)
    model = loading(pack, "model").load_model(str(tmp_path / "diffusion_pytorch_model.safetensors"))
    assert model.model.diffusion_model.config.num_heads == 8
    (tmp_path / "elsewhere").mkdir()
    comfy.sd.save_checkpoint(str(tmp_path / "elsewhere" / "saved.safetensors"), model)
    again = loading(pack, "model").load_model(str(tmp_path / "elsewhere" / "saved.safetensors"))
    assert again.model.diffusion_model.config == model.model.diffusion_model.config


@pytest.mark.parametrize("disabled", [False, True])
def test_disable_mmap_is_honoured_where_weights_would_stay_mapped(pack, tiny_file, tmp_path, monkeypatch, disabled):
    """ComfyUI loads dynamically on GPUs alone; here its patcher is told so."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(tiny_file.read_bytes())
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "is_dynamic", lambda self: True)
    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", disabled)
    model = loading(pack, "model").load_model(str(path))
    assert (str(path) in Path("/proc/self/maps").read_text()) is not disabled
    del model


def test_surplus_tensors_of_a_part_may_hold_anything(pack, small, tmp_path):
    _, state, metadata = small
    nan = torch.tensor([float("nan")])
    save_file(state | {f"{T5}surplus": nan, f"{VAE}surplus": nan.clone()}, tmp_path / "x.safetensors", metadata)
    header = read_header(pack, tmp_path / "x.safetensors")
    loading(pack, "clip_vae").load_clip(header)
    loading(pack, "clip_vae").load_vae(header)


@pytest.mark.parametrize("absent", [("t5xxl",), ("clip_l",), ("clip_g",), ("clip_l", "clip_g")])
def test_an_encoder_that_a_file_lacks_is_absent_and_not_made_up(pack, small, tmp_path, absent):
    _, state, metadata = small
    left = {name: tensor for name, tensor in state.items() if not any(f".{part}." in name for part in absent)}
    save_file(left, tmp_path / "x.safetensors", metadata)
    outs = []
    for _ in range(2):
        clip = loading(pack, "clip_vae").load_clip(read_header(pack, tmp_path / "x.safetensors"))
        for part in absent:
            assert getattr(clip.cond_stage_model, part) is None
        outs.append(clip.encode_from_tokens(clip.tokenize("three red circles"), return_pooled=True))
    for first, second in zip(*outs, strict=True):
        assert torch.isfinite(first).all() and torch.equal(first, second)


def test_an_encoder_of_sd3s_size_without_its_last_norm_is_refused_and_a_stray_tensor_is_none(pack, tiny_file, tmp_path):
    import comfy.sdxl_clip  # noqa: F401  ComfyUI's classes of the encoders
    from comfy.text_encoders.sd3_clip import SD3ClipModel

    state = load_file(tiny_file)
    model = SD3ClipModel(clip_l=True, clip_g=False, t5=False, dtype=torch.float16)
    encoder = {
        f"text_encoders.{name}": torch.zeros(tensor.shape, dtype=torch.float16)
        for name, tensor in model.state_dict().items()
        if not name.endswith(("logit_scale", "final_layer_norm.weight"))
    }
    save_file(state | encoder, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="missing in its text encoders: .*clip_l.*final_layer_norm.weight"):
        loading(pack, "clip_vae").load_clip(tmp_path / "x.safetensors")
    stray = {f"{CLIP_L}embeddings.position_ids": torch.arange(77)}
    save_file(state | stray, tmp_path / "y.safetensors")
    with pytest.raises(loading(pack, "clip_vae").NoTextEncoders):
        loading(pack, "clip_vae").load_clip(tmp_path / "y.safetensors")


@pytest.mark.parametrize("change", ["missing", "whole numbers", "right"])
def test_a_vae_in_the_diffusers_layout_is_checked_too(pack, tiny_file, tmp_path, change):
    from diffusers import AutoencoderKL

    blocks = dict(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
    )
    vae = AutoencoderKL(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False, **blocks)
    state = {f"{VAE}{name}": tensor.half() for name, tensor in vae.state_dict().items()}
    name = f"{VAE}decoder.up_blocks.1.resnets.0.conv1.weight"
    if change == "missing":
        del state[name]
    elif change == "whole numbers":
        state[name] = state[name].to(torch.int32)
    save_file(load_file(tiny_file) | state, tmp_path / "x.safetensors")
    if change == "right":
        loading(pack, "clip_vae").load_vae(tmp_path / "x.safetensors")
        return
    with pytest.raises(ValueError, match=r"x\.safetensors: .*VAE.*conv1\.weight"):
        loading(pack, "clip_vae").load_vae(tmp_path / "x.safetensors")


WRONG_TEXT = (
    ("clip_l", "num_hidden_layers", 0),
    ("clip_l", "num_attention_heads", 0),
    ("clip_l", "num_attention_heads", 7),
    ("clip_g", "num_attention_heads", None),
    ("clip_l", "num_hidden_layers", 1),
    ("t5xxl", "num_layers", True),
)


@pytest.mark.parametrize(("part", "key", "value"), WRONG_TEXT)
def test_sizes_of_text_encoders_that_cannot_be_are_refused_by_key(pack, small, tmp_path, part, key, value):
    _, state, metadata = small
    configs = json.loads(metadata["mmdit.text"])
    configs[part][key] = value
    save_file(state, tmp_path / "x.safetensors", {**metadata, "mmdit.text": json.dumps(configs)})
    with pytest.raises(ValueError, match=r"x\.safetensors: .*metadata mmdit\.text"):
        loading(pack, "clip_vae").load_clip(tmp_path / "x.safetensors")


def test_comfyui_can_load_the_text_encoders_and_the_vae_again(pack, small):
    path = small[0]
    clip, vae = loading(pack, "clip_vae").load_clip(path), loading(pack, "clip_vae").load_vae(path)
    for patcher in (clip.patcher, vae.patcher):
        rebuild, arguments = patcher.cached_patcher_init
        again = rebuild(*arguments, disable_dynamic=True)
        for name, tensor in patcher.model.state_dict().items():
            unused = name.endswith(loading(pack, "clip_vae").UNUSED)
            assert unused or torch.equal(tensor, again.model.state_dict()[name]), name
