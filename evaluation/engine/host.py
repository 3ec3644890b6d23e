"""ComfyUI in this process as a function: a graph in API format goes in, its images come out."""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from scripts import in_process
from scripts.installations import COMFYUI_HOME, installed

from .graph import JOIN, OUTPUT, Graph, Link

PROBE = "EvaluationProbe"
MOST_PROMPTS = 64  # in one call of the sampler
BLOCK, READ_WHOLE = 1 << 20, 1 << 30  # bytes
NO_PREVIEWS = {"preview_method": "none"}  # a preview costs as much as a step of a small model


class HostError(Exception):
    """A graph that ComfyUI refused or failed to run: the node and the reason."""


@dataclass(frozen=True)
class ModelFacts:
    """What a study says of its model. Fields: family, its label; kind, the class of ComfyUI's model; its blocks."""

    family: str
    kind: str
    double: int
    single: int

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.double + self.single


class Host:
    """ComfyUI with its own nodes and this pack's, and with other packs' if a graph needs them.

    Args: base, the folder that holds models, user and other folders (default: of the user's own ComfyUI its own, of
        the pinned copy the one that `scripts/run.py --ui` uses); threads, of torch on the CPU.
    """

    def __init__(self, base: Path | None = None, threads: int = 0):
        import torch

        if threads:
            torch.set_num_threads(threads)
        own = None if installed() else COMFYUI_HOME / "base"
        comfyui = in_process.prepare(*([] if _has_accelerator() else ["--cpu"]), base=base or own)
        self.pack = in_process.load_pack()
        read_extra_paths(comfyui)
        self._nodes, self._execution = importlib.import_module("nodes"), importlib.import_module("execution")
        self._received: dict[str, Any] = {}
        self._not_loaded = [self._load_extra_nodes, self._load_other_packs]
        self._nodes.NODE_CLASS_MAPPINGS.update(self.pack.NODE_CLASS_MAPPINGS, **_own_nodes(self._received))
        importlib.import_module("comfy.utils").set_progress_bar_enabled(False)
        sizes = {"lru": 0, "ram": 0, "ram_inactive": 0}
        kind = self._execution.CacheType.CLASSIC
        self._executor = self._execution.PromptExecutor(_Server(), cache_type=kind, cache_args=sizes)

    def module(self, name: str) -> ModuleType:
        """A module of the pack's nodes, such as "comfyui.families"."""
        return importlib.import_module(f"{self.pack.__name__}.nodes.{name}")

    def add_model_folder(self, folder: Path) -> None:
        """Let the loaders find the files of a folder, before others of the same names."""
        paths = importlib.import_module("folder_paths")
        for kind in (self.module("comfyui.loading.folders").OWN_FOLDER, "diffusion_models", "text_encoders", "vae"):
            paths.add_model_folder_path(kind, str(folder), is_default=True)

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """A digest of each file of models by its name in a graph, of all files if several folders have the name."""
        paths = importlib.import_module("folder_paths")
        found = {}
        for name in sorted(set(names)):
            files = {paths.get_full_path(kind, name) for kind in list(paths.folder_names_and_paths)} - {None}
            found[name] = " ".join(_digest(Path(file)) for file in sorted(files))
        return found

    def software(self) -> dict[str, str]:
        """The versions that the images depend on."""
        import torch

        comfyui = importlib.import_module("comfyui_version").__version__
        core = importlib.import_module(f"{self.pack.__name__}.mmdit_core").__version__
        return {"ComfyUI": comfyui, "torch": str(torch.__version__), "pack": core}

    def user_folder(self) -> Path:
        """ComfyUI's folder of the default user."""
        return Path(importlib.import_module("folder_paths").get_user_directory()) / "default"

    def check(self, graph: Graph) -> None:
        """Let ComfyUI check a graph. Raises: HostError."""
        while (missing := self._missing(graph)) and self._not_loaded:
            self._not_loaded.pop(0)()
        if missing:
            raise HostError(f"this ComfyUI has no node {', '.join(missing)}: install the pack that it comes from")
        valid, error, _, errors = asyncio.run(self._execution.validate_prompt("study", graph, None))
        if not valid:
            reasons = [
                f"{found['class_type']} (node {node}): {each['message']}: {each['details']}"
                for node, found in (errors or {}).items()
                for each in found["errors"]
            ]
            raise HostError("; ".join(reasons) or f"{error['message']} {error['details']}".strip())

    def images(self, graph: Graph) -> np.ndarray:
        """Run a graph up to its node OUTPUT. Returns: uint8 [B, H, W, 3]. Raises: HostError."""
        images = self._run(graph, OUTPUT)
        return (images[..., :3].nan_to_num().clamp(0, 1) * 255).round().byte().cpu().numpy()

    def facts(self, graph: Graph, model: Link) -> ModelFacts:
        """What is known of the MODEL that a link gives. Raises: HostError for one that the block nodes refuse."""
        probe = {PROBE: {"class_type": PROBE, "inputs": {"model": list(model)}}}
        self.check(graph | probe)
        base = self._run(graph | probe, PROBE).model
        families = self.module("comfyui.families")
        family, counts = families.family_of(base), families.block_counts(base)
        if family is None or counts is None:
            raise HostError(families.why_refused(base))
        return ModelFacts(family.label, families.kind_of(base), *counts)

    def _run(self, graph: Graph, output: str) -> Any:
        self._received.clear()
        self._executor.execute(graph, "study", NO_PREVIEWS, [output])
        if not self._executor.success:
            event, data = self._executor.status_messages[-1]
            reason = data.get("exception_message", event).strip()
            raise HostError(f"{data.get('node_type')} (node {data.get('node_id')}): {reason}")
        return self._received.pop("value")

    def _load_extra_nodes(self) -> None:
        """ComfyUI's folder comfy_extras, which takes ten seconds."""
        _quietly(self._nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))

    def _load_other_packs(self) -> None:
        for folder in importlib.import_module("folder_paths").get_folder_paths("custom_nodes"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        _quietly(self._nodes.init_external_custom_nodes())
        # This pack may be among them, as modules of another name: one copy does all.
        self._nodes.NODE_CLASS_MAPPINGS.update(self.pack.NODE_CLASS_MAPPINGS)

    def _missing(self, graph: Graph) -> list[str]:
        return sorted({node["class_type"] for node in graph.values()} - set(self._nodes.NODE_CLASS_MAPPINGS))


def read_extra_paths(comfyui: Path) -> None:
    """As ComfyUI's main.py does: the folders of models that the user's extra_model_paths.yaml adds."""
    config = comfyui / "extra_model_paths.yaml"
    if config.is_file():
        importlib.import_module("utils.extra_config").load_extra_path_config(str(config))


class _Server:
    """What ComfyUI's executor needs of a server, without a client."""

    client_id: str | None = None
    last_node_id: str | None = None

    def send_sync(self, *_: Any) -> None:
        """No page is open."""


def _own_nodes(received: dict[str, Any]) -> dict[str, type]:
    """The nodes that give a graph's results to this process, and the one that joins prompts to a batch."""

    def taker(name: str, kind: str) -> type:
        class Taker:
            RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "take", "evaluation", True

            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {name: (kind,)}}

            @classmethod
            def IS_CHANGED(cls, **_: Any) -> float:
                return float("nan")  # a result is taken each time

            def take(self, **given: Any) -> dict[str, Any]:
                received["value"] = given[name]
                return {}

        return Taker

    class Join:
        RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "join", "evaluation"

        @classmethod
        def INPUT_TYPES(cls):
            return {"optional": {f"prompt_{index}": ("CONDITIONING",) for index in range(MOST_PROMPTS)}}

        def join(self, **prompts: Any) -> tuple[Any]:
            return (join_prompts([prompts[f"prompt_{index}"] for index in range(len(prompts))]),)

    return {OUTPUT: taker("images", "IMAGE"), PROBE: taker("model", "MODEL"), JOIN: Join}


def join_prompts(prompts: list[Any]) -> Any:
    """One conditioning of which row k is prompt k. Raises: ValueError if the prompts do not fit together."""
    import torch

    if any(len(prompt) != 1 for prompt in prompts):
        raise ValueError("a prompt of several parts cannot be sampled in a batch: set --batch 1")
    contexts, options = [prompt[0][0] for prompt in prompts], [prompt[0][1] for prompt in prompts]
    if len({context.shape[1:] for context in contexts}) > 1:
        lengths = sorted({context.shape[1] for context in contexts})
        raise ValueError(f"the prompts are of {lengths[0]} to {lengths[-1]} tokens, a batch needs one: set --batch 1")
    joined = {}
    for name in dict.fromkeys(name for each in options for name in each):
        values = [each.get(name) for each in options]
        if all(isinstance(value, torch.Tensor) and value.shape[0] == 1 for value in values):
            joined[name] = torch.cat(values)
        elif any(value != values[0] for value in values):
            raise ValueError(f"the prompts differ in {name}, a batch needs one: set --batch 1")
        else:
            joined[name] = values[0]
    return [[torch.cat(contexts), joined]]


def _digest(path: Path) -> str:
    """The size of a file and a hash of its contents; of a large one, of blocks all over it."""
    size, digest = path.stat().st_size, hashlib.sha256()
    step = BLOCK if size <= READ_WHOLE else max(BLOCK, size * BLOCK // READ_WHOLE)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(BLOCK))
    return f"{size}-{digest.hexdigest()[:16]}"


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available() or torch.xpu.is_available()


def _quietly(coroutine: Any) -> None:
    """Run ComfyUI's imports; what it could not import is said by name where a graph needs it."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        asyncio.run(coroutine)
    finally:
        logging.disable(before)
