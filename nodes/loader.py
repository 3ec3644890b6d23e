"""MMDiTLoader: one checkpoint as MODEL, CLIP and VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..mmdit_core.checkpoints.detect import components, describe_unknown, is_sd3
from ..mmdit_core.checkpoints.errors import CheckpointError, UnknownModelError
from ..mmdit_core.checkpoints.header import Header, read_header
from ..mmdit_core.checkpoints.quantised import QuantisedError, is_quantisation
from .comfyui.frontend.messages import show_text
from .comfyui.frontend.progress import raise_if_cancelled
from .comfyui.loading import clip_vae, folders, other_models
from .comfyui.loading.metadata import says_shift
from .comfyui.loading.model import WEIGHT_DTYPES, core_config, load_model
from .errors import InputError
from .widgets import HIDDEN, check_values, choice

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

OTHER_LOADER = "Load them with CLIPLoader, set to this model, and VAELoader"
# Class of ComfyUI's model -> where its text encoder comes from.
OTHER_LOADERS = {
    "Flux": "Load them with DualCLIPLoader, set to flux (clip_l and t5xxl), and VAELoader (ae.safetensors)",
    "FluxSchnell": "Load them with DualCLIPLoader, set to flux (clip_l and t5xxl), and VAELoader (ae.safetensors)",
    "FluxInpaint": "Load them with DualCLIPLoader, set to flux (clip_l and t5xxl), and VAELoader (ae.safetensors)",
    "Flux2": "Load them with CLIPLoader, set to flux2, and VAELoader (flux2-vae.safetensors)",
    "Chroma": "Load them with CLIPLoader, set to chroma (t5xxl), and VAELoader (ae.safetensors)",
    "QwenImage": "Load them with CLIPLoader, set to qwen_image, and VAELoader (qwen_image_vae.safetensors)",
    "ZImage": "Load them with CLIPLoader, set to lumina2 (qwen_3_4b), and VAELoader (ae.safetensors)",
    "Lumina2": "Load them with CLIPLoader, set to lumina2 (gemma_2_2b), and VAELoader (ae.safetensors)",
    "Krea2": "Load them with CLIPLoader, set to krea2, and VAELoader (qwen_image_vae.safetensors)",
    "SD3": "Load them with TripleCLIPLoader and VAELoader",
}
# What a file may hold in place of a model, as `describe_unknown` calls it -> what takes it.
OTHER_FILES = {
    "a LoRA": "Apply it with LoraLoaderModelOnly to the MODEL of this loader",
    "a ControlNet": "Load it with ControlNetLoader",
    "a VAE alone": "Load it with VAELoader",
    "a text encoder alone": "Load it with CLIPLoader, or with DualCLIPLoader or TripleCLIPLoader beside the others",
}
NEEDED = "A model of a family in docs/families.md is needed, such as SD3.5, FLUX, Qwen-Image, Z-Image or Krea 2"
# The ends of tensor names that the format of another pack has -> its name, and what reads it.
OTHER_PACKS = {
    ".wscales": (
        "the weights are quantised for Nunchaku (SVDQuant)",
        "Load it with the pack ComfyUI-nunchaku; Flow Matching Sampler takes its MODEL. Its blocks are its own, so the "
        "block nodes refuse it",
    ),
    ".absmax": (
        "the weights are quantised by bitsandbytes (NF4 or FP4)",
        "Load it with a pack that reads bitsandbytes; the nodes of this pack take its MODEL",
    ),
}
NO_SHIFT = (
    "The file does not say its shift, and it is no published model: SD3's 3.0 is used. Set another with the sampler's "
    "shift or ModelSamplingSD3."
)

log = logging.getLogger(__name__)


class MMDiTLoader:
    """A checkpoint as MODEL, CLIP and VAE: of the SD3 family in this pack's model, of other families in ComfyUI's."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Loads SD3, SD3.5 and the other models that this pack acts on, such as FLUX, Qwen-Image, Z-Image and Krea 2 "
        "(safetensors; single file or diffusers layout; bf16, fp16, fp8 with or without scales). "
        "The MODEL works with ComfyUI's samplers, LoRAs, ControlNets and patches. "
        "If the file holds no text encoders or no VAE, connect ComfyUI's loaders of these instead."
    )
    SEARCH_ALIASES = [
        "sd3", "sd3.5", "stable diffusion 3", "checkpoint", "load model", "mmdit", "加载模型", "加载器",
    ]  # fmt: skip
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
            },
            "hidden": HIDDEN,
        }

    def load(self, checkpoint: str, weight_dtype: str, unique_id: str | None = None):
        """Load the checkpoint. Returns: MODEL, CLIP, VAE. Raises: InputError."""
        path = folders.listed_path(checkpoint) if isinstance(checkpoint, str) else None
        if path is None:
            right = "Put the file into models/mmdit, models/checkpoints or models/diffusion_models and press R"
            raise InputError(NODE, "checkpoint", f"{checkpoint!r:.200} was not found", right)
        check_values(NODE, self.INPUT_TYPES()["required"], {"weight_dtype": weight_dtype})
        try:
            header = read_header(path)
            if not is_sd3(header.tensors):
                return _load_other(header, weight_dtype, unique_id)
            try:
                model = load_model(header, weight_dtype)
            except QuantisedError:
                if any(key.startswith("mmdit.") for key in header.metadata):
                    raise  # ComfyUI's loader would not heed what the metadata say
                return _load_other(header, weight_dtype, unique_id)
            raise_if_cancelled()
            clip = _component(clip_vae.load_clip, header)
            raise_if_cancelled()
            vae = _component(clip_vae.load_vae, header)
        except CheckpointError as error:
            raise ValueError(f"{NODE}: checkpoint: {error}") from error
        log.info("Loaded %s: %s, with %s", checkpoint, model.model_dtype(), ", ".join(components(header)))
        if not says_shift(header, core_config(model)):
            show_text(unique_id, NO_SHIFT)
        return model, clip, vae


def _load_other(header: Header, weight_dtype: str, unique_id: str | None):
    """A file of another family, or in a format that the core does not read: as ComfyUI's own loaders give it."""
    for end, (found, right) in OTHER_PACKS.items():
        if any(name.endswith(end) for name in header.tensors):
            raise UnknownModelError(header.source, found, right)
    kind = other_models.detect(header)
    if kind is None:
        found = describe_unknown(header.tensors)
        right = next((right for words, right in OTHER_FILES.items() if words in found), NEEDED)
        raise UnknownModelError(header.source, found, right)
    try:
        label = other_models.family_label(kind)
    except LookupError as error:
        found = f"this is {kind.name}, on which the nodes of this pack do not act: {error}"
        raise UnknownModelError(header.source, found, "Load it with Load Checkpoint or Load Diffusion Model") from error
    reason = other_models.why_not(header, kind)
    if reason is not None:
        raise UnknownModelError(header.source, reason, "Take the bf16, the fp16 or an fp8 version in ComfyUI's layout")
    with other_models.Missing() as missing:
        model = other_models.load_model(str(header.source), weight_dtype)
        raise_if_cancelled()
        clip, vae = other_models.load_parts(header, kind)
    lines = [f"{label}: ComfyUI's own MODEL. All nodes of this pack take it."]
    if weight_dtype != "default" and any(map(is_quantisation, header.tensors)):
        lines.append("Its quantised layers stay as they are: weight_dtype acts on the others.")
    lines += [f"The file is not whole, and the image will be wrong: {report}" for report in missing.reports]
    show_text(unique_id, "\n".join(lines))
    words = OTHER_LOADERS.get(kind.name, OTHER_LOADER)
    lacks = f"{NODE}: {{}}: {header.source.name} holds none. {words}"
    return model, clip or clip_vae.StandIn(lacks.format("CLIP")), vae or clip_vae.StandIn(lacks.format("VAE"))


def _component(load: Callable[[Header], Any], header: Header) -> Any:
    """Load a component of a checkpoint, or make a stand-in that explains its absence."""
    try:
        return load(header)
    except clip_vae.ComponentError as error:
        return clip_vae.StandIn(f"{NODE}: {ABSENT[type(error)].format(file=error.file)}")


NODES = {NODE: (MMDiTLoader, "MMDiT Loader")}
