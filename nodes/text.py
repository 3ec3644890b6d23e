"""TripleTextEncode: a prompt and a negative prompt through CLIP-L, CLIP-G and T5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..mmdit_core.text.encoders import TextStrengths
from .comfyui.frontend.messages import show_text
from .comfyui.text.conditioning import STRENGTH_OF, Encoders, TokenCount, Tokens, label_of
from .comfyui.text.limits import MOST_TOKENS, why_too_much
from .errors import InputError, require
from .links import require_clip
from .widgets import HIDDEN, check_values, choice, number, text

NODE = "TripleTextEncode"
T5_LENGTHS = {"auto": None, "77": 77, "154": 154, "256": 256, "512": 512}
TRAINED_T5_TOKENS = 154  # twice SD3's 77: the length that training tools for SD3.5 use
# Source: Stability's model cards of SD3.5 Large and Medium.
TOO_LONG = (
    f"more than {TRAINED_T5_TOKENS}: SD3 and SD3.5 were trained on 77 T5 tokens, at a later stage on at most 256. "
    "The image follows longer prompts less well; beyond 256 artifacts appear at its edges"
)
MISSING_FILES = {
    "l": "clip_l.safetensors",
    "g": "clip_g.safetensors",
    "t5xxl": "t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn.safetensors",
}
CHUNKED = ("l", "g")  # token keys of the encoders that read 77 tokens at a time
WIDGETS = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5xxl"}  # token key -> input with the encoder's own prompt


class TripleTextEncode:
    """A prompt and a negative prompt as conditionings, with a strength for each text encoder."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Encodes a prompt and a negative prompt with all text encoders of the CLIP (CLIP-L, CLIP-G, T5). Each encoder "
        "can have its own prompt and strength. Works with ComfyUI's CLIP loaders too."
    )
    SEARCH_ALIASES = [
        "prompt", "clip text encode", "sd3 prompt", "negative", "t5", "text", "mmdit", "提示词", "文本编码",
        "负面提示词",
    ]  # fmt: skip
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "info")
    OUTPUT_TOOLTIPS = (
        "What the image should show.",
        "What the image should not show.",
        "The number of tokens in each encoder, the tokens that were cut, and the encoders that are missing.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """ComfyUI's description of the inputs."""
        prompt = {"multiline": True, "dynamicPrompts": True}

        def own(label: str):
            return text("", f"A prompt for {label} only. Empty: the prompt above.", **prompt, advanced=True)

        def strength(label: str):
            tooltip = (
                f"Scales the output of {label}. 1: no change. 0: zeros, as for a dropped encoder in training. "
                "SD3 and SD3.5 only."
            )
            return number(1.0, 0.0, 10.0, 0.05, tooltip, advanced=True)

        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "From MMDiTLoader, or from ComfyUI's Dual or Triple CLIP loader."}),
                "prompt": text("", "What the image should show. (word:1.3) gives a word more weight.", **prompt),
                "negative": text("", "What the image should not show. Not used if the sampler's cfg is 1.", **prompt),
                "clip_l": own("CLIP-L"),
                "clip_g": own("CLIP-G"),
                "t5xxl": own("T5"),
                "clip_l_strength": strength("CLIP-L"),
                "clip_g_strength": strength("CLIP-G"),
                "t5_strength": strength("T5"),
                "t5_length": choice(
                    list(T5_LENGTHS),
                    "auto",
                    "The largest number of T5 tokens; auto uses all. The node warns above 154: SD3 and SD3.5 were "
                    "trained on shorter prompts.",
                    advanced=True,
                ),
                "empty": choice(
                    ("encode", "zeros"),
                    "encode",
                    "An empty prompt in an encoder. encode: the encoding of an empty text, as in ComfyUI's own nodes. "
                    "zeros: no text at all, as for dropped text in SD3's training.",
                    advanced=True,
                ),
            },
            "hidden": HIDDEN,
        }

    def encode(self, clip, prompt: str, negative: str, unique_id: str | None = None, **widgets):
        """Encode both prompts. Returns: positive and negative CONDITIONING, info text. Raises: InputError."""
        right = "The checkpoint before it holds no text encoders: connect a TripleCLIPLoader with "
        require_clip(NODE, clip, right + ", ".join(MISSING_FILES.values()))
        given = {"prompt": prompt, "negative": negative, **widgets}
        widgets = check_values(NODE, self.INPUT_TYPES()["required"], given)
        prompt, negative = widgets.pop("prompt"), widgets.pop("negative")
        for name in ("prompt", "negative", *WIDGETS.values()):
            if too_much := why_too_much(given[name]):
                raise InputError(NODE, name, *too_much)
        encoders = Encoders(clip)
        own = {key: widgets[name] for key, name in WIDGETS.items()}
        strengths = TextStrengths(**{name: widgets[f"{name}_strength"] for name in STRENGTH_OF.values()})
        _check_encoders(encoders, own, strengths)
        limit, empty = T5_LENGTHS[widgets["t5_length"]], widgets["empty"]
        info, short, conditionings = [], [], []
        for title, words, own_prompts in (("prompt", prompt, own), ("negative", negative, {})):
            prompts = {key: own_prompts.get(key) or words for key in encoders.names}
            tokens, counts = encoders.tokenize(prompts, limit)
            _check_counts(counts, {key: WIDGETS[key] if own_prompts.get(key) else title for key in prompts})
            conditioning = _encode(encoders, prompts, tokens, strengths, empty)
            present = [count for count in counts if count.present]
            conditionings.append(conditioning)
            info += [title, *(f"  {line}" for count in present for line in _lines(count, prompts, empty))]
            info += [f"  {line}" for line in _unread_lines(present)]
            short.append(f"{title}: {', '.join(map(_short, present))}")
            short += _unread_lines(present)
        missing = _missing_lines(encoders, own)
        show_text(unique_id, "\n".join([*short, *missing]))
        return *conditionings, "\n".join([*info, *missing])


def _check_encoders(encoders: Encoders, own: dict[str, str], strengths: TextStrengths) -> None:
    """Raises: InputError for a prompt or a strength of an encoder that this CLIP does not have."""
    names = ", ".join(encoders.names)
    for key, words in own.items():
        found, right = f"a prompt for {label_of(key)}, but this CLIP has {names}", "Leave it empty, or connect a CLIP "
        usable = not words.strip() or key in encoders.names
        require(usable, NODE, WIDGETS[key], found, right + "that has this encoder")
    found = f"this CLIP has {names}, whose parts cannot be scaled one by one"
    right = "Set all three to 1, or connect the CLIP of an SD3 or SD3.5 model"
    scalable = encoders.is_sd3 or strengths == TextStrengths()
    require(scalable, NODE, "clip_l_strength, clip_g_strength, t5_strength", found, right)


def _check_counts(counts: Sequence[TokenCount], names: dict[str, str]) -> None:
    """Raises: InputError for more tokens than an encoder can read together. Args: names, of each prompt's input."""
    for count in counts:
        found = f"{count.label} reads {count.used:,} tokens of it together, and at most {MOST_TOKENS:,} are possible"
        fits = count.key in CHUNKED or not count.present or count.used <= MOST_TOKENS
        right = "Shorten it" + (", or set t5_length" if count.key == "t5xxl" else "")
        require(fits, NODE, names.get(count.key, "prompt"), found, right)


def _encode(encoders: Encoders, prompts: dict[str, str], tokens: Tokens, strengths: TextStrengths, empty: str):
    """One prompt's conditioning. Args: tokens of the prompts."""
    dropped = [key for key, words in prompts.items() if _is_dropped(words, empty)]
    if len(dropped) == len(prompts):
        return encoders.zeros(tokens)
    if encoders.is_sd3:
        strengths = replace(strengths, **{STRENGTH_OF[key]: 0.0 for key in dropped})
    return encoders.encode(tokens, strengths)


def _is_dropped(words: str, empty: str) -> bool:
    return empty == "zeros" and not words.strip()


def _is_too_long(count: TokenCount) -> bool:
    return count.key == "t5xxl" and count.used > TRAINED_T5_TOKENS


def _lines(count: TokenCount, prompts: dict[str, str], empty: str) -> list[str]:
    """The lines of the info output for one encoder."""
    if _is_dropped(prompts[count.key], empty):
        return [f"{count.label}: empty, all zeros"]
    chunks = f" in {count.chunks} chunks" if count.chunks > 1 else ""
    cut = f", {len(count.cut)} more cut by t5_length" if count.cut else ""
    lines = [f"{count.label}: {count.used} tokens{chunks}{cut}"]
    if count.cut:
        lines.append(f"{count.label} cut: {' | '.join(count.cut)}")
    if _is_too_long(count):
        lines.append(f"{count.label} warning: {TOO_LONG}")
    return lines


def _short(count: TokenCount) -> str:
    """The count as the node shows it."""
    cut = f" ({len(count.cut)} cut)" if count.cut else ""
    warning = f" (over {TRAINED_T5_TOKENS})" if _is_too_long(count) else ""
    return f"{count.label} {count.used}{cut}{warning}"


def _unread_lines(counts: Sequence[TokenCount]) -> list[str]:
    """A line for each textual inversion that some encoders cannot read."""
    names = dict.fromkeys(name for count in counts for name in count.unread)
    unread = {name: [count.label for count in counts if name in count.unread] for name in names}
    return [
        f"embedding:{name} is left out for {', '.join(labels)}: models/embeddings has no vectors for "
        f"{'it' if len(labels) == 1 else 'them'} under this name"
        for name, labels in unread.items()
    ]


def _missing_lines(encoders: Encoders, own: dict[str, str]) -> list[str]:
    effect = {"l": "zeros in its place", "g": "zeros in its place", "t5xxl": "its tokens are left out"}
    return [
        f"missing: {label_of(key)} ({effect[key]}{', and its own prompt is not read' if own[key].strip() else ''}). "
        f"{MISSING_FILES[key]} in models/text_encoders would provide it"
        for key in (encoders.missing if encoders.is_sd3 else ())
    ]


NODES = {NODE: (TripleTextEncode, "Triple Text Encode (CLIP-L, CLIP-G, T5)")}
