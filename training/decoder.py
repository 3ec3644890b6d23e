"""Train the VAE's decoder. The encoder is fitted before, in seconds, and does not change."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from attributes.world import sample_images

from .checkpoints import load_run, read_tensors, save_run, write_tensors
from .vae import build_decoder, encode, fit_projection

CROP, BATCH, EMA_DECAY = 48, 16, 0.995


def projection_for(run: Path, seed: int) -> tuple[Tensor, Tensor]:
    """The run's encoder: read from its folder, or fitted to 1,000 images and stored there.

    Returns: projection [16, 192], bias [16].
    """
    path = run / "projection.safetensors"
    if not path.exists():
        _, images = sample_images(random.Random(f"{seed}/projection"), 1000, 128, 128)
        projection, bias = fit_projection(torch.from_numpy(images))
        write_tensors(path, {"projection": projection, "bias": bias})
    tensors, _ = read_tensors(path)
    return tensors["projection"], tensors["bias"]


def train_decoder(run: Path, *, steps: int, seed: int = 0, rate: float = 1.5e-3, save_every: int = 200) -> float:
    """Train the decoder in the folder `run`, or resume its training. Returns: PSNR in dB on held-out images."""
    projection, bias = projection_for(run, seed)
    torch.manual_seed(seed)
    decoder = build_decoder().to(memory_format=torch.channels_last)
    ema = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    optimizer = torch.optim.AdamW(decoder.parameters(), rate, weight_decay=1e-4)
    path, start = run / "decoder.safetensors", 0
    if path.exists():
        start = load_run(path, decoder, ema, optimizer)["step"]
    for step in range(start, steps):
        rng = random.Random(f"{seed}/decoder/{step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = _decoder_loss(decoder, _crops(rng), projection, bias, generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        for name, tensor in decoder.state_dict().items():
            ema[name].lerp_(tensor, 1 - decay)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            figure = psnr(ema, projection, bias)
            print(f"decoder {step + 1}/{steps} loss {loss.item():.5f} PSNR {figure:.2f} dB", flush=True)
            save_run(path, decoder, ema, optimizer, step=step + 1, psnr=figure)
    return json.loads(read_tensors(path)[1]["record"])["psnr"]


def _crops(rng: random.Random) -> Tensor:
    """The crop of highest variance of three in each image, so that few are empty: [BATCH, CROP, CROP, 3]."""
    _, images = sample_images(rng, BATCH, 96, 96, varied=True)
    crops = np.empty((BATCH, CROP, CROP, 3), np.float32)
    for crop, image in zip(crops, images, strict=True):
        corners = [(rng.randint(0, 96 - CROP), rng.randint(0, 96 - CROP)) for _ in range(3)]
        crop[:] = max((image[y : y + CROP, x : x + CROP] for x, y in corners), key=np.var)
    return torch.from_numpy(crops)


def _decoder_loss(decoder: nn.Module, images: Tensor, projection: Tensor, bias: Tensor, generator) -> Tensor:
    latent = encode(images, projection, bias)
    # Noise of a random strength in each image: sampled latents are not exact.
    strength = 0.06 * torch.rand(len(latent), 1, 1, 1, generator=generator)
    latent = latent + strength * torch.randn(latent.shape, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder(latent.contiguous(memory_format=torch.channels_last))
    error = out.float() - images.permute(0, 3, 1, 2)
    # Weights low contrast up: a blurred pale star on gray costs less than a blurred yellow one on black.
    contrast = images.var((1, 2, 3)) + 0.01
    weight = (contrast.mean() / contrast).clamp(max=4)[:, None, None, None]
    return (weight * (error.square() + 0.1 * error.abs())).mean()


@torch.no_grad()
def psnr(weights: dict[str, Tensor], projection: Tensor, bias: Tensor, images: int = 64) -> float:
    """PSNR in dB over all pixels of images from another seed than the training's."""
    decoder = build_decoder()
    decoder.load_state_dict(weights)
    decoder.to(memory_format=torch.channels_last)
    _, truth = sample_images(random.Random("psnr"), images, 128, 128)
    expected = torch.from_numpy(truth)
    error = 0.0
    for part in expected.split(16):
        out = decoder(encode(part, projection, bias)).clamp(0, 1)
        error += (out - part.permute(0, 3, 1, 2)).square().sum().item()
    return -10 * math.log10(error / expected.numel())
