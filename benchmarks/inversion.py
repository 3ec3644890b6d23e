"""How exactly an image comes back after FlowInvert and FlowMatchingSampler with the same prompt at cfg 1.

    python -m benchmarks.inversion [--model FILE] [--images 8] [--steps 8 28 50] [--markdown FILE]

The images are scenes of the small model's world with their captions. PSNR is in dB over pixels in [0, 1] against the
VAE's own reconstruction, mean and lowest over the images. "leapfrog, fresh" is sampled without the velocity in
FlowInvert's resume state, as after a change of prompt. Calls are those of the model, in both directions together.
"""

from __future__ import annotations

import argparse
import importlib
import math
import random
import statistics
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from attributes.world import arrange, draw_image
from benchmarks.attributes.prompts import read_prompts
from scripts import in_process

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "models" / "mmdit-small.safetensors"
NO_HISTORY = "leapfrog, fresh"
ROWS = ("euler", "midpoint", NO_HISTORY, "leapfrog")


def psnr(found: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB. Args: two images, one shape, in [0, 1]."""
    error = (found - reference).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


class Bench:
    """The nodes on one checkpoint."""

    def __init__(self, pack: ModuleType, checkpoint: Path):
        self.pack = pack
        parts = self.module("comfyui.loading.clip_vae")
        self.model = self.module("comfyui.loading.model").load_model(str(checkpoint))
        self.clip, self.vae = parts.load_clip(str(checkpoint)), parts.load_vae(str(checkpoint))
        self.invert = self.module("invert").FlowInvert().invert
        self.sample = self.module("sampler.node").FlowMatchingSampler().sample

    def module(self, name: str) -> ModuleType:
        """A module of the pack's nodes."""
        return importlib.import_module(f"{self.pack.__name__}.nodes.{name}")

    def score(self, row: str, latent: Tensor, text, steps: int) -> float:
        """PSNR after both directions. Args: row, of ROWS; latent [1, C, H, W]; text, a conditioning."""
        solver = "leapfrog" if row == NO_HISTORY else row
        (noise,) = self.invert(self.model, text, {"samples": latent}, steps, solver, 0.0)
        if row == NO_HISTORY:
            resume = self.module("comfyui.run.resume")
            noise = {**noise, resume.KEY: replace(noise[resume.KEY], history=())}
        back, *_ = self.sample(self.model, text, text, noise, steps=steps, cfg=1.0, solver=solver)
        return psnr(self.vae.decode(back["samples"]).clamp(0, 1), self.vae.decode(latent).clamp(0, 1))

    def calls(self, row: str, latent: Tensor, text, steps: int) -> int:
        """Model calls of both directions together."""
        seen: list[int] = []
        core = self.model.model.diffusion_model
        handle = core.x_embedder.register_forward_hook(lambda module, given, out: seen.append(1))
        try:
            self.score(row, latent, text, steps)
        finally:
            handle.remove()
        return len(seen)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=SMALL)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 28, 50])
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    in_process.prepare("--cpu")
    bench, rng, pairs = Bench(in_process.load_pack(), given.model), random.Random(0), []
    for prompt in read_prompts("held_out", given.images):
        image = torch.from_numpy(draw_image(prompt.scene, arrange(prompt.scene, rng)))[None]
        text = bench.clip.encode_from_tokens_scheduled(bench.clip.tokenize(prompt.text))
        pairs.append((bench.vae.encode(image), text))
    lines = [
        f"{given.model.name}, {given.images} images, cfg 1",
        "",
        "| solver | steps | calls | PSNR, mean | PSNR, lowest |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for steps in given.steps:
        for row in ROWS:
            scores = [bench.score(row, *pair, steps) for pair in pairs]
            calls = bench.calls(row, *pairs[0], steps)
            lines.append(f"| {row} | {steps} | {calls} | {statistics.mean(scores):.1f} | {min(scores):.1f} |")
            print(lines[-1], flush=True)
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
