"""`python -m training`: train the shipped model from scratch, or resume an interrupted run."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from .decoder import train_decoder
from .report import work
from .settings import Settings
from .tokens import Tokenizer
from .train import prepare
from .warm_start import warm_start
from .workers import run_workers

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "ship", help="folder of the run's files")
    parser.add_argument(
        "--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="folder of ComfyUI, for its tokenizers"
    )
    parser.add_argument("--start", type=Path, help="an exported model to start from, such as the shipped one")
    # On two idle cores a step is 1.2 times as fast with two threads and 1.9 times with two processes.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that split each batch, one for each core")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default=Settings.precision, help="fp32 where bf16 is emulated"
    )
    parser.add_argument("--stage", choices=("all", "decoder", "model"), default="all")
    for name in ("seed", "steps", "decay_steps", "batch", "decoder_steps", "small_images_until"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(Settings, name))
    parser.add_argument("--layout-steps", type=int, nargs=2, default=Settings.layout_steps)
    for name in ("rate", "shift", "layout_shift"):
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=getattr(Settings, name))
    return parser.parse_args()


def main() -> None:
    """Run the stages of the training."""
    options = parse()
    names = {field.name for field in dataclasses.fields(Settings)}
    values = {name: value for name, value in vars(options).items() if name in names}
    settings = Settings(**values | {"layout_steps": tuple(options.layout_steps)})
    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(options.comfyui / "comfy")
    if options.start:
        warm_start(options.start, options.run, tokenizer)
    if options.stage in ("all", "decoder"):
        train_decoder(options.run, steps=settings.decoder_steps, seed=settings.seed)
    if options.stage in ("all", "model"):
        prepare(options.run, settings, tokenizer)
        run_workers(options.workers, work, options.run, options.comfyui, settings, options.threads)


if __name__ == "__main__":
    main()
