"""The shape of a model of each family, and the published models, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

TIMESTEP_ZERO = "index_timestep_zero"
# How Qwen-Image tells reference images apart, by ComfyUI's names: an index for each, 1, 2, ... or -1, -2, ..., with
# TIMESTEP_ZERO also modulated as images without noise; or one index for all, and offsets. "uxo" is a method of FLUX,
# which ComfyUI's Qwen-Image takes for "offset".
REFERENCE_METHODS = ("index", TIMESTEP_ZERO, "negative_index", "offset", "uxo")


class _Sizes:
    """What follows from the fields that every config has."""

    hidden_size: int
    num_heads: int
    depth: int
    in_channels: int
    out_channels: int | None

    @property
    def num_blocks(self) -> int:
        """Blocks of all kinds."""
        return self.depth

    @property
    def head_dim(self) -> int:
        """Channels of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def channels_out(self) -> int:
        """Channels of the output."""
        return self.in_channels if self.out_channels is None else self.out_channels


@dataclass(frozen=True)
class MMDiTConfig(_Sizes):
    """The sizes that determine the parameters of an MMDiT and their shapes.

    Fields: hidden_size, a multiple of num_heads and of 4; depth, the number of joint blocks; mlp_ratio; context_dim and
    pooled_dim, the widths of the two text inputs; patch_size in latent pixels; in_channels of the latent; out_channels,
    None for in_channels; pos_embed_max_size, the side of the position grid in patches; qk_norm, None or "rms";
    dual_attention, the blocks with a second attention over the image alone (SD3.5 Medium); guidance_embed, whether the
    guidance scale is embedded like the timestep; qkv_bias.
    Raises: ValueError if the fields do not fit together.
    """

    hidden_size: int = 1536
    num_heads: int = 24
    depth: int = 24
    mlp_ratio: float = 4.0
    context_dim: int = 4096
    pooled_dim: int = 2048
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    pos_embed_max_size: int = 192
    qk_norm: str | None = None
    dual_attention: tuple[int, ...] = ()
    guidance_embed: bool = False
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        # JSON has lists; a frozen dataclass needs hashable fields.
        object.__setattr__(self, "dual_attention", tuple(self.dual_attention))
        _check_sizes(self, "depth", "pooled_dim")
        if self.hidden_size % 4:
            raise ValueError(f"MMDiTConfig: hidden_size {self.hidden_size} is not a multiple of 4 (2-D positions)")
        if self.qk_norm not in (None, "rms"):
            raise ValueError(f"MMDiTConfig: qk_norm is {self.qk_norm!r}; it must be None or 'rms'")
        beyond = [i for i in self.dual_attention if not 0 <= i < self.depth]
        if beyond:
            raise ValueError(f"MMDiTConfig: dual_attention names {beyond}; the blocks are 0 to {self.depth - 1}")


@dataclass(frozen=True)
class FluxConfig(_Sizes):
    """The sizes that determine the parameters of a FLUX.1 and their shapes.

    Fields: hidden_size, a multiple of num_heads; depth and depth_single_blocks, the number of blocks of each kind;
    mlp_ratio; context_dim and pooled_dim, the widths of the two text inputs; patch_size in latent pixels; in_channels
    of the latent and what is concatenated to it (Fill: a masked image and a mask); out_channels, None for in_channels;
    axes_dim, the channels of a head that turn with the index of an image, its row and its column: even, the whole head
    together; guidance_embed, whether the guidance scale is embedded like the timestep (dev, not schnell).
    Raises: ValueError if the fields do not fit together.
    """

    hidden_size: int = 3072
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    mlp_ratio: float = 4.0
    context_dim: int = 4096
    pooled_dim: int = 768
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    axes_dim: tuple[int, ...] = (16, 56, 56)
    guidance_embed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        _check_sizes(self, "depth", "depth_single_blocks", "pooled_dim", "channels_out")
        _check_axes(self)

    @property
    def num_blocks(self) -> int:
        """Blocks of all kinds."""
        return self.depth + self.depth_single_blocks


@dataclass(frozen=True)
class QwenImageConfig(_Sizes):
    """The sizes that determine the parameters of a Qwen-Image and their shapes, and what no parameter says.

    Fields: hidden_size, a multiple of num_heads; depth, the number of double blocks; mlp_ratio; context_dim, the width
    of the text; patch_size in latent pixels; in_channels of the latent; out_channels, None for in_channels; axes_dim,
    as for FLUX.1; additional_t_cond, whether a second condition is embedded next to the timestep (Layered);
    reference_method, one of REFERENCE_METHODS, for calls that name none.
    Raises: ValueError if the fields do not fit together.
    """

    hidden_size: int = 3072
    num_heads: int = 24
    depth: int = 60
    mlp_ratio: float = 4.0
    context_dim: int = 3584
    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    axes_dim: tuple[int, ...] = (16, 56, 56)
    additional_t_cond: bool = False
    reference_method: str = "index"

    guidance_embed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        _check_sizes(self, "depth", "channels_out")
        _check_axes(self)
        if self.reference_method not in REFERENCE_METHODS:
            right = f"it must be one of {', '.join(REFERENCE_METHODS)}"
            raise ValueError(f"QwenImageConfig: reference_method is {self.reference_method!r}; {right}")


def _check_sizes(config: Any, *names: str) -> None:
    """Raises: ValueError if one of these fields, or of those that every config has, is below 1, or heads do not fit."""
    kind = type(config).__name__
    for name in ("hidden_size", "num_heads", "context_dim", "patch_size", "in_channels", *names):
        if getattr(config, name) < 1:
            raise ValueError(f"{kind}: {name} is {getattr(config, name)}; it must be at least 1")
    if config.hidden_size % config.num_heads:
        found = f"hidden_size {config.hidden_size} is not a multiple of num_heads {config.num_heads}"
        raise ValueError(f"{kind}: {found}")


def _check_axes(config: Any) -> None:
    axes = config.axes_dim
    if len(axes) != 3 or sum(axes) != config.head_dim or any(dim < 0 or dim % 2 for dim in axes):
        right = f"three even numbers that add up to a head's {config.head_dim} channels"
        raise ValueError(f"{type(config).__name__}: axes_dim is {axes}; it must be {right}")


ModelConfig = MMDiTConfig | FluxConfig | QwenImageConfig  # the config of any family

# Source: the tensor shapes in the files that Stability AI, Black Forest Labs and the Qwen team published.
KNOWN_MODELS: dict[str, ModelConfig] = {
    "SD3 Medium": MMDiTConfig(),
    "SD3.5 Medium": MMDiTConfig(pos_embed_max_size=384, qk_norm="rms", dual_attention=tuple(range(13))),
    "SD3.5 Large": MMDiTConfig(hidden_size=2432, num_heads=38, depth=38, qk_norm="rms"),
    "FLUX.1 schnell": FluxConfig(),
    "FLUX.1 dev": FluxConfig(guidance_embed=True),  # and Kontext
    "FLUX.1 Fill dev": FluxConfig(guidance_embed=True, in_channels=96, out_channels=16),
    "Qwen-Image": QwenImageConfig(),  # and Edit, but for 2511
    "Qwen-Image-Edit 2511": QwenImageConfig(reference_method=TIMESTEP_ZERO),
    "Qwen-Image-Layered": QwenImageConfig(additional_t_cond=True, reference_method="negative_index"),
}
