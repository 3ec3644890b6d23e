"""Train the transformer with rectified flow on the outputs of pretrained, frozen text encoders."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mmdit_core import MMDiT, MMDiTConfig
from mmdit_core.flow.path import flow_loss, interpolate, sample_timesteps

from .attention import plain_attention
from .batches import Batch, sample_batch
from .checkpoints import load_run, read_tensors, save_run
from .decoder import projection_for
from .init import init_weights
from .settings import Settings
from .text import TextEncoders
from .text_pretraining import load_or_pretrain
from .tokens import Tokenizer, Vocabulary
from .vocabulary import vocabularies
from .warm_start import START
from .workers import SINGLE, Worker

AfterSave = Callable[["SmallModel", int, list[float]], None]


class SmallModel(nn.Module):
    """The transformer, which is trained, and the three text encoders, which are frozen (see `text_pretraining`)."""

    def __init__(self, settings: Settings, clip: Vocabulary, t5: Vocabulary):
        super().__init__()
        attention = {} if torch.cuda.is_available() else {"attention": plain_attention}
        self.model = MMDiT(settings.model, **attention)
        init_weights(self.model)
        # With SD3's std of 0.02 a pooled text this narrow is negligible next to the timestep.
        for layer in self.model.y_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.1)
        self.text = TextEncoders(clip, t5)
        self.text.requires_grad_(False)


def batch_loss(small_model: SmallModel, batch: Batch, settings: Settings, step: int) -> Tensor:
    """The rectified-flow loss of one batch, at sigmas sampled from the density and with the shift of a step."""
    device = next(small_model.parameters()).device
    latent = batch.latent.to(device)
    shift = settings.shift_at(step)
    sigma = sample_timesteps(len(latent), settings.density, shift=shift, generator=batch.generator).to(device)
    noise = torch.randn(latent.shape, generator=batch.generator).to(device)
    with torch.no_grad():
        context, pooled = small_model.text(batch.text.to(str(device)), batch.keep.to(device))
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        noisy = interpolate(latent, noise, sigma)
        velocity = small_model.model(noisy, sigma * 1000, context=context, y=pooled)
    return flow_loss(velocity, latent, noise)


def prepare(run: Path, settings: Settings, tokenizer: Tokenizer) -> None:
    """Fit the VAE's encoder and pretrain the text encoders, unless they are in the run's folder."""
    projection_for(run, settings.seed)
    text = TextEncoders(*vocabularies(run, tokenizer))
    load_or_pretrain(text, tokenizer, settings, run)


def train(
    run: Path,
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    worker: Worker = SINGLE,
    save_every: int = 250,
    after_save: AfterSave | None = None,
) -> SmallModel:
    """Train until `settings.steps`, from the run's last checkpoint if there is one.

    Args: run, its folder; worker, this process; save_every, steps between checkpoints; after_save(small_model, step,
        losses), called after each checkpoint with averaged weights.
    Returns: the model with averaged weights.
    """
    projection, bias = projection_for(run, settings.seed)
    torch.manual_seed(settings.seed)
    small_model = SmallModel(settings, *vocabularies(run, tokenizer))
    path, step, losses = run / "state.safetensors", 0, []
    if not path.exists():
        load_or_pretrain(small_model.text, tokenizer, settings, run)
        if (run / START).exists():
            small_model.model.load_state_dict(read_tensors(run / START)[0])
    small_model.to("cuda" if torch.cuda.is_available() else "cpu")
    trained = {name: tensor for name, tensor in small_model.named_parameters() if tensor.requires_grad}
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(
        parameters, settings.rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    ema = {name: tensor.detach().clone() for name, tensor in trained.items()}
    if path.exists():
        record = load_run(path, small_model, ema, optimizer)
        step, losses = record["step"], record["losses"]
    progress = Progress(settings.steps, step)
    while step < settings.steps:
        batch = sample_batch(settings, step, small_model.text, tokenizer, projection, bias, worker)
        loss = batch_loss(small_model, batch, settings, step)
        optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        worker.average([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.step()
        step += 1
        decay = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), parameters, 1 - decay)
        losses.append(round(loss.item(), 5))
        if worker.is_main:
            progress.update(step, losses, settings.batch)
        if worker.is_main and (step % save_every == 0 or step == settings.steps):
            save_run(path, small_model, ema, optimizer, step=step, losses=losses, settings=settings.to_dict())
            if after_save is not None:
                with swapped_weights(small_model, ema):
                    after_save(small_model, step, losses)
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(ema[name])
    return small_model


@contextlib.contextmanager
def swapped_weights(small_model: nn.Module, weights: dict[str, Tensor]):
    """Give a module other weights inside a with statement."""
    replaced = {name: tensor for name, tensor in small_model.named_parameters() if name in weights}
    own = {name: tensor.detach().clone() for name, tensor in replaced.items()}
    with torch.no_grad():
        for name, tensor in replaced.items():
            tensor.copy_(weights[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in replaced.items():
                tensor.copy_(own[name])


class Progress:
    """A progress bar on a terminal, a line every 25 steps elsewhere."""

    def __init__(self, steps: int, done: int):
        self.steps, self.first, self.start = steps, done, time.monotonic()

    def update(self, step: int, losses: list[float], batch: int) -> None:
        """Print the state after a step. Args: batch, samples of a step."""
        spent = time.monotonic() - self.start
        rate = (step - self.first) / spent
        recent = losses[-100:]
        bar = "#" * (30 * step // self.steps)
        line = (
            f"[{bar:30}] {step}/{self.steps}  loss {sum(recent) / len(recent):.4f}  {rate * batch:.0f} samples/s"
            f"  {1 / rate:.2f} s/step  {(self.steps - step) / rate / 60:.0f} min left"
        )
        if sys.stdout.isatty():
            print("\r" + line, end="\n" if step == self.steps else "", flush=True)
        elif step % 25 == 0 or step == self.steps:
            print(line, flush=True)


def settings_from(record: dict) -> Settings:
    """Inverse of `Settings.to_dict`."""
    values = {**record, "model": MMDiTConfig(**record["model"])}
    return Settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def load_small_model(run: Path, tokenizer: Tokenizer) -> tuple[SmallModel, dict]:
    """The model of a run's last checkpoint with averaged weights, and the record."""
    tensors, metadata = read_tensors(run / "state.safetensors")
    record = json.loads(metadata["record"])
    small_model = SmallModel(settings_from(record["settings"]), *vocabularies(run, tokenizer))
    state = small_model.state_dict()
    state |= {name[len("model.") :]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    state |= {name[len("ema.") :]: tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    small_model.load_state_dict(state)
    return small_model, record
