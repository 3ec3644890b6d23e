"""How much of a text can be encoded: for more, ComfyUI's tokenizers and T5 need minutes or gigabytes, and no cancel."""

from __future__ import annotations

import re

MOST_CHARACTERS = 50_000  # of a prompt
MOST_TOKENS = 2_048  # of an encoder that reads a prompt as a whole: its attention grows with their square
_LONGEST_WORD = 1_000  # letters: CLIP's tokenizer needs a time that grows with their square
_DEEPEST = 100  # parentheses in parentheses: ComfyUI reads each by a call of its own
_LONG_WORD = re.compile(rf"[^\W_]{{{_LONGEST_WORD + 1},}}")


def why_too_much(text: str) -> tuple[str, str] | None:
    """What in a prompt is too much to be tokenized, and what would be right; None if it can be."""
    if len(text) > MOST_CHARACTERS:
        return f"it has {len(text):,} characters", f"Write at most {MOST_CHARACTERS:,}"
    if word := _LONG_WORD.search(text):
        found = f"it has a word of {len(word[0]):,} letters, {word[0][:20]!r}..."
        return found, f"Write words of at most {_LONGEST_WORD:,} letters"
    if (depth := _depth(text)) > _DEEPEST:
        return f"it has parentheses in parentheses, {depth:,} deep", f"Write at most {_DEEPEST}"
    return None


def _depth(text: str) -> int:
    deepest = depth = 0
    for sign in text:
        if sign in "()":
            depth += 1 if sign == "(" else -1
            deepest = max(deepest, depth)
    return deepest
