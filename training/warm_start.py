"""Start a run from an exported file: its VAE, text encoders and transformer are the initial weights.

The optimizer starts without state, so such a run differs from an uninterrupted one; `train` resumes from a run's own
checkpoints exactly.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from mmdit_core import load_checkpoint
from mmdit_core.checkpoints.header import read_header
from mmdit_core.checkpoints.load import load_component

from .checkpoints import write_tensors
from .text import ENCODERS, TextEncoders
from .tokens import Tokenizer, Vocabulary
from .vae import CHANNELS, PATCH
from .vocabulary import vocabularies

START = "start.safetensors"


def warm_start(file: Path, run: Path, tokenizer: Tokenizer) -> None:
    """Write the parts of a file of `training.export` into a new run's folder.

    Raises: FileExistsError if the run has a checkpoint; CheckpointError for other files.
    """
    if (run / "state.safetensors").exists():
        raise FileExistsError(f"{run} holds a run already: choose another folder with --run, or omit --start")
    run.mkdir(parents=True, exist_ok=True)
    record = json.loads(read_header(file).metadata["mmdit.training"])
    encoder = _part(file, "first_stage_model.taesd_encoder.")
    write_tensors(run / "projection.safetensors", {"projection": linear_part(encoder), "bias": encoder["14.bias"]})
    decoder = _part(file, "first_stage_model.taesd_decoder.")
    both = {f"{kind}.{name}": tensor.clone() for kind in ("model", "ema") for name, tensor in decoder.items()}
    about = {"step": record["decoder_steps"], "psnr": record["decoder_psnr"]}
    write_tensors(run / "decoder.safetensors", both, {"record": json.dumps(about)})
    write_tensors(run / "text_encoders.safetensors", _text(file, *vocabularies(run, tokenizer)))
    write_tensors(run / START, load_checkpoint(file, dtype=torch.float32)[1])


def _part(file: Path, prefix: str) -> dict[str, Tensor]:
    return dict(load_component(file, prefix, dtype=torch.float32))


def linear_part(encoder: dict[str, Tensor]) -> Tensor:
    """Inverse of `vae.encoder_state`: the projection [16, 192]."""
    weights = torch.empty(CHANNELS, 2, 2, 2, 2, 2, 2, 3)  # [z, row bits 4 2 1, column bits 4 2 1, colour]
    for row in range(2):
        for column in range(2):
            part = encoder["10.weight"][:CHANNELS, :48, row + 1, column + 1]
            weights[:, row, :, :, column] = part.reshape(CHANNELS, 2, 2, 2, 2, 3).permute(0, 1, 3, 2, 4, 5)
    return weights.reshape(CHANNELS, PATCH)


def _text(file: Path, clip: Vocabulary, t5: Vocabulary) -> dict[str, Tensor]:
    """The encoders' tensors under the names of `TextEncoders`, with embeddings of the known tokens only."""
    text = TextEncoders(clip, t5, json.loads(read_header(file).metadata["mmdit.text"]))
    for name in ENCODERS:
        state = _part(file, f"text_encoders.{name}.transformer.")
        for key, tensor in state.items():
            if key.endswith("token_embedding.weight"):
                state[key] = clip.compact(tensor)
            elif key == "shared.weight":
                state[key] = t5.compact(tensor)
        getattr(text, name).load_state_dict(state)
    return dict(text.state_dict())
