"""Train the transformer by rectified flow, on what frozen text encoders that can read tell it."""

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
from mmdit_core.models.init import init_weights

from .attention import plain_attention
from .batches import Batch, draw
from .decoder import projection_for
from .reader import read_or_teach
from .settings import Settings
from .start import START
from .state import load_run, read_tensors, save_run
from .team import SOLO, Team
from .text import TextEncoders
from .tokens import Tokenizer, Vocabulary
from .vocabulary import vocabularies

AfterSave = Callable[["Trainee", int, list[float]], None]


class Trainee(nn.Module):
    """The transformer, which learns, and the three text encoders, which have learned (see `reader`) and stay."""

    def __init__(self, settings: Settings, clip: Vocabulary, t5: Vocabulary):
        super().__init__()
        attention = {} if torch.cuda.is_available() else {"attention": plain_attention}
        self.model = MMDiT(settings.model, **attention)
        init_weights(self.model)
        for layer in self.model.y_embedder.mlp:
            if isinstance(layer, nn.Linear):  # SD3's 0.02 leaves so narrow a pooled text unheard beside the timestep
                nn.init.normal_(layer.weight, std=0.1)
        self.text = TextEncoders(clip, t5)
        self.text.requires_grad_(False)


def loss_of(trainee: Trainee, batch: Batch, density: str, shift: float) -> Tensor:
    """Rectified flow's loss of one batch, at noise levels drawn from a density with a shift."""
    device = next(trainee.parameters()).device
    latent = batch.latent.to(device)
    sigma = sample_timesteps(len(latent), density, shift=shift, generator=batch.generator).to(device)
    noise = torch.randn(latent.shape, generator=batch.generator).to(device)
    with torch.no_grad():
        context, pooled = trainee.text(batch.text.to(str(device)), batch.keep.to(device))
    with torch.autocast(device.type, torch.bfloat16):
        noisy = interpolate(latent, noise, sigma)
        velocity = trainee.model(noisy, sigma * 1000, context=context, y=pooled)
    return flow_loss(velocity, latent, noise)


def prepare(run: Path, settings: Settings, tokenizer: Tokenizer) -> None:
    """What a run stands on, made and stored in its folder unless it is there: projection and reading encoders."""
    projection_for(run, settings.seed)
    text = TextEncoders(*vocabularies(run, tokenizer))
    read_or_teach(text, tokenizer, settings, run)


def train(
    run: Path,
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    team: Team = SOLO,
    save_every: int = 250,
    after_save: AfterSave | None = None,
) -> Trainee:
    """Train until `settings.steps`, going on from the run's last checkpoint if there is one.

    Args: run = the run's folder; after_save(trainee, step, losses) is called after every checkpoint, with averaged
        weights in place, for sheets and plots; team = this process's place among those that train together.
    Returns: the trainee with averaged weights.
    """
    projection, bias = projection_for(run, settings.seed)
    torch.manual_seed(settings.seed)
    trainee = Trainee(settings, *vocabularies(run, tokenizer))
    path, step, losses = run / "state.safetensors", 0, []
    if not path.exists():
        read_or_teach(trainee.text, tokenizer, settings, run)
        if (run / START).exists():
            trainee.model.load_state_dict(read_tensors(run / START)[0])
    trainee.to("cuda" if torch.cuda.is_available() else "cpu")
    trained = {name: tensor for name, tensor in trainee.named_parameters() if tensor.requires_grad}
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(
        parameters, settings.rate, betas=settings.betas, weight_decay=settings.weight_decay, fused=True
    )
    ema = {name: tensor.detach().clone() for name, tensor in trained.items()}
    if path.exists():
        record = load_run(path, trainee, ema, optimizer)
        step, losses = record["step"], record["losses"]
    progress = Progress(settings.steps, step)
    while step < settings.steps:
        batch = draw(settings, step, trainee.text, tokenizer, projection, bias, team)
        loss = loss_of(trainee, batch, settings.density, settings.shift_at(step))
        optimizer.zero_grad()
        loss.backward()
        loss = loss.detach()
        team.average([loss, *(parameter.grad for parameter in parameters if parameter.grad is not None)])
        nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        optimizer.step()
        step += 1
        decay = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.values()), parameters, 1 - decay)
        losses.append(round(loss.item(), 5))
        if team.leads:
            progress.update(step, losses, settings.batch)
        if team.leads and (step % save_every == 0 or step == settings.steps):
            save_run(path, trainee, ema, optimizer, step=step, losses=losses, settings=settings.to_dict())
            if after_save is not None:
                with swapped(trainee, ema):
                    after_save(trainee, step, losses)
    with torch.no_grad():
        for name, tensor in trained.items():
            tensor.copy_(ema[name])
    return trainee


@contextlib.contextmanager
def swapped(trainee: nn.Module, weights: dict[str, Tensor]):
    """Let a module wear other weights for a while."""
    worn = {name: tensor for name, tensor in trainee.named_parameters() if name in weights}
    own = {name: tensor.detach().clone() for name, tensor in worn.items()}
    with torch.no_grad():
        for name, tensor in worn.items():
            tensor.copy_(weights[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in worn.items():
                tensor.copy_(own[name])


class Progress:
    """A progress bar on a terminal, a line every 25 steps elsewhere."""

    def __init__(self, steps: int, done: int):
        self.steps, self.first, self.start = steps, done, time.monotonic()

    def update(self, step: int, losses: list[float], batch: int) -> None:
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


def read_settings(record: dict) -> Settings:
    """Inverse of `Settings.to_dict`."""
    values = {**record, "model": MMDiTConfig.from_dict(record["model"])}
    return Settings(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def load_trainee(run: Path, tokenizer: Tokenizer) -> tuple[Trainee, dict]:
    """The averaged weights of a run's last checkpoint, and its record."""
    tensors, metadata = read_tensors(run / "state.safetensors")
    record = json.loads(metadata["record"])
    trainee = Trainee(read_settings(record["settings"]), *vocabularies(run, tokenizer))
    state = trainee.state_dict()
    state |= {name[len("model.") :]: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    state |= {name[len("ema.") :]: tensor for name, tensor in tensors.items() if name.startswith("ema.")}
    trainee.load_state_dict(state)
    return trainee, record
