"""TripleTextEncode: prompt and negative prompt through CLIP-L, CLIP-G and T5."""

from __future__ import annotations

from dataclasses import replace

from ..mmdit_core.text.encoders import TextStrengths
from .comfyui.frontend import messages as ui
from .comfyui.text.conditioning import STRENGTH_OF, Count, Encoders, label_of
from .errors import InputError
from .widgets import check_values

NODE = "TripleTextEncode"
T5_LENGTHS = {"auto": None, "77": 77, "154": 154, "256": 256, "512": 512}
# Twice what T5 read at first: the length that training tools for SD3.5 came to use.
TRAINED_T5_TOKENS = 154
# Source: Stability's model cards of SD3.5 Large and Medium.
TOO_LONG = (
    f"more than {TRAINED_T5_TOKENS}: SD3 and SD3.5 were trained on 77 T5 tokens, at a later stage on at most 256. A "
    "longer text is unlike what they know; beyond 256 artefacts show at the picture's edges"
)
EMPTY = ("encode", "zeros")
MISSING_FILES = {
    "l": "clip_l.safetensors",
    "g": "clip_g.safetensors",
    "t5xxl": "t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn.safetensors",
}
WIDGETS = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5xxl"}
STRENGTH = {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.05, "advanced": True}
OWN_PROMPT = {"default": "", "multiline": True, "dynamicPrompts": True, "advanced": True}


class TripleTextEncode:
    """A prompt and a negative prompt as conditioning, with one dial for each text encoder."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Encodes a prompt and a negative prompt with every text encoder that the CLIP holds (CLIP-L, CLIP-G, T5). "
        "Each encoder may have its own prompt and strength. Works with the host's CLIP loaders too."
    )
    SEARCH_ALIASES = ["prompt", "clip text encode", "sd3 prompt", "negative", "t5", "text"]
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "STRING")
    RETURN_NAMES = ("positive", "negative", "info")
    OUTPUT_TOOLTIPS = (
        "What the picture should show.",
        "What it should not show.",
        "How many tokens each encoder used, what was cut, and which encoders are missing.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        def own(label: str) -> tuple[str, dict]:
            return "STRING", {**OWN_PROMPT, "tooltip": f"A prompt for {label} alone. Empty: the prompt above."}

        def strength(label: str) -> tuple[str, dict]:
            return "FLOAT", {
                **STRENGTH,
                "tooltip": f"Scales what {label} says. 1 leaves it, 0 drops it as a dropped encoder was in training. "
                "SD3 and SD3.5 text encoders only.",
            }

        return {
            "required": {
                "clip": ("CLIP", {"tooltip": "From MMDiTLoader, or from the host's Dual or Triple CLIP loader."}),
                "prompt": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "What the picture should show. (word:1.3) weighs a word.",
                    },
                ),
                "negative": (
                    "STRING",
                    {
                        "default": "",
                        "multiline": True,
                        "dynamicPrompts": True,
                        "tooltip": "What the picture should not show. Not used where the sampler's cfg is 1.",
                    },
                ),
                "clip_l": own("CLIP-L"),
                "clip_g": own("CLIP-G"),
                "t5xxl": own("T5"),
                "clip_l_strength": strength("CLIP-L"),
                "clip_g_strength": strength("CLIP-G"),
                "t5_strength": strength("T5"),
                "t5_length": (
                    list(T5_LENGTHS),
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "The most T5 tokens that are used; auto uses all. Of more than 154 the node warns: "
                        "SD3 and SD3.5 were trained on shorter prompts.",
                    },
                ),
                "empty": (
                    list(EMPTY),
                    {
                        "default": "encode",
                        "advanced": True,
                        "tooltip": "What an empty prompt becomes, for each encoder. encode: the encoding of an empty "
                        "text, as the host does it. zeros: no text at all, as dropped text was in SD3's training.",
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def encode(
        self,
        clip,
        prompt: str,
        negative: str,
        clip_l: str,
        clip_g: str,
        t5xxl: str,
        clip_l_strength: float,
        clip_g_strength: float,
        t5_strength: float,
        t5_length: str,
        empty: str,
        unique_id: str | None = None,
    ):
        if clip is None:
            raise InputError(
                NODE,
                "clip",
                "nothing came in",
                "The checkpoint before it holds no text encoders: connect a TripleCLIPLoader with "
                f"{', '.join(MISSING_FILES.values())}",
            )
        dials = dict(
            clip_l_strength=clip_l_strength,
            clip_g_strength=clip_g_strength,
            t5_strength=t5_strength,
            t5_length=t5_length,
            empty=empty,
        )
        check_values(NODE, self.INPUT_TYPES()["required"], dials)
        encoders = Encoders(clip)
        own = {"l": clip_l, "g": clip_g, "t5xxl": t5xxl}
        strengths = TextStrengths(clip_l=clip_l_strength, clip_g=clip_g_strength, t5=t5_strength)
        _check_encoders(encoders, own, strengths)
        info, shown, out = [], [], []
        for title, text, own_prompts in (("prompt", prompt, own), ("negative", negative, {})):
            prompts = {key: own_prompts.get(key) or text for key in encoders.names}
            conditioning, counts = _encode(encoders, prompts, strengths, T5_LENGTHS[t5_length], empty)
            out.append(conditioning)
            info += [title, *(f"  {line}" for count in counts for line in _lines(count, prompts, empty))]
            shown.append(f"{title}: {', '.join(_short(count) for count in counts if count.present)}")
        missing = _missing_lines(encoders, own)
        ui.show_text(unique_id, "\n".join([*shown, *missing]))
        return *out, "\n".join([*info, *missing])


def _check_encoders(encoders: Encoders, own: dict[str, str], strengths: TextStrengths) -> None:
    """Raises: InputError for a dial of an encoder that another model's CLIP does not know."""
    for key, text in own.items():
        if text.strip() and key not in encoders.names:
            raise InputError(
                NODE,
                WIDGETS[key],
                f"a prompt for {label_of(key)}, but this CLIP has {', '.join(encoders.names)}",
                "Leave it empty, or connect a CLIP that has this encoder",
            )
    if strengths != TextStrengths() and not encoders.is_sd3:
        raise InputError(
            NODE,
            "clip_l_strength, clip_g_strength, t5_strength",
            f"this CLIP has {', '.join(encoders.names)}, whose parts cannot be scaled one by one",
            "Set all three to 1, or connect the CLIP of an SD3 or SD3.5 model",
        )


def _encode(encoders: Encoders, prompts: dict[str, str], strengths: TextStrengths, t5_limit: int | None, empty: str):
    """One prompt's conditioning, and a Count for each encoder."""
    tokens, counts = encoders.tokenize(prompts, t5_limit)
    silent = [key for key, text in prompts.items() if _is_dropped(text, empty)]
    if len(silent) == len(prompts):
        return encoders.zeros(tokens), counts
    if encoders.is_sd3:
        strengths = replace(strengths, **{STRENGTH_OF[key]: 0.0 for key in silent})
    return encoders.encode(tokens, strengths), counts


def _is_dropped(text: str, empty: str) -> bool:
    return empty == "zeros" and not text.strip()


def _lines(count: Count, prompts: dict[str, str], empty: str) -> list[str]:
    """What the info output says of one encoder."""
    if not count.present:
        return []
    if _is_dropped(prompts[count.key], empty):
        return [f"{count.label}: empty, all zeros"]
    chunks = f" in {count.chunks} chunks" if count.chunks > 1 else ""
    lines = [f"{count.label}: {count.used} tokens{chunks}"]
    if count.cut:
        lines[0] += f", {len(count.cut)} more cut by t5_length"
        lines.append(f"{count.label} cut: {' | '.join(count.cut)}")
    if count.key == "t5xxl" and count.used > TRAINED_T5_TOKENS:
        lines.append(f"{count.label} warning: {TOO_LONG}")
    return lines


def _short(count: Count) -> str:
    """The same as the node shows it."""
    cut = f" ({len(count.cut)} cut)" if count.cut else ""
    warning = f" (over {TRAINED_T5_TOKENS})" if count.key == "t5xxl" and count.used > TRAINED_T5_TOKENS else ""
    return f"{count.label} {count.used}{cut}{warning}"


def _missing_lines(encoders: Encoders, own: dict[str, str]) -> list[str]:
    if not encoders.is_sd3:
        return []
    instead = {"t5xxl": "its tokens are left out"}
    return [
        f"missing: {label_of(key)} ({instead.get(key, 'zeros in its place')}"
        f"{', and its own prompt is not read' if own[key].strip() else ''}). "
        f"{MISSING_FILES[key]} in models/text_encoders would provide it"
        for key in encoders.missing
    ]


NODES = {"TripleTextEncode": (TripleTextEncode, "Triple Text Encode (CLIP-L, CLIP-G, T5)")}
