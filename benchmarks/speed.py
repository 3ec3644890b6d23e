"""Our model, the host's own and diffusers', at equal weights, in turns in one run.

    python -m benchmarks.speed [--rounds 5] [--tokens 1024 4096] [--dtypes bfloat16 float32] [--markdown FILE]

Stacks of a few full-width blocks of SD3.5 Medium (one block with the second attention, one without, one last) and of
SD3.5 Large, 154 text tokens, batch 1. Time is the median over rounds of one forward; a ratio is taken within a round,
where all three ran one after the other, and the median of those is printed. Memory is the most that the process held
during one forward in a process of its own, less what it held before.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mmdit_core import MMDiT, MMDiTConfig  # noqa: E402
from mmdit_core.checkpoint import to_diffusers  # noqa: E402
from scripts import inprocess  # noqa: E402

STACKS = {
    "SD3.5 Medium, 3 blocks": MMDiTConfig(1536, 24, 3, qk_norm="rms", dual_attention=(0,), pos_embed_max_size=96),
    "SD3.5 Large, 2 blocks": MMDiTConfig(2432, 38, 2, qk_norm="rms", pos_embed_max_size=96),
}
CONTENDERS = ("ours", "host", "diffusers")
TEXT_TOKENS = 154
Forward = Callable[[], torch.Tensor]


def random_state(config: MMDiTConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = MMDiT(config, device="meta").state_dict()
    return {name: (torch.randn(tensor.shape) * 0.02).to(dtype) for name, tensor in shapes.items()}


def inputs(config: MMDiTConfig, tokens: int, dtype: torch.dtype, batch: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    side = math.isqrt(tokens) * config.patch_size
    return {
        "x": torch.randn(batch, config.in_channels, side, side).to(dtype),
        "timesteps": torch.full((batch,), 500.0),
        "context": torch.randn(batch, TEXT_TOKENS, config.context_dim).to(dtype),
        "y": torch.randn(batch, config.pooled_dim).to(dtype),
    }


def build(contender: str, config: MMDiTConfig, tokens: int, dtype: torch.dtype, state=None) -> Forward:
    """One forward of a contender with the common weights and inputs."""
    state = random_state(config, dtype) if state is None else state
    given = inputs(config, tokens, dtype)
    model = model_of(contender, config, dtype, state)
    return lambda: velocity(contender, model, **given)


def model_of(
    contender: str, config: MMDiTConfig, dtype: torch.dtype, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """A contender's model around these tensors, not copies of them."""
    if contender == "diffusers":
        return _diffusers(config, state)
    model = {"ours": _ours, "host": _host}[contender](config, dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def velocity(contender: str, model: torch.nn.Module, *, x, timesteps, context, y, **options) -> torch.Tensor:
    if contender == "diffusers":
        return model(x, context, y, timesteps, return_dict=False)[0]
    return model(x=x, timesteps=timesteps, context=context, y=y, **options)


def _ours(config: MMDiTConfig, dtype: torch.dtype):
    # As the loader node builds it: the host's layers and its attention.
    import comfy.ldm.modules.attention
    import comfy.ops

    return MMDiT(
        config,
        device="meta",
        dtype=dtype,
        operations=comfy.ops.disable_weight_init,
        attention=comfy.ldm.modules.attention.optimized_attention,
    )


def _host(config: MMDiTConfig, dtype: torch.dtype):
    import comfy.ldm.modules.diffusionmodules.mmdit as host
    import comfy.ops

    return host.OpenAISignatureMMDITWrapper(
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        depth=config.hidden_size // 64,
        num_blocks=config.depth,
        adm_in_channels=config.pooled_dim,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": config.context_dim, "out_features": config.hidden_size},
        },
        pos_embed_max_size=config.pos_embed_max_size,
        num_patches=config.pos_embed_max_size**2,
        qk_norm=config.qk_norm,
        x_block_self_attn_layers=list(config.dual_attention),
        operations=comfy.ops.disable_weight_init,
        dtype=dtype,
        device="meta",
    )


def _diffusers(config: MMDiTConfig, state: dict[str, torch.Tensor]):
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=config.pos_embed_max_size * config.patch_size,
            patch_size=config.patch_size,
            in_channels=config.in_channels,
            num_layers=config.depth,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.context_dim,
            caption_projection_dim=config.hidden_size,
            pooled_projection_dim=config.pooled_dim,
            out_channels=config.channels_out,
            pos_embed_max_size=config.pos_embed_max_size,
            dual_attention_layers=config.dual_attention,
            qk_norm="rms_norm",
        )
    model.load_state_dict(to_diffusers(state, config), strict=True, assign=True)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def time_row(stack: str, tokens: int, dtype: torch.dtype, rounds: int) -> dict[str, list[float]]:
    """Seconds of each forward, by contender, one value a round; which one goes first changes from round to round."""
    config = STACKS[stack]
    state = random_state(config, dtype)
    forwards = {name: build(name, config, tokens, dtype, state) for name in CONTENDERS}
    outputs = {name: forward().float() for name, forward in forwards.items()}  # also the warm-up
    for name in ("host", "diffusers"):
        error = (outputs["ours"] - outputs[name]).abs().max() / outputs[name].std()
        # A race between models that compute different things would mean nothing.
        if error > (1e-4 if dtype == torch.float32 else 0.2):
            raise SystemExit(f"{stack}: ours and {name} differ by {error:.2g}")
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(rounds):
        order = CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]
        for name in order:
            started = time.perf_counter()
            forwards[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def peak_memory(contender: str, stack: str, tokens: int, dtype: str) -> int:
    """Bytes beyond the weights that one forward takes, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.speed", "--memory-of", contender, stack, str(tokens), dtype]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@torch.inference_mode()
def _memory_child(contender: str, stack: str, tokens: str, dtype: str) -> None:
    import psutil

    forward = build(contender, STACKS[stack], int(tokens), getattr(torch, dtype))
    # The peak counter cannot be set back, so what is held already must be below what the forward will need.
    process, held, most = psutil.Process(), 0, 0
    held = process.memory_info().rss
    import threading

    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    forward()
    done.set()
    watcher.join()
    print(json.dumps(max(0, most - held)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--stacks", nargs="+", default=list(STACKS))
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    inprocess.prepare("--cpu")
    if given.memory_of:
        _memory_child(*given.memory_of)
        return
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        f"Machine: {machine}; {given.rounds} rounds, batch 1, {TEXT_TOKENS} text tokens",
        "",
        "| stack | tokens | dtype | ours, s | ours / host | ours / diffusers | spread of ours / host "
        "| memory ours / host / diffusers, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for stack in given.stacks:
        for dtype in given.dtypes:
            for tokens in given.tokens:
                seconds = time_row(stack, tokens, getattr(torch, dtype), given.rounds)
                ratios = {
                    name: sorted(a / b for a, b in zip(seconds["ours"], seconds[name], strict=True))
                    for name in ("host", "diffusers")
                }
                memory = [peak_memory(name, stack, tokens, dtype) / 1e6 for name in CONTENDERS]
                lines.append(
                    f"| {stack} | {tokens} | {dtype} | {statistics.median(seconds['ours']):.3f} "
                    f"| {statistics.median(ratios['host']):.3f} | {statistics.median(ratios['diffusers']):.3f} "
                    f"| {ratios['host'][0]:.3f} to {ratios['host'][-1]:.3f} "
                    f"| {' / '.join(f'{value:.0f}' for value in memory)} |"
                )
                print(lines[-1], flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
