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
from training.render import Renderer, Sampling

from .__main__ import MODEL, ROOT
from .prompts import HEADROOM, Prompt, describe_scenes, to_json
from .scoring import score_prompts

CANDIDATES, SEEDS = 72, 4  # of each kind, and for each candidate
FIRST_SEED = 1_000  # far from those of every measurement, which count up from 0
MANY = ((3, 4), (4, 3), (4, 4))  # objects of two groups
MIXED = range(1, SEEDS)  # how often a kept prompt comes out right


def many_objects(rng: random.Random) -> Scene:
    """Two groups of seven or eight objects together; six are the most in training."""
    counts = rng.choice(MANY)
    colours = rng.sample(list(COLOURS), 2)
    return _scene(rng, counts, [(colour, rng.choice(SHAPES)) for colour in colours])


def unseen_pairs(rng: random.Random) -> Scene:
    """Two groups, both of colours and shapes that are never together in training."""
    counts = rng.choice([(a, b) for a in range(1, 5) for b in range(1, 5) if a + b <= 6])
    return _scene(rng, counts, rng.sample(sorted(HELD_OUT_PAIRS), 2))


def many_of_unseen_pairs(rng: random.Random) -> Scene:
    """Both at once."""
    return _scene(rng, rng.choice(MANY), rng.sample(sorted(HELD_OUT_PAIRS), 2))


KINDS: tuple[Callable[[random.Random], Scene], ...] = (many_objects, unseen_pairs, many_of_unseen_pairs)


def _scene(rng: random.Random, counts: Sequence[int], pairs: Sequence[tuple[str, str]]) -> Scene:
    groups = tuple(Group(count, *pair) for count, pair in zip(counts, pairs, strict=True))
    return Scene(groups, rng.choice(RELATIONS), rng.choice(list(BACKGROUNDS)))


def candidates(kind: Callable[[random.Random], Scene], number: int = CANDIDATES) -> list[Prompt]:
    """Sample the candidates of a kind, seeded by its name; all differ."""
    return describe_scenes(kind, random.Random(f"headroom/{kind.__name__}"), number)


def choose(renderer: Renderer, prompts: Sequence[Prompt], sampling: Sampling, label: str) -> list[Prompt]:
    """Those of the prompts that come out right in everything with some of the seeds and not with all."""
    scores, _ = score_prompts(renderer, sampling, prompts, seeds=SEEDS, label=label)
    right = [sum(score["all"] for score in scores[place :: len(prompts)]) for place in range(len(prompts))]
    return [prompt for prompt, count in zip(prompts, right, strict=True) if count in MIXED]


def main() -> None:
    """Choose the prompts of every kind and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI", help="for its tokenizers")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 = torch's choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    renderer = Renderer(given.model, given.comfyui)
    found: list[Prompt] = []
    for kind in KINDS:
        kept = choose(renderer, candidates(kind), Sampling(cfg=4.5, seed=FIRST_SEED), kind.__name__)
        print(f"{kind.__name__}: {len(kept)} of {CANDIDATES} prompts are right with some of {SEEDS} seeds", flush=True)
        found += kept
    HEADROOM.write_text(to_json(found) + "\n")


if __name__ == "__main__":
    main()
