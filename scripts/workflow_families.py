"""The shared workflows of newer model families, with the files and settings of ComfyUI's own templates."""

from __future__ import annotations

from scripts.workflow_large import LARGE_FILES
from scripts.workflow_parts import RUN_LINKS, Link, Node, WorkflowSpec, decode, empty, preview, sampler, save, text

SCENE = "a lighthouse on a cliff at dusk, oil painting, warm light in the window"
CLIP, VAE = ("clip", 0), ("vae", 0)
START = "The blocks are a first guess, not a measured list: **Block Analysis** measures them on your model."


def loaders(transformer: str, encoder: str, kind: str, vae: str) -> tuple[Node, ...]:
    """ComfyUI's loaders of a transformer, a text encoder and a VAE. Args: kind, the CLIPLoader's type."""
    return (
        Node("model", "UNETLoader", {"unet_name": transformer}),
        Node("clip", "CLIPLoader", {"clip_name": encoder, "type": kind}),
        Node("vae", "VAELoader", {"vae_name": vae}),
    )


def note(about: str, *files: str) -> str:
    """What a workflow does, and the files that it needs."""
    return "\n".join([about, "", "**Files**", *(f"- {file}" for file in files), "", LARGE_FILES])


def flux2_size(size: int, steps: int) -> tuple[Node, Node]:
    """An empty latent of FLUX.2, and its sigmas for this size."""
    return (
        Node("latent", "EmptyFlux2LatentImage", {"width": size, "height": size}),
        Node("sigmas", "Flux2Scheduler", {"steps": steps, "width": size, "height": size}),
    )


def flux2_sampler(model: Link, positive: Link, cfg: float) -> Node:
    """The sampler with the sigmas of Flux2Scheduler."""
    made = sampler(model=model, positive=positive, cfg=cfg)
    return Node(made.key, made.type, made.values, {**made.links, "sigmas": ("sigmas", 0)})


Z_IMAGE = "z_image_turbo_bf16.safetensors", "qwen_3_4b.safetensors", "lumina2", "ae.safetensors"
Z_IMAGE_FILES = (
    "**z_image_turbo_bf16.safetensors**, **qwen_3_4b.safetensors** and **ae.safetensors**, from Comfy-Org's page "
    "*z_image_turbo*",
)
SKIP_Z_IMAGE = Node("skip", "BlockSkip", {"blocks": "5, 10, 15, 20, 25"}, {"model": ("model", 0)})
BOOST = {"blocks": "2, 7, 12, 17, 22"}  # as published for FLUX.1-dev

FAMILIES = (
    WorkflowSpec(
        "z-image-turbo",
        "Z-Image Turbo with a text boost",
        note(
            "The distilled model: 8 steps, cfg 1, shift 3. At cfg 1 there is no guidance to raise. **Text Boost** "
            f"makes the prompt stronger instead; **strength** 1 changes nothing. {START}\n\nThe strip counts the 30 "
            "main layers. The noise and context refiners run before them and have no numbers.",
            *Z_IMAGE_FILES,
        ),
        (
            *loaders(*Z_IMAGE),
            text(SCENE, clip=CLIP),
            empty(1024),
            Node("boost", "TextBoost", BOOST, {"model": ("model", 0)}),
            sampler(model=("boost", 0), steps=8, cfg=1.0, solver="res_2m", shift=3.0),
            decode(vae=VAE),
            save(),
        ),
        small=False,
    ),
    WorkflowSpec(
        "z-image",
        "Z-Image with blocks skipped",
        note(
            "The base model: 25 to 50 steps, cfg 3 to 5, shift 3. **Block Skip** leaves blocks out of the negative "
            "branch, which cfg computes in every step. After the run it shows how many block calls were saved. More "
            f"blocks save more and change the image more. {START}",
            "**z_image_bf16.safetensors**, from Comfy-Org's page *z_image*",
            "**qwen_3_4b.safetensors** and **ae.safetensors**, from Comfy-Org's page *z_image_turbo*",
        ),
        (
            *loaders("z_image_bf16.safetensors", *Z_IMAGE[1:]),
            text(SCENE, clip=CLIP),
            empty(1024),
            SKIP_Z_IMAGE,
            sampler(model=("skip", 0), steps=25, cfg=4.0, solver="res_2m", shift=3.0),
            decode(vae=VAE),
            save(),
        ),
        small=False,
    ),
    WorkflowSpec(
        "z-image-analysis",
        "Which blocks can Z-Image Turbo spare?",
        note(
            "Samples the image once, then once with each block skipped: 31 short runs at 512 x 512. The contact sheet "
            "shows every image, the plot how much each block changes it, and the report lists blocks for **Block "
            "Skip**. You can cancel at any time: finished images are kept, and the next run continues. Choose fewer "
            "**blocks** for a quicker look, more **seeds** for a surer list.",
            *Z_IMAGE_FILES,
        ),
        (
            *loaders(*Z_IMAGE),
            text(SCENE, clip=CLIP),
            empty(512),
            Node(
                "analysis",
                "BlockAnalysis",
                {"operations": "skip", "steps": 8, "cfg": 1.0, "seed": 4},
                {**RUN_LINKS, "vae": VAE},
            ),
            preview("analysis", "sheet", "Contact sheet"),
            Node("plot", "PreviewImage", links={"images": ("analysis", 1)}, title="Distance by block"),
            Node("report", "PreviewAny", links={"source": ("analysis", 2)}, title="Report"),
        ),
        small=False,
    ),
    WorkflowSpec(
        "krea2-turbo",
        "Krea 2 Turbo with a text boost",
        note(
            "The distilled model: 8 steps, cfg 1, the model's own shift. **Text Boost** in mode *attention* makes the "
            "image attend more to the prompt in the first half of the blocks, and in the first half of the steps, "
            f"where the layout is decided. Set **end_percent** to 1 for the details too. {START}",
            "**krea2_turbo_fp8_scaled.safetensors**, **qwen3vl_4b_fp8_scaled.safetensors** and "
            "**qwen_image_vae.safetensors**, from Comfy-Org's page *Krea-2*",
        ),
        (
            *loaders(
                "krea2_turbo_fp8_scaled.safetensors",
                "qwen3vl_4b_fp8_scaled.safetensors",
                "krea2",
                "qwen_image_vae.safetensors",
            ),
            text(SCENE, clip=CLIP),
            Node("latent", "EmptyLatentImage", {"width": 1024, "height": 1024}),
            Node(
                "boost",
                "TextBoost",
                {"blocks": "first 50%", "mode": "attention", "end_percent": 0.5},
                {"model": ("model", 0)},
            ),
            sampler(model=("boost", 0), steps=8, cfg=1.0),
            decode(vae=VAE),
            save(),
        ),
        small=False,
    ),
    WorkflowSpec(
        "qwen-image-edit",
        "Qwen-Image-Edit 2511 with blocks skipped",
        note(
            "Edits the image of **Load Image** as the prompt says. 20 to 40 steps, cfg 4, shift 3.1. The reference "
            "image is part of every model call, so an edit costs about twice an image of this size. **Block Skip** "
            f"leaves blocks out of the negative branch. {START}\n\nFor Qwen-Image-Edit 2509 choose "
            "**qwen_image_edit_2509_fp8_e4m3fn.safetensors**, cfg 2.5 and shift 3. For more references link them to "
            "**image2** and **image3** of both prompts.",
            "**qwen_image_edit_2511_fp8mixed.safetensors**, from Comfy-Org's page *Qwen-Image-Edit_ComfyUI*",
            "**qwen_2.5_vl_7b_fp8_scaled.safetensors** and **qwen_image_vae.safetensors**, from Comfy-Org's page "
            "*Qwen-Image_ComfyUI*",
        ),
        (
            *loaders(
                "qwen_image_edit_2511_fp8mixed.safetensors",
                "qwen_2.5_vl_7b_fp8_scaled.safetensors",
                "qwen_image",
                "qwen_image_vae.safetensors",
            ),
            Node("image", "LoadImage", {"image": "example.png"}, title="Image to edit"),
            Node("scaled", "FluxKontextImageScale", links={"image": ("image", 0)}),
            Node(
                "positive",
                "TextEncodeQwenImageEditPlus",
                {"prompt": "turn it into an oil painting at dusk, warm light in the windows"},
                {"clip": CLIP, "vae": VAE, "image1": ("scaled", 0)},
                "Edit",
            ),
            Node(
                "negative",
                "TextEncodeQwenImageEditPlus",
                links={"clip": CLIP, "vae": VAE, "image1": ("scaled", 0)},
                title="Negative prompt",
            ),
            Node("latent", "VAEEncode", links={"pixels": ("scaled", 0), "vae": VAE}),
            Node("norm", "CFGNorm", links={"model": ("model", 0)}),
            Node("skip", "BlockSkip", {"blocks": "10, 20, 30, 40, 50"}, {"model": ("norm", 0)}),
            sampler(
                model=("skip", 0), positive=("positive", 0), negative=("negative", 0), steps=20, cfg=4.0, shift=3.1
            ),
            decode(vae=VAE),
            save(),
        ),
        small=False,
    ),
    WorkflowSpec(
        "flux2-dev",
        "FLUX.2-dev with a text boost",
        note(
            "20 steps and guidance 4; **Flux2 Scheduler** chooses the sigmas by the image size, so set its width and "
            "height as the latent's. The model is distilled for guidance and has no negative prompt. **Text Boost** "
            "makes the prompt stronger, with the blocks that are published for FLUX.1-dev. FLUX.2-dev has 8 double and "
            f"48 single blocks. {START}",
            "**flux2_dev_fp8mixed.safetensors**, **mistral_3_small_flux2_fp8.safetensors** and "
            "**flux2-vae.safetensors**, from Comfy-Org's page *flux2-dev*",
        ),
        (
            *loaders(
                "flux2_dev_fp8mixed.safetensors",
                "mistral_3_small_flux2_fp8.safetensors",
                "flux2",
                "flux2-vae.safetensors",
            ),
            text(SCENE, clip=CLIP),
            *flux2_size(1024, 20),
            Node("guidance", "FluxGuidance", {"guidance": 4.0}, {"conditioning": ("text", 0)}),
            Node("boost", "TextBoost", BOOST, {"model": ("model", 0)}),
            flux2_sampler(("boost", 0), ("guidance", 0), 1.0),
            decode(vae=VAE),
            save(),
        ),
        small=False,
    ),
    WorkflowSpec(
        "flux2-klein",
        "FLUX.2 Klein with blocks skipped",
        note(
            "The 4B base model: 20 steps, cfg 5. **Flux2 Scheduler** chooses the sigmas by the image size, so set its "
            f"width and height as the latent's. **Block Skip** leaves blocks out of the negative branch. {START}\n\n"
            "The distilled model is **flux-2-klein-4b.safetensors**: 4 steps, cfg 1. It computes no negative branch: "
            "set **branch** to *both* there, with fewer blocks.",
            "**flux-2-klein-base-4b.safetensors** and **qwen_3_4b.safetensors**, from Comfy-Org's page *flux2-klein*",
            "**flux2-vae.safetensors**, from Comfy-Org's page *flux2-dev*",
        ),
        (
            *loaders("flux-2-klein-base-4b.safetensors", "qwen_3_4b.safetensors", "flux2", "flux2-vae.safetensors"),
            text(SCENE, clip=CLIP),
            *flux2_size(1024, 20),
            Node("skip", "BlockSkip", {"blocks": "8, 12, 16, 20"}, {"model": ("model", 0)}),
            flux2_sampler(("skip", 0), ("text", 0), 5.0),
            decode(vae=VAE),
            save(),
        ),
        small=False,
    ),
)
