"""The structure of each family of MMDiT models, as data: one row a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Family:
    """Names of attributes of a diffusion model.

    Fields: double and single, the lists of double (joint) and of single blocks; text, the layers from the encoders'
    text to the first block's, () if they are not known; registers, a tensor [1, n, D] of tokens before the prompt's;
    mask_in_closure, whether its blocks hold the text mask of the whole batch where no hook reaches it.
    """

    double: str
    single: str = ""
    text: tuple[str, ...] = ()
    registers: str = ""
    mask_in_closure: bool = False

    def counts(self, core) -> tuple[int, int]:
        """A model's double and single blocks."""
        return len(getattr(core, self.double)), len(getattr(core, self.single)) if self.single else 0

    def text_layers(self, core) -> list[Any]:
        """The layers that a text passes before the blocks, in order; [] if they are not known."""
        if not self.text or not hasattr(core, self.text[-1]):
            return []
        return [layer for name in self.text if (layer := getattr(core, name, None)) is not None]

    def embed(self, core, context: Tensor) -> Tensor:
        """context [1, L, W] -> [1, L, D], as the blocks take it."""
        for layer in self.text_layers(core):
            context = layer(context)
        return context

    def register_tokens(self, core) -> int:
        """How many tokens come before the prompt's in the text stream."""
        return getattr(core, self.registers).shape[1] if self.registers else 0

    def partial_rows(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a block can run on some rows of a batch. Args: inputs, of the model call."""
        return not (self.mask_in_closure and inputs.get("attention_mask") is not None)


FAMILIES = (
    Family("joint_blocks", text=("context_embedder",)),  # SD3 and SD3.5, ComfyUI's and ours
    Family("double_blocks", "single_blocks", text=("txt_norm", "txt_in")),  # FLUX, Chroma
    Family("transformer_blocks", text=("txt_norm", "txt_in"), mask_in_closure=True),  # Qwen-Image
    Family("double_layers", "single_layers", registers="register_tokens"),  # AuraFlow
)


def family_of(core) -> Family | None:
    """The family of a diffusion model; None if no block hook reaches its blocks."""
    return next((family for family in FAMILIES if hasattr(core, family.double)), None)


def block_counts(core) -> tuple[int, int] | None:
    """How many double (joint) and single blocks a diffusion model has; None if no block hook reaches them."""
    family = family_of(core)
    return None if family is None else family.counts(core)
