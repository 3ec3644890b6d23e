"""Each example runs with its tiny random model, and with a checkpoint that is given."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmdit_core import Flux, FluxConfig, MMDiT, MMDiTConfig, QwenImage, QwenImageConfig

FOLDER = Path(__file__).parents[2] / "docs" / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
LATENT = r"latent \[1, 16, 32, 32\], torch.float32, finite: True\n"
PRINTS = {
    "sd3": LATENT,
    "flux": LATENT,
    "qwen_image": LATENT,
    "training_step": r"loss \d+\.\d{4} -> \d+\.\d{4}\n",
    "block_sweep": "".join(
        rf"{operation} +block +{block}: \d\.\d{{4}}\n"
        for operation in ("skip", "disable", "boost")
        for block in range(3)
    ),
}
CHECKPOINTS = {
    "sd3": MMDiT(MMDiTConfig(128, 2, 1, context_dim=24, pooled_dim=12, pos_embed_max_size=16)),
    "flux": Flux(FluxConfig(64, 2, 1, 1, context_dim=24, pooled_dim=12, axes_dim=(4, 14, 14))),
    "qwen_image": QwenImage(QwenImageConfig(128, 1, 1, context_dim=24)),
}


@pytest.fixture
def run(monkeypatch, capsys):
    """What an example prints. Args: name; words of its command line."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "common", raising=False)

    def run(name: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--device", "cpu", *words])
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    sys.modules.pop("common", None)


def test_each_example_is_tested():
    assert EXAMPLES == sorted(PRINTS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_needs_what_the_library_needs(path):
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    own = {"mmdit_core", "common", "torch", "safetensors", "numpy"}
    assert {name.partition(".")[0] for name in names} <= own | sys.stdlib_module_names


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_by_itself(run, name):
    printed = run(name)
    assert re.fullmatch(PRINTS[name], printed), printed
    if name == "training_step":
        before, after = map(float, re.findall(r"[\d.]+", printed))
        assert after < before
    if name == "block_sweep":
        distances = [float(each) for each in re.findall(r": ([\d.]+)", printed)]
        assert all(distances[:6]) and distances[-1] == 0  # nothing reads the text of the last block


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_example_runs_with_a_checkpoint_in_its_dtype(run, name, tmp_path):
    state = CHECKPOINTS[name].bfloat16().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    printed = run(name, "--checkpoint", str(tmp_path / "model.safetensors"), "--steps", "2")
    assert printed == f"latent [1, 16, 32, 32], {torch.bfloat16}, finite: True\n"
