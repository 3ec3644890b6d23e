"""The workflows of newer families run in ComfyUI's and the pack's own nodes, on tiny random models of their classes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from comfy_api.latest import io
from comfy_extras import nodes_cfg, nodes_flux, nodes_qwen, nodes_sd3
from torch import Tensor

import nodes as comfyui_nodes
from scripts.workflow import Prompt, to_prompt
from tests.nodes.tiny_workflow_models import MODELS, TinyClip, TinyVae

FOLDER = Path(__file__).parents[2] / "workflows"
# Workflow, model that it is for.
CASES = (
    ("z-image-turbo", "Z-Image"),
    ("z-image", "Z-Image"),
    ("krea2-turbo", "Krea 2"),
    ("qwen-image-edit", "Qwen-Image-Edit 2509"),
    ("qwen-image-edit", "Qwen-Image-Edit 2511"),
    ("flux2-dev", "FLUX.2-dev"),
    ("flux2-klein", "FLUX.2 Klein"),
)
# The control of a workflow, and the value of an input with which it changes nothing.
NEUTRAL = {"BlockSkip": ("blocks", ""), "TextBoost": ("strength", 1.0)}
SMALL = {"width": 64, "height": 64, "steps": 3}
COMFYUI_NODES = {
    **{name: getattr(comfyui_nodes, name) for name in ("EmptyLatentImage", "VAEEncode", "VAEDecode")},
    "EmptySD3LatentImage": nodes_sd3.EmptySD3LatentImage,
    "CFGNorm": nodes_cfg.CFGNorm,
    "TextEncodeQwenImageEditPlus": nodes_qwen.TextEncodeQwenImageEditPlus,
    **{
        name: getattr(nodes_flux, name)
        for name in ("EmptyFlux2LatentImage", "Flux2Scheduler", "FluxGuidance", "FluxKontextImageScale")
    },
}
EDIT_TEXT = "TextEncodeQwenImageEditPlus"
SHOWN = {"SaveImage", "PreviewImage", "PreviewAny"}


def stand_ins(model: str) -> dict[str, tuple[Any, ...]]:
    """The outputs of the nodes that read files."""
    tiny = MODELS[model]
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(5))
    return {
        "UNETLoader": (tiny.build(),),
        "CLIPLoader": (TinyClip(tiny),),
        "VAELoader": (TinyVae(tiny),),
        "LoadImage": (picture, torch.zeros(1, 64, 96)),
    }


def run(prompt: Prompt, pack: ModuleType, given: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The outputs of each node of a prompt by its type; of two nodes of a type, those of the last one."""
    classes = {**COMFYUI_NODES, **pack.NODE_CLASS_MAPPINGS}
    outputs: dict[str, tuple[Any, ...]] = {}

    def output(node_id: str) -> tuple[Any, ...]:
        if node_id not in outputs:
            node = prompt[node_id]
            kind = node["class_type"]
            outputs[node_id] = given[kind] if kind in given else call(classes[kind], values(node["inputs"]))
        return outputs[node_id]

    def values(inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: output(v[0])[v[1]] if isinstance(v, list) else v for name, v in inputs.items()}

    for node_id, node in prompt.items():
        if node["class_type"] not in SHOWN:
            output(node_id)
    return {prompt[node_id]["class_type"]: found for node_id, found in outputs.items()}


def call(node: Any, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """Run a node as ComfyUI does."""
    if issubclass(node, io.ComfyNode):
        return node.execute(**inputs).result
    return getattr(node(), node.FUNCTION)(**inputs)


@pytest.fixture
def prompt_of(comfyui):
    """A shared workflow as a prompt, small and short."""

    def read(name: str) -> Prompt:
        workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        prompt = to_prompt(workflow, comfyui.object_info())
        for node in prompt.values():
            node["inputs"].update({key: value for key, value in SMALL.items() if key in node["inputs"]})
        return prompt

    return read


def changed(prompt: Prompt, kind: str, name: str, value: Any) -> Prompt:
    made = copy.deepcopy(prompt)
    for node in made.values():
        if node["class_type"] == kind:
            node["inputs"][name] = value
    return made


def without(prompt: Prompt, kind: str) -> Prompt:
    """A prompt whose nodes of a type are bypassed."""
    made = copy.deepcopy(prompt)
    links = {node_id: node["inputs"]["model"] for node_id, node in made.items() if node["class_type"] == kind}
    for node in made.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in links:
                node["inputs"][name] = links[value[0]]
    return {node_id: node for node_id, node in made.items() if node_id not in links}


def image(outputs: dict[str, tuple[Any, ...]]) -> Tensor:
    return outputs["VAEDecode"][0]


@pytest.mark.parametrize(("name", "model"), CASES)
def test_a_workflow_gives_an_image_in_which_its_control_acts(pack, prompt_of, name, model):
    prompt, given = prompt_of(name), stand_ins(model)
    (kind,) = {node["class_type"] for node in prompt.values()} & set(NEUTRAL)
    found, plain = run(prompt, pack, given), image(run(without(prompt, kind), pack, given))
    assert torch.isfinite(image(found)).all() and image(found).std() > 0.01 and plain.std() > 0.01
    assert (image(found) - plain).abs().max() > 1e-4, "the control changes the image"
    idle = image(run(changed(prompt, kind, *NEUTRAL[kind]), pack, given))
    assert (idle - plain).abs().max() <= 1e-6, "nothing else changes it"
    summary = found["FlowMatchingSampler"][2]
    assert f"Control: {'skip' if kind == 'BlockSkip' else 'boost'}" in summary
    if kind == "BlockSkip":
        assert "negative" in prompt_inputs(prompt, kind)["branch"] and "Skipped: " in summary


def prompt_inputs(prompt: Prompt, kind: str) -> dict[str, Any]:
    (inputs,) = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    return inputs


@pytest.mark.parametrize(("name", "model"), CASES)
def test_the_prompt_and_the_reference_of_a_workflow_reach_the_image(pack, prompt_of, name, model):
    """A workflow whose prompt or picture did not matter would pass the test above."""
    prompt, given = prompt_of(name), stand_ins(model)
    (kind,) = {node["class_type"] for node in prompt.values()} & set(NEUTRAL)
    plain = without(prompt, kind)
    before = image(run(plain, pack, given))
    encoder = EDIT_TEXT if "LoadImage" in types(prompt) else "TripleTextEncode"
    assert (image(run(changed(plain, encoder, "prompt", "a red fox"), pack, given)) - before).abs().max() > 1e-4
    if "LoadImage" in types(prompt):
        other = {**given, "LoadImage": (1 - given["LoadImage"][0], given["LoadImage"][1])}
        assert (image(run(plain, pack, other)) - before).abs().max() > 1e-4


def test_an_edit_whose_prompts_are_of_one_length_skips_on_the_negative_branch(pack, prompt_of):
    """ComfyUI puts such prompts into one batch; 2511 then modulates image and reference in rows of their own."""
    prompt, given = prompt_of("qwen-image-edit"), stand_ins("Qwen-Image-Edit 2511")
    prompt = changed(prompt, EDIT_TEXT, "prompt", "a red fox")
    found, plain = run(prompt, pack, given), image(run(without(prompt, "BlockSkip"), pack, given))
    assert torch.isfinite(image(found)).all() and (image(found) - plain).abs().max() > 1e-3
    summary = found["FlowMatchingSampler"][2]
    assert f"Model calls: {SMALL['steps']};" in summary, "both prompts are in one call"


def types(prompt: Prompt) -> set[str]:
    return {node["class_type"] for node in prompt.values()}


def test_the_analysis_measures_every_main_layer_of_z_image(pack, prompt_of):
    prompt = changed(prompt_of("z-image-analysis"), "BlockAnalysis", "steps", 1)
    sheet, plot, report, *_ = run(prompt, pack, stand_ins("Z-Image"))["BlockAnalysis"]
    cells = json.loads(report)["cells"]
    assert [cell["block"] for cell in cells] == list(range(30))
    assert all(cell["latent"] and cell["latent"] > 0 for cell in cells), "each layer changes the image"
    assert torch.isfinite(sheet).all() and torch.isfinite(plot).all()
