"""A workflow in API format as a recipe: where the prompt, the seed, the settings and the block controls go in."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..controls import Control

Graph = dict[str, dict[str, Any]]  # node id -> {"class_type": ..., "inputs": {...}}
Link = tuple[str, int]

# Class of a node that encodes a prompt -> its inputs that hold the prompt's text.
TEXT_INPUTS = {
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeControlnet": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl"),
    "CLIPTextEncodeHiDream": ("clip_l", "clip_g", "t5xxl", "llama"),
    "CLIPTextEncodeHunyuanDiT": ("bert", "mt5xl"),
    "CLIPTextEncodeKandinsky5": ("clip_l", "qwen25_7b"),
    "CLIPTextEncodeLumina2": ("user_prompt",),
    "CLIPTextEncodePixArtAlpha": ("text",),
    "CLIPTextEncodeSD3": ("clip_l", "clip_g", "t5xxl"),
    "TextEncodeQwenImageEdit": ("prompt",),
    "TextEncodeQwenImageEditPlus": ("prompt",),
    "TextEncodeZImageOmni": ("prompt",),
    "TripleTextEncode": ("prompt",),
}
# Class of such a node -> its inputs that replace the prompt for one encoder.
OWN_TEXTS = {"TripleTextEncode": ("clip_l", "clip_g", "t5xxl")}
GUIDED = ("positive", "conditioning")  # inputs of a node that takes a prompt; with a model it samples or guides
CONDITIONINGS = ("conditioning", "positive", "negative")  # starts of the names of inputs that take one
NOT_SAMPLERS = {"BlockPrompt", "BlockAnalysis", "SweepXY"}  # take a model and a prompt and give no latent
OUTPUT, JOIN = "EvaluationOutput", "EvaluationJoin"  # classes of the engine's own nodes, see `host.py`
SEEDS = ("seed", "noise_seed")
BATCHED = "FlowMatchingSampler"  # gives each image of a batch a seed of its own
# Setting -> the inputs that hold it, on any node that the image depends on.
SETTINGS = {
    "steps": ("steps",),
    "cfg": ("cfg",),
    "solver": ("solver", "sampler_name"),
    "shift": ("shift",),
    "width": ("width",),
    "height": ("height",),
}
SIZES = ("width", "height")
SIZED = {"Flux2Scheduler", "ModelSamplingFlux"}  # take the size of the latent


class WorkflowError(Exception):
    """A workflow that cannot be used: what was found, and what would be right."""


@dataclass(frozen=True)
class Recipe:
    """A graph and the places in it.

    Fields: image, the link that gives the images; samplers, nodes whose `model` gets the controls; encoder and prompt,
        the node that encodes the prompt, and the link that gives it encoded; texts and seeds, (node, input); batch,
        nodes with a `batch_size`.
    """

    graph: Graph
    image: Link
    samplers: tuple[str, ...]
    encoder: str
    prompt: Link
    texts: tuple[str, ...]
    seeds: tuple[tuple[str, str], ...]
    batch: tuple[str, ...]

    def fill(self, texts: Sequence[str], seed: int, controls: Sequence[Control]) -> Graph:
        """The graph for a batch of prompts.

        Args: texts, one for each image; seed, of the first image, the others' count up.
        Returns: a graph in which the node OUTPUT takes the images.
        """
        graph = copy.deepcopy(self.graph)
        for node, name in self.seeds:
            graph[node]["inputs"][name] = seed
        for node in self.batch:
            graph[node]["inputs"]["batch_size"] = len(texts)
        encoders = [self.encoder] + [f"{self.encoder} of prompt {index}" for index in range(1, len(texts))]
        for node, text in zip(encoders, texts, strict=True):
            graph[node] = copy.deepcopy(self.graph[self.encoder])
            graph[node]["inputs"].update(dict.fromkeys(self.texts, text))
        if len(texts) > 1:
            _replace(graph, self.prompt, ["joined prompts", 0])
            links = {f"prompt_{index}": [node, self.prompt[1]] for index, node in enumerate(encoders)}
            graph["joined prompts"] = {"class_type": JOIN, "inputs": links}
        for node in self.samplers:
            for number, control in enumerate(controls):
                key = f"control {number} of {node}"
                graph[key] = control.node(graph[node]["inputs"]["model"])
                graph[node]["inputs"]["model"] = [key, 0]
        graph[OUTPUT] = {"class_type": OUTPUT, "inputs": {"images": list(self.image)}}
        return graph

    def model_links(self) -> list[Link]:
        """The links that the samplers take their model from."""
        return list(dict.fromkeys(tuple(self.graph[node]["inputs"]["model"]) for node in self.samplers))


def read_workflow(path: Path) -> Graph:
    """Read a workflow in API format. Raises: WorkflowError for another file."""
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WorkflowError(f"--workflow: {path} cannot be read: {error}") from error
    if isinstance(graph, dict) and "nodes" in graph and "links" in graph:
        raise WorkflowError(
            f"--workflow: {path} is a saved workflow. In ComfyUI open it and choose Workflow > Export (API); give the "
            "file that this makes"
        )
    if not isinstance(graph, dict) or not graph or not all(map(_is_node, graph.values())):
        raise WorkflowError(f"--workflow: {path} is no workflow in API format (Workflow > Export (API) in ComfyUI)")
    return graph


def _is_node(value: Any) -> bool:
    known = isinstance(value, dict) and isinstance(value.get("class_type"), str)
    return known and isinstance(value.get("inputs"), dict)


def find_recipe(graph: Graph, batch: int = 1) -> Recipe:
    """Find the places in a graph. Args: batch, images in one call of the sampler. Raises: WorkflowError."""
    image = _only(
        {tuple(node["inputs"]["images"]) for node in graph.values() if _saves(node)},
        "node that saves or previews images",
        "Leave one SaveImage or PreviewImage in the workflow",
    )
    used = set(_ancestors(graph, image[0]))
    graph = {key: graph[key] for key in graph if key in used}
    samplers = tuple(
        key
        for key, node in graph.items()
        if node["class_type"] not in NOT_SAMPLERS
        and _is_link(node["inputs"].get("model"))
        and any(_is_link(node["inputs"].get(name)) for name in GUIDED)
    )
    if not samplers:
        raise WorkflowError("the image comes from no sampler that takes a model and a prompt")
    links = [
        tuple(graph[key]["inputs"][name])
        for key in samplers
        for name in GUIDED
        if _is_link(graph[key]["inputs"].get(name))
    ]
    prompt = _only(
        {found for link in links for found in _encoders(graph, link)},
        "prompt that the sampler's positive input comes from",
        "Use a workflow with one positive prompt",
    )
    graph[prompt[0]] = encoder = copy.deepcopy(graph[prompt[0]])
    for name in OWN_TEXTS.get(encoder["class_type"], ()):
        encoder["inputs"][name] = ""
    texts = TEXT_INPUTS.get(encoder["class_type"]) or _guess_text(encoder)
    seeds = tuple(dict.fromkeys(_seeds(graph)))
    if not seeds:
        raise WorkflowError("no node of the workflow has a seed as a number: set one on the sampler")
    batched = tuple(key for key, node in graph.items() if _is_number(node["inputs"].get("batch_size")))
    recipe = Recipe(graph, image, samplers, prompt[0], prompt, texts, seeds, batched)
    return _for_batches(recipe, batch) if batch > 1 else recipe


def has_negative(graph: Mapping[str, Any]) -> bool:
    """Whether the model also runs for a negative prompt: ComfyUI leaves it out at a cfg of 1."""
    inputs = [node["inputs"] for node in graph.values()]
    return any(_is_link(each.get("negative")) and each.get("cfg", 0) != 1 for each in inputs if "model" in each)


def set_values(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """A copy of the graph with settings put in. Args: values, by name of SETTINGS. Raises: WorkflowError."""
    graph = copy.deepcopy(graph)
    for setting, value in values.items():
        places = [
            (key, name)
            for key, node in graph.items()
            for name in SETTINGS[setting]
            if name in node["inputs"]
            # Of the nodes with a width, those that scale images keep theirs.
            if name not in SIZES or "batch_size" in node["inputs"] or node["class_type"] in SIZED
        ]
        if not places:
            names = " or ".join(SETTINGS[setting])
            raise WorkflowError(f"--{setting}: no node of the workflow has an input {names}")
        for key, name in places:
            if _is_link(graph[key]["inputs"][name]):
                kind = graph[key]["class_type"]
                raise WorkflowError(f"--{setting}: {name} of {kind} (node {key}) is linked. Make it a widget again")
            graph[key]["inputs"][name] = value
    return graph


def _for_batches(recipe: Recipe, batch: int) -> Recipe:
    kinds = {recipe.graph[node]["class_type"] for node in recipe.samplers}
    if kinds != {BATCHED}:
        raise WorkflowError(
            f"--batch {batch}: the workflow samples with {', '.join(sorted(kinds))}. Only {BATCHED} gives each image "
            "of a batch a seed of its own: use it, or set --batch 1"
        )
    if len(recipe.batch) != 1:
        raise WorkflowError(f"--batch {batch}: {len(recipe.batch)} nodes have a batch_size, one is needed")
    graph = copy.deepcopy(recipe.graph)
    for node in recipe.samplers:
        graph[node]["inputs"]["batch_noise"] = "per image"
    return Recipe(**{**vars(recipe), "graph": graph})


def _seeds(graph: Graph) -> Iterator[tuple[str, str]]:
    """The inputs that hold the seeds, also of the nodes that a seed is linked to. Raises: WorkflowError."""
    for key, node in graph.items():
        for name in SEEDS:
            value = node["inputs"].get(name)
            if _is_number(value):
                yield key, name
            elif _is_link(value):
                source = graph[value[0]]["inputs"]
                held = next((each for each in (*SEEDS, "value") if _is_number(source.get(each))), None)
                if held is None:
                    raise WorkflowError(
                        f"{name} of {node['class_type']} (node {key}) is linked to {graph[value[0]]['class_type']}, "
                        "which holds no number: set the seed on the node itself"
                    )
                yield value[0], held


def _saves(node: Mapping[str, Any]) -> bool:
    return node["class_type"] in ("SaveImage", "PreviewImage") and _is_link(node["inputs"].get("images"))


def _encoders(graph: Graph, link: Link) -> Iterator[Link]:
    """The links that give an encoded text, at the ends of the way up through nodes that change a conditioning."""
    waiting, seen = [link], set()
    while waiting:
        link = waiting.pop()
        if link in seen:
            continue
        seen.add(link)
        node = graph[link[0]]
        if _is_link(node["inputs"].get("clip")) and not any(_is_link(node["inputs"].get(name)) for name in GUIDED):
            yield link
            continue
        ups = [value for name, value in node["inputs"].items() if _is_link(value) and name.startswith(CONDITIONINGS)]
        if not ups:
            raise WorkflowError(
                f"the prompt comes from {node['class_type']} (node {link[0]}), which encodes no text of a CLIP. Use a "
                "text encode node"
            )
        # A node with a positive and a negative passes each on: output 0 and 1.
        chosen = [node["inputs"]["positive"]] if "positive" in node["inputs"] and link[1] == 0 else ups
        waiting += [tuple(up) for up in chosen]


def _guess_text(node: Mapping[str, Any]) -> tuple[str, ...]:
    known = [name for name in ("text", "prompt") if isinstance(node["inputs"].get(name), str)]
    if len(known) != 1:
        raise WorkflowError(
            f"it is not known which input of {node['class_type']} holds the prompt. Use one of "
            f"{', '.join(sorted(TEXT_INPUTS))}"
        )
    return (known[0],)


def _ancestors(graph: Graph, key: str) -> Iterator[str]:
    seen, left = set(), [key]
    while left:
        current = left.pop()
        if current in seen:
            continue
        if current not in graph:
            raise WorkflowError(f"a link of the workflow leads to node {current}, which is not in it")
        seen.add(current)
        yield current
        left += [value[0] for value in graph[current]["inputs"].values() if _is_link(value)]


def _replace(graph: Graph, old: Link, new: list[Any]) -> None:
    for node in graph.values():
        for name, value in node["inputs"].items():
            if _is_link(value) and tuple(value) == tuple(old):
                node["inputs"][name] = list(new)


def _only(found: set[Any], what: str, right: str) -> Any:
    if len(found) != 1:
        raise WorkflowError(f"the workflow has {len(found)} of: {what}. {right}")
    return next(iter(found))


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def _is_number(value: Any) -> bool:
    return type(value) is int
