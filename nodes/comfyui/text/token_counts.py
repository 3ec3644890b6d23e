"""Token counts of a prompt without a model: ComfyUI ships the vocabularies of SD3's three encoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import SimpleNamespace

from comfy.text_encoders.sd3_clip import SD3Tokenizer

from .conditioning import Encoders, TokenCount


class _Tokenizers:
    """The part of a CLIP that `Encoders` counts with; its text model claims all three encoders."""

    cond_stage_model = SimpleNamespace(clip_l=True, clip_g=True, t5xxl=True)

    def __init__(self) -> None:
        self.tokenizer = SD3Tokenizer()

    def tokenize(self, text: str):
        return self.tokenizer.tokenize_with_weights(text)


@lru_cache(maxsize=1)
def _sd3() -> Encoders:
    return Encoders(_Tokenizers())


def count(text: str, own: Mapping[str, str], t5_limit: int | None) -> list[TokenCount]:
    """Count a prompt's tokens in each of SD3's encoders.

    Args: own, token key -> a prompt for this encoder alone, empty for the text; t5_limit as for `Encoders.tokenize`.
    """
    encoders = _sd3()
    return encoders.tokenize({key: own.get(key) or text for key in encoders.names}, t5_limit)[1]
