"""Teach the text encoders to read before the transformer listens.

Big models get encoders that were trained on text; ours would have to learn English through a denoising loss alone,
and what stands left of what comes very late that way. A few minutes of predicting, from each encoder's output by one
linear layer, what stands where gives the transformer something to work with. The linear layers are thrown away.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .captions import describe
from .settings import Settings
from .state import write_tensors
from .text import WIDTHS, TextBatch, TextEncoders
from .tokens import LENGTH, Tokenizer, add_noise_words
from .world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, draw_scene

BATCH = 256
# Questions about a scene and their numbers of answers: for the left or upper group, then for the right or lower one.
GROUP_ANSWERS = (5, len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
ANSWERS = (*GROUP_ANSWERS, *GROUP_ANSWERS, 3, len(BACKGROUNDS))
SOURCES = {"clip_l": WIDTHS.clip_l, "clip_g": WIDTHS.clip_g, "pooled_l": 32, "pooled_g": 32, "t5": WIDTHS.context}


def answers(scene: Scene) -> list[int]:
    """What is where: the scene's content by place, so that only a reader who got the relation right can tell."""
    groups = list(scene.groups)
    if scene.relation in ("right", "below"):
        groups.reverse()
    out = []
    for group in (*groups, None)[:2]:
        if group is None:
            out += [0, 0, 0, 0]
        else:
            names = (list(COLOURS).index(group.colour), SHAPES.index(group.shape), list(SIZES).index(group.size))
            out += [group.count, *(name + 1 for name in names)]
    axis = 0 if not scene.relation else 1 if scene.relation in ("left", "right") else 2
    return [*out, axis, list(BACKGROUNDS).index(scene.background)]


class Reader(nn.Module):
    """The encoders and one linear layer for each of their outputs."""

    def __init__(self, text: TextEncoders):
        super().__init__()
        self.text = text
        self.heads = nn.ModuleDict({name: nn.Linear(width, sum(ANSWERS)) for name, width in SOURCES.items()})

    def forward(self, batch: TextBatch) -> dict[str, Tensor]:
        """Logits [B, sum(ANSWERS)] of each source."""
        rows = torch.arange(len(batch.end))
        clip_l, clip_g = self.text.clip_l(batch.clip_l, batch.end), self.text.clip_g(batch.clip_g, batch.end)
        out = {
            "clip_l": clip_l[0][rows, batch.end],
            "clip_g": clip_g[0][rows, batch.end],
            "pooled_l": clip_l[1],
            "pooled_g": clip_g[1],
        }
        if batch.t5 is not None:
            out["t5"] = self.text.t5xxl(batch.t5).mean(1)
        return {name: self.heads[name](value) for name, value in out.items()}


def reading_loss(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the questions, and the share answered right, by question; truth [B, questions]."""
    parts = logits.split(ANSWERS, dim=1)
    loss = sum(F.cross_entropy(part, truth[:, index]) for index, part in enumerate(parts))
    right = torch.stack([(part.argmax(1) == truth[:, index]).float().mean() for index, part in enumerate(parts)])
    return loss, right


def teach(text: TextEncoders, tokenizer: Tokenizer, settings: Settings, run: Path | None = None) -> dict:
    """Train the encoders in place for `settings.reading_steps`; with `run`, store them there.

    Returns: the share of answers right at the end, by source, and by question over all sources.
    """
    torch.manual_seed(settings.seed)
    reader = Reader(text)
    optimizer = torch.optim.AdamW(reader.parameters(), settings.reading_rate, betas=(0.9, 0.99), fused=True)
    figures: dict = {}
    for step in range(settings.reading_steps):
        rng = random.Random(f"{settings.seed}/reader/{step}")
        scenes = [draw_scene(rng) for _ in range(BATCH)]
        captions = []
        for scene in scenes:
            words = describe(scene, rng)
            captions.append(
                tokenizer.caption(add_noise_words(words, rng) if rng.random() < settings.noise_words else words, rng)
            )
        length = LENGTH if rng.random() < settings.full_text_share else 26
        truth = torch.tensor([answers(scene) for scene in scenes])
        results = {name: reading_loss(out, truth) for name, out in reader(text.batch(captions, length, length)).items()}
        loss = sum(value for value, _ in results.values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        for group in optimizer.param_groups:
            done = step / settings.reading_steps
            group["lr"] = settings.reading_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.step()
        if (step + 1) % 50 == 0 or step + 1 == settings.reading_steps:
            figures = {name: round(right.mean().item(), 4) for name, (_, right) in results.items()}
            by_question = torch.stack([right for _, right in results.values()]).mean(0)
            print(f"reading {step + 1}/{settings.reading_steps} loss {loss.item():.3f} right {figures}", flush=True)
            print("   by question", [round(value, 2) for value in by_question.tolist()], flush=True)
    if run is not None:
        write_tensors(run / "reader.safetensors", dict(text.state_dict()))
    return figures
