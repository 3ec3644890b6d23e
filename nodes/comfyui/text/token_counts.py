"""Token counts of a prompt without any model: the host brings the vocabularies of SD3's three encoders itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import SimpleNamespace

from comfy.text_encoders.sd3_clip import SD3Tokenizer

from .conditioning import Count, Encoders


class _Tokenizers:
    """What `Encoders` needs of a CLIP to count: a tokenizer, and a text model that seems to have every encoder."""

    cond_stage_model = SimpleNamespace(clip_l=True, clip_g=True, t5xxl=True)

    def __init__(self) -> None:
        self.tokenizer = SD3Tokenizer()

    def tokenize(self, text: str):
        return self.tokenizer.tokenize_with_weights(text)


@lru_cache(maxsize=1)
def _sd3() -> Encoders:
    return Encoders(_Tokenizers())


def count(text: str, own: Mapping[str, str], t5_limit: int | None) -> list[Count]:
    """A Count for each of SD3's encoders.

    Args: own, token key -> a prompt for that encoder alone, empty for the text; t5_limit, the most T5 tokens, or None.
    """
    encoders = _sd3()
    return encoders.tokenize({key: own.get(key) or text for key in encoders.names}, t5_limit)[1]
