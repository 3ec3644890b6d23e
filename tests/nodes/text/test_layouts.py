"""Positions of a word against what ComfyUI's text models do: which embeddings change when one word changes."""

from __future__ import annotations

import sys

import pytest
import torch
from comfy_extras.nodes_qwen import TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus
from comfy_extras.nodes_zimage import TextEncodeZImageOmni

from tests.nodes.text.clips import more_rows

OUTPUTS = ("o_proj.weight", "out_proj.weight", "out_proj.bias", "SelfAttention.o.weight")  # of an attention
CAUSAL = ("qwen", "z_image", "krea2", "flux2", "klein", "lumina2", "hunyuan_video", "hunyuan_image", "kandinsky5",
          "longcat", "ovis", "omnigen2", "ideogram4", "sdxl")  # fmt: skip
MORE = tuple(more_rows())
BOTH_WAYS = ("sd3", "flux", "chroma", "aura", "mochi", "ltxv", "cosmos", "cogvideo", "wan", "hidream")  # T5's attention
CAUSAL += tuple(name for name in MORE if name not in (*BOTH_WAYS, "newbie"))
NAMES = (*CAUSAL, *BOTH_WAYS[:4], *MORE)
NAMES = tuple(dict.fromkeys(NAMES))
PROMPT = "a photo of a {} circle and one star, large"
# Those that read (word:1.3) as a weight; the others read its letters.
OWN = ("sd3", "flux", "sdxl", "chroma", *(name for name in ("cosmos", "wan", "hidream") if name in MORE))
QUOTING = ("hunyuan_image", "hunyuan_video_15")


@pytest.fixture(scope="module")
def contexts(pack):
    return sys.modules[f"{pack.__name__}.nodes.comfyui.text.contexts"]


@pytest.fixture
def without_attention(families):
    """CLIP -> the same CLIP while its attention gives nothing, so that a position depends on its own token alone."""
    with torch.no_grad():
        changed: list[tuple[torch.Tensor, torch.Tensor]] = []

        def remove(clip):
            for name, parameter in clip.cond_stage_model.named_parameters():
                if name.endswith(OUTPUTS):
                    changed.append((parameter, parameter.clone()))
                    parameter.zero_()
            assert changed
            return clip

        yield remove
        for parameter, before in changed:
            parameter.copy_(before)


def encode(clip, prompt: str, **options):
    """A CONDITIONING as CLIPTextEncode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt, **options))


def changed(a, b) -> tuple[int, ...]:
    """Positions at which two conditionings of one length differ."""
    (a,), (b,) = a, b
    assert a[0].shape == b[0].shape
    return tuple(torch.nonzero((a[0] - b[0]).abs().amax(-1)[0] > 1e-6).flatten().tolist())


def positions(contexts, conditioning, phrase: str) -> tuple[int, ...]:
    return contexts.token_map_of(conditioning[0]).positions([phrase])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prompt", [PROMPT, "{}", PROMPT + ", a {} ball", "one " * 90 + PROMPT], ids=range(4))
def test_the_positions_of_a_word_are_those_that_another_word_changes(
    contexts, families, without_attention, name, prompt
):
    clip = without_attention(families(name))
    red, blue = encode(clip, prompt.format("red", "red")), encode(clip, prompt.format("blue", "blue"))
    assert positions(contexts, red, "red") == changed(red, blue) == positions(contexts, blue, "blue") != ()


@pytest.mark.parametrize("name", OWN)
def test_the_positions_of_a_weighted_word(contexts, families, without_attention, name):
    clip, prompt = without_attention(families(name)), "a (big ({}:1.3) circle:0.7), a {}"
    red, blue = encode(clip, prompt.format("red", "star")), encode(clip, prompt.format("blue", "star"))
    assert positions(contexts, red, "red") == changed(red, blue) != ()
    assert positions(contexts, red, "red circle")


@pytest.mark.parametrize("name", CAUSAL)
def test_another_word_changes_a_causal_models_context_from_its_first_position_on(contexts, families, name):
    red, blue = (encode(families(name), PROMPT.format(word)) for word in ("red", "blue"))
    assert min(positions(contexts, red, "red")) == changed(red, blue)[0]


TEMPLATED = ["qwen", "krea2", "z_image", "klein", "hunyuan_image", "ovis", "flux2", "lumina2", "ideogram4"]
TEMPLATED += [name for name in ("boogu", "mage_flow", "joyimage", "lens", "hunyuan_video_15") if name in MORE]


@pytest.mark.parametrize("name", TEMPLATED)
@pytest.mark.parametrize("word", ["color", "user", "assistant", "background", "image", "think", "structured"])
def test_words_of_a_template_are_no_words_of_the_prompt(contexts, families, name, word):
    conditioning = encode(families(name), PROMPT.format("red"))
    with pytest.raises(ValueError, match="is not in the prompt.*words: a photo of a red circle and one star ?, large$"):
        positions(contexts, conditioning, word)
    found = positions(contexts, encode(families(name), f"{word}, a red {word}"), f"red {word}")
    assert found and max(found) > min(positions(contexts, encode(families(name), f"{word}, a red {word}"), word))


def test_an_empty_prompt_of_boogu_has_another_template_and_no_words(contexts, families):
    if "boogu" in MORE:
        with pytest.raises(ValueError, match="is not in the prompt. The prompt's words: none$"):
            positions(contexts, encode(families("boogu"), ""), "image")


@pytest.mark.parametrize("name", [name for name in QUOTING if name in NAMES])
@pytest.mark.parametrize(("quote", "unquote"), ['""', "\u201c\u201d", "\u2018\u2019"])
def test_a_quoted_word_is_in_byt5s_tokens_too(contexts, families, without_attention, name, quote, unquote):
    """HunyuanImage 2.1 has these tokens after the prompt's, HunyuanVideo 1.5 before them."""
    clip = without_attention(families(name))
    prompt = f"a {{}} sign (big:1.3) that says {quote}one {{}} caf\u00e9{unquote} and {quote}star{unquote}"
    red, mix = (encode(clip, prompt.format(word, word)) for word in ("red", "mix"))  # no letter in the same place
    glyphs, others = (each[0][1]["conditioning_byt5small"][0] for each in (red, mix))
    own, length = changed(red, mix), red[0][0].shape[1]
    letters = torch.nonzero((glyphs - others).abs().amax(-1) > 1e-6).flatten().tolist()
    assert len(own) == 2 and len(letters) == 3
    theirs = [letters[0] - 1, *letters]  # a word has the space before it
    after, before = (contexts.LazyTokenMap(red[0], first=first) for first in (False, True))
    assert after.positions(["red"]) == (*own, *(letter + length for letter in theirs))
    assert before.positions(["red"]) == (*(letter - len(glyphs) for letter in theirs), *own)
    assert len(after.positions(["star"], "t5")) == 4 and len(after.positions(["caf\u00e9"], "t5")) == 6
    for phrase in ("text", "caf\u00e9 star"):  # of the sentences around the quoted text; across two of them
        with pytest.raises(ValueError, match="is not in the prompt"):
            after.positions([phrase], "t5")


def test_hidreams_blocks_read_a_word_in_llamas_tokens_twice(contexts, families, without_attention):
    clip = without_attention(families("hidream"))
    red, blue = (encode(clip, PROMPT.format(word)) for word in ("red", "blue"))
    llama, other = (each[0][1]["conditioning_llama3"] for each in (red, blue))
    theirs = torch.nonzero((llama - other).abs().amax((1, 3))[0] > 1e-6).flatten().tolist()
    own, length = changed(red, blue), red[0][0].shape[1]
    twice = [start + place for start in (length, length + llama.shape[2]) for place in theirs]
    assert len(theirs) == 1
    assert contexts.LazyTokenMap(red[0], twice=True).positions(["red"]) == (*own, *twice)
    red[0][1]["conditioning_llama3"] = llama * 1.1
    with pytest.raises(ValueError, match="changed after it was encoded"):
        contexts.LazyTokenMap(red[0], twice=True).positions(["red"])


IMAGES = [torch.zeros(1, 56, 84, 3), torch.zeros(1, 112, 56, 3), torch.zeros(1, 84, 84, 3)]


@pytest.mark.parametrize("name", ["qwen", "krea2", "longcat", *(n for n in ("boogu", "mage_flow") if n in MORE)])
def test_text_behind_an_image(contexts, families, without_attention, name):
    clip = without_attention(families(name))
    red, blue = (encode(clip, f"make the {word} cat larger", images=IMAGES[:1]) for word in ("red", "blue"))
    assert positions(contexts, red, "red") == changed(red, blue) != ()


@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_the_nodes_for_qwen_image_edit(contexts, families, without_attention, images):
    clip = without_attention(families("qwen"))
    given = {f"image{n + 1}": image for n, image in enumerate(IMAGES[:images])}
    encoded = {}
    for word in ("red", "blue"):
        prompt = f"make the {word} cat larger"
        encoded[word, "plus"] = TextEncodeQwenImageEditPlus.execute(clip, prompt, **given).args[0]
        encoded[word, "one"] = TextEncodeQwenImageEdit.execute(clip, prompt, image=given.get("image1")).args[0]
    for node in ("plus", "one"):
        red, blue = encoded["red", node], encoded["blue", node]
        assert positions(contexts, red, "red") == changed(red, blue) != ()
        with pytest.raises(ValueError, match="is not in the prompt"):
            positions(contexts, red, "features")  # a word of these nodes' template
    if images == 3:
        assert positions(contexts, encoded["red", "plus"], "picture 1")
        with pytest.raises(ValueError, match="'picture 2' is between two images"):
            positions(contexts, encoded["red", "plus"], "picture 2")


def test_the_node_for_z_image_omni(contexts, families, without_attention):
    clip = without_attention(families("z_image"))
    red, blue = (
        TextEncodeZImageOmni.execute(clip, f"make the {word} cat larger", image1=IMAGES[0]).args[0]
        for word in ("red", "blue")
    )
    assert positions(contexts, red, "red") == changed(red, blue) != ()
    for word in ("assistant", "user"):
        with pytest.raises(ValueError, match="words: make the red cat larger$"):
            positions(contexts, red, word)


def test_lumina2s_system_prompt_is_no_part_of_the_prompt(contexts, families, without_attention):
    clip = without_attention(families("lumina2"))
    red, blue = (encode(clip, f"a large red sky <Prompt Start> a {word} star") for word in ("red", "blue"))
    assert positions(contexts, red, "red") == changed(red, blue) != ()
    with pytest.raises(ValueError, match="words: a red star$"):
        positions(contexts, red, "large")


def test_letters_that_gemma_spells_in_bytes(contexts, families, without_attention):
    clip = without_attention(families("lumina2"))
    first, second = encode(clip, "a \u732b star"), encode(clip, "a \u72d7 star")
    found = positions(contexts, first, "\u732b")
    assert len(found) >= 3 and set(changed(first, second)) <= set(found)


def test_flux2_padded_on_the_left(contexts, families, without_attention):
    clip = without_attention(families("flux2"))
    red, blue = (encode(clip, PROMPT.format(word), min_length=512) for word in ("red", "blue"))
    assert red[0][0].shape[1] == 512 and positions(contexts, red, "red") == changed(red, blue)


def test_a_textual_inversion_of_several_vectors(contexts, families, without_attention):
    clip = without_attention(families("flux"))
    encoded = []
    for word in ("red", "blue"):
        tokens = clip.tokenize(f"a star, a {word} circle")
        tokens["t5xxl"][0][1:1] = [(torch.ones(3, 32), 1.0), (torch.ones(32), 1.0)]
        encoded.append(clip.encode_from_tokens_scheduled(tokens))
    red, blue = encoded
    assert positions(contexts, red, "red") == changed(red, blue) != ()


@pytest.mark.parametrize(("name", "parts"), [("qwen", "Qwen2.5-VL 7B"), ("flux2", "Mistral 3 24B"), ("aura", None)])
@pytest.mark.parametrize("part", ["clip", "t5"])
def test_a_part_that_the_encoder_is_not_says_what_there_is(contexts, families, name, parts, part):
    token_map = contexts.token_map_of(encode(families(name), "a red circle")[0])
    if name == "aura" and part == "t5":
        assert token_map.positions((), "t5") == tuple(range(256))
        return
    for phrases in ([], ["red"]):
        with pytest.raises(ValueError, match=f"no {part} part; its encoders are: {parts or 'Pile-T5'}"):
            token_map.positions(phrases, part)
