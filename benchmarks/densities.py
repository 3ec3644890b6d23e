"""Densities of sigmas for training: short trainings at equal compute, and the accuracy of their images.

    python -m benchmarks.densities [--steps 1500] [--number 128] [--run runs/ship] [--json FILE]

All trainings use the same images, captions and noise in the same order; only the density of the sigmas and its shift
differ. Images of 96 x 96, text encoders and VAE of an existing run; sampled at 96 x 96 with 28 steps and the shift of
the training. Compare Esser et al. 2024, table 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path

import torch

from attributes.judge import summarise
from benchmarks.attributes.prompts import read_prompts
from benchmarks.attributes.scoring import score_prompts, table
from training.export import export
from training.render import Renderer, Sampling
from training.settings import Settings
from training.tokens import Tokenizer
from training.train import train

ROOT = Path(__file__).resolve().parents[1]
CASES = (("logit_normal", 4.0), ("uniform", 4.0), ("logit_normal", 1.0), ("uniform", 1.0))
SHARED = ("vocabulary.json", "projection.safetensors", "text_encoders.safetensors", "decoder.safetensors")


def main() -> None:
    """Train and evaluate all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "ship", help="the run with text encoders and VAE")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "densities")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="for its tokenizers")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--number", type=int, default=128)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, prompts = Tokenizer(options.comfyui / "comfy"), read_prompts("seen", options.number)
    figures = []
    for density, shift in CASES:
        folder = options.folder / f"{density}-{shift:g}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in SHARED:
            shutil.copy(options.run / name, folder)
        settings = Settings(
            steps=options.steps,
            decay_steps=options.steps // 4,
            small_images_until=options.steps,
            density=density,
            shift=shift,
            layout_steps=(0, 0),
            ema=0.995,  # a shorter average for a shorter run
        )
        train(folder, settings, tokenizer)
        export(folder, tokenizer, folder / "model.safetensors")
        renderer = Renderer(folder / "model.safetensors", options.comfyui, torch.bfloat16)
        scores, _ = score_prompts(renderer, Sampling(steps=28, cfg=3.0, width=96, height=96), prompts)
        figures.append({"density": density, "shift": shift, "scores": summarise(scores)})
        print(f"{density}, shift {shift:g}: {table(figures[-1]['scores'])}", flush=True)
    if options.json:
        about = {"steps": options.steps, "batch": Settings.batch, "prompts": options.number}
        about |= {"sampling": dataclasses.asdict(Sampling(steps=28, cfg=3.0, width=96, height=96))}
        options.json.write_text(json.dumps({"about": about, "cases": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
