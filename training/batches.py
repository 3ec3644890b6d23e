"""The data of one training step, a function of the run's seed and the step's number."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from attributes.world import IMAGE_SIDES, Scene, sample_images

from .captions import describe
from .settings import Settings
from .text import TextBatch, TextEncoders
from .tokens import LENGTH, Tokenizer, add_noise_words
from .vae import encode
from .workers import SINGLE, Worker

SIDE_WEIGHTS = (3, 2, 1)  # small images cost less and train nearly as well


@dataclass(frozen=True)
class Batch:
    """latent [B, 16, h, w]; text rows; keep [B, 3], 0 for a dropped encoder, else 1; generator of sigmas and noise."""

    latent: Tensor
    text: TextBatch
    keep: Tensor
    generator: torch.Generator


def image_size(settings: Settings, rng: random.Random, step: int) -> tuple[int, int]:
    """Sample the width and height of a step's images: small ones first, then mostly 128 x 128."""
    if step < settings.small_images_until:
        return IMAGE_SIDES[0], IMAGE_SIDES[0]
    if rng.random() < settings.standard_size_fraction:
        return 128, 128
    width, height = rng.choices(IMAGE_SIDES, SIDE_WEIGHTS, k=2)
    return width, height


def sample_captions(
    scenes: list[Scene], settings: Settings, rng: random.Random, tokenizer: Tokenizer, limit: int
) -> list[tuple[list[int], list[int]]]:
    """Sample one caption for each scene, again until start, words and end fit `limit`. Returns: their tokens."""
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


def sample_batch(
    settings: Settings,
    step: int,
    encoders: TextEncoders,
    tokenizer: Tokenizer,
    projection: Tensor,
    bias: Tensor,
    worker: Worker = SINGLE,
) -> Batch:
    """Sample a worker's part of one step's batch; image and text sizes are the same for all workers."""
    rng = random.Random(f"{settings.seed}/step/{step}")
    width, height = image_size(settings, rng, step)
    length = LENGTH if rng.random() < settings.full_text_fraction else rng.choice(settings.text_lengths)
    # Without CLIP or T5 a step costs less, and the model learns to work with each of them alone.
    absent = rng.random()
    clip_length = 0 if absent < settings.no_clip_fraction else length
    t5_length = 0 if absent > 1 - settings.no_t5_fraction else length
    if not worker.is_main:
        rng = random.Random(f"{settings.seed}/step/{step}/{worker.rank}")
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    batch = settings.batch // worker.size
    scenes, images = sample_images(rng, batch, width, height, varied=True)
    captions = sample_captions(scenes, settings, rng, tokenizer, length)
    keep = (torch.rand(batch, 3, generator=generator) >= settings.drop_encoder).float()
    for index in range(batch):
        if rng.random() < settings.empty_caption:
            if rng.random() < 0.5:
                keep[index] = 0
            else:
                captions[index] = ([], [])
    text = encoders.batch(captions, clip_length, t5_length)
    latent = encode(torch.from_numpy(images), projection, bias).contiguous()
    return Batch(latent, text, keep, generator)
