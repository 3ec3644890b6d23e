"""BlockSkip, TextBoost, TextDisable and BlockPrompt: block controls as nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..mmdit_core.checkpoints.blocks import find_variant
from ..mmdit_core.control.boost_rows import BoostRow
from ..mmdit_core.control.grammar import BlockTextError, parse_block_strengths, parse_blocks
from ..mmdit_core.control.model_call import ControlError
from ..mmdit_core.control.preset_files import PresetError, read_made_for
from ..mmdit_core.control.presets import BY_NAME, Preset, presets_of
from ..mmdit_core.control.spec import BRANCHES, CHOICES, MOST_STRENGTH, BlockControl
from ..mmdit_core.flow.window import FADES, Window
from ..mmdit_core.text.tokens import NoTokenMap, PartNotFound
from .boost_rows import OFF, idle_rows, in_row, read_rows
from .comfyui import patching
from .comfyui.families import SUPPORTED, block_counts, family_of, network_of, why_refused
from .comfyui.frontend import messages
from .errors import InputError, require
from .links import require_conditioning, require_model
from .widgets import END, HIDDEN, START, Widget, blocks_widget, branch_widget, check_values, choice, number, text

CATEGORY = "MMDiT/blocks"
NO_PRESET = "none"
KINDS = "SD3.5, FLUX, Qwen-Image, Z-Image, Krea or another model of docs/families.md"
MODEL: Widget = ("MODEL", {"tooltip": f"{KINDS}. It is not changed."})
# What helps where a phrase cannot be found, by the kind of NoTokenMap.
WHOLE_TEXT = "empty the phrase and set part to all"
RIGHT_OF = {
    "changed": f"Connect the prompt as its text encode node made it, or {WHOLE_TEXT}",
    "unknown": f"Connect a prompt straight from CLIPTextEncode or TripleTextEncode, or {WHOLE_TEXT}",
    "unmapped": f"Act on the whole text: {WHOLE_TEXT}",
}
REMOVE_IT = "remove the other node, or this one"
# Field of a ControlError -> the input of a block node, and what is right.
WHILE_SAMPLING = {
    "model": ("model", f"Connect one of {SUPPORTED}"),
    "blocks": ("model", f"Block controls need the model's own blocks. {REMOVE_IT.capitalize()}"),
    "branch": ("branch", f"Set branch to both, or {REMOVE_IT}"),
    "phrases": ("phrase", "Write whole words of the prompt, one phrase a line"),
    "place": ("phrase", f"Act on the whole text: {WHOLE_TEXT}"),
    "context": ("conditioning", "Encode both prompts to the same length, or set another reference_latents_method"),
}
WINDOW: dict[str, Widget] = {"start_percent": START, "end_percent": END}
MADE_FOR: Widget = text(
    "",
    "The model that a preset was made for, and what was measured. Choosing such a preset in the menu of the "
    "block strip fills it. Another model is refused. Empty: any model.",
    advanced=True,
)


def preset_widget(action: str, replaced: str) -> Widget:
    """Published settings of one action. Args: replaced, the inputs that a preset replaces."""
    tooltip = (
        f"A published setting for one kind of model. It replaces {replaced}. More are in the menu of the "
        "block strip; for other models BlockAnalysis finds one."
    )
    names = [NO_PRESET, *(preset.name for preset in presets_of(action))]
    return choice(names, NO_PRESET, tooltip, advanced=True)


def read_preset(node: str, model, name: str) -> Preset:
    """A preset by name. Raises: InputError for a model that the preset was not published for."""
    preset, (double, single) = BY_NAME[name], counts(node, model)
    made_for = f"it is for {preset.model} with {preset.double} double and {preset.single} single blocks"
    right = f"Connect {preset.model}, or set the preset to {NO_PRESET} and find blocks with BlockAnalysis"
    family = family_of(model.model)
    assert family is not None  # `counts` has refused other models
    label = family.label
    # Chroma has FLUX.1's numbers of blocks, and other blocks.
    fits = (double, single) == (preset.double, preset.single) and preset.model.startswith(label)
    require(fits, node, "preset", f"{made_for}, this model is {label} with {double} and {single}", right)
    return preset


def require_made_for(node: str, model, made_for: str) -> None:
    """Raises: InputError for a text that names no model, or another one. Args: made_for, of a preset, or ""."""
    if not made_for.strip():
        return
    try:
        wanted = read_made_for(made_for.strip())
    except PresetError as error:
        raise InputError(node, "made_for", error.found, error.right) from error
    double, single = counts(node, model)
    family = family_of(model.model)
    assert family is not None  # `counts` has refused other models
    modules = (f"{name}." for name, _ in network_of(model.model).named_modules())
    labels = (family.label, find_variant(modules))
    fits = wanted.family in labels and (wanted.double, wanted.single) == (double, single)
    found = f"it names {wanted}, this model is {family.label} {double}+{single} (double+single blocks)"
    require(fits, node, "made_for", found, "Connect the model that the numbers are for, or empty made_for")


def counts(node: str, model) -> tuple[int, int]:
    """The model's double and single blocks. Raises: InputError for a model that is not an MMDiT."""
    found = block_counts(model.model)
    if found is None:
        raise InputError(node, "model", why_refused(model.model), f"Connect one of {SUPPORTED}")
    return found


def read_blocks(node: str, model, blocks: str, parse: Callable[..., Any] = parse_blocks, **options: Any) -> Any:
    """The blocks that a text names, as `parse` gives them with its options. Raises: InputError."""
    try:
        return parse(blocks, *counts(node, model), **options)
    except BlockTextError as error:
        raise InputError(node, "blocks", error.found, error.right) from error


def require_text_controls(node: str, name: str, model, right: str) -> None:
    """Raises: InputError for a model whose blocks can only be skipped. Args: name, of the input."""
    family = family_of(model.model)
    if family is not None and family.only_skip:
        raise InputError(node, name, f"{family.label} takes no control of its text: {family.only_skip}", right)


def _reads_by_cross_attention(model) -> bool:
    family = family_of(model.model)
    return family is not None and family.text.cross


def why_it_cancels(model, boost: BlockControl) -> str:
    """In words, why a boost changes nothing on a model; "" if it does."""
    alike = boost.mode == "attention" and not boost.is_selective and boost.strength not in (0, 1)
    if not (alike and _reads_by_cross_attention(model)):
        return ""
    return "in this model's cross-attention the image reads text alone, and a weight that all of it has cancels"


def _why_idle(model, row: int, controls: Sequence[BlockControl]) -> str:
    """In words, why the controls of a row, or at 0 of the node's own inputs, do nothing; "" if they may act."""
    blocks = {block for control in controls for block in control.blocks}
    if not controls:
        return OFF
    if not blocks:
        return "no blocks are named: nothing happens"
    if controls[0].window.is_empty:
        return "the window has no steps: nothing happens"
    last = sum(block_counts(model.model) or ()) - 1
    residual = (controls[0].action, controls[0].effect, blocks) == ("boost", "residual", {last})
    if residual and not _reads_by_cross_attention(model):
        return "a residual boost of the last block does nothing: no later block reads its text"
    return "strength 1 changes nothing" if row and all(control.strength == 1 for control in controls) else ""


def _skips_all(model) -> bool:
    """Whether the controls on a MODEL skip all blocks of both branches in all steps."""
    skips = [c for c in patching.controls_of(model) if c.action == "skip" and c.window.is_whole]
    left = [
        set(range(sum(block_counts(model.model) or ()))) - {b for c in skips if branch in c.branches for b in c.blocks}
        for branch in BRANCHES["both"][:2]
    ]
    return not any(left)


class _BlockNode:
    """The common part of the nodes. Each has `controls`, which makes its controls of all inputs but the window's."""

    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A copy of the model with this control.",)
    controls: Callable[..., Sequence[BlockControl]]
    controls_text: ClassVar[bool] = True

    @classmethod
    def word_error(cls, error: ControlError) -> InputError:
        """What is found while sampling, as an error of the node's input."""
        inputs: Any = cls.INPUT_TYPES()  # type: ignore[attr-defined]
        name, right = WHILE_SAMPLING[error.field]
        if name not in inputs["required"]:
            name, right = "model", REMOVE_IT.capitalize()
        if error.control.phrases and error.field == "branch":
            name, right = "phrase", f"Empty the phrase and set branch to both, or {REMOVE_IT}"
        return InputError(cls.__name__, name, str(error), right)

    def apply(self, model, unique_id=None, **given):
        """A copy of the model with the node's controls; shows on the node if they have no effect. Raises: InputError.

        Args: given, the values of the node's widgets and its prompt, by name.
        """
        name, inputs = type(self).__name__, self.INPUT_TYPES()  # type: ignore[attr-defined]
        require_model(name, model)
        given = check_values(name, {**inputs["required"], **inputs.get("optional", {})}, given)
        if self.controls_text:
            require_text_controls(name, "model", model, "Use BlockSkip, or connect another model")
        require_made_for(name, model, given.pop("made_for", ""))
        window = Window(given.pop("start_percent"), given.pop("end_percent"), given.pop("fade", "constant"))
        rows = {
            row: [replace(control, window=window) for control in controls]
            for row, controls in self.rows(model, **given).items()
        }
        if idle := idle_rows({row: _why_idle(model, row, controls) for row, controls in rows.items()}):
            messages.show_text(unique_id, idle)
        attached = model
        for row, controls in rows.items():
            word_error = _WordRow(row) if row else self.word_error
            attached = patching.attach(attached, controls, unique_id, word_error, row)
        if not idle and any(control.action == "skip" for control in rows.get(0, ())) and _skips_all(attached):
            messages.show_text(unique_id, "all blocks are skipped: the image does not depend on the prompt")
        return (attached,)

    def rows(self, model, **given) -> dict[int, Sequence[BlockControl]]:
        """The controls of the node's own inputs, at 0, and of its rows by number; none for a row that is off."""
        return {0: self.controls(model, **given)}


class BlockSkip(_BlockNode):
    """A node that skips blocks."""

    controls_text = False
    DESCRIPTION = (
        "Skips the chosen blocks: image and text pass them unchanged, and their work is saved. After the run the node "
        "shows how many block calls were skipped."
    )
    SEARCH_ALIASES = [
        "skip layer", "skip layer guidance", "slg", "skip block", "speed", "remove block", "flux", "mmdit",
        "跳过", "跳过层", "跳层", "块",
    ]  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        branch = branch_widget("negative", " The paper found that large models tolerate more on the negative one.")
        return {
            "required": {"model": MODEL, "blocks": blocks_widget(""), "branch": branch, **WINDOW},
            "optional": {"preset": preset_widget("skip", "blocks and branch"), "made_for": MADE_FOR},
            "hidden": HIDDEN,
        }

    def controls(self, model, blocks, branch, preset=NO_PRESET):
        """The controls of a preset, or one that skips the named blocks."""
        if preset != NO_PRESET:
            return read_preset("BlockSkip", model, preset).controls
        return [BlockControl("skip", read_blocks("BlockSkip", model, blocks), branch=branch)]


@dataclass(frozen=True)
class _WordRow:
    """Words what is found while sampling as an error of a row. A value: equal rows are equal for the run cache."""

    row: int

    def __call__(self, error: ControlError) -> InputError:
        worded = TextBoost.word_error(error)
        return in_row(self.row, worded) if worded.name == "phrase" else worded


class TextBoost(_BlockNode):
    """A node that makes the text stronger or weaker in some blocks."""

    DESCRIPTION = (
        "Makes the text stronger or weaker in the chosen blocks. residual is the paper's method and acts on the blocks "
        "that follow; attention and value act in the chosen blocks. A phrase of the prompt can be chosen."
    )
    SEARCH_ALIASES = [
        "prompt strength", "text strength", "enhance", "emphasis", "text alignment", "block weight",
        "attention", "flux", "mmdit", "增强", "块", "块权重", "注意力", "提示词强度",
    ]  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        strength = (
            "1 changes nothing, 1.5 is the paper's setting, 0 removes the text (residual: from this block on; "
            "attention and value: in this block)."
        )
        mode = (
            "residual: scales the text stream before the block, and it stays scaled. The block itself normalises the "
            "scale away; later blocks get more of the original text. attention: the image attends more to the text. "
            "value: the text values that the image reads are scaled."
        )
        phrase = (
            "Acts on these words of the prompt alone, one phrase a line. Empty: the whole text. Any text encode node "
            "can make the prompt; averaging or scaling it afterwards hides its words. Acts on the positive branch."
        )
        part = (
            "The text of all encoders, of the CLIPs, or of T5. Other encoders (Qwen, Gemma, Mistral) are in all only."
        )
        rows = (
            "Further boosts, one a line: on or off, blocks, strength and phrase, with a vertical bar between them. "
            "Without a phrase: the whole text. They add to the node's own blocks; mode, part, branch, window and fade "
            "are those of the node."
        )
        fade = "The strength over the window: constant, growing from 1 (in), returning to 1 (out), or both (cosine)."
        return {
            "required": {
                "model": MODEL,
                "blocks": blocks_widget("", " A block can have its own strength: 3:1.5, 7-9:2."),
                "strength": number(1.5, 0.0, MOST_STRENGTH, 0.05, strength),
                "mode": choice(CHOICES["mode"], "residual", mode),
                "phrase": text("", phrase, multiline=True),
                "part": choice(CHOICES["part"], "all", part, advanced=True),
                "branch": branch_widget("both", " A phrase is in the positive prompt alone."),
                **WINDOW,
                "fade": choice(tuple(FADES), "constant", fade, advanced=True),
            },
            "optional": {
                "preset": preset_widget("boost", "blocks, strength and mode"),
                "made_for": MADE_FOR,
                "rows": text("", rows, multiline=True, advanced=True),
            },
            "hidden": HIDDEN,
        }

    def rows(self, model, rows="", **given):
        """As for all block nodes; own inputs that name no blocks and no phrase are left out if rows are on."""
        written = read_rows(rows)
        chosen = given.get("preset", NO_PRESET) != NO_PRESET or given["phrase"].strip()
        named = chosen or read_blocks("TextBoost", model, given["blocks"], parse_block_strengths)
        own = {0: self.controls(model, **given)} if named or not any(row.on for row in written) else {}
        return {**own, **{row.number: self._of_row(model, row, given) if row.on else [] for row in written}}

    def _of_row(self, model, row: BoostRow, given: Mapping[str, Any]) -> Sequence[BlockControl]:
        """The boosts of a row that is on. Args: given, the node's inputs. Raises: InputError of the row."""
        own = {name: given[name] for name in ("mode", "part", "branch")}
        right = f"Write one from 0 to {MOST_STRENGTH:g}"
        try:
            require(0 <= row.strength <= MOST_STRENGTH, "TextBoost", "rows", f"strength {row.strength:g}", right)
            return self.controls(model, row.blocks, row.strength, phrase=row.phrase, **own)
        except InputError as error:
            raise in_row(row.number, error) from error

    def controls(self, model, blocks, strength, mode, phrase, part, branch, preset=NO_PRESET):
        """The boosts of a preset, or of the named blocks, for the chosen text."""
        phrases = tuple(line.strip() for line in phrase.splitlines() if line.strip())
        found, right = "a phrase is set, and a phrase is in the positive prompt", "Set branch to positive or both"
        require(not phrases or branch != "negative", "TextBoost", "branch", found, f"{right}, or empty the phrase")
        family = family_of(model.model)
        reason = family.no_phrases if family is not None else ""
        selects = bool(phrases) or part != "all"
        name = "phrase" if phrases else "part"
        require(
            not (selects and reason), "TextBoost", name, f"a phrase cannot be found: {reason}", RIGHT_OF["unmapped"]
        )
        if preset == NO_PRESET:
            boosts = self._boosts(model, blocks, strength, mode)
        else:
            boosts = read_preset("TextBoost", model, preset).controls
        boosts = [replace(boost, phrases=phrases, part=part, branch=branch) for boost in boosts]
        for boost in boosts:
            found, right = why_it_cancels(model, boost), "Set mode to residual or value, or name a phrase"
            require(not found, "TextBoost", "mode", found, right)
        return boosts

    @classmethod
    def word_error(cls, error: ControlError) -> InputError:
        """As for all block nodes, and where a phrase or part was not found."""
        cause, control = error.__cause__, error.control
        if isinstance(cause, NoTokenMap):
            return InputError("TextBoost", "phrase" if control.phrases else "part", str(error), RIGHT_OF[cause.kind])
        if isinstance(cause, PartNotFound):
            return InputError("TextBoost", "part", str(error), "Set part to all")
        return super().word_error(error)

    def _boosts(self, model, blocks: str, strength: float, mode: str) -> Sequence[BlockControl]:
        """One boost for each strength in the block list; one of no blocks if it is empty."""
        strengths = read_blocks("TextBoost", model, blocks, parse_block_strengths, default=strength)
        by_strength: defaultdict[float, list[int]] = defaultdict(list)
        for block, own in strengths.items():
            right = f"Write one from 0 to {MOST_STRENGTH:g}, as {block}:1.5"
            require(own <= MOST_STRENGTH, "TextBoost", "blocks", f"block {block} has strength {own:g}", right)
            by_strength[own].append(block)
        return [BlockControl("boost", tuple(b), own, mode) for own, b in (by_strength or {strength: []}).items()]


class TextDisable(_BlockNode):
    """A node that removes the text in some blocks."""

    DESCRIPTION = (
        "Removes the text in the chosen blocks. onward is the paper's method: the text stream is zero from there on, "
        "and later blocks build on it. block: the text is hidden in the chosen blocks alone."
    )
    SEARCH_ALIASES = ["disable text", "empty prompt", "remove text", "attention", "mmdit", "屏蔽", "去除文本", "块"]

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        tooltip = "onward: from the block on, as in the paper. block: in the block alone; the text stream is unchanged."
        scope = choice(CHOICES["scope"], "onward", tooltip)
        inputs = {"model": MODEL, "blocks": blocks_widget(""), "scope": scope, "branch": branch_widget("both")}
        return {"required": {**inputs, **WINDOW}, "hidden": HIDDEN}

    def controls(self, model, blocks, scope, branch):
        """One control that removes the text in the named blocks."""
        return [BlockControl("disable", read_blocks("TextDisable", model, blocks), scope=scope, branch=branch)]


class BlockPrompt(_BlockNode):
    """A node that gives some blocks another prompt."""

    DESCRIPTION = (
        "In the chosen blocks the image attends to this prompt in place of the sampler's positive one. The prompt "
        "passes all blocks up to the last chosen one, which costs one more block call each. After the run the node "
        "shows how many."
    )
    SEARCH_ALIASES = [
        "prompt per block", "block conditioning", "regional blocks", "block weight", "attention", "mmdit",
        "提示词", "分块提示词", "块",
    ]  # fmt: skip

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        prompt = ("CONDITIONING", {"tooltip": "The other prompt. Its pooled text is not used."})
        inputs = {"model": MODEL, "conditioning": prompt, "blocks": blocks_widget("")}
        return {"required": {**inputs, **WINDOW}, "hidden": HIDDEN}

    def controls(self, model, conditioning, blocks):
        """One control that gives the named blocks the other prompt."""
        chosen = read_blocks("BlockPrompt", model, blocks)
        context, options = self._prompt(model, conditioning)
        return [BlockControl("prompt", chosen, context=context, context_inputs=options)]

    def _prompt(self, model, conditioning):
        """The prompt's context [1, L, W] and its options. Raises: InputError for one that cannot be used."""
        here, family = ("BlockPrompt", "conditioning"), family_of(model.model)
        assert family is not None  # read_blocks has refused other models
        require_conditioning(*here, conditioning)
        right = "Connect one prompt, without areas or combinations"
        require(len(conditioning) == 1, *here, f"it holds {len(conditioning)} prompts", right)
        context, options = conditioning[0]
        found, right = f"the text is of shape {list(context.shape)}", "Encode one text, as [1, tokens, channels]"
        require(context.ndim == 3 and context.shape[0] == 1 and context.shape[1], *here, found, right)
        width, found = family.width(network_of(model.model)), context.shape[-1]
        right = "Encode the prompt with the CLIP that belongs to this model"
        require(width in (None, found), *here, f"the text is {found} channels wide, the model takes {width}", right)
        right = "Connect it without areas or masks; here it is for the whole image"
        for name in ("area", "mask"):
            require(options.get(name) is None, *here, f"the prompt is for a part of the image: it has {name}", right)
        right = (
            "Connect the prompt as it was encoded; when it acts is set by start_percent and end_percent of this node"
        )
        plain = {"start_percent": 0.0, "end_percent": 1.0, "strength": 1.0, "hooks": None, "control": None}
        for name, value in plain.items():
            require(options.get(name, value) == value, *here, f"it has {name}, which has no effect here", right)
        return context, options


NODES = {
    "BlockSkip": (BlockSkip, "Block Skip"),
    "TextBoost": (TextBoost, "Text Boost"),
    "TextDisable": (TextDisable, "Text Disable"),
    "BlockPrompt": (BlockPrompt, "Block Prompt"),
}
