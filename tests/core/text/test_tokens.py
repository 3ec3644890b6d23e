"""Phrases in the tokens of several encoders."""

from __future__ import annotations

import pytest

from mmdit_core.text.tokens import EncoderTokens, PartNotFound, PhraseNotFound, TokenMap, words_of, words_of_entries

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
    ("phrases", "part", "positions"),
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
def test_a_phrase_is_found_in_every_encoder_of_the_part(phrases, part, positions):
    assert token_map().positions(phrases, part) == positions


@pytest.mark.parametrize("phrase", ["ed", "cir", "blue circle", "circle red", "redcirclex"])
def test_a_phrase_that_is_not_in_the_prompt_is_an_error_with_the_prompts_words(phrase):
    with pytest.raises(PhraseNotFound, match="is not in the prompt.*red circle") as caught:
        token_map().positions([phrase])
    assert (caught.value.phrase, caught.value.part, caught.value.missing) == (phrase, "all", ())
    assert caught.value.words == ("a red circle , red", "a red circle, red")


def test_a_phrase_error_names_the_encoders_that_are_missing():
    assert token_map(clip_present=False).positions(["red"]) == (78, 81)
    with pytest.raises(PhraseNotFound, match=r"clip part .CLIP-L, CLIP-G: missing or dropped.") as caught:
        token_map(clip_present=False).positions(["red"], "clip")
    assert caught.value.missing == ("CLIP-L", "CLIP-G") and caught.value.words == ("a red circle, red",)


def test_a_part_without_an_encoder_is_an_error_with_the_encoders_there_are():
    with pytest.raises(PartNotFound, match="no clip part .*: missing or dropped.; its encoders are: T5") as caught:
        token_map(clip_present=False).positions([], "clip")
    assert (caught.value.part, caught.value.encoders) == ("clip", ("T5",))


def test_missing_encoders_have_no_positions():
    assert token_map(clip_present=False).positions() == tuple(range(77, 154))


@pytest.mark.parametrize(
    ("prompt", "phrase", "found"),
    [
        (["blue,", "(red)", "-haired"], "blue", (0,)),
        (["blue,", "(red)", "-haired"], "red", (1,)),
        (["blue,", "(red)", "-haired"], "haired", (2,)),
        (["blue,", "(red)", "-haired"], "-haired", (2,)),
        (["blue,", "(red)", "-haired"], "red) -haired", (1, 2)),
        (["blue", ",", "red"], ", red", (1, 2)),
        (["blue", ",", "red"], "blue red", ()),
        (["hundred", "red", "redder"], "red", (1,)),
        (["红色的猫"], "色的", (0,)),
        (["红", "色", "的", "猫"], "色的", (1, 2)),
        (["红色", "色红色"], "红色", (0, 1)),
    ],
)
def test_punctuation_around_a_phrase_does_not_hide_it(prompt, phrase, found):
    words = words_of([(word, True, index) for index, word in enumerate(prompt)])
    tokens = TokenMap((EncoderTokens("T5", False, 0, len(prompt), words),))
    if found:
        assert tokens.positions([phrase]) == found
    else:
        with pytest.raises(PhraseNotFound):
            tokens.positions([phrase])


def test_entries_of_each_kind_of_vocabulary_join_to_the_same_words():
    clip = [("a</w>", 1), ("cir", 2), ("cle</w>", 3), (",</w>", 4), ("red</w>", 5)]
    t5 = [("\u2581a", 7), ("\u2581cir", 8), ("cle", 9), (",", 10), ("\u2581red", 11)]
    qwen = [("a", 0), ("\u0120cir", 1), ("cle", 2), (",", 3), ("\u0120red", 4)]
    for entries, byte_level in ((clip, True), (t5, False), (qwen, True)):
        words = words_of_entries(entries, byte_level)
        assert [word.text for word in words] == ["a", "circle", ",", "red"]
        first = entries[0][1]
        assert [word.positions for word in words] == [(first,), (first + 1, first + 2), (first + 3,), (first + 4,)]


def test_a_letter_split_over_two_tokens_is_one_word():
    # "é" is the bytes C3 A9, which a byte-level vocabulary writes as two letters.
    words = words_of_entries([("caf\u00c3", 0), ("\u00a9</w>", 1), ("x</w>", 2)], byte_level=True)
    assert [(word.text, word.positions) for word in words] == [("café", (0, 1)), ("x", (2,))]
