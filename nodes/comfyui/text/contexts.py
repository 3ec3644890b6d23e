"""Contexts and the prompts they were encoded from, whatever node called ComfyUI's CLIP.

The methods of `comfy.sd.CLIP` that encode are wrapped once, at import. Notes are held by weak references to the
contexts. A token map is built when a phrase needs it, and only for a context whose values are as they were encoded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

import comfy.sd
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ....mmdit_core.text.tokens import NoTokenMap, TokenMap, joined
from .layouts import UnknownLayout
from .token_maps import Prompt, build_map, prompt_of

log = logging.getLogger(__name__)

TOKEN_MAP = "mmdit_tokens"  # a conditioning's option with its token map
CHANGED = "the text was cut, averaged or otherwise changed after it was encoded (ConditioningAverage, for example)"
UNKNOWN = f"{CHANGED}, or no CLIP of ComfyUI encoded it"
ZEROS = "the text was set to zeros after it was encoded (ConditioningZeroOut)"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a value -> dtype


@dataclass(frozen=True)
class Note:
    """What is known of a context. Fields: checksum [B, L]; prompt; token_map, if it was made explicitly."""

    checksum: torch.Tensor
    prompt: Prompt | None = None
    token_map: TokenMap | None = None

    def map(self, length: int) -> TokenMap:
        """The token map. Args: length, of the context. Raises: NoTokenMap."""
        if self.token_map is not None:
            return self.token_map
        try:
            if self.prompt is None:
                raise UnknownLayout("its tokens are not known")
            return build_map(self.prompt, length)
        except UnknownLayout as error:
            raise NoTokenMap("unmapped", str(error)) from error


_notes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # context -> Note


def token_map_of(entry: Mapping[str, Any] | Sequence[Any]) -> TokenMap:
    """The token map of a conditioning's entry, whatever node encoded it.

    Args: entry, as a sampler has it, with "cross_attn", the context [B, L, W]; or as a CONDITIONING has it, (context,
        options).
    Raises: NoTokenMap, with a reason in words.
    """
    context, options = (entry.get("cross_attn"), entry) if isinstance(entry, Mapping) else entry[:2]
    if not torch.is_tensor(context):
        raise NoTokenMap("unknown", UNKNOWN)
    note = _notes.get(context)
    if note is not None and not _is_as_noted(context, note):
        raise NoTokenMap("changed", CHANGED)
    parts = [(context, note)] if note is not None else _parts(context)
    if parts:
        return joined([(note.map(part.shape[1]), part.shape[1]) for part, note in parts])
    if not context.any():
        raise NoTokenMap("changed", ZEROS)
    raise NoTokenMap("changed", CHANGED) if TOKEN_MAP in options else NoTokenMap("unknown", UNKNOWN)


class LazyTokenMap:
    """The token map of a conditioning's entry, built when its positions are first requested."""

    def __init__(self, entry: Mapping[str, Any] | Sequence[Any]):
        self._entry = entry

    @cached_property
    def _map(self) -> TokenMap:
        return token_map_of(self._entry)

    def positions(self, phrases: Iterable[str] = (), part: str = "all") -> tuple[int, ...]:
        """As `TokenMap.positions`. Raises: NoTokenMap, too."""
        return self._map.positions(phrases, part)


def note_map(context: torch.Tensor, token_map: TokenMap) -> None:
    """Note an explicit token map of a context [B, L, W]."""
    _notes[context] = Note(_checksum(context), token_map=token_map)


def _checksum(context: torch.Tensor) -> torch.Tensor:
    """A number for each position, of the bits of its values: [B, L], int64."""
    bits, size = context.detach().contiguous(), context.element_size()
    # Sums of int64 need no copy of the context, and wrap around in every order to the same number.
    bits = bits.view(torch.int64 if context.shape[-1] * size % 8 == 0 else _INTEGERS[size])
    return bits.sum(dim=-1, dtype=torch.int64)


def _is_as_noted(context: torch.Tensor, note: Note) -> bool:
    """True if the context was not written to since it was noted."""
    return torch.equal(_checksum(context), note.checksum)


def _parts(context: torch.Tensor) -> list[tuple[torch.Tensor, Note]]:
    """The noted contexts that a context is made of along its length, by its values.

    Returns: one with its note if it was only copied or moved; several if ConditioningConcat joined them; else [].
    """
    rows = context.shape[1] if context.ndim == 3 else 0
    noted = [(known, note) for known, note in list(_notes.items()) if _may_be_in(known, context)]
    noted = [(known.to(context), note) for known, note in noted if _is_as_noted(known, note)]
    dead_ends: set[int] = set()

    def find(start: int) -> list[tuple[torch.Tensor, Note]] | None:
        if start == rows:
            return []
        for known, note in noted:
            stop = start + known.shape[1]
            if stop <= rows and stop not in dead_ends and torch.equal(context[:, start:stop], known):
                rest = find(stop)
                if rest is not None:
                    return [(known, note), *rest]
        dead_ends.add(start)
        return None

    return find(0) or []


def _may_be_in(known: torch.Tensor, context: torch.Tensor) -> bool:
    (batch, length, width) = known.shape
    return (batch, width) == (context.shape[0], context.shape[2]) and 0 < length <= context.shape[1]


def _note(clip: Any, tokens: Any, contexts: Iterable[Any]) -> None:
    """Note the prompt of contexts that a CLIP just encoded. ComfyUI's call must not fail because of it."""
    try:
        prompt = None
        for context in contexts:
            if torch.is_tensor(context) and context.ndim == 3:
                prompt = prompt or prompt_of(clip, tokens)
                _notes[context] = Note(_checksum(context), prompt)
    except Exception as error:
        log.debug("no token map can be made for this prompt: %s", error)


def _wrap(cls: Any) -> None:
    """Wrap the methods of ComfyUI's CLIP that encode tokens."""
    encode, scheduled = cls.encode_from_tokens, cls.encode_from_tokens_scheduled

    @wraps(encode)
    def encode_from_tokens(self, *args, **kwargs):
        out = encode(self, *args, **kwargs)
        context = out.get("cond") if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
        _note(self, args[0] if args else kwargs.get("tokens"), [context])
        return out

    @wraps(scheduled)
    def encode_from_tokens_scheduled(self, *args, **kwargs):
        out = scheduled(self, *args, **kwargs)
        # With scheduled hooks ComfyUI calls the text model itself. All else came through the method above, or
        # through another node's replacement of it, whose contexts are not known.
        if self.patcher.forced_hooks is not None and self.use_clip_schedule:
            _note(self, args[0] if args else kwargs.get("tokens"), [entry[0] for entry in out])
        return out

    cls.encode_from_tokens, cls.encode_from_tokens_scheduled = encode_from_tokens, encode_from_tokens_scheduled


_wrap(comfy.sd.CLIP)
