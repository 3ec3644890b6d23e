"""The quickstart workflow opens, runs and shows its image."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from scripts.workflow import to_prompt

WORKFLOW = Path(__file__).parents[2] / "workflows" / "quickstart.json"


def test_quickstart_opens_runs_and_shows_an_image(comfy, renderer, test_output):
    comfy.load(WORKFLOW)
    assert comfy.unknown_nodes() == []
    assert comfy.page.get_by_role("dialog").count() == 0, "a dialog, such as the one on missing nodes, is open"
    record = comfy.queue()
    (image,) = comfy.server.images(record)
    width, height = struct.unpack(">II", image[16:24])
    assert image[:4] == b"\x89PNG" and width >= 64 and height >= 64
    comfy.screenshot(test_output / f"quickstart-{renderer}.png")
    assert comfy.pack_errors() == []


def test_the_command_line_sends_the_same_prompt_as_the_frontend(comfy):
    comfy.load(WORKFLOW)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    frontend = {node_id: {**node, "_meta": None} for node_id, node in comfy.prompt().items()}
    ours = {
        node_id: {**node, "_meta": None} for node_id, node in to_prompt(workflow, comfy.server.object_info()).items()
    }
    assert ours == frontend


def test_quickstart_is_in_the_template_browser_and_opens_by_its_address(comfy):
    pack = WORKFLOW.parents[1].name
    assert "quickstart" in comfy.server.get("/workflow_templates")[pack]
    comfy.page.goto(f"{comfy.server.url}/?template=quickstart&source={pack}")  # what scripts/run.py --ui prints
    comfy.page.wait_for_function("window.app?.graph?._nodes?.some((node) => node.type === 'MMDiTLoader')")
