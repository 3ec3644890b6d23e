"""Where the tokens of a prompt are in the context that one of ComfyUI's text models makes of them, as data.

A row is known by the function that assembles the context, so a subclass that assembles it otherwise is no such row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .vocabulary import attribute_of

Ids = Sequence[int | None]  # token ids, None for an embedding
# (ids of the first chunk, embeddings of the whole text) -> embeddings that the text model cuts off its front and end.
Cut = Callable[[Ids, int], tuple[int, int]]

IM_START, IM_END, USER, NEWLINE = 151644, 151645, 872, 198  # of Qwen's vocabulary
HEADER, HEADER_END, LLAMA_USER, TURN_END, TWO_NEWLINES = 128006, 128007, 882, 128009, 271  # of Llama 3's


class UnknownLayout(ValueError):
    """It is not known where a text model puts the tokens. The text says why."""


@dataclass(frozen=True)
class Layout:
    """How a text model assembles its context.

    Fields: keys, of the encoders that it reads: CLIPs from the front, joined on the channels, then one other encoder;
    "" for the only encoder of the model; cut, what it leaves out of the last encoder's text; more, options of the
    conditioning that hold another encoder's text -> its key.
    """

    keys: tuple[str, ...] = ("",)
    cut: Cut = lambda ids, length: (0, 0)
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Assembly:
    """The layout of one text model's context.

    Fields: name, of its class; layout, None if unknown; keys, of the encoders that the layout reads; present, keys of
    those that it has and that encode as ComfyUI's do; replaced, of those that do not; widths, channels of their
    embeddings.
    """

    name: str
    layout: Layout | None
    keys: tuple[str, ...]
    present: frozenset[str]
    replaced: frozenset[str]
    widths: Mapping[str, int | None]


def _qwen(ids: Ids, length: int) -> tuple[int, int]:
    """All before the user's text, if the second turn is the user's."""
    starts = [index for index, token in enumerate(ids) if token == IM_START][:2]
    front = starts[-1] if starts else -1
    if length > front + 3 and list(ids[front + 1 : front + 3]) == [USER, NEWLINE]:
        front += 3
    return front if front >= 0 else length - 1, 0


def _hunyuan_image(ids: Ids, length: int) -> tuple[int, int]:
    """As Qwen-Image; the refiner's prompt has a template of 36 tokens."""
    return (36, 0) if ids[0] == 27 and len(ids) > 36 else _qwen(ids, length)


def _hunyuan_video(ids: Ids, length: int) -> tuple[int, int]:
    """All but the user's turn; its end is kept."""
    if None in ids:
        raise UnknownLayout("the prompt has images, whose embeddings are moved to the front of the text")
    front, end = 0, length
    open_turn = False
    for index, token in enumerate(ids):
        if list(ids[index : index + 3]) == [HEADER, LLAMA_USER, HEADER_END]:
            front, open_turn = index + 2, True
        if token == TURN_END and open_turn:
            end, open_turn = index + 1, False
    if open_turn:
        end = length - 1
    if length > front + 2 and ids[front + 1] == TWO_NEWLINES:
        front += 2
    return front, length - end


def _ovis(ids: Ids, length: int) -> tuple[int, int]:
    """All before the colon of "background:", the last word of its template."""
    front = next((index for index, token in enumerate(ids) if token == 4004), -1)
    if length > front + 1 and ids[front + 1] == 25:
        front += 1
    return front if front >= 0 else length - 1, 0


def _longcat(ids: Ids, length: int) -> tuple[int, int]:
    """As Qwen-Image, without what follows the user's text."""
    front = _qwen(ids, length)[0] if IM_START in ids else 0
    ends = [index for index, token in enumerate(ids) if token == IM_END]
    back = len(ids) - ends[-1] if ends else 0
    return front, back if length - front > back else 0


def _first(tokens: int) -> Cut:
    """A fixed number of tokens, those of a template."""
    return lambda ids, length: (min(tokens, length), 0)


def _left_padding(ids: Ids, length: int) -> tuple[int, int]:
    """The padding before the text, of token 0."""
    return next((index for index, token in enumerate(ids) if token != 0), 0), 0


SD3 = Layout(("l", "g", "t5xxl"))
# Encoders that are not built on ComfyUI's `SDClipModel` and give one embedding for each token, too: what they cut off.
OWN_ENCODERS = {"comfy.text_encoders.gpt_oss.LensGptOssClipModel.encode_token_weights": _first(97)}
LAYOUTS = {
    "comfy.sd1_clip.SD1ClipModel": Layout(),  # Chroma, AuraFlow, Z-Image, Lumina 2, OmniGen2 and others
    "comfy.sdxl_clip.SDXLClipModel": Layout(("l", "g")),
    "comfy.text_encoders.sd3_clip.SD3ClipModel": SD3,
    "nodes.comfyui.loading.clip_vae.SizedTextEncoders": SD3,
    "comfy.text_encoders.flux.FluxClipModel": Layout(("t5xxl",)),
    "comfy.text_encoders.flux.Flux2TEModel": Layout(),  # joins layers on the channels
    "comfy.text_encoders.ideogram4.Ideogram4TEModel": Layout(),  # joins layers on the channels
    "comfy.text_encoders.qwen_image.QwenImageTEModel": Layout(cut=_qwen),
    "comfy.text_encoders.krea2.Krea2TEModel": Layout(cut=_qwen),
    "comfy.text_encoders.mage_flow.MageFlowTEModel": Layout(cut=_qwen),
    "comfy.text_encoders.joyimage.JoyImageTEModel": Layout(cut=_first(34)),
    "comfy.text_encoders.anima.AnimaTEModel": Layout(),
    "comfy.text_encoders.newbie.NewBieTEModel": Layout(("gemma",)),  # Jina CLIP gives the pooled text alone
    "comfy.text_encoders.lt.LTXAVTEModel": Layout(("gemma3_12b",), _left_padding),
    "comfy.text_encoders.hidream.HiDreamTEModel": Layout(("t5xxl",), more={"conditioning_llama3": "llama"}),
    "comfy.text_encoders.kandinsky5.Kandinsky5TEModel": Layout(("qwen25_7b",), _qwen),
    "comfy.text_encoders.hunyuan_image.HunyuanImageTEModel": Layout(
        ("qwen25_7b",), _hunyuan_image, {"conditioning_byt5small": "byt5"}
    ),
    "comfy.text_encoders.hunyuan_video.HunyuanVideoClipModel": Layout(("llama",), _hunyuan_video),
    "comfy.text_encoders.longcat_image.LongCatImageTEModel": Layout(cut=_longcat),
    "comfy.text_encoders.ovis.OvisTEModel": Layout(cut=_ovis),
}


def assembly_of(text_model: Any, option: str = "") -> Assembly:
    """How a CLIP's text model (`cond_stage_model`) assembles its context, by the function that does it.

    Args: option, of the conditioning, for the text that it holds instead.
    """
    method = getattr(text_model, "encode_token_weights", None)
    function = getattr(method, "__func__", method)
    if function is None:
        return Assembly(type(text_model).__name__, None, (), frozenset(), frozenset(), {})
    owner = f"{function.__module__}.{function.__qualname__.split('.')[0]}"
    inside = owner[owner.find("nodes.comfyui.") :] if ".nodes.comfyui." in owner else owner  # of this pack, by any name
    layout = None if hasattr(function, "__wrapped__") else LAYOUTS.get(inside)
    if layout is not None and option:
        layout = Layout((layout.more[option],)) if option in layout.more else None
    keys = tuple(key or text_model.clip_name for key in layout.keys) if layout is not None else ()
    encoders = {key: attribute_of(text_model, key) for key in keys}
    present = {key: encoder for key, encoder in encoders.items() if encoder is not None}
    plain = frozenset(key for key, encoder in present.items() if _encodes_as_comfyui(encoder))
    widths = {key: _width(encoder) for key, encoder in present.items()}
    name = type(text_model).__name__
    for key in present.keys() - plain:
        function = _qualified(present[key].encode_token_weights)
        if layout is not None and function in OWN_ENCODERS:
            layout, plain = replace(layout, cut=OWN_ENCODERS[function]), plain | {key}
        elif function.startswith("comfy."):  # a class of ComfyUI that no row names
            layout, name = None, type(present[key]).__name__
    return Assembly(name, layout, keys, plain, frozenset(present) - plain, widths)


def _encodes_as_comfyui(encoder: Any) -> bool:
    """True if the encoder gives one embedding for each token, in order: no class or node changed that."""
    functions = (getattr(encoder, name, None) for name in ("encode_token_weights", "process_tokens"))
    return all(getattr(function, "__module__", None) == "comfy.sd1_clip" for function in functions)


def _qualified(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"


def _width(encoder: Any) -> int | None:
    """The channels of an encoder's token embeddings; None if it does not say."""
    layer = getattr(getattr(encoder, "transformer", None), "get_input_embeddings", lambda: None)()
    return getattr(layer, "embedding_dim", None)
