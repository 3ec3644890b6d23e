"""SweepXY on the shipped model in a live ComfyUI."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from scripts.client import ComfyUIError, Interrupted
from tests.nodes.sweep.helpers import BASE, BOOST

SMALL = "mmdit-small.safetensors"


def graph(**changed):
    text = {name: "" for name in ("negative", "clip_l", "clip_g", "t5xxl")}
    strengths = {f"{name}_strength": 1.0 for name in ("clip_l", "clip_g", "t5")}
    prompt = "a red circle on a white background"
    inputs = {
        "model": ["4", 0], "positive": ["2", 0], "negative": ["2", 1], "latent_image": ["3", 0], "vae": ["1", 2],
        "x": "strength", "x_values": "0, 2", "y": "cfg", "y_values": "1, 4", **{**BASE, **changed},
    }  # fmt: skip
    return {
        "1": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": SMALL, "weight_dtype": "default"}},
        "2": {
            "class_type": "TripleTextEncode",
            "inputs": {"clip": ["1", 1], "prompt": prompt, **text, **strengths, "t5_length": "auto", "empty": "encode"},
        },
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "4": {"class_type": "TextBoost", "inputs": {"model": ["1", 0], **BOOST}},
        "5": {"class_type": "SweepXY", "inputs": inputs},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
        "7": {"class_type": "PreviewImage", "inputs": {"images": ["5", 1]}},
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}},
    }


def images_of(comfyui, record, node: str):
    images = comfyui.images({"outputs": {node: record["outputs"][node]}})
    return [Image.open(io.BytesIO(image)).convert("RGB") for image in images]


def test_live_a_grid_of_the_shipped_model_with_previews_is_that_of_the_plain_nodes(comfyui):
    bars, previews = [], []

    def on_event(event):
        if event.kind == "progress" and event.data.get("node") == "5":
            bars.append((event.data["value"], event.data["max"]))
        if event.kind == "preview":
            previews.append(Image.open(io.BytesIO(event.image)).size)

    record = comfyui.run(graph(), on_event=on_event)
    (sheet,), images = images_of(comfyui, record, "6"), images_of(comfyui, record, "7")
    assert bars == sorted(bars) and bars[-1] == (12, 12)
    assert previews and {max(size) for size in previews} == {max(sheet.size)}
    report = json.loads(record["outputs"]["8"]["text"][0])
    assert report["model"].startswith(SMALL) and len(images) == len(report["cells"]) == 4

    plain = graph()
    links = {name: plain["5"]["inputs"][name] for name in ("model", "positive", "negative", "latent_image")}
    plain["5"] = {"class_type": "FlowMatchingSampler", "inputs": {**links, **BASE, "cfg": 4.0}}
    plain["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}}
    plain["7"]["inputs"]["images"] = ["6", 0]
    del plain["8"]
    (expected,) = images_of(comfyui, comfyui.run(plain), "7")
    assert np.array_equal(np.asarray(images[3]), np.asarray(expected))  # strength 2, cfg 4


def test_live_a_cancel_is_quick_and_keeps_the_finished_images(comfyui):
    first = graph(seed=11, steps=8, x_values="0-2 (5)")
    with comfyui.events() as events:
        prompt_id, cancelled = comfyui.queue(first, client_id=events.client_id), False
        for event in events.until_done(prompt_id, timeout=120):
            if event.kind == "progress" and event.data.get("node") == "5" and event.data["value"] > 8 and not cancelled:
                comfyui.interrupt()
                cancelled = True
    with pytest.raises(Interrupted):
        comfyui.finished(prompt_id)
    values = []

    def on_event(event):
        if event.kind == "progress" and event.data.get("node") == "5":
            values.append(event.data["value"])

    comfyui.run(graph(seed=11, steps=8, x_values="0"), on_event=on_event)
    assert values[0] >= 8 and values[-1] == 16  # the bar starts after the finished image of the first run


def test_live_a_wrong_value_is_named_with_its_input(comfyui):
    with pytest.raises(ComfyUIError, match=r"SweepXY: y_values: cfg: 'four' is not a number. Write numbers such as 1"):
        comfyui.run(graph(y_values="four"))
