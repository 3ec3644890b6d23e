"""What Precompute Modulation saves on a GPU: seconds a step and peak memory, with and without, on random weights.

    python -m benchmarks.modulation --model Qwen-Image --dtype fp8 --reserve 124   # as on a card with 16 of 140 GB
    python -m benchmarks.modulation --model "FLUX.1 dev" --mode lowvram
    python -m benchmarks.modulation --device cpu --model Lens --layers 1 --size 64 --steps 3   # whether it runs

The model has its published size (benchmarks/published.py) and random weights, which are as fast as trained ones. Both
runs are in one process, after a run that warms up, in turn, twice. `--mode` and `--reserve` are ComfyUI's own
options: how it loads models, and how many GB of the card it leaves free. No weights are downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import statistics
import time
from typing import Any

import torch

from benchmarks.published import PUBLISHED, Published
from scripts import in_process

DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
MODES = ("normal", "lowvram", "novram")
DEPTHS = ("depth", "depth_single_blocks", "num_layers", "num_single_layers", "n_layers", "n_double_layers")
REPEATS = 2


def build(published: Published, dtype: torch.dtype, layers: int | None):
    """A MODEL with random weights. Args: layers, at most so many blocks of each kind; None for all."""
    import comfy.model_management as management
    import comfy.model_patcher
    import comfy.supported_models

    config = dict(published.config)
    if layers is not None:
        config |= {name: min(config[name], layers) for name in DEPTHS if name in config}
    described = getattr(comfy.supported_models, published.kind)(config)
    described.unet_config.update(config)
    described.set_inference_dtype(dtype, torch.bfloat16)
    base = described.get_model({}, "", device=torch.device("cpu"))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.diffusion_model.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(0.02 * torch.randn(parameter.shape, generator=source, dtype=torch.bfloat16))
    base.diffusion_model.eval()
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(base, load_device=management.get_torch_device(), offload_device=management.unet_offload_device())


def inputs_of(pack: str, model, published: Published, size: int, tokens: int) -> tuple[Any, torch.Tensor]:
    """A CONDITIONING and an empty latent for an image of size x size pixels."""
    families = importlib.import_module(f"{pack}.nodes.comfyui.families")
    width = families.family_of(model.model).width(families.network_of(model.model))
    entry: dict[str, Any] = {"guidance": 3.5}
    if published.pooled:
        pooled = published.config.get("vec_in_dim") or published.config.get("adm_in_channels") or 2048
        entry["pooled_output"] = torch.randn(1, pooled)
    form = model.model.latent_format
    side, frames = size // form.spacial_downscale_ratio, (1,) if form.latent_dimensions == 3 else ()
    return [[torch.randn(1, tokens, width), entry]], torch.zeros(1, form.latent_channels, *frames, side, side)


def sampled(model, conditioning, latent, cfg: float, steps: int) -> tuple[torch.Tensor, list[float], float]:
    """A run of KSampler. Returns: the latent, seconds of each step, peak memory of the GPU in GB."""
    import comfy.model_management as management
    import comfy.sample

    management.unload_all_models()
    management.soft_empty_cache()
    gpu = management.get_torch_device().type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    ends = []

    def ended(*_: Any) -> None:
        if gpu:
            torch.cuda.synchronize()
        ends.append(time.perf_counter())

    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    started = time.perf_counter()
    given = steps, cfg, "euler", "simple", conditioning, conditioning, latent
    with torch.inference_mode():
        out = comfy.sample.sample(model, noise, *given, callback=ended, disable_pbar=True, seed=1)
    seconds = [after - before for before, after in zip([started, *ends], ends, strict=False)]
    return out, seconds, torch.cuda.max_memory_allocated() / 1e9 if gpu else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(PUBLISHED), default="Qwen-Image")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--mode", choices=MODES, default="normal", help="how ComfyUI loads models")
    parser.add_argument("--reserve", type=float, default=0.0, help="GB of the card that ComfyUI leaves free")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--layers", type=int, help="at most so many blocks of each kind")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=256, help="of the text")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cfg", type=float, default=4.0)
    given = parser.parse_args()
    mode = ["--cpu"] if given.device == "cpu" else [] if given.mode == "normal" else [f"--{given.mode}"]
    in_process.prepare(*mode, *(["--reserve-vram", str(given.reserve)] if given.reserve else []))
    pack, published = in_process.load_pack().__name__, PUBLISHED[given.model]
    model = build(published, DTYPES[given.dtype], given.layers)
    node = importlib.import_module(f"{pack}.nodes.caching").PrecomputeModulation()
    with_table, said = node.apply(model)
    conditioning, latent = inputs_of(pack, model, published, given.size, given.tokens)
    run = (conditioning, latent, given.cfg, given.steps)
    plain, *_ = sampled(model, *run)
    found: dict[str, list[tuple[float, float, float]]] = {"without": [], "with": []}
    same = True
    for _ in range(REPEATS):
        for name, each in (("without", model), ("with", with_table)):
            out, seconds, peak = sampled(each, *run)
            found[name].append((seconds[0], statistics.median(seconds[1:]), peak))
            same = same and torch.equal(out, plain)
    device = torch.cuda.get_device_name() if given.device == "gpu" else platform.processor() or platform.machine()
    print(f"{given.model}, {given.dtype}, {given.mode}, {device}. {said}\n")
    print("| table | first step, s | a step, s | peak, GB |\n| --- | --- | --- | --- |")
    for name, rows in found.items():
        first, step, peak = (min(values) for values in zip(*rows, strict=True))
        print(f"| {name} | {first:.3f} | {step:.3f} | {peak:.2f} |")
    print(f"\nThe latents are {'equal bit for bit' if same else 'NOT equal'}.")


if __name__ == "__main__":
    main()
