"""Write a trained run as one safetensors file in Stability's single-file layout: `python -m training.export`.

The metadata for loaders (strings, JSON if structured):
    mmdit.config              fields of MMDiTConfig
    mmdit.text                {"clip_l": {...}, "clip_g": {...}, "t5xxl": {...}}: differences from ComfyUI's configs
    mmdit.shift               the shift of the sigmas in training
    mmdit.latent_rgb_factors  {"factors": 16 x 3, "bias": 3}: latent -> RGB in [-1, 1], for previews
    mmdit.license  mmdit.training  mmdit.evaluation
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from torch import Tensor

from attributes.world import sample_images

from .checkpoints import read_tensors, write_tensors
from .decoder import projection_for
from .text import CONFIGS
from .tokens import Tokenizer
from .train import SmallModel, load_small_model
from .vae import FACTOR, VAE_SCALE, VAE_SHIFT, encode, encoder_state

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "models" / "mmdit-small.safetensors"


def rgb_factors(projection: Tensor, bias: Tensor) -> dict[str, list]:
    """Fit the map from a latent pixel to the mean colour of its patch, in [-1, 1], by least squares."""
    _, drawn = sample_images(random.Random("previews"), 256, 128, 128)
    images = torch.from_numpy(drawn)
    latent = encode(images, projection, bias).permute(0, 2, 3, 1).reshape(-1, 16)
    grid = images.unflatten(1, (-1, FACTOR)).unflatten(3, (-1, FACTOR)).mean((2, 4)).reshape(-1, 3) * 2 - 1
    inputs = torch.cat((latent, torch.ones(len(latent), 1)), dim=1)
    solution = torch.linalg.lstsq(inputs, grid).solution
    return {"factors": solution[:16].tolist(), "bias": solution[16].tolist()}


def text_state(small_model: SmallModel) -> dict[str, Tensor]:
    """The text encoders' tensors under ComfyUI's names, with embedding tables of the tokenizers' full size."""
    text, out = small_model.text, {}
    for name, encoder in (("clip_l", text.clip_l), ("clip_g", text.clip_g), ("t5xxl", text.t5xxl)):
        for key, tensor in encoder.state_dict().items():
            if key.endswith("token_embedding.weight"):
                tensor = text.clip_vocabulary.expand(tensor)
            elif key == "shared.weight":
                tensor = text.t5_vocabulary.expand(tensor)
            out[f"text_encoders.{name}.transformer.{key}"] = tensor
    return out


def single_file(
    small_model: SmallModel, projection: Tensor, bias: Tensor, decoder: dict[str, Tensor]
) -> dict[str, Tensor]:
    """All tensors of the exported file, in fp16; the two scalars of the VAE in fp32."""
    out = {f"model.diffusion_model.{key}": tensor for key, tensor in small_model.model.state_dict().items()}
    out |= text_state(small_model)
    out |= {f"first_stage_model.taesd_encoder.{key}": value for key, value in encoder_state(projection, bias).items()}
    out |= {f"first_stage_model.taesd_decoder.{key}": value for key, value in decoder.items()}
    out = {key: tensor.detach().half() for key, tensor in out.items()}
    out["first_stage_model.vae_scale"] = torch.tensor(VAE_SCALE)
    out["first_stage_model.vae_shift"] = torch.tensor(VAE_SHIFT)
    return out


def read_decoder(run: Path) -> tuple[dict[str, Tensor], dict]:
    """The averaged weights of the run's decoder and its record."""
    tensors, metadata = read_tensors(run / "decoder.safetensors")
    weights = {name[len("ema.") :]: value for name, value in tensors.items() if name.startswith("ema.")}
    return weights, json.loads(metadata["record"])


def export(run: Path, tokenizer: Tokenizer, target: Path, evaluation: dict | None = None) -> dict:
    """Write the file `target` from a run's last checkpoints. Returns: its training record."""
    small_model, record = load_small_model(run, tokenizer)
    projection, bias = projection_for(run, record["settings"]["seed"])
    decoder, decoder_record = read_decoder(run)
    training = {
        "steps": record["step"],
        "final_loss": sum(record["losses"][-200:]) / len(record["losses"][-200:]),
        "decoder_steps": decoder_record["step"],
        "decoder_psnr": round(decoder_record["psnr"], 2),
        "settings": record["settings"],
    }
    metadata = {
        "mmdit.config": json.dumps(record["settings"]["model"]),
        "mmdit.text": json.dumps(CONFIGS),
        "mmdit.shift": str(record["settings"]["shift"]),
        "mmdit.latent_rgb_factors": json.dumps(rgb_factors(projection, bias)),
        "mmdit.license": "Apache-2.0",
        "mmdit.training": json.dumps(training),
        "mmdit.evaluation": json.dumps(evaluation or {}),
        "modelspec.architecture": "stable-diffusion-v3-small",
        "modelspec.title": "mmdit-small",
    }
    write_tensors(target, single_file(small_model, projection, bias, decoder), metadata)
    return training


def main() -> None:
    """Export a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs" / "ship")
    parser.add_argument("--comfyui", type=Path, default=ROOT / ".host" / "ComfyUI")
    parser.add_argument("--target", type=Path, default=TARGET)
    parser.add_argument("--evaluation", type=Path, help="a JSON file of benchmarks.attributes to store with it")
    options = parser.parse_args()
    evaluation = json.loads(options.evaluation.read_text()) if options.evaluation else None
    training = export(options.run, Tokenizer(options.comfyui / "comfy"), options.target, evaluation)
    print(f"{options.target}: step {training['steps']}, {options.target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
