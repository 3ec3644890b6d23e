"""`python -m training`: make the model that ships, from nothing, or go on where a killed run stopped."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from .decoder import train_decoder
from .report import work
from .settings import Settings
from .start import unpack
from .team import gather
from .tokens import Tokenizer
from .train import prepare

ROOT = Path(__file__).resolve().parents[1]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "ship", help="folder of the run's working files")
    parser.add_argument("--host", type=Path, default=ROOT / ".host" / "ComfyUI", help="a ComfyUI, for its tokenizers")
    parser.add_argument("--start", type=Path, help="a finished file to begin from, such as the shipped one")
    # A step is small: two threads make it 1.2 times as fast, two processes 1.9 times, on two idle cores.
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="processes that share each batch, one to a core")
    parser.add_argument("--stage", choices=("all", "decoder", "model"), default="all")
    for name in ("seed", "steps", "decay_steps", "batch", "decoder_steps", "small_pictures_until"):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=getattr(Settings, name))
    parser.add_argument("--layout-steps", type=int, nargs=2, default=Settings.layout_steps)
    for name in ("rate", "shift", "layout_shift"):
        parser.add_argument("--" + name.replace("_", "-"), type=float, default=getattr(Settings, name))
    return parser.parse_args()


def main() -> None:
    options = parse()
    names = {field.name for field in dataclasses.fields(Settings)}
    values = {name: value for name, value in vars(options).items() if name in names}
    settings = Settings(**values | {"layout_steps": tuple(options.layout_steps)})
    torch.set_num_threads(options.threads)
    options.run.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(options.host / "comfy")
    if options.start:
        unpack(options.start, options.run, tokenizer)
    if options.stage in ("all", "decoder"):
        train_decoder(options.run, steps=settings.decoder_steps, seed=settings.seed)
    if options.stage in ("all", "model"):
        prepare(options.run, settings, tokenizer)
        gather(options.workers, work, options.run, options.host, settings, options.threads)


if __name__ == "__main__":
    main()
