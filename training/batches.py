"""One training step's data, drawn from the run's seed and the step's number alone."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from attributes.world import IMAGE_SIDES, Scene, sample_images

from .captions import describe
from .settings import Settings
from .team import SOLO, Team
from .text import TextBatch, TextEncoders
from .tokens import LENGTH, Tokenizer, add_noise_words
from .vae import encode

SIDE_WEIGHTS = (3, 2, 1)  # small pictures cost less and teach nearly as much


@dataclass(frozen=True)
class Batch:
    """latent [B, 16, h, w]; text rows; keep [B, 3], which encoders each sample hears; generator for noise levels."""

    latent: Tensor
    text: TextBatch
    keep: Tensor
    generator: torch.Generator


def picture_size(settings: Settings, rng: random.Random, step: int) -> tuple[int, int]:
    """Width and height of a step's pictures: small ones first, then all sizes around the standard 128 x 128."""
    if step < settings.small_pictures_until:
        return IMAGE_SIDES[0], IMAGE_SIDES[0]
    if rng.random() < settings.standard_size_share:
        return 128, 128
    width, height = rng.choices(IMAGE_SIDES, SIDE_WEIGHTS, k=2)
    return width, height


def sample_captions(
    scenes: list[Scene], settings: Settings, rng: random.Random, tokenizer: Tokenizer, limit: int
) -> list[tuple[list[int], list[int]]]:
    """Tokens of one caption for each scene, redrawn until start, words and end fit `limit`."""
    captions = []
    for scene in scenes:
        while True:
            words = describe(scene, rng)
            if rng.random() < settings.noise_words:
                words = add_noise_words(words, rng)
            tokens = tokenizer.caption(words, rng)
            if max(len(tokens[0]), len(tokens[1])) + 2 <= limit:
                break
        captions.append(tokens)
    return captions


def draw(
    settings: Settings,
    step: int,
    encoders: TextEncoders,
    tokenizer: Tokenizer,
    projection: Tensor,
    bias: Tensor,
    team: Team = SOLO,
) -> Batch:
    """A team member's share of the batch of one step; sizes and lengths are the same for all, so that none waits."""
    rng = random.Random(f"{settings.seed}/step/{step}")
    width, height = picture_size(settings, rng, step)
    length = LENGTH if rng.random() < settings.full_text_share else rng.choice(settings.text_lengths)
    # Half a text costs half the tokens, and each half must do alone.
    absent = rng.random()
    clip_length = 0 if absent < settings.no_clip_share else length
    t5_length = 0 if absent > 1 - settings.no_t5_share else length
    if not team.leads:
        rng = random.Random(f"{settings.seed}/step/{step}/{team.rank}")
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    batch = settings.batch // team.size
    scenes, pictures = sample_images(rng, batch, width, height, varied=True)
    captions = sample_captions(scenes, settings, rng, tokenizer, length)
    keep = (torch.rand(batch, 3, generator=generator) >= settings.drop_encoder).float()
    for index in range(batch):
        if rng.random() < settings.empty_caption:
            if rng.random() < 0.5:
                keep[index] = 0
            else:
                captions[index] = ([], [])
    text = encoders.batch(captions, clip_length, t5_length)
    latent = encode(torch.from_numpy(pictures), projection, bias).contiguous()
    return Batch(latent, text, keep, generator)
