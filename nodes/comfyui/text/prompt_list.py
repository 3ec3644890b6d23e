"""Many prompts through ComfyUI's CLIP, each with all that another conditioning has besides its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..frontend import messages
from ..frontend.progress import raise_if_cancelled
from .contexts import MORE_TEXTS, TOKEN_MAP

Conditioning = list[list[Any]]  # entries: [context, options]
# Options of a conditioning that belong to its text: what ComfyUI's text models return next to the context.
TEXT_OPTIONS = {
    "pooled_output", "attention_mask", TOKEN_MAP, *MORE_TEXTS, "conditioning_mt5xl", "attention_mask_mt5xl",
    "conditioning_lyrics", "lyrics", "audio_codes", "num_layers_stacked", "deepstack", "deepstack_embeds", "grid",
    "visual_pos_masks", "minimax_token_tags", "t5xxl_ids", "t5xxl_weights", "sam3_multi_cond",
}  # fmt: skip


def encode_each(clip, texts: Sequence[str], options: Mapping[str, Any], node_id: str | None) -> list[Conditioning]:
    """Encode each text as CLIPTextEncode does.

    Args: options, of another conditioning: each prompt gets those that do not belong to the text.
    Raises: ComfyUI's interrupt if the run is cancelled.
    """
    others = {name: value for name, value in options.items() if name not in TEXT_OPTIONS}
    made = []
    for number, text in enumerate(texts, start=1):
        messages.show_text(node_id, f"encoding prompt {number} of {len(texts)}")
        entries = clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False)
        # The same context object: token maps are noted by it. Hooks and ranges that the CLIP sets go before others.
        made.append([[context, {**others, **own}] for context, own in entries])
        raise_if_cancelled()
    return made
