"""Sample images with an exported file through the core's own solvers, in batches, without ComfyUI."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdit_core import MMDiT, load_checkpoint
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.load import load_component
from mmdit_core.flow.schedules import sigmas
from mmdit_core.flow.sigma import shift_sigma
from mmdit_core.flow.window import Window
from mmdit_core.guidance.cfg import cfg as combine
from mmdit_core.solvers import solve

from .attention import plain_attention
from .text import ENCODERS, TextEncoders
from .tokens import CLIP_VOCABULARY, LENGTH, T5_VOCABULARY, FullVocabulary, Tokenizer
from .vae import CHANNELS, FACTOR, build_decoder, build_encoder

BATCH = 32
CHUNK = 16  # images of one model call (twice as many rows with cfg); more do not fit into the caches of a CPU
STEP_NOISE = 0x5DE0  # separates the seeds of a stochastic solver's noise and of the initial noise


@dataclass(frozen=True)
class Sampling:
    """Settings of a sampling.

    Fields: cfg_end in [0, 1], where in the sampling cfg stops acting; drop, names of encoders whose part is zeros, as
        for dropped encoders in training; the others as in Flow Matching Sampler.
    """

    steps: int = 28
    cfg: float = 4.0
    cfg_end: float = 1.0
    solver: str = "euler"
    seed: int = 0
    width: int = 128
    height: int = 128
    shift: float = 0.0  # 0: the model's own
    drop: tuple[str, ...] = ()


class Renderer:
    """All parts of an exported file: tokenizers, text encoders, transformer, VAE."""

    def __init__(self, checkpoint: Path, comfyui: Path, dtype: torch.dtype = torch.float32):
        """Args: comfyui, folder of ComfyUI, for its tokenizers; dtype of the transformer, all else is float32."""
        self.metadata = read_header(checkpoint).metadata
        config, state = load_checkpoint(checkpoint, dtype=dtype)
        attention = {"attention": plain_attention} if dtype == torch.bfloat16 else {}
        self.model, self.dtype = MMDiT(config, device="meta", **attention), dtype
        self.model.load_state_dict(state, assign=True)
        self.text = TextEncoders(
            FullVocabulary(CLIP_VOCABULARY), FullVocabulary(T5_VOCABULARY), json.loads(self.metadata["mmdit.text"])
        )
        for name in ENCODERS:
            prefix = f"text_encoders.{name}.transformer."
            getattr(self.text, name).load_state_dict(
                dict(load_component(checkpoint, prefix, dtype=torch.float32)), strict=True
            )
        self.encoder, self.decoder = build_encoder(), build_decoder()
        for part, name in ((self.encoder, "taesd_encoder"), (self.decoder, "taesd_decoder")):
            part.load_state_dict(dict(load_component(checkpoint, f"first_stage_model.{name}.", dtype=torch.float32)))
        self.tokenizer = Tokenizer(comfyui / "comfy")
        self.shift = float(self.metadata["mmdit.shift"])

    def encode(self, texts: list[str], drop: tuple[str, ...] = ()) -> tuple[Tensor, Tensor]:
        """Encode prompts. Returns: context [B, 154, 64], pooled [B, 64]."""
        batch = self.text.batch([self.tokenizer.caption(text) for text in texts], LENGTH, LENGTH)
        keep = torch.tensor([[float(name not in drop) for name in ENCODERS]]).expand(len(texts), -1)
        return self.text(batch, keep)

    @torch.inference_mode()
    def through_vae(self, images: Tensor) -> Tensor:
        """Encode and decode images [B, H, W, 3] in [0, 1]."""
        latent = self.encoder(images.permute(0, 3, 1, 2))
        return self.decoder(latent).clamp(0, 1).permute(0, 2, 3, 1)

    @torch.inference_mode()
    def render(self, texts: list[str], sampling: Sampling, model: Callable | None = None) -> np.ndarray:
        """Sample one image for each prompt.

        A call has the rows of the positive prompts first, then, while cfg acts, as many of the empty one. The noise of
        an image depends on the seed and its index only.
        Args: model, called instead of the transformer (block controls).
        Returns: images [B, H, W, 3], float32 in [0, 1].
        """
        model = model or self.model
        positive, negative = self.encode(texts, sampling.drop), self.encode([""], sampling.drop)
        positive, negative = (tuple(part.to(self.dtype) for part in pair) for pair in (positive, negative))
        shape = (CHANNELS, sampling.height // FACTOR, sampling.width // FACTOR)
        noise = torch.randn(len(texts), *shape, generator=torch.Generator().manual_seed(sampling.seed))
        shift = sampling.shift or self.shift
        schedule = sigmas(sampling.steps, shift=shift)
        guided = Window(end=sampling.cfg_end if sampling.cfg != 1 else 0.0)
        out = []
        for start in range(0, len(texts), CHUNK):
            part = slice(start, start + CHUNK)
            x = noise[part]
            context = torch.cat((positive[0][part], negative[0].expand(len(x), -1, -1)))
            pooled = torch.cat((positive[1][part], negative[1].expand(len(x), -1)))

            def velocity(x: Tensor, sigma: Tensor, context: Tensor = context, pooled: Tensor = pooled) -> Tensor:
                rows = x.to(self.dtype)
                if not guided.holds(float(sigma), lambda percent: shift_sigma(1 - percent, shift)):
                    return model(
                        rows, sigma.expand(len(x)) * 1000, context=context[: len(x)], y=pooled[: len(x)]
                    ).float()
                both = model(rows.repeat(2, 1, 1, 1), sigma.expand(2 * len(x)) * 1000, context=context, y=pooled)
                return combine(*both.float().chunk(2), sampling.cfg)

            steps_noise = torch.Generator().manual_seed(sampling.seed ^ STEP_NOISE)
            x = solve(velocity, x, schedule, sampling.solver, generator=steps_noise)
            out.append(self.decoder(x.float()).float().clamp(0, 1).permute(0, 2, 3, 1))
        return torch.cat(out).numpy()


def contact_sheet(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """Arrange images [B, H, W, 3] in rows with thin lines between: [rows * (H + 2), columns * (W + 2), 3] uint8."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 2), columns * (width + 2), 3), 0.6, np.float32)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 2), index % columns * (width + 2)
        canvas[top : top + height, left : left + width] = image
    return (canvas * 255).round().astype(np.uint8)


class Clock:
    """Prints the progress of a long evaluation."""

    def __init__(self, total: int, label: str):
        self.total, self.label, self.done, self.start = total, label, 0, time.monotonic()

    def tick(self, number: int) -> None:
        """Count finished images."""
        self.done += number
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        end = "\n" if self.done >= self.total else ""
        print(f"\r{self.label}: {self.done}/{self.total} images, {left / 60:.1f} min left ", end=end, flush=True)
