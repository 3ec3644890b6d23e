"""What block controls cost and save: steps with CFG on a stack of full width, interleaved in one run.

    python -m benchmarks.controls [--rounds 5] [--tokens 1024] [--blocks 6] [--dtype bfloat16] [--markdown FILE]

Six blocks of SD3.5 Medium's width (random weights), 154 text tokens, sampled by ComfyUI's guider with a positive and
a negative prompt. Each row is a set of controls. Its ratio is the time of a step over that of the same model without
controls in the same round; the table has the median over rounds. The ideal saving of a skip takes all time to be the
blocks'.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file

from mmdit_core import MMDiT, MMDiTConfig
from scripts import in_process

TEXT_TOKENS, STEPS = 154, 3
Row = tuple[str, list, float]  # name, controls, fraction of a step that an ideal skip saves


def random_model(pack: ModuleType, blocks: int, dtype: torch.dtype):
    """A MODEL of SD3.5 Medium's width with random weights."""
    config = MMDiTConfig(1536, 24, blocks, qk_norm="rms", pos_embed_max_size=96)
    torch.manual_seed(0)
    shapes = MMDiT(config, device="meta").state_dict()
    state = {f"model.diffusion_model.{name}": (torch.randn(t.shape) * 0.02).to(dtype) for name, t in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stack.safetensors"
        save_file(state, path)
        del state
        models = sys.modules[f"{pack.__name__}.nodes.comfyui.loading.model"]
        return models.load_model(str(path)).clone()


def rows(control: Callable, window: Callable, blocks: int) -> list[Row]:
    """The sets of controls to time. Args: control and window, the pack's BlockControl and Window."""
    few = tuple(range(1, 1 + blocks // 2))
    last = blocks - 1
    return [
        ("none", [], 0.0),
        ("skip, outside its window", [control("skip", few, window=window(0.999))], 0.0),
        ("residual boost x1", [control("boost", few, strength=1.0)], 0.0),
        ("residual boost x1.5, all blocks", [control("boost", tuple(range(blocks)), strength=1.5)], 0.0),
        ("attention boost x1.5, all blocks", [control("boost", range(blocks), strength=1.5, mode="attention")], 0.0),
        ("value boost x1.5, all blocks", [control("boost", range(blocks), strength=1.5, mode="value")], 0.0),
        ("skip 1 block, negative", [control("skip", (1,), branch="negative")], 1 / blocks / 2),
        (f"skip {len(few)} blocks, negative", [control("skip", few, branch="negative")], len(few) / blocks / 2),
        (
            f"skip {last} blocks, negative",
            [control("skip", tuple(range(1, blocks)), branch="negative")],
            last / blocks / 2,
        ),
        (f"skip {len(few)} blocks, both", [control("skip", few)], len(few) / blocks),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    in_process.prepare("--cpu")
    pack = in_process.load_pack()
    sampling, patching = (sys.modules[f"{pack.__name__}.nodes.comfyui.{name}"] for name in ("run.sampling", "patching"))
    window = sys.modules[f"{pack.__name__}.mmdit_core.flow.window"].Window
    model = random_model(pack, given.blocks, getattr(torch, given.dtype))
    side = math.isqrt(given.tokens) * 2
    latent = {"samples": torch.zeros(1, 16, side, side)}
    texts = [
        [[torch.randn(1, TEXT_TOKENS, 4096), {"pooled_output": torch.randn(1, 2048)}]] for _ in ("positive", "negative")
    ]
    levels = torch.linspace(1, 0.25, STEPS + 1, dtype=torch.float64)

    def step_time(items: list) -> float:
        """Seconds a step: from the end of the first, which loads and warms up, to the end of the last."""
        patched = patching.attach(model, items) if items else model
        ends = []
        prepared = sampling.prepare(sampling.fitted(patched, latent), 0)
        sampling.sample_flow(
            patched,
            *texts,
            prepared,
            seed=0,
            cfg=4.0,
            solver="euler",
            sigmas=levels,
            callback=lambda *_: ends.append(time.perf_counter()),
        )
        return (ends[-1] - ends[0]) / (len(ends) - 1)

    table = rows(patching.BlockControl, window, given.blocks)
    seconds: dict[str, list[float]] = {name: [] for name, _, _ in table}
    step_time([])
    for turn in range(given.rounds):
        turned = table[turn % len(table) :] + table[: turn % len(table)]
        for name, items, _ in turned:
            seconds[name].append(step_time(items))
    lines = [
        f"{given.blocks} blocks of SD3.5 Medium's width, {given.tokens} image and {TEXT_TOKENS} text tokens, "
        f"{given.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}, {given.rounds} rounds",
        "",
        "| controls | step / plain step | spread | saved of the ideal |",
        "| --- | --- | --- | --- |",
    ]
    for name, _, ideal in table:
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds["none"], strict=True))
        middle = statistics.median(ratios)
        saved = f"{(1 - middle) / ideal:.2f}" if ideal else ""
        lines.append(f"| {name} | {middle:.3f} | {ratios[0]:.3f} to {ratios[-1]:.3f} | {saved} |")
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
