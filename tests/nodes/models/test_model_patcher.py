"""The MODEL from MMDiTLoader is an ordinary MODEL of ComfyUI: patches, LoRAs, samplers and memory management take it.

Where ComfyUI's own SD3 model can do the same, both run with the same weights and are compared.
"""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_base
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import save_file

from mmdit_core import MMDiT, MMDiTConfig

STEPS = 3


@pytest.fixture(scope="module")
def models(pack, tiny_file):
    """Ours and ComfyUI's own MODEL of the same file."""
    ours = sys_module(pack, "nodes.comfyui.loading.model").load_model(str(tiny_file))
    theirs = comfy.sd.load_diffusion_model(str(tiny_file))
    assert type(theirs.model) is comfy.model_base.SD3
    return SimpleNamespace(ours=ours, theirs=theirs)


def sys_module(pack, name: str):
    import sys

    return sys.modules[f"{pack.__name__}.{name}"]


def conditioning(seed: int):
    torch.manual_seed(seed)
    return [[torch.randn(1, 20, 4096), {"pooled_output": torch.randn(1, 2048)}]]


def ksampler(model, *, sampler="euler", scheduler="simple", cfg=3.0, steps=STEPS, size=(8, 8), batch=1, **kwargs):
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, 5)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, conditioning(1), conditioning(2), latent, seed=5,
        disable_pbar=True, **kwargs,
    )  # fmt: skip


def error(a, b) -> float:
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize("size", [(8, 8), (9, 11)])
def test_ksampler_gives_what_it_gives_on_comfyuis_model(models, size):
    assert error(ksampler(models.ours, size=size), ksampler(models.theirs, size=size)) <= 1e-5


def lora(naming: str):
    """A LoRA on an attention, an MLP and the text's modulation, in one of two namings."""
    torch.manual_seed(3)
    targets = {
        "stability": [
            ("lora_unet_joint_blocks_1_x_block_attn_qkv", 384, 128),
            ("lora_unet_joint_blocks_0_context_block_mlp_fc1", 512, 128),
            ("lora_unet_joint_blocks_1_x_block_adaLN_modulation_1", 768, 128),
        ],
        "diffusers": [
            ("transformer.transformer_blocks.1.attn.to_v", 128, 128),
            ("transformer.transformer_blocks.0.attn.add_v_proj", 128, 128),
            ("transformer.transformer_blocks.0.ff.net.0.proj", 512, 128),
        ],
    }[naming]
    ends = ("lora_up.weight", "lora_down.weight") if naming == "stability" else ("lora_B.weight", "lora_A.weight")
    weights = {}
    for name, rows, columns in targets:
        weights[f"{name}.{ends[0]}"] = torch.randn(rows, 4) * 0.2
        weights[f"{name}.{ends[1]}"] = torch.randn(4, columns) * 0.2
    return weights


@pytest.mark.parametrize("naming", ["stability", "diffusers"])
def test_a_lora_changes_ours_as_it_changes_comfyuis_model(models, naming):
    plain = ksampler(models.ours)
    changed = {}
    for name in ("ours", "theirs"):
        patched, _ = comfy.sd.load_lora_for_models(getattr(models, name), None, lora(naming), 1.0, 0.0)
        assert len(patched.patches) == 3
        changed[name] = ksampler(patched)
    assert error(changed["ours"], changed["theirs"]) <= 1e-5
    assert error(changed["ours"], plain) > 1e-2
    assert torch.equal(ksampler(models.ours), plain)  # the model that came in is as it was


@pytest.mark.parametrize(("depth", "width"), [(3, 128), (1, 128), (2, 192)])
@pytest.mark.parametrize("naming", ["stability", "diffusers"])
def test_a_lora_on_the_last_block_of_a_model_whose_depth_is_not_its_width_through_64(
    pack, tmp_path, depth, width, naming
):
    """ComfyUI computes the width as 64 * depth of its own description, and reads the number of blocks elsewhere."""
    config = MMDiTConfig(hidden_size=width, num_heads=2, depth=depth, pos_embed_max_size=24, qk_norm="rms")
    torch.manual_seed(0)
    core = MMDiT(config).requires_grad_(False)
    for parameter in core.parameters():
        parameter.normal_(std=0.04)
    load = sys_module(pack, "nodes.comfyui.loading.model").load_model
    state = core.state_dict()
    save_file({f"model.diffusion_model.{name}": value for name, value in state.items()}, tmp_path / "plain.safetensors")
    up, down = torch.randn(width, 4) * 0.2, torch.randn(4, width) * 0.2
    state[f"joint_blocks.{depth - 1}.x_block.attn.qkv.weight"][2 * width :] += up @ down  # the values' part
    save_file(
        {f"model.diffusion_model.{name}": value for name, value in state.items()}, tmp_path / "merged.safetensors"
    )
    if naming == "stability":
        name = f"lora_unet_joint_blocks_{depth - 1}_x_block_attn_qkv"
        whole = torch.cat((torch.zeros(2 * width, 4), up))
        weights = {f"{name}.lora_up.weight": whole, f"{name}.lora_down.weight": down}
    else:
        name = f"transformer.transformer_blocks.{depth - 1}.attn.to_v"
        weights = {f"{name}.lora_B.weight": up, f"{name}.lora_A.weight": down}
    plain, merged = (load(str(tmp_path / f"{name}.safetensors")) for name in ("plain", "merged"))
    patched, _ = comfy.sd.load_lora_for_models(plain, None, weights, 1.0, 0.0)
    assert len(patched.patches) == 1
    assert error(ksampler(patched), ksampler(merged)) <= 1e-5
    assert error(ksampler(patched), ksampler(plain)) > 1e-3


def test_the_lora_key_map_is_that_of_comfyuis_own_model(models):
    import comfy.lora

    ours, theirs = (comfy.lora.model_lora_keys_unet(m.model, {}) for m in (models.ours, models.theirs))
    assert ours == theirs and len(ours) > 50


def test_model_sampling_sd3_and_skip_layer_guidance_act_as_on_comfyuis_model(models):
    import comfy_extras.nodes_model_advanced as advanced
    import comfy_extras.nodes_slg as slg

    results = {}
    for name in ("ours", "theirs"):
        model = advanced.ModelSamplingSD3().patch(getattr(models, name), 1.7)[0]
        out = slg.SkipLayerGuidanceDiT.execute(
            model,
            double_layers="1",
            single_layers="",
            scale=2.5,
            start_percent=0.0,
            end_percent=0.9,
            rescaling_scale=0.0,
        )
        results[name] = ksampler(out.result[0])
    assert error(results["ours"], results["theirs"]) <= 1e-5
    assert error(results["ours"], ksampler(models.ours)) > 1e-3


def test_model_merging_and_saving_keep_the_single_file_names(models, tiny_file):
    import comfy_extras.nodes_model_merging as merging

    patched, _ = comfy.sd.load_lora_for_models(models.ours, None, lora("stability"), 1.0, 0.0)
    merged = merging.ModelMergeSimple().merge(models.ours, patched, 0.5)[0]
    assert error(ksampler(merged), ksampler(models.ours)) > 1e-3
    saved = models.ours.state_dict_for_saving()
    written = {name: value for name, value in saved.items() if name.startswith("model.diffusion_model.")}
    original = comfy.utils.load_torch_file(str(tiny_file))
    assert set(written) == set(original)
    assert all(torch.equal(written[name], original[name]) for name in original)


def test_easycache_saves_calls_on_our_model(models):
    import comfy_extras.nodes_easycache as easycache

    calls = []
    handle = models.ours.model.diffusion_model.x_embedder.register_forward_hook(lambda *_: calls.append(1))
    try:
        model = easycache.EasyCacheNode.execute(models.ours, 0.6, 0.1, 0.95, False).result[0]
        ksampler(model, steps=12)
        cached = len(calls)
        ksampler(models.ours, steps=12)
    finally:
        handle.remove()
    assert 0 < cached < len(calls) - cached


def test_controlnet_residuals_reach_the_model(models):
    """ComfyUI passes a ControlNet's residuals to the model in `control`; ours adds them as its own model does."""
    seen = {}
    for name in ("ours", "theirs"):
        model = getattr(models, name)
        core = model.model.diffusion_model
        torch.manual_seed(7)
        given = {
            "x": torch.randn(1, 16, 8, 8),
            "t": torch.tensor([0.7]),
            "c_crossattn": torch.randn(1, 20, 4096),
            "y": torch.randn(1, 2048),
            "control": {"output": [torch.randn(1, 16, 128), torch.randn(1, 16, 128)]},
        }
        with torch.no_grad():
            seen[name] = model.model.apply_model(**given)
        assert core is model.model.diffusion_model
    assert error(seen["ours"], seen["theirs"]) <= 1e-5


@pytest.mark.parametrize(
    ("choice", "held"),
    [
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp8_e4m3fn", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_weight_dtypes_hold_the_weights_and_still_sample(pack, models, tiny_file, choice, held):
    model = sys_module(pack, "nodes.comfyui.loading.model").load_model(str(tiny_file), choice)
    assert model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight.dtype == held
    out = ksampler(model)
    assert torch.isfinite(out).all()
    bound = {"bf16": 0.1, "fp16": 0.02, "fp8_e4m3fn": 0.7, "fp8_e5m2": 1.2}[choice]
    assert 0 < error(out, ksampler(models.ours)) < bound


def test_comfyuis_memory_management_can_load_the_model_again(models):
    rebuild, arguments = models.ours.cached_patcher_init
    again = rebuild(*arguments, disable_dynamic=True)
    assert torch.equal(ksampler(again), ksampler(models.ours))
