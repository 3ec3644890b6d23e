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

from ....mmdit_core.text.tokens import NoTokenMap, TokenMap, joined, shifted
from .layouts import UnknownLayout
from .token_maps import Prompt, build_map, prompt_of

log = logging.getLogger(__name__)

# Options of a conditioning that hold another encoder's text, which a model reads next to the context.
MORE_TEXTS = ("conditioning_byt5small", "conditioning_llama3")
TOKEN_MAP = "mmdit_tokens"  # a conditioning's option with its token map
CHANGED = "the text was cut, averaged or otherwise changed after it was encoded (ConditioningAverage, for example)"
UNKNOWN = f"{CHANGED}, or no CLIP of ComfyUI encoded it"
ZEROS = "the text was set to zeros after it was encoded (ConditioningZeroOut)"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes of a value -> dtype


@dataclass(frozen=True)
class Note:
    """What is known of a context. Fields: checksum [..., L]; prompt; token_map, if it was made explicitly."""

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
    return map_of(_context(entry), _options(entry))


def _context(entry: Mapping[str, Any] | Sequence[Any]) -> Any:
    return entry.get("cross_attn") if isinstance(entry, Mapping) else entry[0]


def _options(entry: Mapping[str, Any] | Sequence[Any]) -> Mapping[str, Any]:
    return entry if isinstance(entry, Mapping) else entry[1]


def map_of(context: Any, options: Mapping[str, Any]) -> TokenMap:
    """The token map of a context, or of the text in one of the options. Raises: NoTokenMap."""
    if not torch.is_tensor(context):
        raise NoTokenMap("unknown", UNKNOWN)
    note = _notes.get(context)
    if note is not None and not _is_as_noted(context, note):
        raise NoTokenMap("changed", CHANGED)
    parts = [(context, note)] if note is not None else _parts(context)
    if parts:
        return joined([(note.map(part.shape[-2]), part.shape[-2]) for part, note in parts])
    if not context.any():
        raise NoTokenMap("changed", ZEROS)
    raise NoTokenMap("changed", CHANGED) if TOKEN_MAP in options else NoTokenMap("unknown", UNKNOWN)


class LazyTokenMap:
    """The token map of a conditioning's entry in a model's text stream, built when its positions are first requested.

    Positions count from the first token of the context: in a stream where another text comes before it, the positions
    of that text are negative.
    """

    def __init__(self, entry: Mapping[str, Any] | Sequence[Any], first: bool = False, twice: bool = False):
        """Args: first, True if another encoder's text is before the context; twice, True if it is there twice."""
        self._entry, self._first, self._twice = entry, first, twice

    @cached_property
    def _map(self) -> TokenMap:
        context, options = _context(self._entry), _options(self._entry)
        encoders = list(map_of(context, options).encoders)
        stop = context.shape[-2]
        for name in MORE_TEXTS:
            if options.get(name) is None:
                continue
            text, length = map_of(options[name], options), options[name].shape[-2]
            for start in (-length,) if self._first else (stop, stop + length) if self._twice else (stop,):
                encoders += shifted(text, start).encoders
        return TokenMap(tuple(encoders))

    def positions(self, phrases: Iterable[str] = (), part: str = "all") -> tuple[int, ...]:
        """As `TokenMap.positions`. Raises: NoTokenMap, too."""
        return self._map.positions(phrases, part)


def note_map(context: torch.Tensor, token_map: TokenMap) -> None:
    """Note an explicit token map of a context [B, L, W]."""
    _notes[context] = Note(_checksum(context), token_map=token_map)


def _checksum(context: torch.Tensor) -> torch.Tensor:
    """A number for each position, of the bits of its values: [..., L], int64."""
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
    rows = context.shape[-2] if context.ndim >= 3 else 0
    noted = [(known, note) for known, note in list(_notes.items()) if _may_be_in(known, context)]
    noted = [(known.to(context), note) for known, note in noted if _is_as_noted(known, note)]
    dead_ends: set[int] = set()

    def find(start: int) -> list[tuple[torch.Tensor, Note]] | None:
        if start == rows:
            return []
        for known, note in noted:
            stop = start + known.shape[-2]
            if stop <= rows and stop not in dead_ends and torch.equal(context[..., start:stop, :], known):
                rest = find(stop)
                if rest is not None:
                    return [(known, note), *rest]
        dead_ends.add(start)
        return None

    return find(0) or []


def _may_be_in(known: torch.Tensor, context: torch.Tensor) -> bool:
    (*batch, length, width), (*own, rows, channels) = known.shape, context.shape
    return (batch, width) == (own, channels) and 0 < length <= rows


def _note(clip: Any, tokens: Any, context: Any, options: Mapping[str, Any]) -> None:
    """Note the prompt of a context that a CLIP just encoded. ComfyUI's call must not fail because of it."""
    try:
        for option, text in (("", context), *((name, options.get(name)) for name in MORE_TEXTS)):
            if torch.is_tensor(text) and text.ndim >= 3:
                _notes[text] = Note(_checksum(text), prompt_of(clip, tokens, option))
    except Exception as error:
        log.debug("no token map can be made for this prompt: %s", error)


def _wrap(cls: Any) -> None:
    """Wrap the methods of ComfyUI's CLIP that encode tokens."""
    encode, scheduled = cls.encode_from_tokens, cls.encode_from_tokens_scheduled

    @wraps(encode)
    def encode_from_tokens(self, *args, **kwargs):
        out = encode(self, *args, **kwargs)
        options = out if isinstance(out, dict) else {}
        context = out.get("cond") if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
        _note(self, args[0] if args else kwargs.get("tokens"), context, options)
        return out

    @wraps(scheduled)
    def encode_from_tokens_scheduled(self, *args, **kwargs):
        out = scheduled(self, *args, **kwargs)
        # With scheduled hooks ComfyUI calls the text model itself. All else came through the method above, or
        # through another node's replacement of it, whose contexts are not known.
        if self.patcher.forced_hooks is not None and self.use_clip_schedule:
            for context, options in out:
                _note(self, args[0] if args else kwargs.get("tokens"), context, options)
        return out

    cls.encode_from_tokens, cls.encode_from_tokens_scheduled = encode_from_tokens, encode_from_tokens_scheduled


_wrap(comfy.sd.CLIP)
