"""RF-Inversion's controller on a MODEL: the predicted image is drawn to a source image, whichever node samples."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
from torch import Tensor

from ....mmdit_core.editing.rf_inversion import Pull
from ..run.state import run_of


def with_pull(model, source: Tensor, pull: Pull, node: str):
    """A clone of the MODEL. Args: source [B, C, ...], a latent that fits the model; node, that its errors name."""
    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(_Controller(source.cpu(), pull, node))
    return clone


def is_pulled(model) -> bool:
    """True if a controller is on the MODEL."""
    return any(isinstance(each, _Controller) for each in model.model_options.get("sampler_post_cfg_function", ()))


class _Controller:
    """What ComfyUI calls after its guidance."""

    def __init__(self, source: Tensor, pull: Pull, node: str):
        self._source, self._pull, self._node = source, pull, node

    def __call__(self, args: dict[str, Any]) -> Tensor:
        """The predicted image [B, ...], drawn to the source. Raises: ValueError for another size."""
        denoised, base = args["denoised"], args["model"]
        run = run_of(args["model_options"].get("transformer_options", {}))
        # Under our samplers the sigma is known: reading it would wait for the device.
        sigma = float(args["sigma"].max()) if run is None or run.sigma is None else run.sigma
        strength = self._pull.strength_at(sigma, base.model_sampling.percent_to_sigma)
        if not strength:
            return denoised
        if self._source.shape[1:] != denoised.shape[1:] or len(denoised) % len(self._source):
            ours, theirs = (" x ".join(map(str, each.shape)) for each in (self._source, denoised))
            found = f"it is {ours}, and the sampled latent {theirs}"
            raise ValueError(f"{self._node}: source_latent: {found}. Connect a latent of that size")
        source = base.process_latent_in(self._source.to(denoised))
        return torch.lerp(denoised, comfy.utils.repeat_to_batch_size(source, len(denoised)), strength)
