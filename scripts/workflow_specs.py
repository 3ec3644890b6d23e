"""What the shared workflows say: their nodes, the inputs that are not at their defaults, and their notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Link = tuple[str, int]

PROMPT = "three red circles to the left of a blue star on a white background"
SMALL_NOTE = "The small model that comes with this pack draws it in seconds, without a GPU."


@dataclass(frozen=True)
class Node:
    """One node: a key for links, its type, the values that are not defaults, and links as (key, output)."""

    key: str
    type: str
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class WorkflowSpec:
    """One workflow. `small`: the model that comes with the pack can run it."""

    name: str
    title: str
    note: str
    nodes: tuple[Node, ...]
    small: bool = True


def loader(checkpoint: str = "mmdit-small.safetensors") -> Node:
    return Node("model", "MMDiTLoader", {"checkpoint": checkpoint})


def text(prompt: str = PROMPT, key: str = "text", clip: Link = ("model", 1), title: str = "", **values: Any) -> Node:
    return Node(key, "TripleTextEncode", {"prompt": prompt, **values}, {"clip": clip}, title)


def empty(size: int = 128, key: str = "latent") -> Node:
    return Node(key, "EmptySD3LatentImage", {"width": size, "height": size})


def sampler(
    key: str = "sampler",
    *,
    model: Link = ("model", 0),
    positive: Link = ("text", 0),
    negative: Link = ("text", 1),
    latent: Link = ("latent", 0),
    title: str = "",
    **values: Any,
) -> Node:
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return Node(key, "FlowMatchingSampler", {"seed": 4, "cfg": 4.5, **values}, links, title)


def decode(source: str = "sampler", key: str = "decode", vae: Link = ("model", 2)) -> Node:
    return Node(key, "VAEDecode", links={"samples": (source, 0), "vae": vae})


def save(source: str = "decode", key: str = "save", title: str = "") -> Node:
    return Node(key, "SaveImage", {"filename_prefix": "mmdit"}, {"images": (source, 0)}, title)


def preview(source: str, key: str, title: str) -> Node:
    return Node(key, "PreviewImage", links={"images": (source, 0)}, title=title)


def shown(source: str = "sampler", name: str = "picture", title: str = "") -> tuple[Node, Node]:
    """A latent decoded and saved."""
    return decode(source, f"{name} decoded"), save(f"{name} decoded", f"{name} saved", title)


def beside_untouched(*changed: Node, model: str) -> tuple[Node, ...]:
    """The same seed twice: without the node that this workflow is about, and with it."""
    return (
        loader(),
        text(),
        empty(),
        *changed,
        sampler("plain", title="Without"),
        sampler("changed", model=(model, 0), title="With"),
        *shown("plain", "plain", "Without"),
        *shown("changed", "changed", "With"),
    )


STEER = (
    WorkflowSpec(
        "image-to-image",
        "Image to image",
        f"Draws a picture, encodes it again and redraws it with another prompt. {SMALL_NOTE}\n\n"
        "**denoise** in the second sampler says how much may change: 0 nothing, 1 all. "
        "For a picture of your own put **Load Image** in the place of the first half.",
        (
            loader(),
            text(key="first text", title="What there was"),
            text("three green circles to the left of a yellow star on a white background", title="What shall be"),
            empty(),
            sampler("first", positive=("first text", 0), negative=("first text", 1), title="The picture to start from"),
            decode("first", "first decoded"),
            preview("first decoded", "before", "Before"),
            Node("encoded", "VAEEncode", links={"pixels": ("first decoded", 0), "vae": ("model", 2)}),
            sampler(latent=("encoded", 0), denoise=0.9, seed=2, title="Redraw"),
            *shown(title="After"),
        ),
    ),
    WorkflowSpec(
        "inpaint",
        "Inpaint",
        f"Redraws the right half of a picture and keeps the left. {SMALL_NOTE}\n\n"
        "The mask is made of two plain ones here; draw your own in the mask editor of **Load Image**. "
        "White is redrawn, black stays as it is.",
        (
            loader(),
            text(key="first text", title="What there was"),
            text("three red circles to the left of a green square on a white background", title="What shall be"),
            empty(),
            sampler("first", positive=("first text", 0), negative=("first text", 1), title="The picture to start from"),
            decode("first", "first decoded"),
            preview("first decoded", "before", "Before"),
            Node("black", "SolidMask", {"value": 0.0, "width": 128, "height": 128}),
            Node("white", "SolidMask", {"value": 1.0, "width": 48, "height": 128}),
            Node(
                "mask",
                "MaskComposite",
                {"x": 80, "y": 0, "operation": "add"},
                {"destination": ("black", 0), "source": ("white", 0)},
            ),
            Node("encoded", "VAEEncode", links={"pixels": ("first decoded", 0), "vae": ("model", 2)}),
            Node("masked", "SetLatentNoiseMask", links={"samples": ("encoded", 0), "mask": ("mask", 0)}),
            sampler(latent=("masked", 0), seed=2, title="Redraw the white part"),
            *shown(title="After"),
        ),
    ),
    WorkflowSpec(
        "two-stage-split",
        "One run over two samplers",
        f"The first sampler runs steps 0 to 9, the second goes on from there to the end. {SMALL_NOTE}\n\n"
        "Left alone, both halves give what one sampler gives in one run. Change something between them: another cfg, "
        "a LoRA, a block control for the second half only. **end_step** of the first and **start_step** of the second "
        "belong together; steps, schedule and shift must be the same in both.",
        (
            loader(),
            text(),
            empty(),
            sampler("first", end_step=10, title="Steps 0 to 9: the layout"),
            sampler("second", latent=("first", 0), start_step=10, title="Steps 10 to 27: the detail"),
            *shown("second"),
        ),
    ),
    WorkflowSpec(
        "skip-for-speed",
        "Skip blocks for speed",
        "Leaves out blocks on the negative branch, which in large models tolerates far more than the positive one; the "
        f"small model has none to spare. {SMALL_NOTE}\n\n"
        "After the run **Block Skip** shows how many block calls were saved. Which blocks matter least differs from "
        "model to model: the workflow *analysis* finds out.",
        beside_untouched(
            Node("skip", "BlockSkip", {"blocks": "1", "branch": "negative"}, {"model": ("model", 0)}), model="skip"
        ),
    ),
    WorkflowSpec(
        "speed-plan",
        "Half the work for nearly the same picture",
        "Computes the first and the last steps, and of those between one in three; the others take over the prediction "
        f"that was made last. {SMALL_NOTE}\n\n"
        "**speedup** says how much faster it shall be; the node says what it sets, and what that cost where it was "
        "measured. It goes before any sampler, LoRAs and block controls may stand before or after it.",
        beside_untouched(
            Node("plan", "SpeedPlan", {"speedup": "2x"}, {"model": ("model", 0)}),
            Node("words", "PreviewAny", links={"source": ("plan", 1)}, title="The plan"),
            model="plan",
        ),
    ),
    WorkflowSpec(
        "boost-a-phrase",
        "Boost a phrase",
        f"Makes a phrase of the prompt count more, or less, in all blocks. {SMALL_NOTE}\n\n"
        "**phrase** must be words of the prompt. **strength** 1 changes nothing, 0 takes the phrase away. *attention* "
        "and *value* act in the chosen blocks; *residual* is the paper's way and acts on the blocks after them.",
        beside_untouched(
            Node(
                "boost",
                "TextBoost",
                {"blocks": "all", "strength": 0.0, "mode": "attention", "phrase": "blue star"},
                {"model": ("model", 0)},
            ),
            model="boost",
        ),
    ),
    WorkflowSpec(
        "disable-text-by-block",
        "Take the text away from blocks",
        f"Blocks that do not see the prompt: what is missing in the picture is what they read there. {SMALL_NOTE}\n\n"
        "*onward* is the paper's way: later blocks build on a text that was zeroed. *block* blinds the chosen blocks "
        "alone.",
        beside_untouched(
            Node("disable", "TextDisable", {"blocks": "late", "scope": "block"}, {"model": ("model", 0)}),
            model="disable",
        ),
    ),
    WorkflowSpec(
        "per-block-prompt",
        "Another prompt for some blocks",
        f"In the chosen blocks the picture reads another prompt. {SMALL_NOTE}\n\n"
        "Try the first blocks, then the last ones: which of them decide places, which colours?",
        beside_untouched(
            text(
                "three green squares to the left of a yellow triangle on a white background",
                "other",
                title="The other prompt",
            ),
            Node("prompt", "BlockPrompt", {"blocks": "2-5"}, {"model": ("model", 0), "conditioning": ("other", 0)}),
            model="prompt",
        ),
    ),
    WorkflowSpec(
        "analysis",
        "What does each block do?",
        f"Switches blocks one at a time and shows what becomes of the picture. {SMALL_NOTE}\n\n"
        "The sheet has a row for each operation and a column for each block. The report holds a list of blocks to "
        "skip. Cancel at any time: what is finished is kept, and the next run goes on there. On a large model start "
        "with few steps and *skip* alone.",
        (
            loader(),
            text(),
            empty(),
            Node(
                "analysis",
                "BlockAnalysis",
                {"cfg": 4.5, "seed": 4},
                {
                    "model": ("model", 0),
                    "positive": ("text", 0),
                    "negative": ("text", 1),
                    "latent_image": ("latent", 0),
                    "vae": ("model", 2),
                },
            ),
            preview("analysis", "sheet", "The sheet"),
            Node("plot", "PreviewImage", links={"images": ("analysis", 1)}, title="How far each moves the picture"),
            Node("report", "PreviewAny", links={"source": ("analysis", 2)}, title="The report"),
        ),
    ),
    WorkflowSpec(
        "inversion-and-edit",
        "Inversion and edit",
        "Turns a picture into the noise that it grows from, then grows it again with another prompt: the layout "
        f"stays, what the prompts differ in changes. {SMALL_NOTE}\n\n"
        "Describe the picture to **Flow Invert**; the picture that you want is the sampler's positive, and the old "
        "description its negative: cfg then strengthens only what the two differ in. A higher cfg follows the new "
        "prompt more strongly and keeps less. For a picture of your own put **Load Image** and **VAE Encode** in the "
        "place of the first sampler.",
        (
            loader(),
            text(key="first text", title="What the picture shows"),
            text("three yellow circles to the left of a blue star on a white background", title="What it shall show"),
            empty(),
            sampler("first", positive=("first text", 0), negative=("first text", 1), title="The picture to edit"),
            decode("first", "first decoded"),
            preview("first decoded", "before", "Before"),
            Node(
                "inverted",
                "FlowInvert",
                {"steps": 28},
                {"model": ("model", 0), "positive": ("first text", 0), "latent_image": ("first", 0)},
            ),
            sampler(negative=("first text", 0), latent=("inverted", 0), solver="heun", cfg=2.0, title="The edit"),
            *shown(title="After"),
        ),
    ),
    WorkflowSpec(
        "cfg-window",
        "Guidance for a part of the run",
        f"The negative prompt is computed between **cfg_start** and **cfg_end** alone; the other steps cost half. "
        f"{SMALL_NOTE}\n\n"
        "The curve shows the window, the summary how many model calls it saved.",
        (
            loader(),
            text(),
            empty(),
            sampler("plain", title="Guidance in all steps"),
            sampler("window", cfg_end=0.5, title="Guidance in the first half"),
            *shown("plain", "plain", "All steps"),
            *shown("window", "window", "First half"),
            Node("curve", "PreviewImage", links={"images": ("window", 1)}, title="Noise levels and window"),
            Node("summary", "PreviewAny", links={"source": ("window", 2)}, title="What ran"),
        ),
    ),
)

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
        "2.2 billion weights: 5 GB, for cards of 8 GB and more. 28 steps, cfg 4.5.",
        cfg=4.5,
    ),
    sd35(
        "sd35-large",
        "SD3.5 Large",
        "sd3.5_large.safetensors",
        "8 billion weights: 16 GB, for cards of 16 GB and more; with weight_dtype fp8 half of that. 28 steps, cfg 4.5.",
        cfg=4.5,
    ),
    sd35(
        "sd35-large-turbo",
        "SD3.5 Large Turbo",
        "sd3.5_large_turbo.safetensors",
        "The distilled one: 4 steps, cfg 1, so that the negative prompt is not computed.",
        steps=4,
        cfg=1.0,
    ),
    WorkflowSpec(
        "flux1-dev",
        "FLUX.1-dev with a text boost",
        "The host's own loader brings FLUX.1-dev; sampler and block controls of this pack work on it. **Text Boost** "
        "is set to the published preset for better text alignment (blocks 2, 7, 12, 17, 22 at 1.5).\n\n**Files**\n"
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
        "The host's own loader brings Qwen-Image; sampler and block controls of this pack work on it. No block list "
        "is published for it: find yours with **Block Analysis**, then write it into **Block Skip**.\n\n"
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

WORKFLOWS = (*STEER, *LARGE)
