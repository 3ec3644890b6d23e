"""BlockSkip, TextBoost, TextDisable and BlockPrompt: block controls as nodes."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from functools import partial

from ..mmdit_core.control.grammar import BlockTextError, parse_block_strengths, parse_blocks
from ..mmdit_core.control.model_call import ControlError
from ..mmdit_core.control.presets import BY_NAME, Preset, presets_of
from ..mmdit_core.control.spec import CHOICES, BlockControl
from ..mmdit_core.flow.window import FADES, Window
from ..mmdit_core.text.tokens import NoTokenMap
from .comfyui import patching
from .comfyui.families import block_counts, text_layers
from .comfyui.frontend import messages
from .errors import InputError, require
from .widgets import END, HIDDEN, START, Widget, blocks_widget, branch_widget, check_values, choice, number, text

CATEGORY = "MMDiT/blocks"
MOST_STRENGTH = 10.0
NO_PRESET = "none"
MODEL: Widget = (
    "MODEL",
    {"tooltip": "An MMDiT model: SD3, SD3.5, FLUX.1, Qwen-Image, Chroma or AuraFlow. It is not changed."},
)
OUTPUT = ("A copy of the model with this control.",)


def preset_widget(action: str, sets: str) -> Widget:
    """Published settings of one action. Args: sets, the inputs that a preset replaces."""
    tooltip = (
        f"A published setting for one kind of model. It replaces {sets}. None is published for SD3.5 and Qwen-Image: "
        "use BlockAnalysis to find one."
    )
    names = [NO_PRESET, *(preset.name for preset in presets_of(action))]
    return choice(names, NO_PRESET, tooltip, advanced=True)


def read_preset(node: str, model, name: str) -> Preset:
    """A preset by name. Raises: InputError for a model that the preset was not published for."""
    preset, (double, single) = BY_NAME[name], counts(node, model)
    require(
        (double, single) == (preset.double, preset.single),
        node,
        "preset",
        f"it is for {preset.model} with {preset.double} double and {preset.single} single blocks, this model has "
        f"{double} and {single}",
        f"Connect {preset.model}, or set the preset to {NO_PRESET} and find blocks with BlockAnalysis",
    )
    return preset


def counts(node: str, model) -> tuple[int, int]:
    """The model's double and single blocks. Raises: InputError for a model that is not an MMDiT."""
    found = block_counts(model)
    if found is None:
        raise InputError(
            node,
            "model",
            f"{type(model.model).__name__} has no blocks that this node can control",
            "Connect SD3, SD3.5, FLUX.1, Qwen-Image, Chroma or AuraFlow",
        )
    return found


def read_blocks(node: str, model, blocks: str) -> tuple[int, ...]:
    """The blocks that a text names. Raises: InputError."""
    try:
        return parse_blocks(blocks, *counts(node, model))
    except BlockTextError as error:
        raise _unreadable(node, error) from error


def _unreadable(node: str, error: BlockTextError) -> InputError:
    return InputError(node, "blocks", error.found, error.right)


def _attach(model, controls: list[BlockControl], node_id: str | None, word_error=None):
    """The node's output; shows on the node if the controls have no effect."""
    blocks = {block for control in controls for block in control.blocks}
    last = sum(block_counts(model) or (0, 0)) - 1
    first = controls[0]
    if not blocks:
        messages.show_text(node_id, "no blocks are named: nothing happens")
    elif first.window.is_empty:
        messages.show_text(node_id, "the window has no steps: nothing happens")
    elif first.effect == "residual" and first.action == "boost" and blocks == {last}:
        messages.show_text(node_id, "a residual boost of the last block does nothing: no later block reads its text")
    return (patching.attach(model, controls, node_id, word_error),)


def _phrase_error(error: ControlError) -> InputError:
    if isinstance(error.__cause__, NoTokenMap):
        right = "Put TripleTextEncode in the place of the node that made the sampler's prompt"
    else:
        right = "Write whole words of the prompt, one phrase a line"
    return InputError("TextBoost", "phrase", str(error), right)


def _prompt_error(error: ControlError) -> InputError:
    right = "Encode one prompt at a time, both to the same length, without masks"
    return InputError("BlockPrompt", "conditioning", str(error), right)


class BlockSkip:
    """A node that skips blocks."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Skips the chosen blocks: image and text pass them unchanged, and their work is saved. After the run the node "
        "shows how many block calls were skipped."
    )
    SEARCH_ALIASES = ["skip layer", "skip block", "speed", "remove block"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        return {
            "required": {
                "model": MODEL,
                "blocks": blocks_widget(""),
                "branch": branch_widget("negative", " In large models the negative one tolerates more skipped blocks."),
                "start_percent": START,
                "end_percent": END,
            },
            "optional": {"preset": preset_widget("skip", "blocks and branch")},
            "hidden": HIDDEN,
        }

    def apply(self, model, blocks, branch, start_percent, end_percent, preset=NO_PRESET, unique_id=None):
        """A copy of the model that skips blocks."""
        _check(self, blocks=blocks, branch=branch, start_percent=start_percent, end_percent=end_percent, preset=preset)
        window = Window(start_percent, end_percent)
        if preset == NO_PRESET:
            controls = [BlockControl("skip", read_blocks("BlockSkip", model, blocks), branch=branch, window=window)]
        else:
            published = read_preset("BlockSkip", model, preset).controls
            controls = [dataclasses.replace(control, window=window) for control in published]
        return _attach(model, controls, unique_id)


class TextBoost:
    """A node that makes the text stronger or weaker in some blocks."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Makes the text stronger or weaker in the chosen blocks. residual is the paper's method and acts on the blocks "
        "that follow; attention and value act in the chosen blocks. A phrase needs a prompt from TripleTextEncode."
    )
    SEARCH_ALIASES = ["prompt strength", "text strength", "enhance", "emphasis", "text alignment"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        return {
            "required": {
                "model": MODEL,
                "blocks": blocks_widget("", " A block can have its own strength: 3:1.5, 7-9:2."),
                "strength": number(
                    1.5,
                    0.0,
                    MOST_STRENGTH,
                    0.05,
                    "1 changes nothing, 1.5 is the paper's setting, 0 removes the text (residual: from this block on; "
                    "attention and value: in this block).",
                ),
                "mode": choice(
                    CHOICES["mode"],
                    "residual",
                    "residual: scales the text stream before the block, and it stays scaled. The block itself "
                    "normalises the scale away; later blocks get more of the original text. attention: the image "
                    "attends more to the text. value: the text values that the image reads are scaled.",
                ),
                "phrase": text(
                    "",
                    "Acts on these words of the prompt alone, one phrase a line. Empty: the whole text. Needs a prompt "
                    "from TripleTextEncode and acts on the positive branch.",
                    multiline=True,
                ),
                "part": choice(
                    CHOICES["part"], "all", "The text of all encoders, of the CLIPs, or of T5.", advanced=True
                ),
                "branch": branch_widget("both", " A phrase is in the positive prompt alone."),
                "start_percent": START,
                "end_percent": END,
                "fade": choice(
                    tuple(FADES),
                    "constant",
                    "The strength over the window: constant, growing from 1 (in), returning to 1 (out), or both "
                    "(cosine).",
                    advanced=True,
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
        """A copy of the model with the text scaled in some blocks."""
        _check(self, blocks=blocks, strength=strength, mode=mode, phrase=phrase, part=part, branch=branch)
        _check(self, start_percent=start_percent, end_percent=end_percent, fade=fade, preset=preset)
        require(
            not phrase.strip() or branch != "negative",
            "TextBoost",
            "branch",
            "a phrase is set, and a phrase is in the positive prompt",
            "Set branch to positive or both, or leave the phrase empty",
        )
        if preset == NO_PRESET:
            boosts = self._boosts(model, blocks, strength, mode)
        else:
            boosts = list(read_preset("TextBoost", model, preset).controls)
        scope = partial(
            dataclasses.replace,
            phrases=tuple(line.strip() for line in phrase.splitlines() if line.strip()),
            part=part,
            branch=branch,
            window=Window(start_percent, end_percent, fade),
        )
        return _attach(model, [scope(boost) for boost in boosts], unique_id, _phrase_error)

    def _boosts(self, model, blocks: str, strength: float, mode: str) -> list[BlockControl]:
        """One boost for each strength in the block list; one of no blocks if it is empty."""
        try:
            strengths = parse_block_strengths(blocks, *counts("TextBoost", model), default=strength)
        except BlockTextError as error:
            raise _unreadable("TextBoost", error) from error
        by_strength: defaultdict[float, list[int]] = defaultdict(list)
        for block, own in strengths.items():
            right = f"Write one from 0 to {MOST_STRENGTH:g}, as {block}:1.5"
            require(own <= MOST_STRENGTH, "TextBoost", "blocks", f"block {block} has strength {own:g}", right)
            by_strength[own].append(block)
        return [BlockControl("boost", tuple(b), own, mode) for own, b in (by_strength or {strength: []}).items()]


class TextDisable:
    """A node that removes the text in some blocks."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Removes the text in the chosen blocks. onward is the paper's method: the text stream is zero from there on, "
        "and later blocks build on it. block: the text is hidden in the chosen blocks alone."
    )
    SEARCH_ALIASES = ["disable text", "empty prompt", "remove text"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        return {
            "required": {
                "model": MODEL,
                "blocks": blocks_widget(""),
                "scope": choice(
                    CHOICES["scope"],
                    "onward",
                    "onward: from the block on, as in the paper. block: in the block alone; the text stream stays as "
                    "it is.",
                ),
                "branch": branch_widget("both"),
                "start_percent": START,
                "end_percent": END,
            },
            "hidden": HIDDEN,
        }

    def apply(self, model, blocks, scope, branch, start_percent, end_percent, unique_id=None):
        """A copy of the model without the text in some blocks."""
        _check(self, blocks=blocks, scope=scope, branch=branch, start_percent=start_percent, end_percent=end_percent)
        chosen, window = read_blocks("TextDisable", model, blocks), Window(start_percent, end_percent)
        control = BlockControl("disable", chosen, scope=scope, branch=branch, window=window)
        return _attach(model, [control], unique_id)


class BlockPrompt:
    """A node that gives some blocks another prompt."""

    CATEGORY = CATEGORY
    DESCRIPTION = (
        "In the chosen blocks the image attends to this prompt in place of the sampler's positive one. The prompt "
        "passes all blocks up to the last chosen one, which costs one more block call each. After the run the node "
        "shows how many."
    )
    SEARCH_ALIASES = ["prompt per block", "block conditioning", "regional blocks"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = OUTPUT

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
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
        """A copy of the model with another prompt in some blocks."""
        _check(self, blocks=blocks, start_percent=start_percent, end_percent=end_percent)
        chosen = read_blocks("BlockPrompt", model, blocks)
        context = self._context(model, conditioning)
        control = BlockControl("prompt", chosen, window=Window(start_percent, end_percent), context=context)
        return _attach(model, [control], unique_id, _prompt_error)

    def _context(self, model, conditioning):
        """The prompt's context [1, L, W]. Raises: InputError for one that the model or this node cannot take."""
        layers = text_layers(model)
        require(
            layers,
            "BlockPrompt",
            "model",
            f"the text layers of {type(model.model).__name__} are not known",
            "Connect SD3, SD3.5, FLUX.1, Chroma or Qwen-Image",
        )
        refuse = partial(require, False, "BlockPrompt", "conditioning")
        if len(conditioning) != 1:
            refuse(f"it holds {len(conditioning)} prompts", "Connect one prompt, without areas or combinations")
        context, options = conditioning[0]
        width = getattr(layers[-1], "in_features", context.shape[-1])
        if context.shape[-1] != width:
            right = "Encode the prompt with the CLIP that belongs to this model"
            refuse(f"the text is {context.shape[-1]} channels wide, the model takes {width}", right)
        for name in ("area", "mask"):
            if options.get(name) is not None:
                right = "Connect it without areas or masks; here it is for the whole image"
                refuse(f"the prompt is for a part of the image: it has {name}", right)
        return context


def _check(node, **given) -> None:
    """Raise an InputError for a value that a link brought and the node's widget would refuse."""
    inputs = node.INPUT_TYPES()
    check_values(type(node).__name__, {**inputs["required"], **inputs.get("optional", {})}, given)


NODES = {
    "BlockSkip": (BlockSkip, "Block Skip"),
    "TextBoost": (TextBoost, "Text Boost"),
    "TextDisable": (TextDisable, "Text Disable"),
    "BlockPrompt": (BlockPrompt, "Block Prompt"),
}
