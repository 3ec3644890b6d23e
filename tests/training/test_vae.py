"""The VAE's encoder: the matmul of the training and the exported convolutions give equal latents."""

from __future__ import annotations

import random

import torch

from attributes.world import sample_images
from training.export import rgb_factors
from training.vae import build_encoder, encode, encoder_state, fit_projection, patches


def _pictures(seed: int, number: int, width: int = 96, height: int = 112) -> torch.Tensor:
    return torch.from_numpy(sample_images(random.Random(seed), number, width, height)[1])


def test_convolutions_give_the_projection_exactly():
    projection, bias = fit_projection(_pictures(0, 40))
    encoder = build_encoder()
    encoder.load_state_dict(encoder_state(projection, bias))
    images = torch.rand(2, 96, 112, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        shipped = encoder(images.permute(0, 3, 1, 2))
    torch.testing.assert_close(shipped, encode(images, projection, bias), rtol=0, atol=2e-5)


def test_latents_have_the_scale_that_training_assumes():
    images = _pictures(2, 60)
    projection, bias = fit_projection(images)
    latent = encode(images, projection, bias)
    assert latent.mean((0, 2, 3)).abs().max() < 0.01
    deviations = latent.std((0, 2, 3))
    assert deviations.max() < 1.5 and deviations.min() > 0.3
    assert (latent.abs() < 3).float().mean() > 0.95


def test_projection_keeps_most_of_a_picture():
    images = _pictures(3, 60)
    projection, bias = fit_projection(images)
    flat = patches(images).reshape(-1, 192)
    rebuilt = (flat @ projection.T) @ torch.linalg.pinv(projection).T
    rebuilt = rebuilt + (flat - rebuilt).mean(0)
    assert -10 * torch.log10((rebuilt - flat).square().mean()) > 27


def test_preview_factors_give_the_pictures_colours_back():
    projection, bias = fit_projection(_pictures(4, 60))
    preview = rgb_factors(projection, bias)
    images = _pictures(5, 8)
    latent = encode(images, projection, bias).permute(0, 2, 3, 1)
    colours = latent @ torch.tensor(preview["factors"]) + torch.tensor(preview["bias"])
    true = images.unflatten(1, (-1, 8)).unflatten(3, (-1, 8)).mean((2, 4)) * 2 - 1
    assert (colours - true).abs().mean() < 0.03
