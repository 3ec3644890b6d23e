"""The settings of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from mmdit_core import MMDiTConfig


def small_config() -> MMDiTConfig:
    """The config of the shipped model."""
    return MMDiTConfig(
        hidden_size=128,
        num_heads=2,
        depth=8,
        context_dim=64,
        pooled_dim=64,
        pos_embed_max_size=24,
        qk_norm="rms",
    )


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    `steps` and `decay_steps` may change when a run is resumed: the learning rate is constant before the decay.
    `shift` becomes the model's own. Between the two steps of `layout_steps` the sigmas are sampled with `layout_shift`:
    the model has learned shapes by then, and positions and counts are determined above sigma 0.9.
    `precision` is that of the transformer: "bf16" by autocast, or "fp32", which is several times as fast on a processor
    without bfloat16 arithmetic. Fractions are of all steps (full_text_fraction, no_t5_fraction, no_clip_fraction,
    standard_size_fraction) or of all samples (drop_encoder, empty_caption, noise_words).
    """

    seed: int = 0
    steps: int = 18000
    batch: int = 96
    rate: float = 1e-3
    warmup: int = 200
    decay_steps: int = 2500
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: str = "bf16"
    density: str = "logit_normal"
    shift: float = 4.0
    layout_shift: float = 8.0
    layout_steps: tuple[int, int] = (4000, 15500)
    small_images_until: int = 2000
    standard_size_fraction: float = 0.75
    text_lengths: tuple[int, ...] = (12, 12, 16, 22)
    full_text_fraction: float = 0.06
    no_t5_fraction: float = 0.30
    no_clip_fraction: float = 0.25
    drop_encoder: float = 0.08
    empty_caption: float = 0.10
    noise_words: float = 0.12
    text_steps: int = 1200
    text_rate: float = 2e-3
    decoder_steps: int = 4500
    model: MMDiTConfig = field(default_factory=small_config)

    def shift_at(self, step: int) -> float:
        """The shift of the sigmas of a step."""
        first, last = self.layout_steps
        return self.layout_shift if first <= step < last else self.shift

    def rate_at(self, step: int) -> float:
        """The learning rate of a step: linear warmup, constant, decay to zero as 1 - sqrt."""
        left = (self.steps - step) / max(1, self.decay_steps)
        return self.rate * min(1.0, (step + 1) / self.warmup) * (1 - (1 - min(1.0, left)) ** 0.5 if left < 1 else 1.0)

    def to_dict(self) -> dict:
        """The settings as JSON-compatible data."""
        return asdict(self)
