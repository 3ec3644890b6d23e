"""Reports during training as PNG files: contact sheets of samples, and the loss curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .export import export
from .render import Renderer, Sampling, contact_sheet
from .settings import Settings
from .tokens import Tokenizer
from .train import AfterSave, train
from .workers import Worker

SHEET_EVERY = 1000  # steps
TEXTS = (
    "a red circle",
    "three blue squares on a gray background",
    "two green triangles above a yellow circle",
    "a pink star to the left of a cyan square on a black background",
    "four orange circles",
    "three red circles to the left of a blue star on a white background",
    "two large purple triangles below two yellow squares",
    "one small orange star right of four blue circles",
)


def plot_losses(losses: list[float], target: Path, window: int = 100) -> None:
    """Plot the loss of each step and its running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(losses, color="0.85", linewidth=0.5)
    if len(losses) > window:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        axes.plot(np.arange(window, len(losses) + 1), mean, color="tab:blue", label=f"mean of {window} steps")
        axes.legend()
    axes.set(xlabel="step", ylabel="flow loss", ylim=(0, float(np.percentile(losses, 99)) * 1.1))
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def reporter(run: Path, comfyui: Path, steps: int) -> AfterSave:
    """A callback for `train`: a loss curve at each checkpoint, samples every SHEET_EVERY steps and at the end."""

    def report(small_model, step: int, losses: list[float]) -> None:
        plot_losses(losses, run / "loss.png")
        if step % SHEET_EVERY and step != steps or not (run / "decoder.safetensors").exists():
            return
        model = run / "model.safetensors"
        export(run, Tokenizer(comfyui / "comfy"), model)
        images = Renderer(model, comfyui).render(list(TEXTS), Sampling(steps=20))
        Image.fromarray(contact_sheet(images, columns=4)).save(run / f"sheet-{step:06d}.png")

    return report


def work(run: Path, comfyui: Path, settings: Settings, threads: int, worker: Worker) -> None:
    """Train the transformer in one of the processes, with reports; the run is prepared before."""
    torch.set_num_threads(threads)
    train(run, settings, Tokenizer(comfyui / "comfy"), worker=worker, after_save=reporter(run, comfyui, settings.steps))
