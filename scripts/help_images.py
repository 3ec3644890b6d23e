"""Make the images of the help pages: each node with a few values of its main input, on the included model.

    python -m scripts.help_images [Node ...]

An image is a row of tiles. Each tile is one run of the simplest graph with some inputs changed, as its label says.
"""

from __future__ import annotations

import copy
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from scripts.client import Client
from scripts.console import say
from scripts.environment import ROOT
from scripts.server import temporary_server
from scripts.workflow import Prompt

TARGET = ROOT / "web" / "docs"
TILE, GAP, LABEL, FONT = 176, 8, 40, 13
PROMPT = "three red circles to the left of a blue star on a white background"
OTHER = "three green squares to the left of a yellow triangle on a white background"
RECOLOURED = "three green circles to the left of a blue star on a white background"
SEED = 4
SHOWN_MODELS = ("Qwen-Image", "HunyuanImage 2.1", "FLUX.1 dev", "HunyuanVideo 1.5", "SD3.5 Large", "AuraFlow", "Lens")
Change = Callable[[Prompt], None]


@dataclass(frozen=True)
class Tile:
    """One run: its label (a line break is kept) and what it changes in the graph."""

    label: str
    change: Change = lambda prompt: None


def graph() -> Prompt:
    """Loader, prompts, sampler, decoder and preview, in API format."""
    return {
        "model": {
            "class_type": "MMDiTLoader",
            "inputs": {"checkpoint": "mmdit-small.safetensors", "weight_dtype": "default"},
        },
        "text": {
            "class_type": "TripleTextEncode",
            "inputs": {
                "clip": ["model", 1], "prompt": PROMPT, "negative": "", "clip_l": "", "clip_g": "", "t5xxl": "",
                "clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0, "t5_length": "auto",
                "empty": "encode",
            },
        },
        "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "sampler": {
            "class_type": "FlowMatchingSampler",
            "inputs": {
                "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1],
                "latent_image": ["latent", 0], "seed": SEED, "steps": 28, "cfg": 4.5, "solver": "euler",
                "schedule": "linear", "shift": 0.0, "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
        "image": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }  # fmt: skip


def setting(node: str, **inputs: Any) -> Change:
    """Other inputs for one node of the graph."""
    return lambda prompt: prompt[node]["inputs"].update(inputs)


def control(class_type: str, **inputs: Any) -> Change:
    """A node between the loader and the sampler."""

    def change(prompt: Prompt) -> None:
        window = {"start_percent": 0.0, "end_percent": 1.0}
        prompt["control"] = {"class_type": class_type, "inputs": {"model": ["model", 0], **window, **inputs}}
        prompt["sampler"]["inputs"]["model"] = ["control", 0]

    return change


def plan(speedup: str) -> Change:
    """A speed plan between the loader and the sampler."""

    def change(prompt: Prompt) -> None:
        prompt["plan"] = {"class_type": "SpeedPlan", "inputs": {"model": ["model", 0], "speedup": speedup}}
        prompt["sampler"]["inputs"]["model"] = ["plan", 0]

    return change


def boost(blocks: str, strength: float, mode: str, phrase: str = "") -> Change:
    """A text boost between the loader and the sampler."""
    return control(
        "TextBoost", blocks=blocks, strength=strength, mode=mode, phrase=phrase, part="all", branch="both",
        fade="constant",
    )  # fmt: skip


def add_prompt(prompt: Prompt, key: str, text: str) -> None:
    """Encode another text, with the settings of the first one."""
    prompt[key] = copy.deepcopy(prompt["text"])
    prompt[key]["inputs"]["prompt"] = text


def second_prompt(blocks: str) -> Change:
    """A block prompt between the loader and the sampler."""

    def change(prompt: Prompt) -> None:
        add_prompt(prompt, "other", OTHER)
        control("BlockPrompt", blocks=blocks, conditioning=["other", 0])(prompt)

    return change


def comfyui_sampler(sampler_name: str, scheduler: str) -> Change:
    """ComfyUI's samplers instead of this pack's solvers."""

    def change(prompt: Prompt) -> None:
        kept = {k: v for k, v in prompt["sampler"]["inputs"].items() if k not in ("solver", "schedule", "shift")}
        prompt["sampler"] = {
            "class_type": "MMDiTSampler",
            "inputs": {**kept, "sampler_name": sampler_name, "scheduler": scheduler},
        }

    return change


def inverted(text: str = PROMPT, cfg: float = 1.0) -> Change:
    """The image inverted with its own prompt, then sampled with the same prompt or with another one."""

    def change(prompt: Prompt) -> None:
        prompt["first"] = copy.deepcopy(prompt["sampler"])
        add_prompt(prompt, "edit", text)
        prompt["invert"] = {
            "class_type": "FlowInvert",
            "inputs": {
                "model": ["model", 0], "positive": ["text", 0], "latent_image": ["first", 0], "steps": 28,
                "solver": "leapfrog", "shift": 0.0,
            },
        }  # fmt: skip
        again = {"solver": "leapfrog"} if text == PROMPT else {"solver": "heun", "negative": ["text", 0]}
        prompt["sampler"]["inputs"].update(latent_image=["invert", 0], positive=["edit", 0], cfg=cfg, **again)

    return change


def edited(text: str = "", **values: object) -> Change:
    """The image edited by Flow Edit to another prompt. Args: values, of its inputs."""

    def change(prompt: Prompt) -> None:
        prompt["first"] = copy.deepcopy(prompt["sampler"])
        add_prompt(prompt, "target", text)
        prompt["sampler"] = {
            "class_type": "FlowEdit",
            "inputs": {
                "model": ["model", 0], "source": ["text", 0], "target": ["target", 0], "negative": ["text", 1],
                "latent_image": ["first", 0], "seed": 1, "steps": 28, "edit_steps": 24, "source_cfg": 1.5,
                "target_cfg": 5.5, "shift": 0.0, **values,
            },
        }  # fmt: skip

    return change


def pulled(eta: float) -> Change:
    """The image inverted with gamma, then sampled with another prompt under Source Pull; eta 0 is without it."""

    def change(prompt: Prompt) -> None:
        inverted(RECOLOURED, cfg=3.0)(prompt)
        prompt["invert"]["inputs"].update(solver="euler", gamma=0.5, noise_seed=1)
        prompt["pull"] = {
            "class_type": "SourcePull",
            "inputs": {
                "model": ["model", 0], "source_latent": ["first", 0], "eta": eta, "decay": 0.0, "start_percent": 0.0,
                "end_percent": 0.25,
            },
        }  # fmt: skip
        prompt["sampler"]["inputs"].update(model=["pull", 0], solver="euler", negative=["text", 1])

    return change


def analysis(prompt: Prompt) -> None:
    """The contact sheet of a sweep instead of an image."""
    prompt["sampler"] = {
        "class_type": "BlockAnalysis",
        "inputs": {
            "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": ["latent", 0],
            "vae": ["model", 2], "operations": "all", "blocks": "all", "strength": 2.0, "seed": SEED, "seeds": 1,
            "steps": 12, "cfg": 4.5, "speedup": 1.3, "early_late": False,
        },
    }  # fmt: skip
    del prompt["decode"]
    prompt["image"]["inputs"]["images"] = ["sampler", 0]


def sweep(prompt: Prompt) -> None:
    """The contact sheet of a boost's strength by cfg instead of an image."""
    boost("all", 1.0, "attention")(prompt)
    prompt["sampler"] = {
        "class_type": "SweepXY",
        "inputs": {
            "model": ["control", 0], "positive": ["text", 0], "negative": ["text", 1], "latent_image": ["latent", 0],
            "vae": ["model", 2], "x": "strength", "x_values": "0, 0.5, 1, 2, 4", "y": "cfg", "y_values": "1, 4.5, 10",
            "seed": SEED, "steps": 28, "cfg": 4.5, "solver": "euler", "schedule": "linear", "shift": 0.0,
            "denoise": 1.0,
        },
    }  # fmt: skip
    del prompt["decode"]
    prompt["image"]["inputs"]["images"] = ["sampler", 0]


IMAGES: dict[str, tuple[Tile, ...]] = {
    "MMDiTLoader": (
        Tile("default"),
        Tile("bf16", setting("model", weight_dtype="bf16")),
        Tile("fp8_e4m3fn", setting("model", weight_dtype="fp8_e4m3fn")),
        Tile("fp8_e5m2", setting("model", weight_dtype="fp8_e5m2")),
    ),
    "TripleTextEncode": (
        Tile("all three encoders"),
        Tile("t5_strength 0", setting("text", t5_strength=0.0)),
        Tile("clip_l, clip_g strength 0", setting("text", clip_l_strength=0.0, clip_g_strength=0.0)),
        Tile("all strengths 0:\nno prompt", setting("text", clip_l_strength=0.0, clip_g_strength=0.0, t5_strength=0.0)),
    ),
    "FlowMatchingSampler": (
        Tile("4 steps", setting("sampler", steps=4)),
        Tile("8 steps", setting("sampler", steps=8)),
        Tile("28 steps, cfg 4.5"),
        Tile("28 steps, cfg 1", setting("sampler", cfg=1.0)),
        Tile("28 steps, cfg 10", setting("sampler", cfg=10.0)),
    ),
    "MMDiTSampler": (
        Tile("euler, simple", comfyui_sampler("euler", "simple")),
        Tile("dpmpp_2m, simple", comfyui_sampler("dpmpp_2m", "simple")),
        Tile("euler_ancestral, simple", comfyui_sampler("euler_ancestral", "simple")),
    ),
    "BlockSkip": (
        Tile("no block skipped"),
        Tile("1, negative", control("BlockSkip", blocks="1", branch="negative")),
        Tile("1, both", control("BlockSkip", blocks="1", branch="both")),
        Tile("0, both", control("BlockSkip", blocks="0", branch="both")),
    ),
    "TextBoost": (
        Tile("strength 1"),
        Tile("all blocks, value,\nstrength 2", boost("all", 2.0, "value")),
        Tile("all blocks, attention,\nstrength 3", boost("all", 3.0, "attention")),
        Tile('"blue star", attention,\nstrength 0', boost("all", 0.0, "attention", "blue star")),
    ),
    "TextDisable": (
        Tile("text in all blocks"),
        Tile("block 0, onward", control("TextDisable", blocks="0", scope="onward", branch="both")),
        Tile("last 25%, onward", control("TextDisable", blocks="last 25%", scope="onward", branch="both")),
        Tile("early, block", control("TextDisable", blocks="early", scope="block", branch="both")),
    ),
    "BlockPrompt": (
        Tile("the sampler's prompt alone"),
        Tile("the other prompt in 0-3", second_prompt("0-3")),
        Tile("the other prompt in 4-7", second_prompt("4-7")),
        Tile("the other prompt in all", second_prompt("all")),
    ),
    "FlowEdit": (
        Tile("the image"),
        Tile("another colour", edited(RECOLOURED)),
        Tile("another shape", edited(PROMPT.replace("circles", "squares"))),
        Tile("another count", edited(PROMPT.replace("three red circles", "two red circles"))),
        Tile("another place", edited(PROMPT.replace("to the left of", "above"))),
        Tile("another background", edited(PROMPT.replace("white background", "black background"))),
    ),
    "SourcePull": (
        Tile("the image"),
        Tile("eta 0", pulled(0.0)),
        Tile("eta 0.5", pulled(0.5)),
        Tile("eta 0.9", pulled(0.9)),
    ),
    "FlowInvert": (
        Tile("the image"),
        Tile("inverted, and sampled\nwith the same prompt", inverted()),
        Tile("yellow circles, cfg 2", inverted(PROMPT.replace("red", "yellow"), 2.0)),
        Tile("a green star, cfg 3", inverted(PROMPT.replace("blue", "green"), 3.0)),
    ),
    "SpeedPlan": (
        Tile("everything computed"),
        Tile("1.2x", plan("1.2x")),
        Tile("1.5x", plan("1.5x")),
        Tile("2x", plan("2x")),
        Tile("3x", plan("3x")),
    ),
    "BlockAnalysis": (Tile("", analysis),),
    "SweepXY": (Tile("", sweep),),
}
WHOLE = {"BlockAnalysis", "SweepXY"}  # shown without labels


def render(client: Client, tile: Tile) -> Image.Image:
    """Run a tile's graph."""
    prompt = graph()
    tile.change(prompt)
    (content,) = client.images(client.run(prompt))
    return Image.open(io.BytesIO(content)).convert("RGB")


def help_image(name: str, client: Client) -> Image.Image:
    """The image of a node's help page."""
    tiles = [(tile.label, render(client, tile)) for tile in IMAGES[name]]
    if name in WHOLE:
        return tiles[0][1].quantize(256, dither=Image.Dither.NONE)  # flat colours: a third of the size
    return row([(label, image.resize((TILE, TILE), Image.Resampling.LANCZOS)) for label, image in tiles])


def row(tiles: list[tuple[str, Image.Image]]) -> Image.Image:
    """Labelled tiles side by side, readable on light and dark pages."""
    canvas = Image.new("RGB", (len(tiles) * (TILE + GAP) + GAP, LABEL + TILE + GAP), (238, 238, 238))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for index, (label, image) in enumerate(tiles):
        left = GAP + index * (TILE + GAP)
        top = (LABEL - (FONT + 3) * (label.count("\n") + 1)) // 2
        draw.multiline_text((left, top), label, fill=(30, 30, 30), font=font, spacing=3)
        canvas.paste(image, (left, LABEL))
    return canvas


def weights_image() -> Image.Image:
    """Bars of the weights in fp8: all, and what a step reads with a modulation table; from docs/performance.md."""
    rows = (line.strip("| ").split(" | ") for line in (ROOT / "docs" / "performance.md").read_text().splitlines())
    sizes = {row[0]: [float(size) for size in row[5].split(" -> ")] for row in rows if len(row) == 8 and "->" in row[5]}
    name_width, bar_width, height = 130, 500, 30
    image = Image.new("RGB", (name_width + bar_width + 170, LABEL + height * len(SHOWN_MODELS)), "#eeeeee")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT)
    title = "Weights in fp8, GB: read in each step (blue), and by the modulation layers once a run (gray)"
    draw.text((GAP, GAP), title, "#222222", font)
    for index, name in enumerate(SHOWN_MODELS):
        whole, steps = sizes[name]
        top, scale = LABEL + index * height, bar_width / max(size for size, _ in sizes.values())
        draw.text((GAP, top + 5), name, "#222222", font)
        draw.rectangle((name_width, top, name_width + whole * scale, top + height - GAP), "#b0b0b0")
        draw.rectangle((name_width, top, name_width + steps * scale, top + height - GAP), "#3465a4")
        draw.text((name_width + whole * scale + GAP, top + 5), f"{whole:g} -> {steps:g} GB", "#222222", font)
    return image


DRAWN = {"PrecomputeModulation": weights_image}


def main(names: list[str]) -> None:
    """Write the images of these nodes, or of all."""
    for name in names or DRAWN:
        if name in DRAWN:
            DRAWN[name]().save(TARGET / f"{name}.png", optimize=True)
            say(f"{TARGET / name}.png")
    run = [name for name in names or IMAGES if name in IMAGES]
    if not run:
        return
    with temporary_server("help-images") as server:
        for name in run:
            help_image(name, server.client).save(TARGET / f"{name}.png", optimize=True)
            say(f"{TARGET / name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
