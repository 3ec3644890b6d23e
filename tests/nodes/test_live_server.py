"""The harness itself, on the host's own nodes: what every other live test relies on."""

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


def test_events_tell_what_runs_until_the_end(comfyui):
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
