"""The parts of a workflow spec: nodes with their inputs and links, and the nodes that most workflows have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Link = tuple[str, int]

PROMPT = "three red circles to the left of a blue star on a white background"

# The links of a node that samples and decodes by itself, without its VAE.
RUN_LINKS: dict[str, Link] = {
    "model": ("model", 0),
    "positive": ("text", 0),
    "negative": ("text", 1),
    "latent_image": ("latent", 0),
}


@dataclass(frozen=True)
class Node:
    """One node: a key for links, its type, the values that are not defaults, and links as (key, output)."""

    key: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class WorkflowSpec:
    """One workflow. `small`: the model that comes with the pack can run it."""

    name: str
    title: str
    note: str
    nodes: tuple[Node, ...]
    small: bool = True


def loader(checkpoint: str = "mmdit-small.safetensors") -> Node:
    """The loader; `checkpoint` is a file in models/checkpoints."""
    return Node("model", "MMDiTLoader", {"checkpoint": checkpoint})


def text(prompt: str = PROMPT, key: str = "text", clip: Link = ("model", 1), title: str = "", **values: Any) -> Node:
    """A prompt with its encoders."""
    return Node(key, "TripleTextEncode", {"prompt": prompt, **values}, {"clip": clip}, title)


def empty(size: int = 128, key: str = "latent") -> Node:
    """An empty square latent; `size` in pixels."""
    return Node(key, "EmptySD3LatentImage", {"width": size, "height": size})


def sampler(
    key: str = "sampler",
    *,
    model: Link = ("model", 0),
    positive: Link = ("text", 0),
    negative: Link = ("text", 1),
    latent: Link = ("latent", 0),
    title: str = "",
    **values: Any,
) -> Node:
    """The sampler; `values` are inputs that are not at their defaults."""
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node(key, "FlowMatchingSampler", {"seed": 4, "cfg": 4.5, "reuse": True, **values}, links, title)


def edit(latent: Link, source: Link = ("source", 0), target: Link = ("target", 0), **values: Any) -> Node:
    """FlowEdit; `values` are inputs that are not at their defaults."""
    links = {"model": ("model", 0), "source": source, "target": target, "negative": ("source", 1)}
    return Node("edit", "FlowEdit", {"seed": 1, **values}, {**links, "latent_image": latent})


def decode(source: str = "sampler", key: str = "decode", vae: Link = ("model", 2)) -> Node:
    """A decoder."""
    return Node(key, "VAEDecode", links={"samples": (source, 0), "vae": vae})


def save(source: str = "decode", key: str = "save", title: str = "") -> Node:
    """A saved image."""
    return Node(key, "SaveImage", {"filename_prefix": "mmdit"}, {"images": (source, 0)}, title)


def preview(source: str, key: str, title: str) -> Node:
    """A shown image."""
    return Node(key, "PreviewImage", links={"images": (source, 0)}, title=title)


def shown(source: str = "sampler", name: str = "picture", title: str = "") -> tuple[Node, Node]:
    """A latent decoded and saved."""
    return decode(source, f"{name} decoded"), save(f"{name} decoded", f"{name} saved", title)
