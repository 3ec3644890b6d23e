"""Converts a saved workflow into a prompt, the form that the server runs, as the frontend does on Run.

A saved workflow stores a node's widget values by position; the server's /object_info lists the inputs in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Workflow = dict[str, Any]
Prompt = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}
ObjectInfo = dict[str, Any]

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
UNSAVED = {"IMAGECOMPARE"}  # widgets that only show something: a prompt needs them, a saved workflow has no value
NOTES = {"Note", "MarkdownNote"}
MUTED, BYPASSED = 2, 4  # the values of a node's `mode` that keep it from running

# The frontend adds a second widget after a seed: how it changes after each run. Its value is stored, but is no input.
SEEDS = {"seed", "noise_seed"}
AFTER_RUN = {"fixed", "increment", "decrement", "randomize"}


class WorkflowError(ValueError):
    """The workflow can't be converted; the message names the node."""


def to_prompt(workflow: Workflow, info: ObjectInfo) -> Prompt:
    """The prompt of a workflow.

    Args: workflow, the JSON of a workflow file; info, the answer of /object_info.
    Raises: WorkflowError for a node type that the server does not have.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link_id: source for link_id, source in sources(workflow)}
    running = [n for n in nodes.values() if n["type"] not in NOTES | {"Reroute", "PrimitiveNode"} and not silent(n)]
    unknown = sorted({node["type"] for node in running} - set(info))
    if unknown:
        raise WorkflowError(f"ComfyUI has no node: {', '.join(unknown)}.")
    prompt: Prompt = {}
    for node in running:
        inputs = dict(widget_inputs(node, info[node["type"]]))
        for slot in node.get("inputs", []):
            value = linked(slot.get("link"), nodes, links)
            if value is not None:
                inputs[slot["name"]] = value
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def nodes_of(prompt: Prompt, class_type: str) -> list[str]:
    """The ids of the nodes of one type."""
    return [node_id for node_id, node in prompt.items() if node["class_type"] == class_type]


def sources(workflow: Workflow) -> Iterator[tuple[int, tuple[int, int]]]:
    """(link, (source node, output index)); links are stored as lists or, in newer files, as objects."""
    for link in workflow["links"]:
        if isinstance(link, dict):
            yield link["id"], (link["origin_id"], link["origin_slot"])
        else:
            yield link[0], (link[1], link[2])


def silent(node: dict[str, Any]) -> bool:
    """Whether a node is muted or bypassed."""
    return node.get("mode", 0) in (MUTED, BYPASSED)


def linked(link: int | None, nodes: dict[int, Any], links: dict[int, tuple[int, int]]) -> Any:
    """The value of a linked input: [node id, output index], a primitive's value, or None without a source."""
    while link is not None:
        node_id, slot = links[link]
        node = nodes[node_id]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            link = node["inputs"][0].get("link")
        elif node.get("mode", 0) == BYPASSED:
            link = passed_through(node, slot)
        else:
            return None if silent(node) else [str(node_id), slot]
    return None


def passed_through(node: dict[str, Any], slot: int) -> int | None:
    """The link that replaces an output of a bypassed node: an input of its type, preferably with the same index."""
    kind = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    ordered = inputs[slot : slot + 1] + inputs
    return next((i["link"] for i in ordered if i["type"] == kind and i.get("link") is not None), None)


def widget_inputs(node: dict[str, Any], info: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(name, value) of a node's widgets; older files store fewer values, and the rest get their defaults."""
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        yield from values.items()
        return
    index = 0
    for name, kind, options in inputs_in_order(info):
        if not isinstance(kind, list) and kind in UNSAVED:
            yield name, ""
        if not is_widget(kind, options):
            continue
        if index < len(values):
            yield name, values[index]
        elif "default" in options:
            yield name, options["default"]
        index += 1
        if has_control(name, kind, options) and index < len(values) and values[index] in AFTER_RUN:
            index += 1


def has_control(name: str, kind: Any, options: dict[str, Any]) -> bool:
    """Whether the frontend adds its "after each run" widget to an input."""
    return bool(options.get("control_after_generate", kind == "INT" and name in SEEDS))


def inputs_in_order(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(name, type, options) of a node's inputs, the required ones first."""
    for group in ("required", "optional"):
        for name, form in info["input"].get(group, {}).items():
            yield name, form[0], form[1] if len(form) > 1 else {}


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether an input has a widget."""
    choices = isinstance(kind, list)
    return (choices or kind in WIDGET_TYPES or "widgetType" in options) and not options.get("forceInput")
