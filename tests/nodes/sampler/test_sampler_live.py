"""FlowMatchingSampler in a live ComfyUI: what is written into the PNG, reuse between two queues, previews, errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from scripts.client import ComfyUIError
from scripts.workflow import to_prompt

QUICKSTART = json.loads((Path(__file__).parents[3] / "workflows" / "quickstart.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def graph(comfyui):
    """The quickstart's graph with the sampler's three outputs in use; inputs of the sampler may be changed."""
    prompt = to_prompt(QUICKSTART, comfyui.object_info())
    (sampler,) = [key for key, node in prompt.items() if node["class_type"] == "FlowMatchingSampler"]

    def made(**inputs):
        changed = {**prompt[sampler], "inputs": {**prompt[sampler]["inputs"], "steps": 4, **inputs}}
        return {
            **prompt,
            sampler: changed,
            "90": {"class_type": "PreviewImage", "inputs": {"images": [sampler, 1]}},
            "91": {"class_type": "PreviewAny", "inputs": {"source": [sampler, 2]}},
        }

    made.sampler = sampler
    return made


def ran(comfyui, prompt):
    """The record of a prompt queued as the frontend does: with its workflow, to be written into images."""
    extra = {"extra_data": {"extra_pnginfo": {"workflow": QUICKSTART}, "preview_method": "latent2rgb"}}
    with comfyui.events() as stream:
        prompt_id = comfyui.queue(prompt, client_id=stream.client_id, extra=extra)
        events = list(stream.until_done(prompt_id))
    return comfyui.finished(prompt_id), events


def pictures(comfyui, record) -> list[Image.Image]:
    return [Image.open(io.BytesIO(image)) for image in comfyui.images(record)]


def facts(comfyui, record, sampler):
    """What the PNGs of a run say about it."""
    written = [json.loads(image.text["mmdit_sampler"]) for image in pictures(comfyui, record)]
    assert written and all(other == written[0] for other in written)
    return written[0][sampler]


def test_the_png_and_the_summary_report_what_ran(comfyui, graph):
    record, events = ran(comfyui, graph(seed=11, cfg_end=0.5))
    found = facts(comfyui, record, graph.sampler)
    assert found["noise"]["seed"] == 11 and len(found["sigmas"]) == 5
    assert found["calls"]["positive_rows"] == 4 and found["calls"]["negative_rows"] == 2
    (text,) = record["outputs"]["91"]["text"]
    assert "Model calls: 4; images in them: 4 positive, 2 negative" in text
    assert any(image.size[0] == 720 for image in pictures(comfyui, record))  # the curve
    assert all(json.loads(image.text["workflow"]) == QUICKSTART for image in pictures(comfyui, record))
    assert sum(event.kind == "preview" for event in events) == 4  # from the first step on


def test_comfyui_keeps_the_run_cache_between_two_queues(comfyui, graph):
    first, _ = ran(comfyui, graph(seed=12, reuse=True, cfg_end=0.5))
    assert facts(comfyui, first, graph.sampler)["steps"]["reused"] == 0
    second, _ = ran(comfyui, graph(seed=12, reuse=True, cfg_end=0.75))
    assert facts(comfyui, second, graph.sampler)["steps"]["reused"] == 2
    plain, _ = ran(comfyui, graph(seed=12, cfg_end=0.75))
    (made,) = [image for image in pictures(comfyui, second) if image.size[0] != 720]
    (full,) = [image for image in pictures(comfyui, plain) if image.size[0] != 720]
    assert made.tobytes() == full.tobytes()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"cfg": float("nan")}, "FlowMatchingSampler: cfg: nan. Set a number from 0 to 100"),
        ({"seed": -1}, "FlowMatchingSampler: seed: -1 is replaced by a random seed when ComfyUI's page queues a job"),
        ({"custom_sigmas": "1, 0.2, 0.4"}, "FlowMatchingSampler: custom_sigmas: sigma 1 is 0.2 and sigma 2 is 0.4"),
    ],
)
def test_values_that_comfyui_does_not_check_are_refused_by_the_node(comfyui, graph, inputs, words):
    with pytest.raises(ComfyUIError, match=words):
        comfyui.run(graph(**inputs))
