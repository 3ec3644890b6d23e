"""The prompts with headroom: those that the shipped model gets right with some seeds and wrong with others.

`python -m benchmarks.attributes.headroom` samples candidates, draws each with a few seeds, keeps those of mixed results
and writes them to `headroom.json`. Their figures come from other seeds, or the choice itself would lower them:
`python -m benchmarks.attributes --prompts headroom --seeds 3`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from attributes.world import BACKGROUNDS, COLOURS, HELD_OUT_PAIRS, RELATIONS, SHAPES, Group, Scene
from training.captions import describe
from training.render import Renderer, Sampling

from .prompts import HEADROOM, Prompt, to_json
from .scoring import score_prompts

CANDIDATES, SEEDS = 72, 4  # of each kind, and for each candidate
FIRST_SEED = 1_000  # far from those of every measurement, which count up from 0
MIXED = range(1, SEEDS)  # how often a kept prompt comes out right


def many_objects(rng: random.Random) -> Scene:
    """Two groups of seven or eight objects together; six are the most in training."""
    counts = rng.choice(((3, 4), (4, 3), (4, 4)))
    colours = rng.sample(list(COLOURS), 2)
    return _scene(rng, counts, [(colour, rng.choice(SHAPES)) for colour in colours])


def unseen_pairs(rng: random.Random) -> Scene:
    """Two groups, both of colours and shapes that are never together in training."""
    counts = rng.choice([(a, b) for a in range(1, 5) for b in range(1, 5) if a + b <= 6])
    return _scene(rng, counts, rng.sample(sorted(HELD_OUT_PAIRS), 2))


def many_of_unseen_pairs(rng: random.Random) -> Scene:
    """Both at once."""
    return _scene(rng, rng.choice(((3, 4), (4, 3), (4, 4))), rng.sample(sorted(HELD_OUT_PAIRS), 2))


KINDS: tuple[Callable[[random.Random], Scene], ...] = (many_objects, unseen_pairs, many_of_unseen_pairs)


def _scene(rng: random.Random, counts: Sequence[int], pairs: Sequence[tuple[str, str]]) -> Scene:
    groups = tuple(Group(count, *pair) for count, pair in zip(counts, pairs, strict=True))
    return Scene(groups, rng.choice(RELATIONS), rng.choice(list(BACKGROUNDS)))


def candidates(kind: Callable[[random.Random], Scene], number: int = CANDIDATES) -> list[Prompt]:
    """Sample the candidates of a kind, seeded by its name; all differ."""
    rng = random.Random(f"headroom/{kind.__name__}")
    prompts: dict[str, Prompt] = {}
    while len(prompts) < number:
        scene = kind(rng)
        text = describe(scene, rng, complete=True)
        prompts.setdefault(text.lower(), Prompt(text, scene))
    return list(prompts.values())


def choose(renderer: Renderer, prompts: Sequence[Prompt], sampling: Sampling, label: str) -> list[Prompt]:
    """Those of the prompts that come out right in everything with some of the seeds and not with all."""
    scores, _ = score_prompts(renderer, sampling, prompts, seeds=SEEDS, label=label)
    right = [sum(score["all"] for score in scores[place :: len(prompts)]) for place in range(len(prompts))]
    return [prompt for prompt, count in zip(prompts, right, strict=True) if count in MIXED]


def main() -> None:
    """Choose the prompts of every kind and write the file."""
    from .__main__ import MODEL, ROOT

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="for its tokenizers")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    renderer = Renderer(given.model, given.comfyui)
    lines = []
    for kind in KINDS:
        kept = choose(renderer, candidates(kind), Sampling(cfg=4.5, seed=FIRST_SEED), kind.__name__)
        print(f"{kind.__name__}: {len(kept)} of {CANDIDATES} prompts are right with some of {SEEDS} seeds", flush=True)
        lines += [to_json(prompt) for prompt in kept]
    HEADROOM.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
