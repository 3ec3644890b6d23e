"""Block controls together with other nodes' patches, in a live ComfyUI on the model that ships."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scripts.client import Interrupted

SMALL = "mmdit-small.safetensors"
PROMPT = "two green squares above a yellow circle on a black background"


def graph(steps: int = 6, seed: int = 3):
    """Loader, prompts, sampler, decoder, image in API form; more nodes go between the loader and the sampler."""
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
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 1}},
        "4": {
            "class_type": "FlowMatchingSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["3", 0], "seed": seed,
                "steps": steps, "cfg": 4.0, "solver": "euler", "schedule": "linear", "shift": 0.0, "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip


def skip(source, blocks="2", branch="both"):
    inputs = {"model": source, "blocks": blocks, "branch": branch, "start_percent": 0.0, "end_percent": 1.0}
    return {"class_type": "BlockSkip", "inputs": inputs}


def boost(source, blocks="1-3"):
    inputs = {
        "model": source, "blocks": blocks, "strength": 2.0, "mode": "attention", "phrase": "green squares",
        "part": "all", "branch": "both", "start_percent": 0.0, "end_percent": 1.0, "fade": "constant",
    }  # fmt: skip
    return {"class_type": "TextBoost", "inputs": inputs}


def slg(source):
    inputs = {
        "model": source, "double_layers": "4", "single_layers": "", "scale": 2.5, "start_percent": 0.0,
        "end_percent": 1.0, "rescaling_scale": 0.0,
    }  # fmt: skip
    return {"class_type": "SkipLayerGuidanceDiT", "inputs": inputs}


def easy_cache(source):
    inputs = {
        "model": source, "reuse_threshold": 2.0, "start_percent": 0.1, "end_percent": 0.95, "verbose": False,
    }  # fmt: skip
    return {"class_type": "EasyCache", "inputs": inputs}


def lora(source):
    inputs = {"model": source, "lora_name": "controls-test.safetensors", "strength_model": 1.0}
    return {"class_type": "LoraLoaderModelOnly", "inputs": inputs}


def chained(*nodes, **settings):
    """The graph with nodes, each a function of the MODEL before it, on the way to the sampler."""
    prompt, source = graph(**settings), ["1", 0]
    for number, node in enumerate(nodes):
        prompt[f"m{number}"] = node(source)
        source = [f"m{number}", 0]
    prompt["4"]["inputs"]["model"] = source
    return prompt


def image_of(comfyui, prompt) -> np.ndarray:
    """Run a graph; its first image as [H, W, 3] floats in 0..255."""
    images = comfyui.images(comfyui.run(prompt))
    return np.asarray(Image.open(io.BytesIO(images[0])).convert("RGB")).astype(float)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether anything changed: two runs of one graph are the same to the bit, so any pixel tells."""
    return not np.array_equal(a, b)


@pytest.fixture(scope="module")
def lora_file(comfyui):
    torch.manual_seed(0)
    name = "lora_unet_joint_blocks_3_x_block_mlp_fc1"
    weights = {f"{name}.lora_up.weight": torch.randn(512, 4), f"{name}.lora_down.weight": torch.randn(4, 128) * 0.3}
    folder = comfyui.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "controls-test.safetensors")


@pytest.mark.parametrize("other", [slg, easy_cache, lora], ids=lambda node: node.__name__)
@pytest.mark.parametrize("control", [skip, boost], ids=lambda node: node.__name__)
def test_a_control_and_another_node_both_act_in_either_order_and_leave_the_model_alone(
    comfyui, lora_file, control, other
):
    steps = 10 if other is easy_cache else 6  # EasyCache needs a few steps before it leaves one out
    plain = image_of(comfyui, chained(steps=steps))
    alone = [image_of(comfyui, chained(node, steps=steps)) for node in (control, other)]
    both = image_of(comfyui, chained(control, other, steps=steps))
    assert all(differ(both, one) for one in (plain, *alone)) and all(differ(plain, one) for one in alone)
    assert np.array_equal(both, image_of(comfyui, chained(other, control, steps=steps)))
    assert np.array_equal(plain, image_of(comfyui, chained(steps=steps)))


def test_two_stacked_skips_are_one_skip_of_both(comfyui):
    stacked = image_of(comfyui, chained(lambda m: skip(m, "2"), lambda m: skip(m, "5", "negative")))
    other_way = image_of(comfyui, chained(lambda m: skip(m, "5", "negative"), lambda m: skip(m, "2")))
    assert np.array_equal(stacked, other_way)
    assert np.array_equal(
        image_of(comfyui, chained(lambda m: skip(m, "2"), lambda m: skip(m, "5"))),
        image_of(comfyui, chained(lambda m: skip(m, "2, 5"))),
    )


def test_two_samplers_of_one_graph_keep_their_own_controls(comfyui):
    prompt = graph()
    prompt["7"], prompt["8"] = skip(["1", 0], "2"), boost(["1", 0])
    for model, sampler in (("7", "10"), ("8", "20")):
        prompt[sampler] = copy.deepcopy(prompt["4"])
        prompt[sampler]["inputs"]["model"] = [model, 0]
        prompt[f"{sampler}d"] = {"class_type": "VAEDecode", "inputs": {"samples": [sampler, 0], "vae": ["1", 2]}}
        prompt[f"{sampler}p"] = {"class_type": "PreviewImage", "inputs": {"images": [f"{sampler}d", 0]}}
    record = comfyui.run(prompt)
    apart = {"6": graph(), "10p": chained(skip), "20p": chained(boost)}
    for node, alone in apart.items():
        (image,) = comfyui.images({"outputs": {node: record["outputs"][node]}})
        together = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(float)
        assert np.array_equal(together, image_of(comfyui, alone)), node


def test_an_area_acts_together_with_a_control(comfyui):
    def wide(prompt):
        prompt["3"]["inputs"].update(width=128, height=128)
        return prompt

    prompt = wide(chained(skip))
    area = {"conditioning": ["2", 0], "width": 64, "height": 128, "x": 0, "y": 0, "strength": 1.0}
    prompt["9"] = {"class_type": "ConditioningSetArea", "inputs": area}
    prompt["4"]["inputs"]["positive"] = ["9", 0]
    both = image_of(comfyui, prompt)
    assert differ(both, image_of(comfyui, wide(chained(skip))))
    prompt["4"]["inputs"]["model"] = ["1", 0]
    assert differ(both, image_of(comfyui, prompt))


def test_after_a_cancel_the_image_without_the_node_is_the_original(comfyui):
    original = image_of(comfyui, graph(seed=8))
    reached, cancelled = 0, False
    with comfyui.events() as events:
        prompt_id = comfyui.queue(chained(skip, boost, steps=1000, seed=8), client_id=events.client_id)
        for event in events.until_done(prompt_id, timeout=180):
            if event.kind == "progress" and event.data.get("node") == "4":
                reached = max(reached, event.data["value"])
                if reached >= 3 and not cancelled:
                    comfyui.interrupt()
                    cancelled = True
    with pytest.raises(Interrupted):
        comfyui.finished(prompt_id)
    assert 3 <= reached < 500
    # Another seed in between, so that ComfyUI cannot answer from its cache.
    assert differ(image_of(comfyui, graph(seed=9)), original)
    assert np.array_equal(image_of(comfyui, graph(seed=8)), original)
