"""The shared workflows, those of the small model first: their nodes, inputs that are not defaults, and notes."""

from __future__ import annotations

from typing import Any

from scripts.workflow_families import FAMILIES
from scripts.workflow_large import LARGE
from scripts.workflow_parts import (
    PROMPT,
    RUN_LINKS,
    Node,
    WorkflowSpec,
    decode,
    edit,
    empty,
    loader,
    preview,
    sampler,
    shown,
    text,
)

SMALL_NOTE = "The included small model draws it in seconds, without a GPU."


def right_part() -> tuple[Node, ...]:
    """A mask of the right part of the image, "mask", composed of two plain ones."""
    return (
        Node("black", "SolidMask", {"value": 0.0, "width": 128, "height": 128}),
        Node("white", "SolidMask", {"value": 1.0, "width": 48, "height": 128}),
        Node(
            "mask",
            "MaskComposite",
            {"x": 80, "y": 0, "operation": "add"},
            {"destination": ("black", 0), "source": ("white", 0)},
        ),
    )


def to_edit(target: str) -> tuple[Node, ...]:
    """An image to edit, "first", with the prompts "source" and "target"; it is shown."""
    return (
        loader(),
        text(key="source", title="The image as it is"),
        text(target, "target", title="As it should be"),
        empty(),
        sampler("first", positive=("source", 0), negative=("source", 1), cfg=3.0, title="Image to edit"),
        decode("first", "first decoded"),
        preview("first decoded", "before", "Before"),
    )


def with_and_without(*changed: Node, model: str, prompt: str = PROMPT, **values: Any) -> tuple[Node, ...]:
    """The same seed twice: without the node that this workflow is about, and with it. Args: values of both samplers."""
    return (
        loader(),
        text(prompt),
        empty(),
        *changed,
        sampler("plain", title="Without", **values),
        sampler("changed", model=(model, 0), title="With", **values),
        *shown("plain", "plain", "Without"),
        *shown("changed", "changed", "With"),
    )


STEER = (
    WorkflowSpec(
        "image-to-image",
        "Image to image",
        f"Samples an image, encodes it and samples it again with another prompt. {SMALL_NOTE}\n\n"
        "**denoise** in the second sampler sets how much may change: 0 nothing, 1 everything. "
        "For your own image, replace the first half by **Load Image**.",
        (
            loader(),
            text(key="first text", title="Original prompt"),
            text("three green circles to the left of a yellow star on a white background", title="New prompt"),
            empty(),
            sampler("first", positive=("first text", 0), negative=("first text", 1), title="Original image"),
            decode("first", "first decoded"),
            preview("first decoded", "before", "Before"),
            Node("encoded", "VAEEncode", links={"pixels": ("first decoded", 0), "vae": ("model", 2)}),
            sampler(latent=("encoded", 0), denoise=0.9, seed=2, title="Sample again"),
            *shown(title="After"),
        ),
    ),
    WorkflowSpec(
        "inpaint",
        "Inpaint",
        f"Samples the right part of an image again and keeps the left. {SMALL_NOTE}\n\n"
        "The mask is made of two plain masks. You can draw your own in the mask editor of **Load Image**. "
        "White is sampled again, black stays.",
        (
            loader(),
            text(key="first text", title="Original prompt"),
            text("three red circles to the left of a green square on a white background", title="New prompt"),
            empty(),
            sampler("first", positive=("first text", 0), negative=("first text", 1), title="Original image"),
            decode("first", "first decoded"),
            preview("first decoded", "before", "Before"),
            *right_part(),
            Node("encoded", "VAEEncode", links={"pixels": ("first decoded", 0), "vae": ("model", 2)}),
            Node("masked", "SetLatentNoiseMask", links={"samples": ("encoded", 0), "mask": ("mask", 0)}),
            sampler(latent=("masked", 0), seed=2, title="Sample the white part"),
            *shown(title="After"),
        ),
    ),
    WorkflowSpec(
        "two-stage-split",
        "One run over two samplers",
        f"The first sampler runs steps 0 to 9, the second continues to the end. {SMALL_NOTE}\n\n"
        "Unchanged, both together equal one run in one sampler. You can change the second half: another cfg, a LoRA, "
        "a block node. **end_step** of the first and **start_step** of the second must be the same step, with the same "
        "steps, schedule and shift.",
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
        f"Skips blocks on the negative branch. {SMALL_NOTE}\n\n"
        "The small model has no block to spare, so the image gets worse. The paper reports that the negative branch of "
        "large models tolerates skipping. After the run **Block Skip** shows how many block calls were saved. The "
        "workflow *analysis* finds the blocks that matter least on your model.",
        with_and_without(
            Node("skip", "BlockSkip", {"blocks": "1", "branch": "negative"}, {"model": ("model", 0)}), model="skip"
        ),
    ),
    WorkflowSpec(
        "speed-plan",
        "Half the work for nearly the same image",
        "Computes the first and the last steps, and one in three of those between; the others reuse a prediction. "
        f"{SMALL_NOTE}\n\n"
        "**speedup** sets the wanted speed-up. The node shows what it computes and the measured cost. Put it anywhere "
        "before the sampler; LoRAs and block nodes can come before or after it.",
        with_and_without(
            Node("plan", "SpeedPlan", {"speedup": "2x"}, {"model": ("model", 0)}),
            Node("words", "PreviewAny", links={"source": ("plan", 1)}, title="Plan"),
            model="plan",
        ),
    ),
    WorkflowSpec(
        "boost-a-phrase",
        "Boost a phrase",
        f"Makes a phrase stronger in all blocks: here the number of blue stars comes out right. {SMALL_NOTE}\n\n"
        "It is one seed at cfg 1, where the negative prompt is not computed; with most other seeds the image is right "
        "without a boost, too. **phrase** must be words of the prompt. **strength** 1 changes nothing, above 1 boosts, "
        "0 removes. *attention* and *value* act in the chosen blocks; *residual* is the paper's mode and acts on later "
        "blocks.",
        with_and_without(
            Node(
                "boost",
                "TextBoost",
                {"blocks": "all", "strength": 2.0, "mode": "value", "phrase": "two blue stars"},
                {"model": ("model", 0)},
            ),
            model="boost",
            prompt="two blue stars above two pink stars on a white background",
            seed=1,
            cfg=1.0,
        ),
    ),
    WorkflowSpec(
        "disable-text-by-block",
        "Disable the text in blocks",
        "Removes the prompt in some blocks. What is missing in the image is what these blocks use it for. "
        f"{SMALL_NOTE}\n\n"
        "*block* removes the text in the chosen blocks only. *onward* is the paper's way: later blocks continue from a "
        "zeroed text.",
        with_and_without(
            Node("disable", "TextDisable", {"blocks": "late", "scope": "block"}, {"model": ("model", 0)}),
            model="disable",
        ),
    ),
    WorkflowSpec(
        "per-block-prompt",
        "Another prompt for some blocks",
        f"Uses another prompt in the chosen blocks. {SMALL_NOTE}\n\n"
        "Try the first blocks, then the last ones: which decide positions, which colours?",
        with_and_without(
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
        f"Changes one block at a time and shows the effect on the image. {SMALL_NOTE}\n\n"
        "The contact sheet has one row per operation and one column per block. The report lists blocks to skip. You "
        "can cancel at any time: finished images are kept, and the next run continues. On a large model start with few "
        "steps and *skip* only.",
        (
            loader(),
            text(),
            empty(),
            Node(
                "analysis",
                "BlockAnalysis",
                {"cfg": 4.5, "seed": 4},
                {**RUN_LINKS, "vae": ("model", 2)},
            ),
            preview("analysis", "sheet", "Contact sheet"),
            Node("plot", "PreviewImage", links={"images": ("analysis", 1)}, title="Distance by block"),
            Node("report", "PreviewAny", links={"source": ("analysis", 2)}, title="Report"),
        ),
    ),
    WorkflowSpec(
        "analysis-over-prompts",
        "Which blocks can go, which help?",
        f"Measures two blocks over six prompts with a judge, and uses the result at once. {SMALL_NOTE}\n\n"
        "**skip_blocks** and **boost_blocks** go from **Block Analysis** straight into **Block Skip** and **Text "
        "Boost**. An empty list does nothing: the small model has no block to spare, and no boost that helps beyond "
        "chance.\n\n"
        "For a result to rely on, set **blocks** to all and **prompts** to set:shapes 64. On another model write your "
        "own prompts, one a line, and set **judge** to none: the skip list is then ranked by distance.",
        (
            loader(),
            text(),
            empty(),
            Node(
                "analysis",
                "BlockAnalysis",
                {
                    **{"blocks": "4, 6", "steps": 6, "cfg": 4.5, "seed": 4, "speedup": 1.1},
                    **{"prompts": "set:shapes 6", "judge": "shapes"},
                },
                {**RUN_LINKS, "vae": ("model", 2), "clip": ("model", 1)},
            ),
            preview("analysis", "sheet", "Contact sheet"),
            Node("report", "PreviewAny", links={"source": ("analysis", 2)}, title="Report"),
            Node(
                "skip",
                "BlockSkip",
                {"branch": "both"},
                {"model": ("model", 0), "blocks": ("analysis", 3)},
            ),
            Node("boost", "TextBoost", links={"model": ("skip", 0), "blocks": ("analysis", 4)}),
            sampler(title="Without"),
            sampler("changed", model=("boost", 0), title="With"),
            *shown("sampler", "plain", "Without"),
            *shown("changed", "changed", "With"),
        ),
    ),
    WorkflowSpec(
        "sweep-xy",
        "Two settings in a grid",
        f"Samples one image for each strength of a boost and each cfg. {SMALL_NOTE}\n\n"
        "The contact sheet has **x** from left to right and **y** from top to bottom. Choose other axes in **Sweep "
        "X/Y** and write their values: *1, 1.5*, or *1-3 (5)* for 5 even values. *strength*, *blocks* and *window* "
        "act on the last block node before it, here **Text Boost**. You can cancel at any time: finished images are "
        "kept, and new values sample only what is new.\n\n"
        "**Compare Images** shows the first and the last image under a slider, in Nodes 2.0 only. Choose others by "
        "their number, counted from 0 row by row.",
        (
            loader(),
            text(),
            empty(),
            Node("boost", "TextBoost", {"blocks": "all", "mode": "attention"}, {"model": ("model", 0)}),
            Node(
                "sweep",
                "SweepXY",
                {
                    **{"x": "strength", "x_values": "0, 1, 4", "y": "cfg", "y_values": "1, 3, 10"},
                    **{"seed": 4, "steps": 12},
                },
                {**RUN_LINKS, "model": ("boost", 0), "vae": ("model", 2)},
            ),
            preview("sweep", "sheet", "Contact sheet"),
            Node("report", "PreviewAny", links={"source": ("sweep", 2)}, title="Report"),
            Node("first", "ImageFromBatch", {"batch_index": 0}, {"image": ("sweep", 1)}, "First image"),
            Node("last", "ImageFromBatch", {"batch_index": 8}, {"image": ("sweep", 1)}, "Last image"),
            Node("compare", "ImageCompare", links={"image_a": ("first", 0), "image_b": ("last", 0)}),
        ),
    ),
    WorkflowSpec(
        "edit-by-words",
        "Edit an image by words",
        f"Changes what two descriptions differ in, and keeps the rest. {SMALL_NOTE}\n\n"
        "Describe the image as it is in the first prompt, and as it should be in the second: change only the words of "
        "the change. **edit_steps** is the strength. The cfgs suit the small model; for other models begin with the "
        "node's defaults. If the edit is weak, raise **target_cfg**; if too much changes, "
        "lower **edit_steps**. For your own image, replace the sampler by **Load Image** and **VAE Encode**, and the "
        "loader by that of your model.",
        (
            *to_edit("three green squares to the left of a blue star on a white background"),
            edit(("first", 0), source_cfg=1.0, target_cfg=1.5),
            *shown("edit", title="After"),
            Node("summary", "PreviewAny", links={"source": ("edit", 1)}, title="Summary"),
        ),
    ),
    WorkflowSpec(
        "edit-in-a-mask",
        "Edit a part of an image by words",
        f"As edit-by-words, under a mask: the black part stays, bit for bit in the latent. {SMALL_NOTE}\n\n"
        "The mask is made of two plain masks. You can draw your own in the mask editor of **Load Image**. White may "
        "change, black stays.",
        (
            *to_edit("three red circles to the left of a green square on a white background"),
            *right_part(),
            Node("masked", "SetLatentNoiseMask", links={"samples": ("first", 0), "mask": ("mask", 0)}),
            edit(("masked", 0), source_cfg=1.0, target_cfg=1.5),
            *shown("edit", title="After"),
        ),
    ),
    WorkflowSpec(
        "inversion-and-edit",
        "Inversion and edit",
        f"Turns an image into noise and samples it again with another prompt. {SMALL_NOTE}\n\n"
        "Good for colours; for other edits use **edit-by-words**, which keeps more and succeeds more often. "
        "Describe the image in **Flow Invert**'s prompt. Give the sampler the new prompt as positive and the old one "
        "as negative: cfg then amplifies only what the two differ in. A higher cfg follows the new prompt more and "
        "keeps less of the image. For your own image, replace the first sampler by **Load Image** and **VAE Encode**.",
        (
            loader(),
            text(key="first text", title="Original prompt"),
            text("three yellow circles to the left of a blue star on a white background", title="New prompt"),
            empty(),
            sampler("first", positive=("first text", 0), negative=("first text", 1), title="Image to edit"),
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
        f"Computes the negative prompt between **cfg_start** and **cfg_end** only; the other steps cost half. "
        f"{SMALL_NOTE}\n\n"
        "The curve shows the window, the summary the model calls.",
        (
            loader(),
            text(),
            empty(),
            sampler("plain", title="Guidance in all steps"),
            sampler("window", cfg_end=0.5, title="Guidance in the first half"),
            *shown("plain", "plain", "All steps"),
            *shown("window", "window", "First half"),
            Node("curve", "PreviewImage", links={"images": ("window", 1)}, title="Sigmas and cfg window"),
            Node("summary", "PreviewAny", links={"source": ("window", 2)}, title="Summary"),
        ),
    ),
)

WORKFLOWS = (*STEER, *LARGE, *FAMILIES)
