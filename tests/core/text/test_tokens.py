"""Phrases in the tokens of several encoders."""

from __future__ import annotations

import pytest

from mmdit_core.text.tokens import EncoderTokens, PhraseError, TokenMap, words_of

CLIP = words_of(
    [("a", True, 1), ("red", True, 2), ("cir", True, 3), ("cle", False, 4), (",", True, 5), ("red", True, 6)]
)
T5 = words_of([("A", True, 77), ("red", True, 78), ("circle", True, 79), (",", False, 80), ("red", True, 81)])


def token_map(clip_present: bool = True) -> TokenMap:
    return TokenMap(
        (
            EncoderTokens("CLIP-L", True, 0, 77, CLIP, clip_present),
            EncoderTokens("CLIP-G", True, 0, 77, CLIP, clip_present),
            EncoderTokens("T5", False, 77, 154, T5),
        )
    )


@pytest.mark.parametrize(
    ("phrases", "part", "places"),
    [
        (["circle"], "all", (3, 4, 79, 80)),
        (["Red  Circle"], "all", (2, 3, 4, 78, 79, 80)),
        (["red"], "clip", (2, 6)),
        (["red"], "t5", (78, 81)),
        (["circle, red"], "all", (3, 4, 5, 6, 79, 80, 81)),
        (["a", "circle"], "clip", (1, 3, 4)),
        ([], "clip", tuple(range(77))),
        (["", " "], "t5", tuple(range(77, 154))),
        ([], "all", tuple(range(154))),
    ],
)
def test_a_phrase_is_found_in_every_encoder_of_the_part(phrases, part, places):
    assert token_map().positions(phrases, part) == places


@pytest.mark.parametrize("phrase", ["ed", "cir", "blue circle", "circle red", "redcirclex"])
def test_what_is_not_there_is_an_error_with_the_prompts_words(phrase):
    with pytest.raises(PhraseError, match="is not in the prompt.*red circle"):
        token_map().positions([phrase])


def test_a_missing_encoder_is_named_where_a_phrase_is_sought_in_it():
    assert token_map(clip_present=False).positions(["red"]) == (78, 81)
    with pytest.raises(PhraseError, match="clip part .CLIP-L, CLIP-G: missing or dropped."):
        token_map(clip_present=False).positions(["red"], "clip")
