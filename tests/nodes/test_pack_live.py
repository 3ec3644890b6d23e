"""The pack in a live ComfyUI, over HTTP, with the model that is included."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from scripts.client import ComfyUIError, Interrupted
from scripts.workflow import to_prompt

ROOT = Path(__file__).parents[2]
SMALL = "mmdit-small.safetensors"
PROMPT = "two green squares above a yellow circle on a black background"


def graph(**sampler):
    """The quickstart's graph in API form; keyword arguments change the sampler's inputs."""
    return {
        "1": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": SMALL, "weight_dtype": "default"}},
        "2": {
            "class_type": "TripleTextEncode",
            "inputs": {
                "clip": ["1", 1], "prompt": PROMPT, "negative": "", "clip_l": "", "clip_g": "", "t5xxl": "",
                "clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0, "t5_length": "auto",
                "empty": "encode",
            },
        },
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {
            "class_type": "FlowMatchingSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["3", 0], "seed": 3,
                "steps": 6, "cfg": 4.5, "solver": "euler", "schedule": "linear", "shift": 0.0, "denoise": 1.0,
                **sampler,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip


def image_of(comfyui, prompt, **kwargs) -> np.ndarray:
    """Run a graph; its first image as [H, W, 3] floats in 0..255."""
    images = comfyui.images(comfyui.run(prompt, **kwargs))
    return np.asarray(Image.open(io.BytesIO(images[0])).convert("RGB")).astype(float)


def changed(prompt, node: str, **inputs):
    prompt = copy.deepcopy(prompt)
    prompt[node]["inputs"].update(inputs)
    return prompt


def test_the_quickstart_workflow_runs_and_its_image_is_not_noise(comfyui):
    workflow = json.loads((ROOT / "workflows" / "quickstart.json").read_text(encoding="utf-8"))
    image = image_of(comfyui, to_prompt(workflow, comfyui.object_info()))
    assert image.shape == (128, 128, 3)
    assert image.std() > 20
    roughness = np.abs(np.diff(image, axis=1)).mean()
    assert roughness < 12  # flat areas with edges; an image of noise has 40 and more


def test_the_same_seed_gives_the_same_image_and_another_seed_another_image(comfyui):
    first, again = image_of(comfyui, graph(seed=3)), image_of(comfyui, changed(graph(seed=3), "6"))
    other = image_of(comfyui, graph(seed=4))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_ksampler_runs_the_loaders_model(comfyui):
    prompt = graph()
    ours = image_of(comfyui, graph(schedule="sd3"))
    prompt["4"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["3", 0], "seed": 3,
            "steps": 6, "cfg": 4.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        },
    }  # fmt: skip
    assert np.abs(image_of(comfyui, prompt) - ours).max() <= 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp8_e4m3fn"])
def test_every_weight_dtype_gives_nearly_the_same_image(comfyui, dtype):
    plain, other = image_of(comfyui, graph()), image_of(comfyui, changed(graph(), "1", weight_dtype=dtype))
    # The file's dtype is fp16, so that only the others lose precision.
    lost = np.abs(plain - other).mean()
    assert (lost < 0.1 if dtype == "fp16" else 0 < lost) and lost < (12 if dtype.startswith("fp8") else 4)


def test_low_denoise_keeps_the_image_and_a_mask_keeps_its_outside(comfyui):
    base = graph()
    base["7"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["5", 0], "vae": ["1", 2]}}
    base["8"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}
    base["9"] = {"class_type": "SetLatentNoiseMask", "inputs": {"samples": ["7", 0], "mask": ["8", 0]}}
    second = {**base["4"]["inputs"], "latent_image": ["9", 0], "seed": 9}
    base["10"] = {"class_type": "FlowMatchingSampler", "inputs": second}
    base["11"] = {"class_type": "VAEDecode", "inputs": {"samples": ["10", 0], "vae": ["1", 2]}}
    base["12"] = {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}}
    base["6"]["inputs"]["images"] = ["12", 0]
    through_vae = image_of(comfyui, base)
    base["6"]["inputs"]["images"] = ["11", 0]
    assert np.abs(image_of(comfyui, base) - through_vae).max() <= 2  # an empty mask: nothing is sampled
    base["10"]["inputs"].update(latent_image=["7", 0], denoise=0.1)
    slight = np.abs(image_of(comfyui, base) - through_vae).mean()
    # Another prompt, because the small model gives nearly the same image for the same one.
    base["13"] = copy.deepcopy(base["2"])
    base["13"]["inputs"]["prompt"] = "four red stars on a white background"
    base["10"]["inputs"].update(denoise=1.0, positive=["13", 0])
    assert slight < np.abs(image_of(comfyui, base) - through_vae).mean()


def test_a_lora_with_sd3_keys_changes_the_image(comfyui):
    import torch

    torch.manual_seed(0)
    name = "lora_unet_joint_blocks_3_x_block_mlp_fc1"
    weights = {f"{name}.lora_up.weight": torch.randn(512, 4), f"{name}.lora_down.weight": torch.randn(4, 128) * 0.3}
    folder = comfyui.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "small-test.safetensors")
    prompt = graph()
    prompt["7"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["1", 0], "lora_name": "small-test.safetensors", "strength_model": 1.0},
    }
    prompt["4"]["inputs"]["model"] = ["7", 0]
    assert np.abs(image_of(comfyui, prompt) - image_of(comfyui, graph())).mean() > 1


def test_previews_and_progress_come_step_by_step(comfyui):
    steps, previews = [], []
    with comfyui.events() as events:
        prompt_id = comfyui.queue(
            graph(seed=21), client_id=events.client_id, extra={"extra_data": {"preview_method": "auto"}}
        )
        for event in events.until_done(prompt_id, timeout=120):
            if event.kind == "progress" and event.data.get("node") == "4":
                steps.append((event.data["value"], event.data["max"]))
            if event.kind == "preview":
                previews.append(Image.open(io.BytesIO(event.image)).size)
    # A busy server leaves out progress messages, but never the last.
    assert steps == sorted(set(steps)) and steps[-1] == (6, 6) and len(steps) >= 3
    assert len(previews) >= 3 and all(min(size) > 1 for size in previews)


def test_texts_on_nodes_go_to_the_client_that_queued_the_run(comfyui):
    with comfyui.events() as other, comfyui.events() as events:
        prompt_id = comfyui.queue(graph(seed=22, steps=2), client_id=events.client_id)
        texts = [event.image for event in events.until_done(prompt_id, timeout=120) if event.kind == "binary_3"]
        assert any(b"model calls" in text for text in texts)
        comfyui.post("/prompt", {"prompt": graph(seed=23, steps=2)})  # a client without an id
        # The server reports its queue to everyone; both runs are over when the queue is empty again.
        kinds, left = [], 1
        while left or comfyui.get("/queue")["queue_running"]:
            event = other.next()
            kinds.append(event.kind)
            left = event.data["status"]["exec_info"]["queue_remaining"] if event.kind == "status" else left
    assert "binary_3" not in kinds and "status" in kinds


def test_a_run_can_be_cancelled_and_the_graph_runs_again(comfyui):
    reached, cancelled = 0, False
    with comfyui.events() as events:
        prompt_id = comfyui.queue(graph(steps=1000, seed=31), client_id=events.client_id)
        for event in events.until_done(prompt_id, timeout=180):
            if event.kind == "progress" and event.data.get("node") == "4":
                reached = max(reached, event.data["value"])
                if reached >= 3 and not cancelled:
                    comfyui.interrupt()
                    cancelled = True
    with pytest.raises(Interrupted):
        comfyui.finished(prompt_id)
    assert 3 <= reached < 500
    assert image_of(comfyui, graph(seed=3)).std() > 20


def test_an_image_that_is_too_large_is_a_named_error_and_the_graph_runs_after_the_fix(comfyui):
    with pytest.raises(ComfyUIError, match=r"FlowMatchingSampler.*1024 x 1024 pixels.*at most 384 x 384"):
        comfyui.run(changed(graph(), "3", width=1024, height=1024))
    assert image_of(comfyui, graph(seed=5)).shape == (128, 128, 3)


def test_comfyuis_own_sampler_raises_this_error_too(comfyui):
    prompt = changed(graph(), "3", width=1024, height=1024)
    sampler = {
        key: value for key, value in graph()["4"]["inputs"].items() if key not in ("solver", "schedule", "shift")
    }
    prompt["4"] = {"class_type": "KSampler", "inputs": {**sampler, "sampler_name": "euler", "scheduler": "normal"}}
    with pytest.raises(ComfyUIError, match=r"KSampler.*1024 x 1024 pixels.*384 x 384"):
        comfyui.run(prompt)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("clip", r"holds no text encoders.*TripleCLIPLoader.*clip_g\.safetensors.*models/text_encoders"),
        ("vae", r"holds no VAE.*VAELoader.*sd3_vae\.safetensors.*models/vae"),
    ],
)
def test_a_missing_clip_or_vae_raises_on_use_and_names_the_loader_that_provides_it(comfyui, part, words):
    from safetensors import safe_open

    folder = comfyui.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "transformer-only.safetensors"
    if not path.exists():
        with safe_open(ROOT / "models" / SMALL, "pt") as file:
            names = [name for name in file.keys() if name.startswith("model.diffusion_model.")]
            save_file({name: file.get_tensor(name) for name in names}, path, metadata=file.metadata())
    prompt = graph(seed=12)
    prompt["20"] = {"class_type": "MMDiTLoader", "inputs": {"checkpoint": path.name, "weight_dtype": "default"}}
    prompt["4"]["inputs"]["model"] = ["20", 0]
    assert (
        image_of(comfyui, prompt).std() > 20
    )  # the transformer alone is enough if CLIP and VAE come from another file
    node, key, slot = {"clip": ("2", "clip", 1), "vae": ("5", "vae", 2)}[part]
    prompt[node]["inputs"][key] = ["20", slot]
    with pytest.raises(ComfyUIError, match=words):
        comfyui.run(prompt)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pickled.safetensors", b"\x80\x02}q\x00.", "pickle"),
        ("truncated.safetensors", None, "truncated|shorter|ends"),
        ("page.safetensors", b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML|web page"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error_with_the_reason(comfyui, name, content, words):
    folder = comfyui.base / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes((ROOT / "models" / SMALL).read_bytes()[:1_000_000] if content is None else content)
    with pytest.raises(ComfyUIError, match=rf"(?s)MMDiTLoader.*{name}.*({words})"):
        comfyui.run(changed(graph(), "1", checkpoint=name))


def test_every_input_of_every_node_has_a_tooltip_and_every_node_a_description(comfyui):
    ours = {
        name: info for name, info in comfyui.object_info().items() if info["python_module"].startswith("custom_nodes")
    }
    assert {"MMDiTLoader", "TripleTextEncode", "FlowMatchingSampler", "MMDiTSampler"} <= set(ours)
    for name, info in ours.items():
        assert info["description"] and info["output_tooltips"], name
        for group in ("required", "optional"):
            for key, spec in info["input"].get(group, {}).items():
                assert len(spec) > 1 and spec[1].get("tooltip"), f"{name}.{key}"
