"""A valid prompt for each node of the pack, tiny and quick, made from the server's definitions of the nodes."""

from __future__ import annotations

from typing import Any

from scripts.workflow import ObjectInfo, Prompt, inputs_in_order, is_widget

PACK = "custom_nodes."
TARGET = "target"  # the id of the node that a prompt is for
SMALL, OTHER = "mmdit-small.safetensors", "tiny-flux.safetensors"
SOURCES: Prompt = {
    "loader": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": SMALL, "weight_dtype": "default"}},
    "text": {
        "class_type": "TripleTextEncode",
        "inputs": {
            "clip": ["loader", 1], "prompt": "a red circle on a black background", "negative": "", "clip_l": "",
            "clip_g": "", "t5xxl": "", "clip_l_strength": 1.0, "clip_g_strength": 1.0, "t5_strength": 1.0,
            "t5_length": "auto", "empty": "encode",
        },
    },
    "latent": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "pixels": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x804020}},
    "image": {"class_type": "VAEEncode", "inputs": {"pixels": ["pixels", 0], "vae": ["loader", 2]}},
    "other": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": OTHER, "weight_dtype": "default"}},
}  # fmt: skip
# Type of an input -> where a good value comes from.
GOOD: dict[str, list[Any]] = {
    "MODEL": ["loader", 0], "CLIP": ["loader", 1], "VAE": ["loader", 2], "CONDITIONING": ["text", 0],
    "LATENT": ["latent", 0],
}  # fmt: skip
# Node -> inputs that are not the default; None: not connected.
CHANGED: dict[str, dict[str, Any]] = {
    "FlowMatchingSampler": {"steps": 2, "negative": ["text", 1]},
    "MMDiTSampler": {"steps": 2, "negative": ["text", 1]},
    "FlowInvert": {"steps": 2, "latent_image": ["image", 0]},
    "SourcePull": {"source_latent": ["image", 0]},
    "FlowEdit": {"steps": 2, "edit_steps": 2, "latent_image": ["image", 0], "negative": ["text", 1]},
    "BlockSkip": {"blocks": "3"},
    "TextBoost": {"blocks": "3"},
    "TextDisable": {"blocks": "3"},
    "BlockPrompt": {"blocks": "3"},
    "BlockAnalysis": {"steps": 1, "blocks": "3", "operations": "skip", "negative": ["text", 1]},
    "SweepXY": {"steps": 1, "x_values": "2, 3", "negative": ["text", 1]},
    "TripleTextEncode": {"prompt": "a red circle"},
    "MMDiTLoader": {"checkpoint": SMALL},
}
OPTIONAL = ("source_model", "source_negative", "sigmas")  # links that stay empty unless they are replaced


def nodes_of_pack(info: ObjectInfo) -> list[str]:
    """The pack's nodes, of all of a server's."""
    tests = {"OddValue", "CheckFinite"}
    return sorted(name for name, each in info.items() if each["python_module"].startswith(PACK) and name not in tests)


def inputs_of(info: ObjectInfo, node: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> (type, options) of a node's inputs."""
    return {name: (kind, options) for name, kind, options in inputs_in_order(info[node])}


def valid_prompt(info: ObjectInfo, node: str) -> Prompt:
    """A prompt that runs the node, and checks that what it gives is finite and can be used.

    It has all sources, also those that it does not run: ComfyUI's cache keeps what a prompt has.
    """
    prompt = {name: {**each, "inputs": dict(each["inputs"])} for name, each in SOURCES.items() if name != "other"}
    inputs: dict[str, Any] = {}
    for name, (kind, options) in inputs_of(info, node).items():
        if is_widget(kind, options):
            inputs[name] = options.get("default", kind[0] if isinstance(kind, list) else None)
        elif name not in OPTIONAL:
            inputs[name] = GOOD[kind]
    prompt[TARGET] = {"class_type": node, "inputs": {**inputs, **CHANGED.get(node, {})}}
    outputs = list(info[node]["output"])
    if "MODEL" in outputs or "CONDITIONING" in outputs:
        texts = ["text", "text"] if "CONDITIONING" not in outputs else [TARGET, TARGET]
        prompt["sampler"] = {
            "class_type": "FlowMatchingSampler",
            "inputs": {
                "model": [TARGET, 0] if "MODEL" in outputs else ["loader", 0], "positive": [texts[0], 0],
                "negative": [texts[1], 1], "latent_image": ["latent", 0], "seed": 1, "steps": 2, "cfg": 3.0,
                "solver": "euler", "schedule": "linear", "shift": 0.0, "denoise": 1.0,
            },
        }  # fmt: skip
        check(prompt, "sampler", 0)
    for index, kind in enumerate(outputs):
        if kind in ("LATENT", "IMAGE", "CONDITIONING", "STRING"):
            check(prompt, TARGET, index)
    return prompt


def check(prompt: Prompt, node: str, output: int) -> None:
    """Check an output of a prompt's node."""
    prompt[f"check {node} {output}"] = {"class_type": "CheckFinite", "inputs": {"value": [node, output]}}
