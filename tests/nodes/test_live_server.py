"""The live server and its client, on ComfyUI's own nodes: every other live test needs them."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.client import ComfyUIError

PICTURE = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 48, "height": 32, "batch_size": 2, "color": 0xFF0000}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "live"}},
}


def test_a_prompt_runs_and_its_images_come_back(comfyui):
    record = comfyui.run(PICTURE)
    assert record["status"]["status_str"] == "success"
    images = comfyui.images(record)
    assert [image[:4] for image in images] == [b"\x89PNG"] * 2
    assert len(list((comfyui.base / "output").glob("live*.png"))) == 2


def test_a_refused_prompt_names_the_node_and_the_input(comfyui):
    bad = {**PICTURE, "1": {"class_type": "EmptyImage", "inputs": {"width": -1, "height": 32, "batch_size": 1}}}
    with pytest.raises(ComfyUIError, match=r"EmptyImage \(node 1\).*width"):
        comfyui.run(bad)


def test_a_failing_node_is_named_with_its_reason(comfyui):
    name = comfyui.upload("broken.png", b"not an image")
    load = {"class_type": "LoadImage", "inputs": {"image": name}}
    failing = {"1": load, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    with pytest.raises(ComfyUIError, match=r"LoadImage"):
        comfyui.run(failing)


def test_events_report_the_running_node_until_the_end(comfyui):
    prompt = {**PICTURE, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    with comfyui.events() as events:
        prompt_id = comfyui.queue(prompt, client_id=events.client_id)
        kinds = [event.kind for event in events.until_done(prompt_id, timeout=60)]
    assert "execution_start" in kinds and kinds[-1] == "execution_success"


def test_an_unknown_node_is_an_error(comfyui):
    with pytest.raises(ComfyUIError, match="NoSuchNode"):
        comfyui.object_info("NoSuchNode")
    assert comfyui.object_info("EmptyImage")["output"] == ["IMAGE"]


def test_comfy_is_importable_in_process_and_stays_on_the_cpu(comfy_path):
    import comfy.model_management

    assert comfy.model_management.get_torch_device().type == "cpu"


NODES = """
import importlib.util, sys
sys.path.insert(0, sys.argv[1])
from scripts import in_process
in_process.prepare("--cpu")
print(importlib.util.find_spec("nodes").origin)
"""


def test_a_plain_import_of_nodes_is_comfyuis_in_tests_and_in_scripts(comfy_path, pack):
    import nodes

    assert Path(nodes.__file__ or "") == comfy_path / "nodes.py"
    assert pack.__name__ == "mmdit_pack" and sys.modules["mmdit_pack.nodes"] is not nodes
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", NODES, str(root)]  # the repository's root comes first, as in a script
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [str(comfy_path / "nodes.py")], done.stderr


def test_the_packs_messages_are_below_one_logger_and_comfyui_shows_them_from_info_on(comfyui, pack):
    loggers = [name for name in logging.root.manager.loggerDict if name.startswith("mmdit")]
    used = [name for name in loggers if isinstance(logging.root.manager.loggerDict[name], logging.Logger)]
    assert used and all(f"{name}.".startswith((f"{pack.__name__}.", "mmdit_core.")) for name in used)
    load = {"class_type": "MMDiTLoader", "inputs": {"checkpoint": "mmdit-small.safetensors", "weight_dtype": "bf16"}}
    text = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
    comfyui.run({"1": load, "2": text})
    assert "Loaded mmdit-small.safetensors" in comfyui.log()
