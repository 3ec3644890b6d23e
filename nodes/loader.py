"""MMDiTLoader: one file in, MODEL, CLIP and VAE out."""

from __future__ import annotations

from ..mmdit_core.checkpoints.errors import CheckpointError
from .comfyui.loading import clip_vae as parts
from .comfyui.loading import folders
from .comfyui.loading import model as models
from .errors import InputError

CATEGORY = "MMDiT"


class MMDiTLoader:
    """An SD3-family checkpoint as MODEL, CLIP and VAE."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Loads an SD3, SD3.5 or compatible MMDiT checkpoint (safetensors; single file or diffusers layout). "
        "The MODEL works with the host's samplers, LoRAs, ControlNets and patches. "
        "Where the file holds no text encoders or VAE, connect a TripleCLIPLoader or VAELoader instead."
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
    def INPUT_TYPES(cls):
        return {
            "required": {
                "checkpoint": (
                    folders.checkpoint_names(),
                    {
                        "tooltip": "A file of models/mmdit, models/checkpoints or models/diffusion_models. "
                        "mmdit-small.safetensors comes with this pack and runs without a GPU."
                    },
                ),
                "weight_dtype": (
                    list(models.WEIGHT_DTYPES),
                    {
                        "default": "default",
                        "tooltip": "How the weights are held in memory. default: the host decides. fp8 halves the "
                        "memory of bf16 at a small loss; fp8_e4m3fn_fast also multiplies in fp8 on cards that can.",
                    },
                ),
            }
        }

    def load(self, checkpoint: str, weight_dtype: str):
        path = folders.checkpoint_path(checkpoint)
        if path is None:
            raise InputError(
                "MMDiTLoader",
                "checkpoint",
                f"{checkpoint!r} was not found",
                "Put the file into models/mmdit, models/checkpoints or models/diffusion_models and press R",
            )
        try:
            return models.load_model(path, weight_dtype), parts.load_clip(path), parts.load_vae(path)
        except CheckpointError as error:
            raise ValueError(f"MMDiTLoader: checkpoint: {error}") from error


NODES = {"MMDiTLoader": (MMDiTLoader, "MMDiT Loader")}
