"""Prompts through ComfyUI's CLIP: tokens, token counts and conditioning."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....mmdit_core.text.encoders import TextStrengths, TextWidths, cut_t5, scale_parts
from ....mmdit_core.text.tokens import WORD_START, TokenMap
from .contexts import TOKEN_MAP, note_map
from .layouts import UnknownLayout
from .token_maps import build_map, prompt_of
from .vocabulary import ENCODERS, Vocabulary, attribute_of, label_of

STRENGTH_OF = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5"}  # token key -> field of TextStrengths
EMBEDDING = re.compile(r"(?<!\S)[(\[]*embedding:([^\s,:()\[\]<]+)")  # a textual inversion in a prompt
MOST_EMBEDDINGS = 20  # of a prompt that are looked up: each is tokenized alone
Tokens = dict[str, Any]  # token key -> chunks
Chunk = list[tuple[Any, float]]  # (token id or embedding, weight)


@dataclass(frozen=True)
class TokenCount:
    """The tokens of one prompt in one encoder, without start, end and padding.

    Fields: key, label of the encoder; used, the number that it reads, in so many chunks, the vectors of textual
    inversions included; cut, the tokens that it does not read, as text; present, False if the CLIP lacks the encoder;
    unread, the names of textual inversions without vectors for it.
    """

    key: str
    label: str
    used: int
    chunks: int
    cut: tuple[str, ...]
    present: bool
    unread: tuple[str, ...] = ()


class Encoders:
    """The text encoders of a CLIP, and the tokens of an empty prompt, which are computed once."""

    def __init__(self, clip):
        self.clip = clip
        self.empty: Tokens = clip.tokenize("")

    @property
    def names(self) -> list[str]:
        """The token keys of this CLIP's tokenizer: ["l", "g", "t5xxl"] for SD3."""
        return [*(key for key in ENCODERS if key in self.empty), *(key for key in self.empty if key not in ENCODERS)]

    @property
    def is_sd3(self) -> bool:
        """True if the tokenizer is SD3's."""
        return set(self.empty) == set(ENCODERS)

    @property
    def missing(self) -> list[str]:
        """The token keys of SD3's encoders that this CLIP lacks."""
        return [key for key in ENCODERS if not self.is_present(key)]

    def is_present(self, key: str) -> bool:
        """True if the CLIP has the encoder's weights; SD3's tokenizer makes tokens for absent ones, too."""
        return attribute_of(self.clip.cond_stage_model, key) is not None

    def tokenize(self, prompts: dict[str, str], t5_limit: int | None) -> tuple[Tokens, list[TokenCount]]:
        """Tokenize one prompt for each encoder.

        Args: prompts, token key -> text; t5_limit, the largest number of T5 tokens, None for all.
        Returns: ComfyUI's tokens, CLIP-L and CLIP-G padded to equal length; one count for each encoder.
        """
        cache = {"": self.empty, **{text: self.clip.tokenize(text) for text in set(prompts.values()) if text}}
        tokens: Tokens = {key: cache[text][key] for key, text in prompts.items()}
        cut: dict[str, tuple[str, ...]] = {}
        if "t5xxl" in tokens and t5_limit is not None:
            parts = [cut_t5(self._without_padding("t5xxl", chunk, t5_limit), t5_limit) for chunk in tokens["t5xxl"]]
            tokens["t5xxl"] = [used for used, _ in parts]
            cut["t5xxl"] = tuple(self._as_text("t5xxl", token) for _, dropped in parts for token, *_ in dropped)
        if "l" in tokens and "g" in tokens:
            length = max(len(tokens["l"]), len(tokens["g"]))
            for key in ("l", "g"):
                tokens[key] = tokens[key] + self.empty[key] * (length - len(tokens[key]))
        counts = []
        for key, chunks in tokens.items():
            used, present = sum(map(len, self._content(key, chunks))), self.is_present(key)
            used += self._vectors(key, chunks)
            names = tuple(dict.fromkeys(EMBEDDING.findall(prompts[key])))[:MOST_EMBEDDINGS]
            unread = tuple(name for name in names if not self._vectors(key, self._embedding(name)[key]))
            counts.append(TokenCount(key, label_of(key), used, len(chunks), cut.get(key, ()), present, unread))
        return tokens, counts

    def token_map(self, tokens: Tokens, context: torch.Tensor, dropped: Collection[str] = ()) -> TokenMap:
        """Locate each encoder's words in the context that was encoded from these tokens.

        Args: context [1, L, W]; dropped, token keys of encoders whose part is zeros.
        Raises: UnknownLayout for a text model that puts them where it is not known.
        """
        return build_map(prompt_of(self.clip, tokens), context.shape[1], dropped)

    def encode(self, tokens: Tokens, strengths: TextStrengths):
        """Encode tokens to a CONDITIONING, each encoder's part scaled by its strength (SD3 text models only).

        Each entry carries its token map, which ComfyUI's combine, area, mask and timestep-range nodes keep.
        """
        t5_tokens = sum(map(len, tokens.get("t5xxl", ()))) if self.is_present("t5xxl") else 0
        # Our own text model has widths; ComfyUI's has SD3's.
        widths = getattr(self.clip.cond_stage_model, "widths", None) or TextWidths()
        dropped = {key for key, name in STRENGTH_OF.items() if not getattr(strengths, name)}
        conditioning = []
        for context, options in self.clip.encode_from_tokens_scheduled(tokens):
            encoded = context
            if strengths != TextStrengths():
                clip_tokens, pooled = context.shape[1] - t5_tokens, options.get("pooled_output")
                context, options["pooled_output"] = scale_parts(
                    context, pooled, strengths, clip_tokens=clip_tokens, widths=widths
                )
            conditioning.append([context, {**options, **self._mapped(tokens, encoded, context, dropped)}])
        return conditioning

    def zeros(self, tokens: Tokens):
        """A CONDITIONING of zeros in the tokens' length: a dropped prompt in SD3's training."""
        conditioning = []
        for context, options in self.clip.encode_from_tokens_scheduled(tokens):
            pooled = options.get("pooled_output")
            pooled = None if pooled is None else torch.zeros_like(pooled)
            zeros = torch.zeros_like(context)
            token_map = self._mapped(tokens, context, zeros, dropped=tokens)
            conditioning.append([zeros, {**options, "pooled_output": pooled, **token_map}])
        return conditioning

    def _mapped(self, tokens: Tokens, encoded: torch.Tensor, context: torch.Tensor, dropped: Collection[str]):
        """The option with the token map of a context that was changed after it was encoded; {} if none can be made."""
        try:
            token_map = self.token_map(tokens, encoded, dropped)
        except UnknownLayout:
            return {}
        note_map(context, token_map)
        return {TOKEN_MAP: token_map}

    def _embedding(self, name: str) -> Tokens:
        """The tokens of a textual inversion alone."""
        return self.clip.tokenize(f"embedding:{name}")

    def _vectors(self, key: str, chunks: Sequence[Chunk]) -> int:
        """The vectors of textual inversions among an encoder's tokens; ComfyUI leaves out those of another width."""
        model: Any = getattr(attribute_of(self.clip.cond_stage_model, key), "transformer", None)
        width = model.get_input_embeddings().weight.shape[-1] if hasattr(model, "get_input_embeddings") else None
        vectors = [token for chunk in chunks for token, *_ in chunk if torch.is_tensor(token)]
        return sum(width in (None, vector.shape[-1]) for vector in vectors)

    def _vocabulary(self, key: str) -> Vocabulary:
        tokenizer = attribute_of(self.clip.tokenizer, key) or self.clip.tokenizer
        return Vocabulary(key, tokenizer, tuple(token for token, *_ in self.empty[key][0]))

    def _without_padding(self, key: str, chunk: Chunk, limit: int) -> Chunk:
        """A chunk without the padding beyond a limit."""
        pad, length = {getattr(self._vocabulary(key).tokenizer, "pad_token", None)}, len(chunk)
        while length > limit and _is_one_of(chunk[length - 1][0], pad):
            length -= 1
        return chunk[:length]

    def _as_text(self, key: str, token: Any) -> str:
        if not isinstance(token, int):
            return "(embedding)"
        return self._vocabulary(key).entries.get(token, "").lstrip("".join(WORD_START))

    def _content(self, key: str, chunks: list[Chunk]):
        """The tokens of the prompt itself, as `Vocabulary.content` gives them."""
        return self._vocabulary(key).content([[token for token, *_ in chunk] for chunk in chunks])


def _is_one_of(token: Any, ids: Collection[Any]) -> bool:
    return isinstance(token, int) and token in ids  # all other tokens are embeddings
