"""MMDiT in plain PyTorch: the model, its checkpoints, its flow. Needs torch, safetensors and numpy; no host."""

from .config import KNOWN_MODELS, MMDiTConfig
from .model import MMDiT

__all__ = ["KNOWN_MODELS", "MMDiT", "MMDiTConfig"]
