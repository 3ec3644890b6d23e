"""FlowInvert on the model that ships: an image given back, and an edit as a graph in a live ComfyUI."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SMALL = Path(__file__).parents[2] / "models" / "mmdit-small.safetensors"
CAPTION, OTHER = "a red circle on a white background", "a blue circle on a white background"


def drawn(side: int = 128) -> torch.Tensor:
    """[1, side, side, 3] in [0, 1]: what CAPTION says."""
    row, column = np.mgrid[:side, :side]
    circle = (row - 70) ** 2 + (column - 52) ** 2 < 30**2
    return torch.from_numpy(np.where(circle[..., None], [0.85, 0.1, 0.1], [1.0, 1.0, 1.0]).astype(np.float32))[None]


@pytest.mark.parametrize("dtype", ["default", "bf16"])
def test_the_image_comes_back_at_50_steps(pack, dtype):
    parts, models, invert, sampling = (
        sys.modules[f"{pack.__name__}.nodes.{name}"]
        for name in ("comfyui.loading.clip_vae", "comfyui.loading.model", "invert", "sampler.node")
    )
    model = models.load_model(str(SMALL), dtype)
    clip, vae = parts.load_clip(str(SMALL)), parts.load_vae(str(SMALL))
    with torch.no_grad():
        text = clip.encode_from_tokens_scheduled(clip.tokenize(CAPTION))
        latent = {"samples": vae.encode(drawn())}
        (noise,) = invert.FlowInvert().invert(model, text, latent, 50, "leapfrog", 0.0)
        back, *_ = sampling.FlowMatchingSampler().sample(model, text, text, noise, steps=50, cfg=1.0, solver="leapfrog")
        reconstructed, returned = (vae.decode(each["samples"]).clamp(0, 1) for each in (latent, back))
        dissolved = vae.decode(noise["samples"]).clamp(0, 1)

    def psnr(picture) -> float:
        return -10 * math.log10(max((picture - reconstructed).square().mean().item(), 1e-15))

    assert psnr(returned) >= (60 if dtype == "default" else 35)
    assert psnr(dissolved) < 20


@pytest.fixture(scope="module")
def live(comfyui):
    """The server, with `drawn` as the image that graphs load."""
    pixels = (drawn()[0].numpy() * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(comfyui.base / "input" / "drawn.png")
    return comfyui


def graph(**sampler):
    def text(prompt: str):
        return {
            "class_type": "TripleTextEncode",
            "inputs": {
                "clip": ["1", 1], "prompt": prompt, "negative": "", "clip_l": "", "clip_g": "", "t5xxl": "",
                "clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0, "t5_length": "auto",
                "empty": "encode",
            },
        }  # fmt: skip

    return {
        "1": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": SMALL.name, "weight_dtype": "default"}},
        "2": text(CAPTION),
        "3": text(OTHER),
        "4": {"class_type": "LoadImage", "inputs": {"image": "drawn.png"}},
        "5": {"class_type": "VAEEncode", "inputs": {"pixels": ["4", 0], "vae": ["1", 2]}},
        "6": {
            "class_type": "FlowInvert",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "latent_image": ["5", 0], "steps": 8, "solver": "leapfrog",
                "shift": 0.0,
            },
        },
        "7": {
            "class_type": "FlowMatchingSampler",
            "inputs": {
                "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["6", 0], "seed": 3,
                "steps": 8, "cfg": 1.0, "solver": "leapfrog", "schedule": "linear", "shift": 0.0, "denoise": 1.0,
                **sampler,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}},
    }  # fmt: skip


def picture(comfyui, prompt) -> np.ndarray:
    """The first image of a graph, [H, W, 3] in 0..255."""
    return np.asarray(Image.open(io.BytesIO(comfyui.images(comfyui.run(prompt))[0])).convert("RGB")).astype(float)


def source(comfyui) -> np.ndarray:
    """The drawn image through the VAE."""
    prompt = graph()
    prompt["8"]["inputs"]["samples"] = ["5", 0]
    return picture(comfyui, prompt)


def test_the_same_prompt_gives_the_image_back_with_any_seed(live):
    assert np.abs(picture(live, graph(seed=77)) - source(live)).max() <= 1


BLOCK_PROMPT = {
    "class_type": "BlockPrompt",
    "inputs": {"model": ["1", 0], "conditioning": ["3", 0], "blocks": "2-5", "start_percent": 0.0, "end_percent": 1.0},
}
TEXT_BOOST = {
    "class_type": "TextBoost",
    "inputs": {
        "model": ["1", 0], "blocks": "all", "strength": 1.5, "mode": "attention", "phrase": "blue", "part": "all",
        "branch": "both", "start_percent": 0.0, "end_percent": 1.0, "fade": "constant",
    },
}  # fmt: skip


@pytest.mark.parametrize("control", [BLOCK_PROMPT, TEXT_BOOST], ids=["BlockPrompt", "TextBoost"])
def test_another_prompt_with_a_block_control_edits_it(live, control):
    prompt = graph(model=["10", 0], positive=["3", 0])
    prompt["10"] = control
    edited = picture(live, prompt)
    assert edited.shape == (128, 128, 3)  # a value that is not finite would have ended the run
    assert np.abs(edited - source(live)).max() > 30  # somewhere in the image it shows


def test_progress_and_previews_come_step_by_step(live):
    prompt, steps, previews = graph(), [], []
    prompt["6"]["inputs"]["steps"] = 9  # not what the tests before it ran, which the server would not run again
    with live.events() as events:
        prompt_id = live.queue(prompt, client_id=events.client_id, extra={"extra_data": {"preview_method": "auto"}})
        node = None
        for event in events.until_done(prompt_id, timeout=120):
            if event.kind == "progress":
                node = event.data.get("node")
                if node == "6":
                    steps.append((event.data["value"], event.data["max"]))
            if event.kind == "preview" and node == "6":
                previews.append(Image.open(io.BytesIO(event.image)).size)
    assert steps == sorted(set(steps)) and steps[-1] == (9, 9) and len(steps) >= 3
    assert previews and all(min(size) > 1 for size in previews)
