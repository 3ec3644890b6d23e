"""Draw the graphs of the published models' workflows: thumbnails of the template browser, and images of the docs.

    python -m scripts.graph_images [name ...]

They show graphs, not results: no weights of these models come with the pack.
"""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from scripts import browser
from scripts.console import UserError, say
from scripts.environment import ROOT
from scripts.server import temporary_server
from scripts.workflow import to_prompt
from scripts.workflow_specs import WORKFLOWS

FOLDER = ROOT / "workflows"
LARGE = [spec.name for spec in WORKFLOWS if not spec.small]
# Workflow -> its image in the docs.
SHOWN = {
    "z-image-turbo": ROOT / "docs" / "graph-z-image.jpg",
    "z-image-analysis": ROOT / "web" / "docs" / "graph-z-image.jpg",
    "flux1-dev": ROOT / "web" / "docs" / "graph-flux.jpg",
    "qwen-image": ROOT / "web" / "docs" / "graph-qwen-image.jpg",
    "sd35-medium": ROOT / "web" / "docs" / "graph-sd35.jpg",
}
# Widget of a loader -> the folder of its files; empty ones are made there, so that no node is drawn as broken.
FILES = {
    "checkpoint": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "vae_name": "vae",
}
# Part of a file's name -> the names and numbers of its blocks' tensors, by which the strip counts them.
BLOCKS = {
    "z_image": {
        "noise_refiner.{}.attention.qkv": 2,
        "context_refiner.{}.attention.qkv": 2,
        "layers.{}.attention.qkv": 30,
    },
    "flux1": {"double_blocks.{}.img_attn.qkv": 19, "single_blocks.{}.linear1": 38},
    "qwen_image": {"transformer_blocks.{}.img_mod.1": 60},
    "krea2": {"blocks.{}.attn.wq": 28, "txtfusion.projector": 1},
    "sd3.5_medium": {"joint_blocks.{}.x_block.attn.qkv": 24},
    "sd3.5_large": {"joint_blocks.{}.x_block.attn.qkv": 38},
}
WINDOW = (2000, 1200)
THUMBNAIL, WIDTH, QUALITY = (480, 300), 1400, 82
SETTINGS = {
    **browser.SETTINGS,
    "Comfy.VueNodes.Enabled": True,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Sidebar.Size": "small",
}
# The graph fills the window; the box of its nodes there, in pixels.
FIT = """async () => {
    const nodes = app.graph._nodes;
    const edges = nodes.map((node) => node.getBounding());
    const left = Math.min(...edges.map((box) => box[0])) - 20;
    const top = Math.min(...edges.map((box) => box[1])) - 20;
    const right = Math.max(...edges.map((box) => box[0] + box[2])) + 20;
    const bottom = Math.max(...edges.map((box) => box[1] + box[3])) + 20;
    const area = app.canvas.canvas.getBoundingClientRect();
    const room = [area.width - 140, area.height - 220];
    const scale = Math.min(1, room[0] / (right - left), room[1] / (bottom - top));
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [80 / scale - left, 110 / scale - top];
    app.canvas.setDirty(true, true);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    return { x: area.left + 80, y: area.top + 110, width: (right - left) * scale, height: (bottom - top) * scale };
}"""


def make_files(base: Path, workflow: dict, info: dict) -> None:
    """Write the headers of the files that a workflow names, and its images, into the folders of a ComfyUI."""
    for node in workflow["nodes"]:
        for values in to_prompt({**workflow, "nodes": [{**node, "inputs": []}], "links": []}, info).values():
            for name, value in values["inputs"].items():
                if name in FILES:
                    path = base / "models" / FILES[name] / value
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(header_of(value))
                elif name == "image":
                    Image.new("RGB", (512, 512), (96, 110, 124)).save(base / "input" / value)


def header_of(name: str) -> bytes:
    """A file with the blocks of the model that its name says."""
    kinds = next((kinds for part, kinds in BLOCKS.items() if part in name), {})
    return empty_tensors(f"{kind.format(index)}.weight" for kind, count in kinds.items() for index in range(count))


def empty_tensors(tensors: Iterable[str]) -> bytes:
    """A safetensors file of tensors without data. Args: tensors, their names."""
    entries = {tensor: {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for tensor in tensors}
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def graph(page: Page, path: Path) -> Image.Image:
    """The graph of a workflow file, drawn in the open page."""
    page.evaluate("(data) => app.loadGraphData(data)", json.loads(path.read_text(encoding="utf-8")))
    page.wait_for_timeout(1500)
    page.evaluate(FIT)  # Nodes 2.0 measures its nodes once they are drawn
    return Image.open(io.BytesIO(page.screenshot(clip=page.evaluate(FIT)))).convert("RGB")


def main(names: list[str]) -> None:
    """Write the images of the workflows with these names, or all."""
    executable = browser.find()
    if executable is None:
        raise UserError("No Chromium, Chrome or Edge was found.")
    with temporary_server("graphs") as server, sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        server.client.post("/settings", SETTINGS)
        info = server.client.object_info()
        for name in names or LARGE:
            make_files(server.base, json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")), info)
        page = window.new_page(viewport={"width": WINDOW[0], "height": WINDOW[1]})
        page.goto(server.url)
        page.wait_for_function(browser.READY, timeout=180_000)
        for name in names or LARGE:
            image = graph(page, FOLDER / f"{name}.json")
            targets = {FOLDER / f"{name}.jpg": THUMBNAIL, SHOWN.get(name): (WIDTH, WIDTH)}
            for target, size in targets.items():
                if target is None:
                    continue
                small = image.copy()
                small.thumbnail(size, Image.Resampling.LANCZOS)
                small.save(target, quality=QUALITY)
                say(str(target))
        window.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"\n{error}")
