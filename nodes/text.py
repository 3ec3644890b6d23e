"""TripleTextEncode: prompt and negative prompt through CLIP-L, CLIP-G and T5."""

from __future__ import annotations

from ..mmdit_core.text import TextStrengths
from .errors import InputError
from .host import text as host

NODE = "TripleTextEncode"
T5_LENGTHS = {"auto": None, "77": 77, "154": 154, "256": 256, "512": 512}
TRAINED_T5_TOKENS = 154
EMPTY = ("encode", "zeros")
MISSING_FILES = {
    "CLIP-L": "clip_l.safetensors",
    "CLIP-G": "clip_g.safetensors",
    "T5": "t5xxl_fp16.safetensors or t5xxl_fp8_e4m3fn.safetensors",
}
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
                        "tooltip": "The most T5 tokens that are used; auto uses all. SD3 was trained with up to 154; "
                        "far longer prompts show artefacts at the picture's edges.",
                    },
                ),
                "empty": (
                    list(EMPTY),
                    {
                        "default": "encode",
                        "advanced": True,
                        "tooltip": "What an empty prompt becomes. encode: the encoding of an empty text, as the host "
                        "does it. zeros: no text at all, as dropped text was in SD3's training.",
                    },
                ),
            }
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
    ):
        if clip is None:
            raise InputError(
                NODE,
                "clip",
                "nothing came in",
                "The checkpoint before it holds no text encoders: connect a TripleCLIPLoader with "
                f"{', '.join(MISSING_FILES.values())}",
            )
        own = {"l": clip_l, "g": clip_g, "t5xxl": t5xxl}
        strengths = TextStrengths(clip_l=clip_l_strength, clip_g=clip_g_strength, t5=t5_strength)
        self._check_encoders(clip, own, strengths)
        positive, lines = self._one(clip, prompt, own, strengths, t5_length, empty)
        negative_out, negative_lines = self._one(clip, negative, {}, strengths, t5_length, empty)
        info = ["prompt", *lines, "negative", *negative_lines, *_missing_lines(clip)]
        return positive, negative_out, "\n".join(info)

    @staticmethod
    def _check_encoders(clip, own: dict[str, str], strengths: TextStrengths) -> None:
        keys = host.encoder_names(clip)
        widgets = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5xxl"}
        for key, text in own.items():
            if text.strip() and key not in keys:
                raise InputError(
                    NODE,
                    widgets[key],
                    f"a prompt for {host.ENCODERS[key][1]}, but this CLIP has {', '.join(keys)}",
                    "Leave it empty, or connect a CLIP that has this encoder",
                )
        if strengths != TextStrengths() and not host.is_sd3(clip):
            raise InputError(
                NODE,
                "clip_l_strength, clip_g_strength, t5_strength",
                f"this CLIP has {', '.join(keys)}, whose parts cannot be scaled one by one",
                "Set all three to 1, or connect the CLIP of an SD3 or SD3.5 model",
            )

    @staticmethod
    def _one(clip, prompt: str, own: dict[str, str], strengths: TextStrengths, t5_length: str, empty: str):
        """One prompt's conditioning, and a line for each encoder."""
        prompts = {key: own.get(key) or prompt for key in host.encoder_names(clip)}
        tokens, counts = host.tokenize(clip, prompts, T5_LENGTHS[t5_length])
        conditioning = host.encode(clip, tokens, strengths)
        if empty == "zeros" and not any(text.strip() for text in prompts.values()):
            return host.zeros_like(conditioning), ["  empty: all zeros"]
        lines = []
        for count in counts:
            if count.present:
                line = f"  {count.label}: {count.used} tokens"
                if count.cut:
                    line += f", {count.cut} more cut by t5_length"
                elif count.label == "T5" and count.used > TRAINED_T5_TOKENS:
                    line += f"; SD3 was trained with up to {TRAINED_T5_TOKENS}: expect artefacts at the edges"
                lines.append(line)
        return conditioning, lines


def _missing_lines(clip) -> list[str]:
    if not host.is_sd3(clip):
        return []
    return [
        f"missing: {label} (zeros in its place). {MISSING_FILES[label]} in models/text_encoders would provide it"
        for label in host.missing_encoders(clip)
    ]


NODES = {"TripleTextEncode": (TripleTextEncode, "Triple Text Encode (CLIP-L, CLIP-G, T5)")}
