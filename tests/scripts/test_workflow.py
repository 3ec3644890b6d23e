"""A saved workflow becomes the prompt that the web page would send (scripts/workflow.py)."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from scripts.workflow import WorkflowError, nodes_of, to_prompt

INFO: dict[str, Any] = {
    "Load": {"input": {"required": {"file": [["a.safetensors", "b.safetensors"]]}}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0}],
                "steps": ["INT", {"default": 20}],
                "solver": ["COMBO", {"options": ["euler", "heun"]}],
            },
            "optional": {"eta": ["FLOAT", {"default": 0.5}], "mask": ["MASK"], "blocks": ["MINE", {"widgetType": "B"}]},
        }
    },
    "Patch": {"input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 1.0}]}}},
    "Size": {"input": {"required": {"steps": ["INT", {"forceInput": True}], "width": ["INT", {"default": 8}]}}},
}


def node(node_id: int, kind: str, values=(), *, inputs=(), outputs=("MODEL",), mode: int = 0) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": kind,
        "mode": mode,
        "widgets_values": list(values),
        "inputs": [{"name": name, "type": kind, "link": link} for name, kind, link in inputs],
        "outputs": [{"name": kind, "type": kind} for kind in outputs],
    }


def chain(middle: dict[str, Any]) -> dict[str, Any]:
    """Load -> middle -> Sample."""
    sample = node(3, "Sample", [7, "randomize", 12, "heun"], inputs=[("model", "MODEL", 2)])
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]]
    return {"nodes": [node(1, "Load", ["b.safetensors"]), middle, sample], "links": links}


PATCH = node(2, "Patch", [0.25], inputs=[("model", "MODEL", 1)])
SAMPLE = {"seed": 7, "steps": 12, "solver": "heun", "eta": 0.5}


def test_values_go_by_position_and_the_word_after_a_seed_is_no_value():
    prompt = to_prompt(chain(PATCH), INFO)
    assert prompt["1"] == {"class_type": "Load", "inputs": {"file": "b.safetensors"}}
    assert prompt["2"] == {"class_type": "Patch", "inputs": {"strength": 0.25, "model": ["1", 0]}}
    assert prompt["3"] == {"class_type": "Sample", "inputs": {**SAMPLE, "model": ["2", 0]}}
    assert nodes_of(prompt, "Patch") == ["2"]


def test_a_file_without_the_word_after_the_seed_reads_the_same():
    workflow = chain(PATCH)
    workflow["nodes"][2]["widgets_values"] = [7, 12, "heun"]
    assert to_prompt(workflow, INFO) == to_prompt(chain(PATCH), INFO)


def test_links_stored_as_objects_read_the_same():
    workflow = chain(PATCH)
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    workflow["links"] = [dict(zip(names, link, strict=True)) for link in workflow["links"]]
    assert to_prompt(workflow, INFO) == to_prompt(chain(PATCH), INFO)


@pytest.mark.parametrize(
    "middle",
    [{**PATCH, "mode": 4}, node(2, "Reroute", inputs=[("", "*", 1)])],
    ids=["bypassed", "reroute"],
)
def test_a_bypassed_node_or_a_reroute_hands_its_input_on(middle):
    prompt = to_prompt(chain(middle), INFO)
    assert "2" not in prompt and prompt["3"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_feeds_nothing():
    prompt = to_prompt(chain({**PATCH, "mode": 2}), INFO)
    assert "2" not in prompt and "model" not in prompt["3"]["inputs"]


def test_a_link_wins_over_the_widget_it_replaces_and_the_others_keep_their_places():
    workflow = chain(PATCH)
    workflow["nodes"].append(node(4, "PrimitiveNode", [31, "fixed"], outputs=("INT",)))
    workflow["nodes"][2]["inputs"].append({"name": "steps", "type": "INT", "link": 3, "widget": {"name": "steps"}})
    workflow["links"].append([3, 4, 0, 3, 1, "INT"])
    prompt = to_prompt(workflow, INFO)
    assert prompt["3"]["inputs"] == {**SAMPLE, "steps": 31, "model": ["2", 0]} and "4" not in prompt


def test_an_input_that_must_be_linked_takes_no_widget_value():
    workflow = {"nodes": [node(1, "Size", [64])], "links": []}
    assert to_prompt(workflow, INFO)["1"]["inputs"] == {"width": 64}


def test_notes_are_left_out_and_the_workflow_stays_as_it_was():
    workflow = chain(PATCH)
    workflow["nodes"].append(node(9, "MarkdownNote", ["read me"]))
    before = copy.deepcopy(workflow)
    assert "9" not in to_prompt(workflow, INFO) and workflow == before


def test_an_unknown_node_is_named():
    with pytest.raises(WorkflowError, match="Nowhere"):
        to_prompt(chain(node(2, "Nowhere")), INFO)
