"""Pretrain the text encoders before the transformer is trained.

Large models use frozen encoders that were trained on text. Encoders that learn from the denoising loss alone learn
relations very late. So they are trained first to classify the scene of a caption, through probes that read them as the
transformer's image tokens do: one attention step with a learned query. The probes are discarded.
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
from .checkpoints import read_tensors, write_tensors
from .settings import Settings
from .text import WIDTHS, TextBatch, TextEncoders
from .tokens import LENGTH, Tokenizer, add_noise_words

BATCH = 256
# Number of classes of each attribute: of the left or upper group, of the right or lower one, of the scene.
GROUP_CLASSES = (5, len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
CLASSES = (*GROUP_CLASSES, *GROUP_CLASSES, 3, len(BACKGROUNDS))
# The outputs that the transformer reads: both CLIPs joined on the channels, T5, both pooled outputs.
WIDTH = WIDTHS.clip_l + WIDTHS.clip_g


def labels_of(scene: Scene) -> list[int]:
    """Class labels of a scene, ordered by position, so that they depend on the relation: one for each of CLASSES."""
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


class Probe(nn.Module):
    """Classify a sequence: one attention step with a learned query for each group and for the scene."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, width) * width**-0.5)
        self.key = nn.Linear(width, width)
        # One classifier for both groups: only the attention distinguishes left from right.
        self.group = nn.Linear(width, sum(GROUP_CLASSES))
        self.whole = nn.Linear(width, sum(CLASSES[-2:]))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, L, W] -> logits [B, sum(CLASSES)]."""
        weights = (self.query @ self.key(tokens).transpose(1, 2)).softmax(-1)
        first, second, whole = (weights @ tokens).unbind(1)
        return torch.cat((self.group(first), self.group(second), self.whole(whole)), dim=1)


class ProbedEncoders(nn.Module):
    """The text encoders with a probe on each of their outputs."""

    def __init__(self, text: TextEncoders):
        super().__init__()
        self.text = text
        self.clip, self.t5 = Probe(WIDTH), Probe(WIDTHS.context)
        self.pooled = nn.Linear(WIDTH, sum(CLASSES))

    def forward(self, batch: TextBatch) -> dict[str, Tensor]:
        """Logits [B, sum(CLASSES)] of each source."""
        tokens_l, pooled_l = self.text.clip_l(batch.clip_l, batch.end)
        tokens_g, pooled_g = self.text.clip_g(batch.clip_g, batch.end)
        out = {
            "clip": self.clip(torch.cat((tokens_l, tokens_g), dim=2)),
            "pooled": self.pooled(torch.cat((pooled_l, pooled_g), dim=1)),
        }
        if batch.t5 is not None:
            out["t5"] = self.t5(self.text.t5xxl(batch.t5))
        return out


def probe_loss(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the attributes.

    Args: logits [B, sum(CLASSES)]; truth [B, len(CLASSES)].
    Returns: loss; accuracy of each attribute.
    """
    parts = logits.split(CLASSES, dim=1)
    loss = sum(F.cross_entropy(part, truth[:, index]) for index, part in enumerate(parts))
    right = torch.stack([(part.argmax(1) == truth[:, index]).float().mean() for index, part in enumerate(parts)])
    return loss, right


def sample_captions(
    rng: random.Random, settings: Settings, text: TextEncoders, tokenizer: Tokenizer, *, complete: bool = False
) -> tuple[TextBatch, Tensor]:
    """Sample captions. Returns: their tokens; the labels [BATCH, len(CLASSES)]."""
    scenes = [sample_scene(rng) for _ in range(BATCH)]
    captions = []
    for scene in scenes:
        words = describe(scene, rng, complete=complete)
        if not complete and rng.random() < settings.noise_words:
            words = add_noise_words(words, rng)
        captions.append(tokenizer.caption(words, rng))
    length = LENGTH if rng.random() < settings.full_text_fraction else 26
    return text.batch(captions, length, length), torch.tensor([labels_of(scene) for scene in scenes])


def load_or_pretrain(text: TextEncoders, tokenizer: Tokenizer, settings: Settings, run: Path) -> None:
    """Load the run's pretrained encoders into `text`; without them, pretrain and store them."""
    path = run / "text_encoders.safetensors"
    if not path.exists():
        pretrain(text, tokenizer, settings)
        write_tensors(path, dict(text.state_dict()))
    text.load_state_dict(read_tensors(path)[0])


def pretrain(text: TextEncoders, tokenizer: Tokenizer, settings: Settings) -> dict[str, list[float]]:
    """Train the encoders in place for `settings.text_steps`; they are frozen afterwards.

    Returns: accuracy at the end by source and attribute, on captions that are complete but for background and sizes.
    """
    torch.manual_seed(settings.seed)
    text.requires_grad_(True)
    probed = ProbedEncoders(text)
    optimizer = torch.optim.AdamW(probed.parameters(), settings.text_rate, betas=(0.9, 0.99), fused=True)
    figures: dict = {}
    for step in range(settings.text_steps):
        batch, truth = sample_captions(random.Random(f"{settings.seed}/reader/{step}"), settings, text, tokenizer)
        loss = sum(probe_loss(out, truth)[0] for out in probed(batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(probed.parameters(), 1.0)
        for group in optimizer.param_groups:
            done = step / settings.text_steps
            group["lr"] = settings.text_rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == settings.text_steps:
            with torch.no_grad():
                batch, truth = sample_captions(random.Random(f"{step}/exam"), settings, text, tokenizer, complete=True)
                right = {name: probe_loss(out, truth)[1] for name, out in probed(batch).items()}
            figures = {name: [round(value, 2) for value in accuracy.tolist()] for name, accuracy in right.items()}
            print(f"text encoders {step + 1}/{settings.text_steps} loss {loss.item():.3f} right {figures}", flush=True)
    text.requires_grad_(False)
    return figures
