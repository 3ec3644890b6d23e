"""Token maps of contexts that ComfyUI's CLIP encoded: built from the tokens, the tokenizer and the text model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from ....mmdit_core.text.tokens import EncoderTokens, TokenMap
from .layouts import Assembly, UnknownLayout, assembly_of
from .vocabulary import CLIPS, Vocabulary, attribute_of, label_of


@dataclass(frozen=True)
class Embedding:
    """An embedding in a prompt. Field: size, its positions in the encoder's text; None for an image."""

    size: int | None


Element = int | Embedding


@dataclass(frozen=True)
class Prompt:
    """What a context is encoded from. Fields: tokens, token key -> chunks; tokenizer, of the CLIP; assembly."""

    tokens: Mapping[str, Sequence[Sequence[Element]]]
    tokenizer: Any
    assembly: Assembly


def prompt_of(clip: Any, tokens: Mapping[str, Any], option: str = "") -> Prompt:
    """The prompt of a CLIP's tokens, without its weights and images.

    Args: option, of the conditioning, for the text that it holds; "" for the context.
    Raises: UnknownLayout.
    """
    assembly = assembly_of(clip.cond_stage_model, option)
    kept = {
        key: tuple(tuple(_element(token, assembly.widths.get(key)) for token, *_ in chunk) for chunk in tokens[key])
        for key in assembly.keys
        if key in tokens
    }
    return Prompt(kept, clip.tokenizer, assembly)


def _element(token: Any, width: int | None) -> Element:
    """An element of a prompt: a token's id, or an embedding's size. Args: width, channels of the encoder."""
    if isinstance(token, int):
        return token
    data = token.get("data") if isinstance(token, dict) and token.get("type") == "embedding" else token
    if torch.is_tensor(data):
        # ComfyUI leaves out an embedding of another width.
        return Embedding(data.numel() // data.shape[-1] if data.shape[-1] == width else None)
    return Embedding(None) if isinstance(token, dict) else int(token)


def build_map(prompt: Prompt, length: int, dropped: Collection[str] = ()) -> TokenMap:
    """Locate each encoder's words in a context.

    Args: length, of the context; dropped, token keys of encoders whose part is zeros.
    Raises: UnknownLayout.
    """
    assembly = prompt.assembly
    if assembly.layout is None:
        raise UnknownLayout(f"it is not known where {assembly.name} puts the words of a prompt")
    if assembly.replaced:
        names = ", ".join(map(label_of, sorted(assembly.replaced)))
        raise UnknownLayout(f"another node replaced how {names} encodes a prompt")
    present = [key for key in assembly.keys if key in assembly.present]
    if absent := [key for key in present if not prompt.tokens.get(key)]:
        raise UnknownLayout(f"there are no tokens for {', '.join(map(label_of, absent))}")
    clips = [key for key in present if key in CLIPS]
    other = next((key for key in present if key not in CLIPS), None)
    # Their longer part is cut to the shorter one, because they are joined on the channels.
    joint = min((_known(_flat(prompt, key)) for key in clips), default=0)
    if (other is None and joint != length) or joint > length:
        raise _wrong_length(prompt, joint, length)
    empty = prompt.tokenizer.tokenize_with_weights("")
    encoders = []
    for key in assembly.keys:
        if key not in present:
            encoders.append(EncoderTokens(label_of(key), key in CLIPS, 0, 0, (), False, _is_other(key)))
            continue
        places = _places(prompt, key, length - joint) if key == other else _from_front(_flat(prompt, key))
        start, stop = (joint, length) if key == other else (0, joint)
        encoders.append(_encoder(prompt, key, empty, places, range(start, stop), key not in dropped))
    return TokenMap(tuple(encoders))


def _encoder(
    prompt: Prompt, key: str, empty: Mapping[str, Any], places: Sequence[int | None], inside: range, present: bool
) -> EncoderTokens:
    """One encoder's words. Args: places of its elements in its own part; inside, the positions of that part."""
    tokenizer = attribute_of(prompt.tokenizer, key) or prompt.tokenizer
    nothing = empty.get(key) or [()]  # an empty prompt has no quoted text for ByT5
    vocabulary = Vocabulary(key, tokenizer, tuple(token for token, *_ in nothing[0]))
    placed, unplaced = [], []
    for run in vocabulary.content(prompt.tokens[key]):
        if any(places[index] is None for index, _ in run):
            unplaced.append(run)
            continue
        at = [((places[index] or 0) + inside.start, entry) for index, entry in run]
        placed.append([(position, entry) for position, entry in at if position in inside])
    between = tuple(" ".join(word.text for word in vocabulary.words([run])) for run in unplaced)
    words = vocabulary.words([run for run in placed if run])
    name, start, stop = label_of(key), inside.start, inside.stop
    return EncoderTokens(name, key in CLIPS, start, stop, words, present, _is_other(key), between)


def _places(prompt: Prompt, key: str, length: int) -> Sequence[int | None]:
    """The place of each element in an encoder's part of the context; negative or beyond it if it is cut off.

    Elements between two images have None: the sizes of images are known only together.
    Args: length, of the part.
    """
    elements, known = _flat(prompt, key), _known(_flat(prompt, key))
    images = [index for index, element in enumerate(elements) if _size(element) is None]
    assert prompt.assembly.layout is not None
    ids = [element if isinstance(element, int) else None for element in elements]
    front, back = prompt.assembly.layout.cut(ids, known + len(images))
    all_of_it = length + front + back
    if all_of_it < known or (all_of_it > known and not images):
        raise _wrong_length(prompt, known - front - back, length)
    from_front = [place - front for place in _from_front(elements)]
    if not images:
        return from_front
    from_end = [place - front + all_of_it - known for place in _from_front(elements)]
    first, last = images[0], images[-1]
    between = [None] * (last - first)
    return [*from_front[: first + 1], *between, *from_end[last + 1 :]]


def _flat(prompt: Prompt, key: str) -> list[Element]:
    return [element for chunk in prompt.tokens[key] for element in chunk]


def _size(element: Element) -> int | None:
    return 1 if isinstance(element, int) else element.size


def _known(elements: Sequence[Element]) -> int:
    """The positions of all elements but images."""
    return sum(_size(element) or 0 for element in elements)


def _from_front(elements: Sequence[Element]) -> list[int]:
    """The place of each element if images had none."""
    return [0, *accumulate(_size(element) or 0 for element in elements)][: len(elements)]


def _is_other(key: str) -> bool:
    return key not in CLIPS and "t5" not in key


def _wrong_length(prompt: Prompt, expected: int, length: int) -> UnknownLayout:
    return UnknownLayout(f"{prompt.assembly.name} made {length} positions of a prompt that should have {expected}")
