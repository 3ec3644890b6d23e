"""The table of model families: what each of ComfyUI's models looks like inside, as data. One row a family.

A model is known by its class in `comfy.supported_models` and by the class of its network. What is in no row is refused
by name with a reason (`refused_models.REFUSED`); a test fails for a class of ComfyUI that is in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import comfy.supported_models

from ...mmdit_core.control.model_call import TextLayout
from ...mmdit_core.models.sd3 import MMDiT
from .block_arguments import (
    ADALN_MODULATION,
    BEFORE_TEXT,
    BOOGU_ARGUMENTS,
    FLUX_MODULATION,
    HIDREAM_ARGUMENTS,
    IDEOGRAM_ARGUMENTS,
    KREA2_ARGUMENTS,
    MORE_ROWS,
    NEXTDIT_ARGUMENTS,
    OMNIGEN_ARGUMENTS,
    OPTIONS,
    QWEN_ARGUMENTS,
    QWEN_MODULATION,
    WAN_NETWORKS,
)
from .refused_models import REFUSED

CORE = "mmdit_core"  # the name of our own network
Sections = tuple[tuple[str, int], ...]  # (name, count) of each kind of block, in order


@dataclass(frozen=True)
class Family:
    """What the nodes know about one kind of network.

    Fields:
        label: its name for people.
        models, networks: classes in `comfy.supported_models`, and of the diffusion model with their modules.
        double, single: its lists of double (two streams) and of single blocks, "" for none; one list alone is the
            first, whatever its blocks are. Refiners are not blocks.
        sections: what people call these lists.
        text: how its blocks take the text.
        width: of the text that it takes, in channels, read from the network; None if unknown.
        patch: latent pixels along a side of an image token; None if the network's `patch_size` says so.
        text_inputs: of the model's inputs, those that belong to the text.
        moves_prompt: of the model's inputs, those with which the prompt's place in the text stream is not known.
        renews: of the model's inputs, the tokens [..., L, C] that each block is given after its text, "" for none.
        no_phrases: why the tokens of a phrase cannot be found in its text stream, "" if they can.
        only_skip: why its blocks can be skipped alone and no control of its text is defined, "" if all are.
        keeps_length: a value of `ref_latents_method` with which its single blocks take texts of one length alone.
        text_changes: True if the text that enters the blocks depends on the timestep.
        hooks: False for networks that call no block hooks; their blocks are reached through `forward`.
        arguments: parameter of a block's `forward` -> argument of a hook, in order, where hooks lack or get no mask.
        single_arguments: the same of single blocks, where they differ.
        returns: what a block's `forward` gives back, by the hook's names, if it gives back two streams.
        text_from: of such a network, the module that gives out the text, the last one of a list; "" with `img_slice`.
        image_from: the module that gives out the image, where one stream holds [image; text].
        attention_in: the module of code whose `optimized_attention` is not given the call's options, "" if it is.
        modulation: patterns of the names of its modulation layers' modules; () where a table of them is not made.
        half_modulation: of these, those given half of the vector's rows, where references have rows of their own.
    """

    label: str
    models: tuple[str, ...]
    networks: tuple[str, ...]
    double: str = ""
    single: str = ""
    sections: tuple[str, ...] = ("blocks",)
    text: TextLayout = TextLayout()
    width: Callable[[Any], int | None] = lambda core: core.txt_in.in_features
    patch: int | None = None
    text_inputs: tuple[str, ...] = ("attention_mask",)
    moves_prompt: tuple[str, ...] = ()
    renews: str = ""
    no_phrases: str = ""
    only_skip: str = ""
    keeps_length: str = ""
    text_changes: bool = False
    hooks: bool = True
    arguments: Mapping[str, str] = field(default_factory=dict)
    single_arguments: Mapping[str, str] = field(default_factory=dict)
    returns: tuple[str, ...] = ("img",)
    text_from: str = ""
    image_from: str = ""
    attention_in: str = ""
    modulation: tuple[str, ...] = ()
    half_modulation: tuple[str, ...] = ()

    def lists(self, core) -> list[Any]:
        """A network's lists of blocks, in the order in which they run."""
        return [_blocks(core, name) for name in (self.double, self.single) if name]

    def counts(self, core) -> tuple[int, int]:
        """A network's double and single blocks."""
        return len(_blocks(core, self.double)), len(_blocks(core, self.single))

    def by_forward(self, masked: bool) -> bool:
        """Whether blocks are reached through `forward`. Args: masked, True if a text of the call has a mask."""
        return not self.hooks or (masked and bool(self.arguments))


def _flux(label: str, *models: str, modulation: tuple[str, ...] = FLUX_MODULATION) -> Family:
    return Family(
        label,
        models,
        ("comfy.ldm.flux.model.Flux",),
        "double_blocks",
        "single_blocks",
        ("double", "single"),
        text=TextLayout(prompt_last=True),  # FLUX.2-dev pads a prompt on the left to 512 tokens
        keeps_length="index_timestep_zero",  # they are not told again where the reference's tokens are
        modulation=modulation,
    )


def _hunyuan(label: str, *models: str, prompt_last: bool = False) -> Family:
    return Family(
        label,
        models,
        ("comfy.ldm.hunyuan_video.model.HunyuanVideo",),
        "double_blocks",
        "single_blocks",
        ("double", "single"),
        text=TextLayout(prompt_last=prompt_last),  # 1.5 puts an image's and ByT5's tokens before the prompt's
        width=lambda core: core.txt_in.input_embedder.in_features,
        text_inputs=("attention_mask", "txt_byt5"),
        text_changes=True,  # its token refiner is given the timestep
        modulation=FLUX_MODULATION,
    )


def _chroma(label: str, model: str, network: str) -> Family:
    return Family(label, (model,), (network,), "double_blocks", "single_blocks", ("double", "single"))


def _qwen(label: str, model: str, network: str, patch: int | None = None) -> Family:
    return Family(
        label,
        (model,),
        (network,),
        "transformer_blocks",
        sections=("joint",),
        patch=patch,
        arguments=QWEN_ARGUMENTS,
        returns=("txt", "img"),
        modulation=QWEN_MODULATION,
        half_modulation=QWEN_MODULATION[1:],
    )


def _nextdit(label: str, model: str, network: str = "NextDiT", modulation: tuple[str, ...] = ()) -> Family:
    return Family(
        label,
        (model,),
        (f"comfy.ldm.lumina.model.{network}",),
        "layers",
        sections=("main",),
        width=lambda core: core.cap_embedder[1].in_features,
        text_inputs=("attention_mask", "num_tokens", "ref_contexts"),
        moves_prompt=("ref_latents",),  # a text of each reference comes before the prompt
        hooks=False,
        arguments=NEXTDIT_ARGUMENTS,
        text_from="context_refiner",  # which runs over the padded text
        modulation=modulation,
    )


def _cross(label: str, models: tuple[str, ...], network: str, names: str, ours: str, blocks: str = "blocks", **more):
    """A family whose image reads the text by cross-attention. Args: names and ours, of the arguments of a block."""
    arguments = dict(zip((*names.split(), OPTIONS), (*ours.split(), OPTIONS), strict=True))
    return Family(
        label, models, (network,), blocks, text=TextLayout(cross=True), hooks=False, arguments=arguments, **more
    )


def _cosmos(label: str, models: tuple[str, ...], network: str, **more: Any) -> Family:
    names = "x_B_T_H_W_D emb_B_T_D crossattn_emb rope_emb_L_1_1_D adaln_lora_B_T_3D extra_per_block_pos_emb"
    return _cross(
        label,
        models,
        network,
        names,
        "img vec txt pe vec_lora extra_pe",
        width=lambda core: core.blocks[0].cross_attn.context_dim,
        patch=2,
        **more,
    )


def _wan(label: str, network: str, models: str) -> Family:
    names, ours = "x e freqs context context_img_len", f"img vec pe txt {BEFORE_TEXT}"
    network, width = f"comfy.ldm.wan.{network}", lambda core: core.text_embedding[0].in_features
    return _cross(label, tuple(models.split()), network, names, ours, width=width, text_from="text_embedding")


def _omnigen(label: str, model: str, network: str, arguments: Mapping[str, str] = OMNIGEN_ARGUMENTS, **more) -> Family:
    return Family(
        label,
        (model,),
        (network,),
        width=lambda core: core.time_caption_embed.caption_embedder[1].in_features,
        text_inputs=("attention_mask", "num_tokens"),
        hooks=False,
        arguments=arguments,
        text_from="context_refiner",
        modulation=("*layers.*norm[123]", "*_refiner.*.norm1"),
        **more,
    )


FAMILIES = (
    Family(
        "SD3, SD3.5",
        ("SD3",),
        (CORE, "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper"),
        "joint_blocks",
        sections=("joint",),
        width=lambda core: getattr(core.context_embedder, "in_features", None),
        modulation=ADALN_MODULATION,
    ),
    _flux("FLUX.1", "Flux", "FluxSchnell", "FluxInpaint"),
    _flux("FLUX.2", "Flux2", modulation=()),
    _flux("LongCat-Image", "LongCatImage"),
    _chroma("Chroma", "Chroma", "comfy.ldm.chroma.model.Chroma"),
    _chroma("Chroma Radiance", "ChromaRadiance", "comfy.ldm.chroma_radiance.model.ChromaRadiance"),
    _qwen("Qwen-Image", "QwenImage", "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel"),
    _qwen("MageFlow", "MageFlow", "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel", patch=1),
    _nextdit("Z-Image", "ZImage"),
    _nextdit("Z-Image Pixel Space", "ZImagePixelSpace", "NextDiTPixelSpace"),
    _nextdit("Lumina2", "Lumina2", modulation=ADALN_MODULATION),
    Family(
        "Krea 2",
        ("Krea2",),
        ("comfy.ldm.krea2.model.SingleStreamDiT",),
        "blocks",
        width=lambda core: core.txtlayers * core.txtdim,
        patch=2,
        hooks=False,
        arguments=KREA2_ARGUMENTS,
    ),
    Family(
        "AuraFlow",
        ("AuraFlow",),
        ("comfy.ldm.aura.mmdit.MMDiT",),
        "double_layers",
        "single_layers",
        ("double", "single"),
        text=TextLayout(prompt_last=True),  # eight register tokens come first
        width=lambda core: core.cond_seq_linear.in_features,
        modulation=("*_layers.*.modC", "*_layers.*.modX", "*_layers.*.modCX", "modF"),
    ),
    Family(
        "Lens",
        ("Lens",),
        ("comfy.ldm.lens.model.LensTransformer2DModel",),
        "transformer_blocks",
        sections=("joint",),
        patch=1,  # of a latent that holds patches already
        text=TextLayout(image_first=True),
        modulation=QWEN_MODULATION,
    ),
    Family(
        "JoyImage",
        ("JoyImage",),
        ("comfy.ldm.joyimage.model.JoyImageTransformer3DModel",),
        "double_blocks",
        sections=("double",),
        text=TextLayout(image_first=True),
        width=lambda core: core.condition_embedder.text_embedder.linear_1.in_features,
    ),
    _hunyuan("HunyuanVideo", "HunyuanVideo", "HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"),
    _hunyuan("HunyuanVideo 1.5", "HunyuanVideo15", "HunyuanVideo15_SR_Distilled", prompt_last=True),
    _hunyuan("HunyuanImage 2.1", "HunyuanImage21"),
    Family(
        "HiDream-I1",
        ("HiDream",),
        ("comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",),
        "double_stream_blocks",
        "single_stream_blocks",
        ("double", "single"),
        text=TextLayout(image_first=True),
        width=lambda core: core.caption_projection[-1].linear.in_features,
        text_inputs=("encoder_hidden_states_llama3",),
        renews="encoder_hidden_states_llama3",
        hooks=False,
        arguments=HIDREAM_ARGUMENTS,
        returns=("img", "txt"),
        image_from="x_embedder",
        modulation=ADALN_MODULATION,
    ),
    _omnigen(
        "OmniGen2",
        "Omnigen2",
        "comfy.ldm.omnigen.omnigen2.OmniGen2Transformer2DModel",
        double="layers",
        sections=("main",),
    ),
    _omnigen(
        "Boogu",
        "Boogu",
        "comfy.ldm.boogu.model.BooguTransformer2DModel",
        double="double_stream_layers",
        single="single_stream_layers",
        sections=("double", "single"),
        arguments=BOOGU_ARGUMENTS,
        single_arguments=OMNIGEN_ARGUMENTS,
        returns=("img", "txt"),
    ),
    Family(
        "Ideogram 4",
        ("Ideogram4",),
        ("comfy.ldm.ideogram4.model.Ideogram4Transformer2DModel",),
        "layers",
        width=lambda core: core.llm_cond_proj.in_features,
        patch=1,  # of a latent that holds patches already
        hooks=False,
        arguments=IDEOGRAM_ARGUMENTS,
        text_from="llm_cond_proj",
    ),
    Family(
        "ERNIE-Image",
        ("ErnieImage",),
        ("comfy.ldm.ernie.model.ErnieImageModel",),
        "layers",
        text=TextLayout(image_first=True),
        width=lambda core: getattr(core.text_proj, "in_features", core.hidden_size),
        hooks=False,
        arguments={"x": "img", "rotary_pos_emb": "pe", "temb": "vec"},
        image_from="x_embedder",
        attention_in="comfy.ldm.ernie.model",
    ),
    Family(
        "LTX-Video",
        ("LTXV",),
        ("comfy.ldm.lightricks.model.LTXVModel",),
        "transformer_blocks",
        patch=1,
        text=TextLayout(cross=True),
        width=lambda core: getattr(getattr(core.caption_projection, "linear_1", None), "in_features", None),
    ),
    Family(
        "LTX-2",
        ("LTXAV",),
        ("comfy.ldm.lightricks.av_model.LTXAVModel",),
        "transformer_blocks",
        patch=1,
        text=TextLayout(cross=True, whole_batch=True),  # its timesteps are compressed over a video's frames
        width=lambda core: None,
        only_skip="its blocks read two texts, one for video and one for sound, and change both",
    ),
    Family(
        "Mochi",
        ("GenmoMochi",),
        ("comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint",),
        "blocks",
        width=lambda core: core.t5_yproj.in_features,
        only_skip="a vector pooled from all tokens of its prompt modulates every block, whatever happens to the tokens",
    ),
    _cosmos(
        "Anima",
        ("Anima",),
        "comfy.ldm.anima.model.Anima",
        text_inputs=("t5xxl_ids", "t5xxl_weights"),
        no_phrases="its adapter gives the blocks T5's tokens of a prompt, while the conditioning holds Qwen3's",
    ),
    _cosmos("Cosmos-Predict2", ("CosmosT2IPredict2", "CosmosI2VPredict2"), "comfy.ldm.cosmos.predict2.MiniTrainDIT"),
    _cross(
        "Kandinsky 5",
        ("Kandinsky5Image", "Kandinsky5"),
        "comfy.ldm.kandinsky5.model.Kandinsky5",
        "visual_embed text_embed time_embed freqs",
        "img txt vec pe",
        "visual_transformer_blocks",
        sections=("visual",),
        width=lambda core: core.text_embeddings.in_layer.in_features,
        text_changes=True,  # its text blocks are given the timestep
        modulation=("*.*_modulation", "out_layer.modulation"),
    ),
    *(_wan(label, *row) for label, row in WAN_NETWORKS.items()),
    *(Family(**row) for row in MORE_ROWS),
)
# Those of which this ComfyUI has a class: the newest families came after the oldest release that the pack supports.
SUPPORTED = ", ".join(
    family.label for family in FAMILIES if any(hasattr(comfy.supported_models, kind) for kind in family.models)
)


def network_of(base) -> Any:
    """The network of ComfyUI's model, without torch.compile around it."""
    return getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)


def family_of(base) -> Family | None:
    """The family of ComfyUI's model; None if it is in no row."""
    kind, network = kind_of(base), _name(network_of(base))
    return next((family for family in FAMILIES if kind in family.models and network in family.networks), None)


def why_refused(base) -> str:
    """Why a model is in no row, in words, with the names of its classes."""
    kind, network = kind_of(base), _name(network_of(base))
    if kind in REFUSED:
        return f"{kind} is not supported: {REFUSED[kind]}"
    known = any(kind in family.models for family in FAMILIES)
    if known:
        return f"{kind} is supported, but another node replaced its network by {network}"
    return f"{kind} (network {network}) is not known"


def block_counts(base) -> tuple[int, int] | None:
    """How many double and single blocks ComfyUI's model has; None for a model that is in no row."""
    family = family_of(base)
    return None if family is None else family.counts(network_of(base))


def sections_of(base) -> Sections:
    """The kinds of blocks of ComfyUI's model, (name, count) in order; () for a model that is in no row."""
    family = family_of(base)
    if family is None:
        return ()
    return tuple(zip(family.sections, map(len, family.lists(network_of(base))), strict=True))


def _blocks(core, name: str) -> Any:
    """A network's list of blocks by name; () for none. Another node may have put one module in its place."""
    found = getattr(core, name, ()) if name else ()
    return found if hasattr(found, "__len__") else (found,)


def kind_of(base) -> str:
    """The class of ComfyUI's model; for another pack's class, the one of ComfyUI that it derives from.

    ComfyUI's own classes derive from each other too: a new one is not what its parent is.
    """
    kinds = type(base.model_config).__mro__
    return next((kind for kind in kinds if kind.__module__ == "comfy.supported_models"), kinds[0]).__name__


def _name(network: Any) -> str:
    return CORE if isinstance(network, MMDiT) else f"{type(network).__module__}.{type(network).__qualname__}"
