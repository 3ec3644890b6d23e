"""In-process access to ComfyUI's own modules, for tests that compare our code with the host's without a server.

Test modules in this folder may `import comfy...` at their top: ComfyUI is put on sys.path before they are imported.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from scripts import inprocess
from scripts.environment import ROOT

COMFY = inprocess.prepare("--cpu")


@pytest.fixture(scope="session")
def comfy_path() -> Path:
    """ComfyUI's folder, on sys.path, its options parsed for the CPU."""
    return COMFY


@pytest.fixture(scope="session")
def pack(comfy_path: Path) -> ModuleType:
    """This repository imported as ComfyUI imports it: a package of its own, here named `mmdit_pack`.

    Its core is `mmdit_pack.mmdit_core`, another module object than a plain `import mmdit_core`.
    """
    if "mmdit_pack" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "mmdit_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["mmdit_pack"] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules["mmdit_pack"]
            raise
    return sys.modules["mmdit_pack"]


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random transformer in Stability's single-file layout, small enough for the host's own SD3 class to load too."""
    import torch
    from safetensors.torch import save_file

    from mmdit_core import MMDiT, MMDiTConfig

    torch.manual_seed(0)
    # The host takes width to be 64 * depth and heads to be depth.
    config = MMDiTConfig(hidden_size=128, num_heads=2, depth=2, pos_embed_max_size=24, qk_norm="rms")
    model = MMDiT(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.04)
    model.pos_embed.normal_()
    path = tmp_path_factory.mktemp("checkpoints") / "tiny-sd35.safetensors"
    save_file({f"model.diffusion_model.{name}": value for name, value in model.state_dict().items()}, path)
    return path
