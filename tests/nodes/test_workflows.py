"""The shared workflows: those of the small model run, all others must fit the node definitions."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.installations import NEWEST, RELEASES, Installation
from scripts.make_workflows import build
from scripts.server import Server
from scripts.workflow import AFTER_RUN, UNSAVED, has_control, inputs_in_order, is_widget, to_prompt
from scripts.workflow_specs import WORKFLOWS
from tests.conftest import Live

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "workflows").glob("*.json"))
FROZEN = sorted((ROOT / "tests" / "workflows").glob("*.json"))
LARGE = {spec.name for spec in WORKFLOWS if not spec.small}
SPECS = {spec.name: spec for spec in WORKFLOWS}


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def images_of(comfyui, record) -> list[np.ndarray]:
    return pixels(comfyui.images(record))


def pixels(images) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(float) for image in images]


def prompt_of(info, workflow):
    """The workflow as a prompt, in which an analysis, of 25 images or more, has 3 steps."""
    prompt = to_prompt(workflow, info)
    for node in prompt.values():
        if node["class_type"] == "BlockAnalysis":
            node["inputs"]["steps"] = 3
    return prompt


def images_by_node(comfyui, workflow) -> dict[str, list[np.ndarray]]:
    """The images of a run by the node that saved them: nodes that do not depend on each other run in any order."""
    found = comfyui.images_by_node(comfyui.run(prompt_of(comfyui.object_info(), workflow)))
    return {node: pixels(images) for node, images in found.items()}


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def runs(paths):
    return each([path for path in paths if path.stem not in LARGE])


def test_a_sampler_has_room_below_for_its_preview():
    for path in SHIPPED:
        nodes = [node for node in read(path)["nodes"] if path.stem in SPECS]
        for upper in (node for node in nodes if node["type"] == "FlowMatchingSampler"):
            bottom = upper["pos"][1] + upper["size"][1]
            below = [n["pos"][1] for n in nodes if n["pos"][0] == upper["pos"][0] and n["pos"][1] > upper["pos"][1]]
            assert all(top >= bottom + 300 for top in below), (path.stem, upper["id"])


def test_there_is_a_frozen_copy_of_every_workflow():
    assert {path.name for path in SHIPPED} <= {path.name for path in FROZEN} and len(SHIPPED) > 10


@pytest.mark.parametrize("name", SPECS)
def test_a_workflow_file_equals_its_spec(comfyui, name):
    assert read(ROOT / "workflows" / f"{name}.json") == build(SPECS[name], comfyui.object_info())


@each(SHIPPED)
def test_links_widgets_and_choices_fit_the_node_definitions(comfyui, path):
    workflow, info = read(path), comfyui.object_info()
    nodes = {node["id"]: node for node in workflow["nodes"] if node["type"] != "MarkdownNote"}
    for link, source, output, target, slot, kind in workflow["links"]:
        given = info[nodes[source]["type"]]["output"][output]
        wanted = nodes[target]["inputs"][slot]
        assert kind == wanted["type"] and (given == kind or "*" in (given, kind)), (link, given, kind)
        assert wanted["link"] == link and link in nodes[source]["outputs"][output]["links"]
    for node in nodes.values():
        definition = info[node["type"]]
        widgets = [(name, kind, o) for name, kind, o in inputs_in_order(definition) if is_widget(kind, o)]
        controlled = sum(has_control(*widget) for widget in widgets)
        values = node["widgets_values"]
        # quickstart was saved before the sampler got more inputs: files with fewer values stay valid.
        assert len(values) == len(widgets) + controlled or path.stem == "quickstart", node["type"]
        assert len([value for value in values if value in AFTER_RUN]) >= controlled
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        for name, form in definition["input"].get("required", {}).items():
            if isinstance(form[0], list) or form[0] not in UNSAVED:
                assert name in linked or name in {widget for widget, _, _ in widgets}, (node["type"], name)
        for name, value in to_prompt(workflow, info)[str(node["id"])]["inputs"].items():
            kind = dict((n, k) for n, k, _ in widgets).get(name)
            is_file = name in ("checkpoint", "unet_name", "vae_name", "image") or name.startswith("clip_name")
            if isinstance(kind, list) and not is_file:
                assert value in kind, (node["type"], name, value)


@each(SHIPPED)
def test_a_note_explains_and_nodes_do_not_overlap(path):
    workflow = read(path)
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert len(note["widgets_values"][0]) > 100
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:index]:
            apart = x + width <= other_x or other_x + other_width <= x
            assert apart or y + height <= other_y or other_y + other_height <= y


@runs(SHIPPED)
def test_the_small_model_runs_it(comfyui, path):
    found = images_of(comfyui, comfyui.run(prompt_of(comfyui.object_info(), read(path))))
    assert found and all(np.isfinite(image).all() and image.std() > 1 for image in found)
    if len(found) == 2 and path.stem != "analysis":  # without and with the node of the workflow
        assert found[0].shape != found[1].shape or np.abs(found[0] - found[1]).mean() > 0.1


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    """A server of the newest ComfyUI; tests with it run on the copies of older ones alone, see conftest.py."""
    installation = Installation(RELEASES[NEWEST].folder, Path(sys.executable), owned=True)
    with Server(installation, tmp_path_factory.mktemp("newest")) as server:
        yield Live(server)


@pytest.mark.floor
@runs(SHIPPED)
def test_an_older_comfyui_gives_the_images_of_the_newest(comfyui, newest, path):
    """Equal to the bit, on the CPU and in the small model's dtype."""
    found, expected = (images_by_node(server, read(path)) for server in (comfyui, newest))
    assert found and found.keys() == expected.keys()
    for node, images in found.items():
        assert len(images) == len(expected[node]), node
        assert all(np.array_equal(image, other) for image, other in zip(images, expected[node], strict=True)), node


@each(FROZEN)
def test_a_frozen_copy_still_loads(comfyui, path):
    workflow, info = read(path), comfyui.object_info()
    prompt = to_prompt(workflow, info)
    assert prompt
    for node in prompt.values():
        known = {name for name, _, _ in inputs_in_order(info[node["class_type"]])}
        assert set(node["inputs"]) <= known


def test_a_frozen_copy_of_every_node_still_runs(comfyui):
    """Runs the fewest frozen files that contain every node of the pack that occurs in any of them.

    Those that are as shipped are run by the test above.
    """
    info = comfyui.object_info()
    ours = {name for name, entry in info.items() if entry["python_module"].startswith("custom_nodes")}
    contained = {path: {n["type"] for n in read(path)["nodes"]} & ours for path in FROZEN if path.stem not in LARGE}
    left = set().union(*contained.values())
    assert {"MMDiTLoader", "FlowMatchingSampler", "BlockSkip", "TextBoost", "BlockAnalysis"} <= left
    shipped = [prompt_of(info, read(path)) for path in SHIPPED]
    as_shipped = [path for path in contained if prompt_of(info, read(path)) in shipped]
    left -= set().union(*(contained[path] for path in as_shipped))
    while left:
        path = max(contained, key=lambda candidate: len(contained[candidate] & left))
        assert images_of(comfyui, comfyui.run(prompt_of(info, read(path))))
        left -= contained[path]
