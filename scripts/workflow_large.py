"""The shared workflows of published models: what their notes name must be downloaded first."""

from __future__ import annotations

from typing import Any

from scripts.workflow_parts import Node, WorkflowSpec, decode, empty, loader, sampler, save, shown, text

LARGE_FILES = (
    "Put the transformer into **models/checkpoints** or **models/diffusion_models**, the text encoders into "
    "**models/text_encoders**, the VAE into **models/vae**, then press R to refresh the lists."
)


def sd35(name: str, title: str, checkpoint: str, note: str, **values: Any) -> WorkflowSpec:
    """A workflow for one of Stability's SD3.5 files, whose VAE is in the file and whose text encoders are not."""
    return WorkflowSpec(
        name,
        title,
        f"{note}\n\n**Files**\n"
        f"- **{checkpoint}**, from Stability AI's page of the model on Hugging Face: transformer and VAE\n"
        "- **clip_l.safetensors**, **clip_g.safetensors**, **t5xxl_fp8_e4m3fn.safetensors**, from Comfy-Org's page "
        f"*stable-diffusion-3.5-fp8*, folder text_encoders\n\n{LARGE_FILES}",
        (
            loader(checkpoint),
            Node(
                "clip",
                "TripleCLIPLoader",
                {
                    "clip_name1": "clip_l.safetensors",
                    "clip_name2": "clip_g.safetensors",
                    "clip_name3": "t5xxl_fp8_e4m3fn.safetensors",
                },
            ),
            text("a lighthouse on a cliff at dusk, oil painting, warm light in the window", clip=("clip", 0)),
            empty(1024),
            sampler(**values),
            *shown(),
        ),
        small=False,
    )


LARGE = (
    sd35(
        "sd35-medium",
        "SD3.5 Medium",
        "sd3.5_medium.safetensors",
        "2.2 billion parameters, 5 GB, for graphics cards of 8 GB and more. 28 steps, cfg 4.5.",
        cfg=4.5,
    ),
    sd35(
        "sd35-large",
        "SD3.5 Large",
        "sd3.5_large.safetensors",
        "8 billion parameters, 16 GB, for graphics cards of 16 GB and more; half of that with weight_dtype fp8. "
        "28 steps, cfg 4.5.",
        cfg=4.5,
    ),
    sd35(
        "sd35-large-turbo",
        "SD3.5 Large Turbo",
        "sd3.5_large_turbo.safetensors",
        "The distilled model: 4 steps, cfg 1; the negative prompt is not computed.",
        steps=4,
        cfg=1.0,
    ),
    WorkflowSpec(
        "flux1-dev",
        "FLUX.1-dev with a text boost",
        "ComfyUI's own loader loads FLUX.1-dev; the sampler and the block nodes of this pack accept it. **Text Boost** "
        "uses the published preset for better text alignment (blocks 2, 7, 12, 17, 22 at 1.5).\n\n**Files**\n"
        "- **flux1-dev.safetensors** and **ae.safetensors**, from Black Forest Labs' page on Hugging Face\n"
        "- **clip_l.safetensors**, **t5xxl_fp8_e4m3fn.safetensors**, from Comfy-Org's page *flux_text_encoders*\n\n"
        + LARGE_FILES,
        (
            Node("model", "UNETLoader", {"unet_name": "flux1-dev.safetensors"}),
            Node(
                "clip",
                "DualCLIPLoader",
                {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "flux"},
            ),
            Node("vae", "VAELoader", {"vae_name": "ae.safetensors"}),
            text("a lighthouse on a cliff at dusk, oil painting, warm light in the window", clip=("clip", 0)),
            Node("guidance", "FluxGuidance", {"guidance": 3.5}, {"conditioning": ("text", 0)}),
            empty(1024),
            Node("boost", "TextBoost", {"preset": "FLUX.1-dev: text alignment"}, {"model": ("model", 0)}),
            sampler(model=("boost", 0), positive=("guidance", 0), steps=20, cfg=1.0, size_shift="flux"),
            decode(vae=("vae", 0)),
            save(),
        ),
        small=False,
    ),
    WorkflowSpec(
        "qwen-image",
        "Qwen-Image with blocks skipped",
        "ComfyUI's own loader loads Qwen-Image; the sampler and the block nodes of this pack accept it. No block list "
        "is published for it: find yours with **Block Analysis** and enter it in **Block Skip**.\n\n"
        "**Files**, all from Comfy-Org's page *Qwen-Image_ComfyUI*\n- **qwen_image_fp8_e4m3fn.safetensors**\n"
        "- **qwen_2.5_vl_7b_fp8_scaled.safetensors**\n- **qwen_image_vae.safetensors**\n\n" + LARGE_FILES,
        (
            Node("model", "UNETLoader", {"unet_name": "qwen_image_fp8_e4m3fn.safetensors"}),
            Node(
                "clip",
                "CLIPLoader",
                {"clip_name": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "type": "qwen_image"},
            ),
            Node("vae", "VAELoader", {"vae_name": "qwen_image_vae.safetensors"}),
            text("a lighthouse on a cliff at dusk, oil painting, warm light in the window", clip=("clip", 0)),
            empty(1328),
            Node("skip", "BlockSkip", {"blocks": "", "branch": "negative"}, {"model": ("model", 0)}),
            sampler(model=("skip", 0), steps=20, cfg=2.5, shift=3.1),
            decode(vae=("vae", 0)),
            save(),
        ),
        small=False,
    ),
)
