"""FlowMatchingSampler in a live ComfyUI: what is written into the PNG, reuse between two queues, previews, errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from scripts.client import HostError
from scripts.workflow import to_prompt

QUICKSTART = json.loads((Path(__file__).parents[3] / "workflows" / "quickstart.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def graph(host):
    """The quickstart's graph with the sampler's three outputs in use; inputs of the sampler may be changed."""
    prompt = to_prompt(QUICKSTART, host.object_info())
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


def ran(host, prompt):
    """The record of a prompt queued as the page does it: with its workflow, to be written into pictures."""
    extra = {"extra_data": {"extra_pnginfo": {"workflow": QUICKSTART}, "preview_method": "latent2rgb"}}
    with host.events() as events:
        prompt_id = host.queue(prompt, client_id=events.client_id, extra=extra)
        told = list(events.until_done(prompt_id))
    return host.finished(prompt_id), told


def pictures(host, record) -> list[Image.Image]:
    return [Image.open(io.BytesIO(image)) for image in host.images(record)]


def facts(host, record, sampler):
    """What the PNGs of a run say about it."""
    written = [json.loads(image.text["mmdit_sampler"]) for image in pictures(host, record)]
    assert written and all(other == written[0] for other in written)
    return written[0][sampler]


def test_the_png_says_what_ran_and_so_does_the_summary(host, graph):
    record, told = ran(host, graph(seed=11, cfg_end=0.5))
    found = facts(host, record, graph.sampler)
    assert found["noise"]["seed"] == 11 and len(found["sigmas"]) == 5
    assert found["calls"]["positive_rows"] == 4 and found["calls"]["negative_rows"] == 2
    (text,) = record["outputs"]["91"]["text"]
    assert "Model calls: 4; pictures in them: 4 positive, 2 negative" in text
    assert any(image.size[0] == 720 for image in pictures(host, record))  # the curve
    assert all(json.loads(image.text["workflow"]) == QUICKSTART for image in pictures(host, record))
    assert sum(event.kind == "preview" for event in told) == 4  # from the first step on


def test_the_host_keeps_the_last_run_between_two_queues(host, graph):
    first, _ = ran(host, graph(seed=12, reuse=True, cfg_end=0.5))
    assert facts(host, first, graph.sampler)["steps"]["reused"] == 0
    second, _ = ran(host, graph(seed=12, reuse=True, cfg_end=0.75))
    assert facts(host, second, graph.sampler)["steps"]["reused"] == 2
    plain, _ = ran(host, graph(seed=12, cfg_end=0.75))
    (made,) = [image for image in pictures(host, second) if image.size[0] != 720]
    (full,) = [image for image in pictures(host, plain) if image.size[0] != 720]
    assert made.tobytes() == full.tobytes()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"cfg": float("nan")}, "FlowMatchingSampler: cfg: nan. Set a number from 0 to 100"),
        ({"custom_sigmas": "1, 0.2, 0.4"}, "FlowMatchingSampler: custom_sigmas: level 1 is 0.2 and level 2 is 0.4"),
    ],
)
def test_what_the_host_lets_through_is_named_by_the_node(host, graph, inputs, words):
    with pytest.raises(HostError, match=words):
        host.run(graph(**inputs))
