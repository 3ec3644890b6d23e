"""What must hold of block controls on any model, without a look at how they are carried out.

Each oracle runs the nodes' controls on a tiny model and next to them something plain: another prompt, an identity in a
block's place, attention written out with a dense mask. It gives back the largest difference, in standard deviations of
the latent; 0 is right.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from tests.nodes.families.tiny import FAMILIES, Tiny, build, randn

SIGMAS = (1.0, 0.6, 0.0)
MODES = ("residual", "attention", "value")
EXACT, ROUNDING = 0.0, 2e-5  # a split batch is computed with other kernels


@dataclass
class Bench:
    """A tiny model with the pack's modules.

    Fields: of, a module of the pack's nodes by name; tiny; model; prompt, as `build` gives it; latent; cfg; batch.
    """

    of: Callable[[str], Any]
    tiny: Tiny
    model: Any
    prompt: Callable[..., list]
    latent: Tensor
    cfg: float = 3.0
    batch: int = 1

    @classmethod
    def make(cls, of: Callable[[str], Any], name: str, cfg: float = 3.0, batch: int = 1, lora: bool = False) -> Bench:
        """The bench of a family. Args: lora, True to patch all matrices of the model as a LoRA loader does."""
        model, prompt, latent = build(FAMILIES[name])
        if lora:
            model = model.clone()
            state = model.model.diffusion_model.state_dict()
            shapes = {name: tensor.shape for name, tensor in state.items() if tensor.ndim == 2}
            changes = {
                f"diffusion_model.{name}": ("diff", (0.01 * randn(tuple(shape), 4),)) for name, shape in shapes.items()
            }
            assert model.add_patches(changes, 1.0)
        return cls(of, FAMILIES[name], model, prompt, latent, cfg, min(batch, FAMILIES[name].most_rows))

    @property
    def family(self):
        """The row of the table."""
        return self.of("comfyui.families").family_of(self.model.model)

    @property
    def blocks(self) -> list[torch.nn.Module]:
        """All blocks of the network, in order."""
        return [block for blocks in self.family.lists(self.model.model.diffusion_model) for block in blocks]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all blocks."""
        return tuple(range(len(self.blocks)))

    def control(self, action: str, blocks: Sequence[int], *given: Any, **named: Any):
        """A block control, as `BlockControl` takes it."""
        return self.of("comfyui.patching").BlockControl(action, tuple(blocks), *given, **named)

    def attach(self, model, controls: Sequence[Any]):
        """A clone of the MODEL with controls."""
        return self.of("comfyui.patching").attach(model, controls)

    def run(
        self, *controls: Any, positive=None, negative=None, model=None, cfg: float | None = None, sigmas=SIGMAS
    ) -> Tensor:
        """The latent after two steps of Euler. Args: positive and negative, CONDITIONINGs; those of seed 1 and 3."""
        sampling = self.of("comfyui.run.sampling")
        attached = self.attach(model or self.model, controls) if controls else model or self.model
        empty = torch.zeros(self.batch, *self.latent.shape[1:])
        return sampling.sample_flow(
            attached,
            positive or self.prompt(1),
            negative or self.prompt(3),
            sampling.prepare({"samples": empty}, 5),
            seed=5,
            cfg=self.cfg if cfg is None else cfg,
            solver="euler",
            sigmas=torch.tensor(sigmas, dtype=torch.float64),
            callback=lambda *_: None,
        )

    def with_map(self, prompt: list, words: Sequence[str] = ("red", "circle"), first: int = 1) -> list:
        """A prompt with a token map of some words, one token each, from a position on, in each of its texts."""
        contexts, (context, options) = self.of("comfyui.text.contexts"), prompt[0]
        kinds: Any = inspect.getmodule(contexts.TokenMap)
        found = kinds.words_of([(word, True, first + index) for index, word in enumerate(words)])
        for text in (context, *(options[name] for name in contexts.MORE_TEXTS if name in options)):
            made = kinds.TokenMap((kinds.EncoderTokens("T5", False, 0, text.shape[-2], found),))
            contexts.note_map(text, made)
        return [[context, options]]

    @property
    def phrase(self) -> list[int]:
        """Where the blocks' text has the two words of `with_map`."""
        own = self.tiny.text_tokens(7) - 7 if self.tiny.prompt_last else 0
        return [start + index for start in (own, *self.tiny.more_texts) for index in (1, 2)]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two latents, in standard deviations."""
    return float((ours - theirs).abs().max() / theirs.std())


# Each oracle: (bench) -> difference. The first line of its docstring is what the table says.
Oracle = Callable[[Bench], float]


def hidden_text(bench: Bench) -> float:
    """Text hidden in all blocks: two prompts give one image."""
    hide = bench.control("disable", bench.numbers, scope="block")
    return difference(bench.run(hide), bench.run(hide, positive=bench.prompt(2)))


def disabled_text(bench: Bench) -> float:
    """Text disabled from block 0 on: two prompts give one image."""
    disable = bench.control("disable", (0,))
    return difference(bench.run(disable), bench.run(disable, positive=bench.prompt(2)))


def other_prompt(bench: Bench, length: int = 7) -> float:
    """A second prompt in all blocks is that prompt."""
    other = bench.prompt(2, length)
    ((context, options),) = other
    prompt = bench.control("prompt", bench.numbers, context=context, context_inputs=options)
    return difference(bench.run(prompt), bench.run(positive=other))


def longer_prompt(bench: Bench) -> float:
    """A second prompt of another length in all blocks is that prompt."""
    return other_prompt(bench, 40)


def skipped_block(bench: Bench) -> float:
    """A skipped block is the identity in its place, for each block."""
    found = []
    for number, block in enumerate(bench.blocks):
        ours = bench.run(bench.control("skip", (number,)))
        with identity_in_place(bench, block):
            found.append(difference(ours, bench.run()))
    return max(found)


def nothing(bench: Bench) -> float:
    """A boost of 1, and controls outside their window, change nothing, bit for bit."""
    plain, late = bench.run(), bench.of("comfyui.patching").BlockControl.__dataclass_fields__["window"].default
    window = type(late)(0.0, 0.0)
    idle = [bench.control("boost", bench.numbers, 1.0, mode) for mode in MODES]
    idle += [bench.control(action, bench.numbers, window=window) for action in ("skip", "disable")]
    if bench.tiny.only_skip:
        idle = [control for control in idle if control.action == "skip"]
    return float(not torch.equal(bench.run(*idle), plain))


def all_positions(bench: Bench) -> float:
    """A boost over all positions of the prompt is the boost of the whole text, where the text holds nothing else."""
    length = bench.prompt(1)[0][0].shape[1]
    if bench.tiny.text_tokens(length) != length or bench.family.no_phrases:
        return 0.0
    prompt = bench.with_map(bench.prompt(1), [f"w{index}" for index in range(length)], first=0)
    phrases = (" ".join(f"w{index}" for index in range(length)),)
    found = []
    for mode in MODES:
        if bench.family.text.cross and mode == "attention":
            continue  # all text alike cancels: TextBoost refuses it
        whole = bench.control("boost", bench.numbers, 1.7, mode, branch="positive")
        spelled = bench.control("boost", bench.numbers, 1.7, mode, phrases=phrases)
        found.append(difference(bench.run(spelled, positive=prompt), bench.run(whole)))
    return max(found)


def strength_0(bench: Bench) -> float:
    """Strength 0: residual is disable onward, attention is disable in the block."""
    some = bench.numbers[1:]
    pairs = [
        (bench.control("boost", some, 0.0, "residual"), bench.control("disable", some)),
        (bench.control("boost", some, 0.0, "attention"), bench.control("disable", some, scope="block")),
    ]
    return max(difference(bench.run(a), bench.run(b)) for a, b in pairs)


def weighed_attention(
    bench: Bench, modes: Sequence[str] = MODES[1:], texts: Sequence[tuple[str, ...]] = ((), ("red circle",))
) -> float:
    """Attention and value boosts, whole and of a phrase, are attention written out with dense factors."""
    prompt, found = bench.with_map(bench.prompt(1)), []
    text = bench.tiny.text_tokens(7)
    for mode, strength in product(modes, (2.5, 0.0)):
        for phrases in texts:
            if phrases and bench.family.no_phrases:
                continue  # TextBoost refuses it
            if bench.family.text.cross and mode == "attention" and not phrases and strength:
                continue  # all text alike cancels: TextBoost refuses it
            factors = torch.ones(text)
            factors[bench.phrase] = strength
            factors = factors if phrases else torch.full((text,), strength)
            control = bench.control("boost", bench.numbers, strength, mode, phrases=phrases)
            # A phrase is of the positive prompt, so without guidance there is nothing else.
            cfg = 1.0 if phrases else bench.cfg
            ours = bench.run(control, positive=prompt, cfg=cfg)
            with overridden(bench, dense(bench, mode, factors)) as theirs:
                found.append(difference(ours, bench.run(positive=prompt, model=theirs, cfg=cfg)))
    return max(found)


def branches(bench: Bench) -> float:
    """Controls of one branch leave the other prediction as it is; together they are what each gives alone."""
    skip = {"negative": bench.control("skip", (0,), branch="negative")}
    skip["positive"] = bench.control("boost", (0, bench.numbers[-1]), 2.0, "value", branch="positive")
    if bench.tiny.only_skip:
        skip["positive"] = bench.control("skip", (bench.numbers[-1],), branch="positive")
    found = [difference(bench.run(skip["negative"], cfg=1.0), bench.run(cfg=1.0))]
    step = (1.0, 0.6)  # one step is linear in the predictions
    cond = bench.run(skip["positive"], cfg=1.0, sigmas=step)
    plain = bench.control("skip", (0,), branch="positive")
    uncond = bench.run(plain, positive=bench.prompt(3), cfg=1.0, sigmas=step)
    both = bench.run(*skip.values(), cfg=3.0, sigmas=step)
    found.append(difference(both, uncond + 3.0 * (cond - uncond)))
    return max(found)


ORACLES: dict[str, Oracle] = {
    "block": hidden_text,
    "onward": disabled_text,
    "prompt": other_prompt,
    "longer": longer_prompt,
    "skip": skipped_block,
    "nothing": nothing,
    "positions": all_positions,
    "strength 0": strength_0,
    "weights": weighed_attention,
    "branches": branches,
}
TEXT_FIRST = ("QwenImageTransformerBlock", "LensTransformerBlock", "MMDiTBlock", "JointBlock")  # in what they return
SKIP_ALONE = ("skip", "nothing", "branches")  # what holds of a family whose blocks can only be skipped

# Parameters of blocks: the image, or the one stream of a block, and the text.
IMG = ("cx", "hidden_states", "img", "x", "img_hidden_states", "image_tokens", "x_B_T_H_W_D", "visual_embed")
TXT = (
    "encoder_hidden_states",
    "txt",
    "context",
    "y",
    "c",
    "instruct_hidden_states",
    "text_tokens",
    "crossattn_emb",
    "text_embed",
)


@contextmanager
def identity_in_place(bench: Bench, block: torch.nn.Module) -> Iterator[None]:
    """A block that gives back what it is given."""
    signature = inspect.signature(type(block).forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if type(block).__name__ == "JointBlock" and args:  # ComfyUI's SD3: (text, image)
            return args[:2]
        given = signature.bind(block, *args, **kwargs).arguments
        img, txt = (next((given[name] for name in names if given.get(name) is not None), None) for names in (IMG, TXT))
        if bench.family.text.cross or txt is None:
            return img
        return (txt, img) if type(block).__name__ in TEXT_FIRST else (img, txt)

    block.forward = forward
    try:
        yield
    finally:
        del block.forward


@contextmanager
def overridden(bench: Bench, override: Callable[..., Tensor]) -> Iterator[Any]:
    """A clone of the MODEL with another attention: as other packs put it there, or in code that takes no options."""
    clone = bench.model.clone()
    if not bench.family.attention_in:
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        yield clone
        return
    code: Any = importlib.import_module(bench.family.attention_in)
    before = code.optimized_attention
    code.optimized_attention = partial(override, before)
    try:
        yield clone
    finally:
        code.optimized_attention = before


def dense(bench: Bench, mode: str, factors: Tensor) -> Callable[..., Tensor]:
    """Attention written out in which image queries weigh text keys, or read text values, by factors [text]."""
    text, image = len(factors), bench.tiny.image_tokens
    cross, first = bench.family.text.cross, bench.tiny.image_first

    def attention(func, q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
        tokens = (q.shape[-2 if skip_reshape else 1], k.shape[-2 if skip_reshape else 1])
        if tokens != ((image, text) if cross else (text + image, text + image)):
            given = {"skip_reshape": skip_reshape, "skip_output_reshape": skip_output_reshape, **kwargs}
            return func(q, k, v, heads, mask=mask, **given)
        if not skip_reshape:
            q, k, v = (x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2) for x in (q, k, v))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # grouped-query attention
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            logits = logits + mask.reshape(mask.shape[0], *(1,) * (4 - mask.ndim), *mask.shape[1:])
        queries = torch.zeros(q.shape[-2], 1, dtype=torch.bool)
        keys = torch.ones(k.shape[-2])
        span = slice(image, image + text) if first else slice(0, text)
        keys[span] = factors
        is_image = torch.ones_like(queries)
        if not cross:
            is_image[span] = False
        if mode == "attention":
            scaled = torch.where(is_image, keys.log()[None, :], torch.zeros(1))
            weights = torch.softmax(logits + scaled, dim=-1).nan_to_num(0.0)
            out = weights @ v
        else:
            weights = torch.softmax(logits, dim=-1)
            out = torch.where(is_image, weights @ (v * keys[:, None]), weights @ v)
        return out if skip_output_reshape else out.transpose(1, 2).flatten(2)

    return attention
