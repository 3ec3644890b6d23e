"""MMDiT in plain PyTorch: the model, its checkpoints, its flow. Needs torch, safetensors and numpy; no host."""

from .checkpoints.load import CheckpointError, config_from_state_dict, load_checkpoint
from .config import KNOWN_MODELS, MMDiTConfig
from .models.sd3 import MMDiT

__all__ = ["KNOWN_MODELS", "CheckpointError", "MMDiT", "MMDiTConfig", "config_from_state_dict", "load_checkpoint"]
