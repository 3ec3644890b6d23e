"""BlockSkip, TextBoost, TextDisable and BlockPrompt: block controls as nodes."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from ..mmdit_core.control.presets import BY_NAME, Preset, presets_of
from ..mmdit_core.control.spec import CHOICES, BlockControl, BlockTextError, parse_block_strengths, parse_blocks
from .comfyui import controls as host
from .errors import InputError

CATEGORY = "MMDiT/blocks"
MOST_STRENGTH = 10.0
MODEL = ("MODEL", {"tooltip": "An MMDiT model: SD3, SD3.5, FLUX.1, Qwen-Image, Chroma or AuraFlow. It is not changed."})
HIDDEN = {"unique_id": "UNIQUE_ID"}
OUTPUT = ("The model with this control; the one that came in is as it was.",)
NUMBERS = (
    "Blocks count from 0. Ranges (0-5), several (0-5, 9, 12-), all, even, odd, first, last, early, middle, late, "
    "first 25%, !3 for all but 3; d3 and s7 are FLUX's double and single blocks. Empty: no block."
)


def blocks_widget(example: str):
    return ("STRING", {"default": example, "tooltip": NUMBERS})


def percent(name: str, default: float, what: str):
    return (
        "FLOAT",
        {
            "default": default,
            "min": 0.0,
            "max": 1.0,
            "step": 0.01,
            "tooltip": f"{what} 0 is the first step, 1 the end.",
        },
    )


START = percent("start_percent", 0.0, "From which share of the sampling on.")
END = percent("end_percent", 1.0, "Up to which share of the sampling.")


def branch_widget(default: str, more: str = ""):
    tooltip = "Which predictions: the positive prompt's, the negative prompt's, or both." + more
    return (list(CHOICES["branch"]), {"default": default, "tooltip": tooltip})


NO_PRESET = "none"


def preset_widget(action: str, sets: str):
    return (
        [NO_PRESET, *(preset.name for preset in presets_of(action))],
        {
            "default": NO_PRESET,
            "advanced": True,
            "tooltip": f"A published setting for one kind of model; it takes the place of {sets}. For SD3.5 and "
            "Qwen-Image none is published: find yours with BlockAnalysis.",
        },
    )


def read_preset(node: str, model, name: str) -> Preset:
    """Raises: InputError for a name that is not known, or a model that the preset was not made for."""
    preset = BY_NAME.get(name)
    if preset is None:
        raise InputError(node, "preset", f"{name!r} is unknown", f"Choose of {', '.join((NO_PRESET, *BY_NAME))}")
    double, single = counts(node, model)
    if (double, single) != (preset.double, preset.single):
        raise InputError(
            node,
            "preset",
            f"it was published for {preset.model} with {preset.double} double and {preset.single} single blocks, this "
            f"model has {double} and {single}",
            f"Connect {preset.model}, or set the preset to {NO_PRESET} and find blocks with BlockAnalysis",
        )
    return preset


def counts(node: str, model) -> tuple[int, int]:
    """The model's blocks. Raises: InputError for a model that is no MMDiT."""
    found = host.block_counts(model)
    if found is None:
        raise InputError(
            node,
            "model",
            f"{type(model.model).__name__} has no blocks that this node can reach",
            "Connect SD3, SD3.5, FLUX.1, Qwen-Image, Chroma or AuraFlow",
        )
    return found


def read_blocks(node: str, model, text: str) -> tuple[int, ...]:
    try:
        return parse_blocks(text, *counts(node, model))
    except BlockTextError as error:
        raise BlockTextError(f"{node}: blocks: {error}") from error


def notes(node_id: str | None, control: BlockControl, blocks: tuple[int, ...], model) -> None:
    """Say on the node when a control cannot have any effect."""
    double, single = host.block_counts(model) or (0, 0)
    last = double + single - 1
    if not blocks:
        said = "no blocks are named: nothing happens"
    elif control.start_percent >= control.end_percent:
        said = "the window has no steps: nothing happens"
    elif control.action == "boost" and control.mode == "residual" and blocks == (last,):
        said = "a residual boost of the last block does nothing: no later block reads its text"
    else:
        return
    host.ui.show_text(node_id, said)


class BlockSkip:
    """Blocks that are not run."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Does not run the chosen blocks: both streams pass them unchanged, and their work is saved. "
        "After the run the node shows how many block calls that were."
    )
    SEARCH_ALIASES = ["skip layer", "skip block", "speed", "remove block"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "blocks": blocks_widget(""),
                "branch": branch_widget(
                    "negative", " In large models the negative one was found to tolerate far more."
                ),
                "start_percent": START,
                "end_percent": END,
            },
            "optional": {"preset": preset_widget("skip", "blocks and branch")},
            "hidden": HIDDEN,
        }

    def apply(self, model, blocks, branch, start_percent, end_percent, preset=NO_PRESET, unique_id=None):
        if preset != NO_PRESET:
            window = {"start_percent": start_percent, "end_percent": end_percent}
            given = [dataclasses.replace(c, **window) for c in read_preset("BlockSkip", model, preset).controls]
            notes(unique_id, given[0], given[0].blocks, model)
            return (host.attach(model, given, unique_id),)
        chosen = read_blocks("BlockSkip", model, blocks)
        control = BlockControl("skip", chosen, branch=branch, start_percent=start_percent, end_percent=end_percent)
        notes(unique_id, control, chosen, model)
        return (host.attach(model, [control], unique_id),)


class TextBoost:
    """Text that enters some blocks, made stronger or weaker."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes the text stronger or weaker in the chosen blocks. residual is the paper's way and acts on the blocks "
        "that follow; attention and value act in the chosen blocks themselves. A phrase needs a prompt from "
        "TripleTextEncode."
    )
    SEARCH_ALIASES = ["prompt strength", "text strength", "enhance", "emphasis", "text alignment"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "blocks": (
                    "STRING",
                    {"default": "", "tooltip": NUMBERS + " A block may carry its own strength: 3:1.5, 7-9:2."},
                ),
                "strength": (
                    "FLOAT",
                    {
                        "default": 1.5,
                        "min": 0.0,
                        "max": MOST_STRENGTH,
                        "step": 0.05,
                        "tooltip": "1 changes nothing, 1.5 is the paper's setting, 0 takes the text away (residual: "
                        "for this and all later blocks, the paper's disable; attention and value: in the block only).",
                    },
                ),
                "mode": (
                    list(CHOICES["mode"]),
                    {
                        "default": "residual",
                        "tooltip": "residual: the text stream is scaled before the block and stays so; the block "
                        "itself normalises the scale away, later blocks hear more of the original text. attention: the "
                        "picture looks at the text more. value: what the picture reads there counts more.",
                    },
                ),
                "phrase": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "tooltip": "Only these words of the prompt, one phrase a line. Empty: the whole text. "
                        "Needs a prompt from TripleTextEncode, and means the positive branch.",
                    },
                ),
                "part": (
                    list(CHOICES["part"]),
                    {
                        "default": "all",
                        "advanced": True,
                        "tooltip": "The text of all encoders, of the CLIPs, or of T5.",
                    },
                ),
                "branch": branch_widget("both", " A phrase is in the positive prompt alone."),
                "start_percent": START,
                "end_percent": END,
                "fade": (
                    list(CHOICES["fade"]),
                    {
                        "default": "constant",
                        "advanced": True,
                        "tooltip": "How the strength goes over the window: constant, growing from 1 (in), going back "
                        "to 1 (out), or both (cosine).",
                    },
                ),
            },
            "optional": {"preset": preset_widget("boost", "blocks, strength and mode")},
            "hidden": HIDDEN,
        }

    def apply(
        self,
        model,
        blocks,
        strength,
        mode,
        phrase,
        part,
        branch,
        start_percent,
        end_percent,
        fade,
        preset=NO_PRESET,
        unique_id=None,
    ):
        if phrase.strip() and branch == "negative":
            raise InputError(
                "TextBoost",
                "branch",
                "a phrase is set, and phrases are looked for in the positive prompt",
                "Set branch to positive or both, or leave the phrase empty",
            )
        if preset != NO_PRESET:
            boosts = list(read_preset("TextBoost", model, preset).controls)
        else:
            boosts = self._boosts(model, blocks, strength, mode)
        where = {
            "phrases": tuple(line.strip() for line in phrase.splitlines() if line.strip()),
            "part": part,
            "branch": branch,
            "start_percent": start_percent,
            "end_percent": end_percent,
            "fade": fade,
        }
        made = [dataclasses.replace(boost, **where) for boost in boosts]
        notes(unique_id, made[0], tuple(block for boost in made for block in boost.blocks), model)
        return (host.attach(model, made, unique_id),)

    def _boosts(self, model, blocks, strength, mode) -> list[BlockControl]:
        """One boost for each strength that the blocks' text asks for; one of no blocks where it names none."""
        try:
            strengths = parse_block_strengths(blocks, *counts("TextBoost", model), default=strength)
        except BlockTextError as error:
            raise BlockTextError(f"TextBoost: blocks: {error}") from error
        for block, own in strengths.items():
            if own is not None and own > MOST_STRENGTH:
                raise InputError(
                    "TextBoost",
                    "blocks",
                    f"block {block} has strength {own:g}",
                    f"Write one from 0 to {MOST_STRENGTH:g}, as {block}:1.5",
                )
        together: dict[float, list[int]] = defaultdict(list)
        for block, own in strengths.items():
            together[strength if own is None else own].append(block)
        grouped = together or {strength: []}
        return [BlockControl("boost", tuple(group), own, mode=mode) for own, group in grouped.items()]


class TextDisable:
    """Blocks that do not see the text."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Takes the text away in the chosen blocks. onward is the paper's way: the text stream is zeroed there and "
        "later blocks build on that. block: only the chosen blocks are blind to the text."
    )
    SEARCH_ALIASES = ["disable text", "empty prompt", "remove text"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "blocks": blocks_widget(""),
                "scope": (
                    list(CHOICES["scope"]),
                    {
                        "default": "onward",
                        "tooltip": "onward: from the block on, as in the paper. block: in the block alone, the text "
                        "stream goes on untouched.",
                    },
                ),
                "branch": branch_widget("both"),
                "start_percent": START,
                "end_percent": END,
            },
            "hidden": HIDDEN,
        }

    def apply(self, model, blocks, scope, branch, start_percent, end_percent, unique_id=None):
        chosen = read_blocks("TextDisable", model, blocks)
        control = BlockControl(
            "disable", chosen, scope=scope, branch=branch, start_percent=start_percent, end_percent=end_percent
        )
        notes(unique_id, control, chosen, model)
        return (host.attach(model, [control], unique_id),)


class BlockPrompt:
    """Another prompt for some blocks and steps."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "In the chosen blocks the picture attends to this prompt in place of the sampler's positive one, on the "
        "positive branch. Its text is carried through the blocks beside the first: one block call more for each block "
        "up to the last chosen one. After the run the node shows how many."
    )
    SEARCH_ALIASES = ["prompt per block", "block conditioning", "regional blocks"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "conditioning": ("CONDITIONING", {"tooltip": "The other prompt. Its pooled text is not used."}),
                "blocks": blocks_widget(""),
                "start_percent": START,
                "end_percent": END,
            },
            "hidden": HIDDEN,
        }

    def apply(self, model, conditioning, blocks, start_percent, end_percent, unique_id=None):
        chosen = read_blocks("BlockPrompt", model, blocks)
        if not host.can_take_prompt(model):
            raise InputError(
                "BlockPrompt",
                "model",
                f"how a text enters {type(model.model).__name__} is not known here",
                "Connect SD3, SD3.5, FLUX.1, Chroma or Qwen-Image",
            )
        width = host.text_width(model)
        if conditioning and width not in (None, conditioning[0][0].shape[-1]):
            raise InputError(
                "BlockPrompt",
                "conditioning",
                f"the text is {conditioning[0][0].shape[-1]} channels wide, the model takes {width}",
                "Encode the prompt with the CLIP that belongs to this model",
            )
        if len(conditioning) != 1:
            raise InputError(
                "BlockPrompt",
                "conditioning",
                f"it holds {len(conditioning)} prompts",
                "Connect one prompt, without areas or combinations",
            )
        placed = [name for name in ("area", "mask") if conditioning[0][1].get(name) is not None]
        if placed:
            raise InputError(
                "BlockPrompt",
                "conditioning",
                f"the prompt is for a part of the picture: it has {placed[0]}",
                "Connect it without areas or masks; it is for the whole picture here",
            )
        window = BlockControl("disable", chosen, start_percent=start_percent, end_percent=end_percent)
        notes(unique_id, window, chosen, model)
        prompt = host.AttachedPrompt(conditioning[0][0], chosen, start_percent, end_percent, unique_id)
        return (host.attach_prompt(model, prompt),)


NODES = {
    "BlockSkip": (BlockSkip, "Block Skip"),
    "TextBoost": (TextBoost, "Text Boost"),
    "TextDisable": (TextDisable, "Text Disable"),
    "BlockPrompt": (BlockPrompt, "Block Prompt"),
}
