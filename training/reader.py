"""Teach the text encoders to read before the transformer listens.

Big models get encoders that were trained on text and then frozen; ours would have to learn English through a
denoising loss alone, and what stands left of what comes very late that way. So they learn first, by questions about
what stands where, to be read the way a transformer's image tokens read: by one attention step with a fixed query. The
layers that ask are thrown away.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attributes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, sample_scene

from .captions import describe
from .settings import Settings
from .state import read_tensors, write_tensors
from .text import WIDTHS, TextBatch, TextEncoders
from .tokens import LENGTH, Tokenizer, add_noise_words

BATCH = 256
# Questions about a scene and their numbers of answers: for the left or upper group, then for the right or lower one.
GROUP_ANSWERS = (5, len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
ANSWERS = (*GROUP_ANSWERS, *GROUP_ANSWERS, 3, len(BACKGROUNDS))
# What the transformer will hear: the two CLIPs side by side, T5, the pooled pair. Both CLIPs together answer for one.
WIDTH = WIDTHS.clip_l + WIDTHS.clip_g
SOURCES = ("clip", "t5", "pooled")


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


class Questions(nn.Module):
    """Ask a sequence: one attention step with a learned query for each group and for the picture as a whole."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, width) * width**-0.5)
        self.key = nn.Linear(width, width)
        # Both groups' answers are read off in the same way: only attention tells left from right.
        self.group = nn.Linear(width, sum(GROUP_ANSWERS))
        self.whole = nn.Linear(width, sum(ANSWERS[-2:]))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, L, W] -> logits [B, sum(ANSWERS)]."""
        weights = (self.query @ self.key(tokens).transpose(1, 2)).softmax(-1)
        first, second, whole = (weights @ tokens).unbind(1)
        return torch.cat((self.group(first), self.group(second), self.whole(whole)), dim=1)


class Reader(nn.Module):
    """The encoders and the questions to each of their outputs."""

    def __init__(self, text: TextEncoders):
        super().__init__()
        self.text = text
        self.clip, self.t5 = Questions(WIDTH), Questions(WIDTHS.context)
        self.pooled = nn.Linear(WIDTH, sum(ANSWERS))

    def forward(self, batch: TextBatch) -> dict[str, Tensor]:
        """Logits [B, sum(ANSWERS)] of each source."""
        tokens_l, pooled_l = self.text.clip_l(batch.clip_l, batch.end)
        tokens_g, pooled_g = self.text.clip_g(batch.clip_g, batch.end)
        out = {
            "clip": self.clip(torch.cat((tokens_l, tokens_g), dim=2)),
            "pooled": self.pooled(torch.cat((pooled_l, pooled_g), dim=1)),
        }
        if batch.t5 is not None:
            out["t5"] = self.t5(self.text.t5xxl(batch.t5))
        return out


def reading_loss(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the questions, and the share answered right, by question; truth [B, questions]."""
    parts = logits.split(ANSWERS, dim=1)
    loss = sum(F.cross_entropy(part, truth[:, index]) for index, part in enumerate(parts))
    right = torch.stack([(part.argmax(1) == truth[:, index]).float().mean() for index, part in enumerate(parts)])
    return loss, right


def sample_captions(
    rng: random.Random, settings: Settings, text: TextEncoders, tokenizer: Tokenizer, *, complete: bool = False
) -> tuple[TextBatch, Tensor]:
    """Captions of fresh scenes, and the true answers [BATCH, questions]."""
    scenes = [sample_scene(rng) for _ in range(BATCH)]
    captions = []
    for scene in scenes:
        words = describe(scene, rng, complete=complete)
        if not complete and rng.random() < settings.noise_words:
            words = add_noise_words(words, rng)
        captions.append(tokenizer.caption(words, rng))
    length = LENGTH if rng.random() < settings.full_text_share else 26
    return text.batch(captions, length, length), torch.tensor([answers(scene) for scene in scenes])


def read_or_teach(text: TextEncoders, tokenizer: Tokenizer, settings: Settings, run: Path) -> None:
    """Put encoders that can read into `text`: the run's own if it has them, else taught now and stored there."""
    path = run / "reader.safetensors"
    if not path.exists():
        teach(text, tokenizer, settings)
        write_tensors(path, dict(text.state_dict()))
    text.load_state_dict(read_tensors(path)[0])


def teach(text: TextEncoders, tokenizer: Tokenizer, settings: Settings) -> dict[str, list[float]]:
    """Train the encoders in place for `settings.reading_steps`, frozen ones too, which are frozen again afterwards.

    Returns: the share of answers right at the end, by source and question, over captions that leave nothing but the
        background and sizes unsaid.
    """
    torch.manual_seed(settings.seed)
    text.requires_grad_(True)
    reader = Reader(text)
    optimizer = torch.optim.AdamW(reader.parameters(), settings.reading_rate, betas=(0.9, 0.99), fused=True)
    figures: dict = {}
    for step in range(settings.reading_steps):
        batch, truth = sample_captions(random.Random(f"{settings.seed}/reader/{step}"), settings, text, tokenizer)
        loss = sum(reading_loss(out, truth)[0] for out in reader(batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        for group in optimizer.param_groups:
            done = step / settings.reading_steps
            group["lr"] = settings.reading_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == settings.reading_steps:
            with torch.no_grad():
                batch, truth = sample_captions(random.Random(f"{step}/exam"), settings, text, tokenizer, complete=True)
                right = {name: reading_loss(out, truth)[1] for name, out in reader(batch).items()}
            figures = {name: [round(value, 2) for value in share.tolist()] for name, share in right.items()}
            print(f"reading {step + 1}/{settings.reading_steps} loss {loss.item():.3f} right {figures}", flush=True)
    text.requires_grad_(False)
    return figures
