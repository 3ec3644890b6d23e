"""`python -m benchmarks.attributes`: score images of the evaluation prompts, or test the judge (`--judge`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from attributes.judge import summarise
from mmdit_core.solvers import SOLVERS
from training.render import CHUNK, Renderer, Sampling, contact_sheet

from .plots import draw_sweep
from .prompts import SETS, read_prompts
from .scoring import CallCounter, score_prompts, table

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "mmdit-small.safetensors"
MAX_CALLS = 16  # model calls at which curves end, but for euler and the adaptive solvers
# The values of --sweep; each point is 128 prompts with one seed.
SWEEPS = {
    "steps": [
        {"solver": solver, "steps": steps}
        for solver, method in SOLVERS.items()
        for steps in ((28,) if method.adaptive else (4, 8, 16, 28, 50))
        if solver == "euler" or method.adaptive or steps * method.calls_per_step <= MAX_CALLS
    ],
    "cfg": [{"cfg": scale} for scale in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)],
    "cfg_end": [{"cfg_end": end} for end in (0.25, 0.4, 0.5, 0.6, 0.75, 1.0)],
    "dropped": [
        {"drop": names}
        for names in (
            ("clip_l",),
            ("clip_g",),
            ("t5xxl",),
            ("clip_l", "clip_g"),
            ("clip_g", "t5xxl"),
            ("clip_l", "t5xxl"),
        )
    ],
}


def evaluate(
    renderer: Renderer, sampling: Sampling, *, prompts: str = "held_out", number: int = 512, seeds: int = 1
) -> tuple[dict, np.ndarray]:
    """Score `number` prompts with `seeds` seeds. Returns: the summary, and the first seed's images."""
    scores, images = score_prompts(renderer, sampling, read_prompts(prompts, number), seeds=seeds)
    return summarise(scores), images


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="for its tokenizers")
    parser.add_argument("--prompts", choices=(*SETS, "both", "headroom"), default="both")
    parser.add_argument("--number", type=int, default=512, help="prompts of each set")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Sampling.steps)
    parser.add_argument("--cfg", type=float, default=Sampling.cfg)
    parser.add_argument(
        "--cfg-end", type=float, default=Sampling.cfg_end, help="where in the sampling cfg stops acting"
    )
    parser.add_argument("--solver", choices=SOLVERS, default=Sampling.solver)
    parser.add_argument("--sweep", choices=SWEEPS, help="vary one setting over 128 held-out prompts")
    parser.add_argument("--judge", action="store_true", help="score correct images, and images with one error each")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the transformer")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--plot", type=Path, help="with --sweep: PNG file for the plot")
    parser.add_argument("--sheet", type=Path, help="PNG file for the first 32 images")
    return parser.parse_args()


def main() -> None:
    """Run the evaluation."""
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    renderer = Renderer(options.model, options.comfyui, getattr(torch, options.dtype))
    sampling = Sampling(steps=options.steps, cfg=options.cfg, cfg_end=options.cfg_end, solver=options.solver)
    figures: dict = {"model": json.loads(renderer.metadata.get("mmdit.training", "{}")).get("steps")}
    if options.judge:
        from .judge_trial import try_judge

        figures["judge"] = try_judge(renderer.through_vae)
        for name, summary in figures["judge"].items():
            print(f"{name if name == 'truth' else name + ' detected':>24}: {table(summary)}")
    elif options.sweep:
        points = []
        prompts = read_prompts("held_out", min(128, options.number))
        for change in SWEEPS[options.sweep]:
            counter = CallCounter(renderer.model)
            scores, _ = score_prompts(renderer, dataclasses.replace(sampling, **change), prompts, model=counter)
            calls = counter.calls / -(-len(prompts) // CHUNK)
            print(f"{change}, {calls:g} model calls: {table(summarise(scores))}", flush=True)
            points.append({**change, "calls": calls, "scores": summarise(scores)})
            figures["sweep"] = {options.sweep: points}
            if options.json:  # a cancelled sweep keeps its finished points
                options.json.write_text(json.dumps(figures, indent=1) + "\n")
        if options.plot:
            draw_sweep(options.sweep, points, options.plot)
    else:
        for name in SETS if options.prompts == "both" else (options.prompts,):
            summary, images = evaluate(renderer, sampling, prompts=name, number=options.number, seeds=options.seeds)
            print(f"{name:>10}: {table(summary)}")
            figures[name] = summary
            if options.sheet and "sheet" not in figures:
                Image.fromarray(contact_sheet(images[:32])).save(options.sheet)
                figures["sheet"] = name
        figures["sampling"] = dataclasses.asdict(sampling)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
