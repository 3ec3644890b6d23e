"""ComfyUI's own modules in the tests' process, for tests that compare the pack with ComfyUI without a server.

Test modules in this folder may `import comfy...` at their top: ComfyUI is on sys.path before they are imported.
"""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scripts import in_process
from scripts.installations import COMFYUI_HOME, NEWEST, RELEASES
from tests.nodes.floor import FLOOR, chosen

COMFY = in_process.prepare("--cpu")
HERE = Path(__file__).parent


# Families that ComfyUI has only after the oldest release that the pack supports -> what tests call them.
LATER = {
    "Krea2": ("krea 2", "krea2"),
    "MageFlow": ("mageflow",),
    "JoyImage": ("joyimage",),
    "Boogu": ("boogu",),
    "MiniMaxH3": ("minimax h3",),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect, not skip, what this ComfyUI lacks: tests of newer families, comparisons with a newer release.

    The tests that tests/nodes/floor.py chooses are marked.
    """
    _mark_floor(config, items)
    import comfy.supported_models

    lacking = [name for kind, names in LATER.items() if not hasattr(comfy.supported_models, kind) for name in names]
    older = COMFY.parent == COMFYUI_HOME and COMFY != RELEASES[NEWEST].folder
    gone = {
        item
        for item in items
        if any(name in item.name.lower().partition("[")[2] for name in lacking)
        or (not older and "newest" in getattr(item, "fixturenames", ()))
    }
    if gone:
        config.hook.pytest_deselected(items=list(gone))
        items[:] = [item for item in items if item not in gone]


def _mark_floor(config: pytest.Config, items: list[pytest.Item]) -> None:
    used = set()
    for item in items:
        if item.path.is_relative_to(HERE) and (entries := chosen(item.path.relative_to(HERE).as_posix(), item.name)):
            item.add_marker("floor")
            used.update(entries)
    if config.option.markexpr == "floor" and [Path(word).absolute() for word in config.args] == [HERE]:
        unused = {(file, pattern) for file, patterns in FLOOR.items() for pattern in patterns} - used
        if unused:
            raise pytest.UsageError(f"tests/nodes/floor.py names tests that there are not: {sorted(unused)}")


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """ComfyUI's folder; it is first on sys.path, and its options are parsed for the CPU."""
    return COMFY


@pytest.fixture(scope="session")
def pack(comfy_path: Path) -> ModuleType:
    """This repository as ComfyUI imports it, see `in_process.load_pack`."""
    return in_process.load_pack()


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random transformer in Stability's single-file layout, which ComfyUI's own SD3 class loads too."""
    import torch
    from safetensors.torch import save_file

    from mmdit_core import MMDiT, MMDiTConfig

    torch.manual_seed(0)
    # ComfyUI takes the width for 64 * depth and the number of heads for depth.
    config = MMDiTConfig(hidden_size=128, num_heads=2, depth=2, pos_embed_max_size=24, qk_norm="rms")
    model = MMDiT(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.04)
    model.pos_embed.normal_()
    path = tmp_path_factory.mktemp("checkpoints") / "tiny-sd35.safetensors"
    save_file({f"model.diffusion_model.{name}": value for name, value in model.state_dict().items()}, path)
    return path


class Bench:
    """FlowMatchingSampler on the tiny model, with default inputs that a test changes by name."""

    DEFAULTS = dict(seed=5, steps=6, cfg=3.0, solver="euler", schedule="linear", shift=0.0, denoise=1.0)

    def __init__(self, pack: ModuleType, model):
        import torch

        self.pack, self.model = pack, model
        source = torch.Generator().manual_seed(1)
        self.positive, self.negative = (
            [[torch.randn(1, 20, 4096, generator=source), {"pooled_output": torch.randn(1, 2048, generator=source)}]]
            for _ in range(2)
        )
        self.latent = torch.randn(1, 16, 8, 8, generator=source)

    def module(self, name: str) -> ModuleType:
        """A module of the pack's nodes: "sampler.node", "comfyui.controls", ..."""
        return importlib.import_module(f"{self.pack.__name__}.nodes.{name}")

    def attach(self, model, controls):
        """A clone of a MODEL with block controls, given as the plain import's."""
        import dataclasses

        patching = self.module("comfyui.patching")
        made = []
        for control in controls:
            values = {field.name: getattr(control, field.name) for field in dataclasses.fields(control)}
            made.append(patching.BlockControl(**values))
        return patching.attach(model, made)

    def empty(self, batch: int = 1, size: tuple[int, int] = (8, 8)) -> dict[str, Any]:
        import torch

        return {"samples": torch.zeros(batch, 16, *size)}

    def all(self, latent=None, *, model=None, positive=None, negative=None, node=None, **changed):
        """The node's outputs: latent, curve, summary."""
        node = node or self.module("sampler.node").FlowMatchingSampler()
        texts = positive or self.positive, negative or self.negative
        given = {**self.DEFAULTS, **changed}
        return node.sample(model or self.model, *texts, latent if latent is not None else self.empty(), **given)

    def run(self, latent=None, **changed):
        """The samples of the latent."""
        return self.all(latent, **changed)[0]["samples"]

    def facts(self, latent=None, **changed) -> dict[str, Any]:
        """The facts that the sampler writes into the PNG."""
        written: dict[str, Any] = {}
        self.all(latent, unique_id="7", extra_pnginfo=written, **changed)
        return written["mmdit_sampler"]["7"]

    @contextmanager
    def rows(self, model=None):
        """The batch size of each model call inside the `with`."""
        sizes: list[int] = []
        core = (model or self.model).model.diffusion_model
        handle = core.x_embedder.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
        try:
            yield sizes
        finally:
            handle.remove()


@pytest.fixture(scope="session")
def bench(pack: ModuleType, tiny_file: Path) -> Bench:
    return Bench(
        pack, importlib.import_module(f"{pack.__name__}.nodes.comfyui.loading.model").load_model(str(tiny_file))
    )


@pytest.fixture
def said(bench, monkeypatch):
    """What runs show on node 3."""
    lines = []

    def show_text(node, text):
        if node == "3":
            lines.append(text)

    monkeypatch.setattr(bench.module("comfyui.frontend.messages"), "show_text", show_text)
    return lines
