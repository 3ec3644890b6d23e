"""The workflow for a model file: its loaders, its latent and its usual guidance, by the class of ComfyUI's model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Graph, WorkflowError


@dataclass(frozen=True)
class Template:
    """Fields: clip, the type of ComfyUI's CLIP loader; latent, the node of an empty latent; cfg, of the base model."""

    clip: str
    cfg: float = 4.0
    latent: str = "EmptyLatentImage"


# Class in comfy.supported_models -> its template. The other families of the table need a workflow.
TEMPLATES = {
    "SD3": Template("sd3", 4.5),
    "Flux": Template("flux", 1.0),
    "FluxSchnell": Template("flux", 1.0),
    "Flux2": Template("flux2", 1.0, "EmptyFlux2LatentImage"),
    "LongCatImage": Template("longcat_image"),
    "Chroma": Template("chroma"),
    "ChromaRadiance": Template("chroma", latent="EmptyChromaRadianceLatentImage"),
    "QwenImage": Template("qwen_image"),
    "MageFlow": Template("mage"),
    "ZImage": Template("lumina2"),
    "ZImagePixelSpace": Template("lumina2", latent="EmptyChromaRadianceLatentImage"),
    "Lumina2": Template("lumina2"),
    "Krea2": Template("krea2"),
    "AuraFlow": Template("stable_diffusion"),
    "Lens": Template("lens"),
    "JoyImage": Template("joyimage"),
    "HunyuanImage21": Template("hunyuan_image", latent="EmptyHunyuanImageLatent"),
    "HiDream": Template("hidream"),
    "Omnigen2": Template("omnigen2"),
    "Boogu": Template("boogu"),
    "Ideogram4": Template("ideogram4"),
    "CosmosT2IPredict2": Template("cosmos"),
}
MODEL, CLIP, VAE = ["model", 0], ["model", 1], ["model", 2]
SHIPPED_SIZE = {"mmdit-small.safetensors": 128}  # pixels of a side; others start at 1024
CLIP_LOADERS = ("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "QuadrupleCLIPLoader")


def loader(checkpoint: str) -> Graph:
    """The graph that loads a file. Args: checkpoint, as MMDiTLoader lists it."""
    return {"model": {"class_type": "MMDiTLoader", "inputs": {"checkpoint": checkpoint, "weight_dtype": "default"}}}


def workflow(checkpoint: str, kind: str, clips: Sequence[str], vae: str, clip_type: str = "") -> Graph:
    """The workflow for a model file: an image from a prompt with FlowMatchingSampler.

    Args: kind, the class of ComfyUI's model in it; clips and vae, files as ComfyUI's loaders list them, none for those
        in the checkpoint; clip_type, the CLIP loader's type, "" for the template's.
    Raises: WorkflowError for a class that has no template.
    """
    template = TEMPLATES.get(kind)
    if template is None:
        raise WorkflowError(
            f"--model: there is no plain workflow for {kind}. Make one in ComfyUI, export it (Workflow > Export "
            "(API)) and give it with --workflow"
        )
    graph, size = loader(checkpoint), SHIPPED_SIZE.get(checkpoint, 1024)
    clip_link, vae_link = CLIP, VAE
    if clips:
        one = len(clips) == 1
        names = {"clip_name" if one else f"clip_name{number}": name for number, name in enumerate(clips, 1)}
        typed = {"type": clip_type or template.clip} if len(clips) <= 2 else {}
        graph["clip"] = {"class_type": CLIP_LOADERS[len(clips) - 1], "inputs": {**names, **typed}}
        clip_link = ["clip", 0]
    if vae:
        graph["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": vae}}
        vae_link = ["vae", 0]
    sampling = {"seed": 0, "steps": 28, "cfg": template.cfg, "solver": "euler", "schedule": "linear", "shift": 0.0}
    links = {"model": MODEL, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
    return graph | {
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip_link, "text": ""}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip_link, "text": ""}},
        "latent": {"class_type": template.latent, "inputs": {"width": size, "height": size, "batch_size": 1}},
        "sampler": {"class_type": "FlowMatchingSampler", "inputs": {**links, **sampling, "denoise": 1.0}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": vae_link}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["decode", 0], "filename_prefix": "mmdit"}},
    }
