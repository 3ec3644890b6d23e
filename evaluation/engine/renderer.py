"""Images of prompts under block controls, through one recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..controls import Control
from .graph import SETTINGS, Graph, WorkflowError, find_recipe, read_workflow, set_values
from .host import Host, ModelFacts
from .models import loader, workflow

SEED_STEP = 100_000  # noise seed of an image = SEED_STEP * seed + number of its prompt


@dataclass(frozen=True)
class Source:
    """Where the images come from: a workflow, or a model's files; and the settings that replace theirs.

    Fields: workflow, a file in API format; model, clips, vae, paths or names of files; clip_type, of ComfyUI's CLIP
    loader, "" for the model's own; settings, by name of `graph.SETTINGS`; batch, images in one call of the sampler.
    """

    workflow: Path | None = None
    model: str = ""
    clips: tuple[str, ...] = ()
    vae: str = ""
    clip_type: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    batch: int = 1


@dataclass(frozen=True)
class About:
    """What a study must know of its images' source.

    Fields: model, the name of its file; facts, of the model; graph, of one image; sampling, settings for reports;
    files, a digest of each file of models; software, versions; user_folder, of ComfyUI's default user.
    """

    model: str
    facts: ModelFacts
    graph: Graph
    sampling: dict[str, Any]
    files: dict[str, str]
    software: dict[str, str]
    user_folder: Path


class Renderer:
    """A source, ready to sample. Raises: WorkflowError, HostError."""

    def __init__(self, source: Source, host: Host):
        self.host, self.source = host, source
        self._recipe = find_recipe(set_values(self._graph(), source.settings), source.batch)
        self.graph = self._recipe.graph
        links = self._recipe.model_links()
        found = {host.facts(self.graph, link) for link in links}
        if len(found) > 1:
            raise WorkflowError("the workflow samples with models of several kinds: use one")
        self.facts = found.pop()
        self.model = Path(source.model).name or self._model_name(links[0][0])
        host.check(self._fill(["a"], 0, ()))

    def render(self, texts: Sequence[str], first: int, seed: int, controls: Sequence[Control]) -> np.ndarray:
        """Sample a batch.

        Args: texts, of consecutive prompts; first, the number of the first one; seed >= 0, of the study.
        Returns: uint8 [B, H, W, 3].
        Raises: HostError; WorkflowError for a workflow that makes another number of images.
        """
        graph = self._fill(texts, SEED_STEP * seed + first, controls)
        images = self.host.images(graph)
        if len(images) != len(texts):
            right = "Leave one image in the latent, and no node that repeats or joins images"
            raise WorkflowError(f"the workflow makes {len(images)} images of {len(texts)} prompts. {right}")
        return images

    def about(self) -> About:
        """What a study must know of it."""
        nodes = self.graph.values()
        sampling = {}
        for name, inputs in SETTINGS.items():
            values = [node["inputs"][each] for node in nodes for each in inputs if each in node["inputs"]]
            plain = [value for value in values if isinstance(value, int | float | str)]
            sampling[name] = plain[0] if plain else None
        names = [value for node in nodes for value in node["inputs"].values() if _is_file(value)]
        files, software = self.host.digests(names), self.host.software()
        return About(self.model, self.facts, self.graph, sampling, files, software, self.host.user_folder())

    def _fill(self, texts: Sequence[str], seed: int, controls: Sequence[Control]) -> Graph:
        return self._recipe.fill(texts, seed, controls)

    def _graph(self) -> Graph:
        source = self.source
        if source.workflow is not None:
            return read_workflow(source.workflow)
        names = [self._listed(name) for name in (source.model, *source.clips, source.vae) if name]
        checkpoint, clips = names[0], names[1 : 1 + len(source.clips)]
        vae = names[-1] if source.vae else ""
        kind = self.host.facts(loader(checkpoint), ("model", 0)).kind
        return workflow(checkpoint, kind, clips, vae, source.clip_type)

    def _listed(self, name: str) -> str:
        """The name under which a loader lists a file; its folder is added to ComfyUI's."""
        path = Path(name)
        if path.is_file():
            self.host.add_model_folder(path.absolute().parent)
            return path.name
        return name

    def _model_name(self, node: str) -> str:
        """The file that the model of a workflow is loaded from: the last file name on the way up, not a LoRA's."""
        found = "model"
        while node:
            inputs = self.graph[node]["inputs"]
            found = next((value for value in inputs.values() if _is_file(value)), found)
            up = inputs.get("model")
            node = up[0] if isinstance(up, list) else ""
        return PurePath(found.replace("\\", "/")).name


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".safetensors", ".sft", ".gguf", ".pt", ".ckpt"))
