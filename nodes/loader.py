"""MMDiTLoader: one checkpoint as MODEL, CLIP and VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..mmdit_core.checkpoints.detect import components
from ..mmdit_core.checkpoints.errors import CheckpointError
from ..mmdit_core.checkpoints.header import read_header
from .comfyui.loading import clip_vae, folders
from .comfyui.loading.model import WEIGHT_DTYPES, load_model
from .errors import InputError
from .widgets import check_values, choice

NODE = "MMDiTLoader"
# The messages of components that a checkpoint lacks.
ABSENT: dict[type[clip_vae.ComponentError], str] = {
    clip_vae.NoTextEncoders: "CLIP: {file} holds no text encoders. Load them with TripleCLIPLoader "
    "(clip_l.safetensors, clip_g.safetensors and t5xxl_fp16.safetensors, or a t5xxl fp8 file, in models/text_encoders) "
    "or with DualCLIPLoader set to sd3, and connect its CLIP in place of this one",
    clip_vae.UnknownTextEncoders: "CLIP: the text encoders in {file} are not of SD3's size, and its metadata does not "
    "say which (ComfyUI's save nodes drop that). Connect the CLIP of the file that it was made from: a second "
    "MMDiTLoader",
    clip_vae.NoVAE: "VAE: {file} holds no VAE. Load the model's 16-channel VAE with VAELoader (for SD3 and SD3.5: "
    "sd3_vae.safetensors, or diffusion_pytorch_model.safetensors of the release's vae folder, in models/vae) and "
    "connect its VAE in place of this one",
}

log = logging.getLogger(__name__)


class MMDiTLoader:
    """An SD3-family checkpoint as MODEL, CLIP and VAE."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Loads an SD3, SD3.5 or compatible MMDiT checkpoint (safetensors; single file or diffusers layout). "
        "The MODEL works with ComfyUI's samplers, LoRAs, ControlNets and patches. "
        "If the file holds no text encoders or no VAE, connect a TripleCLIPLoader or VAELoader instead."
    )
    SEARCH_ALIASES = ["sd3", "sd3.5", "stable diffusion 3", "checkpoint", "load model", "mmdit"]
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    OUTPUT_TOOLTIPS = (
        "The transformer that removes the noise.",
        "The text encoders in the file, for TripleTextEncode.",
        "The VAE in the file, for VAE Decode and VAE Encode.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """ComfyUI's description of the inputs."""
        files = (
            "A file in models/mmdit, models/checkpoints or models/diffusion_models. "
            "mmdit-small.safetensors comes with this pack and runs without a GPU."
        )
        dtypes = (
            "The data type of the weights in memory. default: ComfyUI's choice. fp8 halves the memory of bf16 at a "
            "small loss of quality; fp8_e4m3fn_fast also multiplies in fp8 on GPUs that support it."
        )
        return {
            "required": {
                "checkpoint": (folders.checkpoint_names(), {"tooltip": files}),
                "weight_dtype": choice(list(WEIGHT_DTYPES), "default", dtypes),
            }
        }

    def load(self, checkpoint: str, weight_dtype: str):
        """Load the checkpoint. Returns: MODEL, CLIP, VAE. Raises: InputError."""
        path = folders.listed_path(checkpoint)
        if path is None:
            right = "Put the file into models/mmdit, models/checkpoints or models/diffusion_models and press R"
            raise InputError(NODE, "checkpoint", f"{checkpoint!r} was not found", right)
        check_values(NODE, self.INPUT_TYPES()["required"], {"weight_dtype": weight_dtype})
        try:
            model = load_model(str(path), weight_dtype)
            clip, vae = _component(clip_vae.load_clip, path), _component(clip_vae.load_vae, path)
            found = components(read_header(path))
        except CheckpointError as error:
            raise ValueError(f"{NODE}: checkpoint: {error}") from error
        layout = found["transformer"].layout
        log.info("Loaded %s: %s layout, %s, with %s", checkpoint, layout, model.model_dtype(), ", ".join(found))
        return model, clip, vae


def _component(load: Callable[[Path], Any], path: Path) -> Any:
    """Load a component of a checkpoint, or make a stand-in that explains its absence."""
    try:
        return load(path)
    except clip_vae.ComponentError as error:
        return clip_vae.StandIn(f"{NODE}: {ABSENT[type(error)].format(file=error.file)}")


NODES = {NODE: (MMDiTLoader, "MMDiT Loader")}
